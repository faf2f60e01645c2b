"""`vistrain import-data`: sets that other tools export, as files in COCO's format, or as label files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import output_path, start_logging
from vistrain.errors import ConfigError

SUMMARY = "turn what other tools export into COCO's format, or outlines into masks"
USAGE = "LAYOUT SOURCE --output FOLDER [OPTIONS]"
CHANGES = False
EXAMPLES = """\
layouts:
  voc          Pascal VOC's XML files, with lists, in folders, or beside the pictures (VOC, LabelImg, Roboflow, CVAT)
  yolo         text files of shares, by a data.yaml, an obj.data, or in a folder (Ultralytics, Roboflow, CVAT, Darknet)
  labelme      LabelMe's JSON files
  cvat         CVAT for images 1.1
  labelstudio  Label Studio's JSON, also JSON-MIN
  coco         COCO's JSON as tools export it (Roboflow, CVAT, Label Studio)

examples:
  vistrain import-data voc VOCdevkit/VOC2012 --output data/mine
  vistrain import-data yolo set/data.yaml --output data/mine
  vistrain import-data yolo set/ --names cat dog --output data/mine
  vistrain import-data labelstudio export.json --images photos/ --output data/mine
  vistrain import-data labelme photos/ --masks --output data/mine

Unpack archives first; pictures stay where they are.
What cannot be used is left out, counted, and listed in FOLDER/skipped.txt.
"""

LAYOUTS = ("voc", "yolo", "labelme", "cvat", "labelstudio", "coco")
OWN = {"names": "yolo", "pixels": "yolo", "difficult": "voc", "count_from": "voc"}  # option -> the layout that has it


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("layout", metavar="LAYOUT", choices=LAYOUTS, help=f"of the export: {', '.join(LAYOUTS)}")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the export: a folder, or its file")
    parser.add_argument(
        "--output", metavar="FOLDER", type=output_path, required=True, help="for train.json, val.json, ... or masks"
    )
    parser.add_argument("--images", metavar="FOLDER", type=Path, help="the pictures, if they are not in the export")
    parser.add_argument(
        "--masks", metavar="RULE", nargs="?", const="usual", choices=("usual", "last", "smallest"),
        help="draw outlines into label files, a class for every pixel; where objects overlap, the last or the smallest "
        "one counts (`usual`, as without a word: last of labelme, cvat and labelstudio, smallest of the others)",
    )  # fmt: skip
    parser.add_argument("--splits", metavar="NAME", nargs="+", default=[], help="the splits to write (default: all)")
    parser.add_argument(
        "--val", metavar="SHARE", type=float, default=0.2,
        help="of the pictures that become val where there is no split but train (default: %(default)s; 0: none)",
    )  # fmt: skip
    parser.add_argument("--names", metavar="NAME", nargs="+", help="yolo: class names, by number from 0 on")
    parser.add_argument("--pixels", action="store_true", default=None, help="yolo: rows are pixels, not shares")
    parser.add_argument(
        "--difficult", choices=("ignore", "keep", "drop"),
        help="voc: objects marked so are ignored as crowds are (default, as VOC evaluates), kept, or dropped",
    )  # fmt: skip
    parser.add_argument(
        "--count-from", type=int, choices=(0, 1),
        help="voc: 1, pixels from 1, the last one included, or 0, edges from 0 (default: what xmin and ymin look like)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Read the export, write what is found."""
    given = {name: value for name, value in vars(arguments).items() if name in OWN and value is not None}
    for name in given:
        if OWN[name] != arguments.layout:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, f"is for {OWN[name]} alone", f"leave it out, {arguments.layout} has none")
    if not 0 <= arguments.val < 1:
        raise ConfigError("--val", f"{arguments.val} is not a share in 0..1")
    start_logging()
    from vistrain.data.importing.convert import import_export
    from vistrain.data.importing.export import Options

    chosen = Options(images=arguments.images, **{**given, "names": tuple(given.get("names", ()))})
    source, output = arguments.source.expanduser(), arguments.output.expanduser()
    more = (arguments.splits, arguments.val, arguments.masks)
    lines = import_export(arguments.layout, source, output, chosen, *more)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
