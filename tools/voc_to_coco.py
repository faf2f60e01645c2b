"""Converts Pascal VOC annotations (one XML file per image) to COCO JSON. Images stay where they are.

    python tools/voc_to_coco.py VOCdevkit/VOC2012 --output data/voc

reads ImageSets/Main/*.txt and Annotations/*.xml and writes data/voc/train.json, val.json, ...

VOC's coordinates are pixel indices that count from 1 and include the last pixel: a box over the whole of a 500 pixel
wide image has xmin 1 and xmax 500, and becomes x 0 and width 500 (as detectron2 reads it). Sets drawn with other tools
may mean edges counted from 0 (then some xmin are 0): --edges takes xmin and xmax as they are, width is xmax - xmin.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from coco_writer import Box, ConversionError, Labelled, config_lines, image_size, run, write_coco

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("root", type=Path, help="folder that holds Annotations, JPEGImages and ImageSets/Main")
    made.add_argument("--output", type=Path, required=True, help="folder for the JSON files")
    made.add_argument(
        "--images", type=Path, help="image folder that file names are relative to (default: ROOT/JPEGImages)"
    )
    made.add_argument(
        "--splits", nargs="+", metavar="NAME", help="lists below ImageSets/Main (default: all image lists)"
    )
    made.add_argument(
        "--difficult",
        choices=("ignore", "keep", "drop"),
        default="ignore",
        help="objects marked difficult: ignored in training and evaluation as crowds are (default, as VOC evaluates), "
        "kept as ordinary ones, or dropped",
    )
    made.add_argument("--edges", action="store_true", help="coordinates are edges counted from 0, not pixels from 1")
    return made


def convert(arguments: argparse.Namespace) -> list[str]:
    """Writes the JSON files; returns what to print."""
    root: Path = arguments.root
    images: Path = arguments.images or root / "JPEGImages"
    lists = root / "ImageSets" / "Main"
    for folder in (root / "Annotations", images, lists):
        if not folder.is_dir():
            raise ConversionError(f"{folder}: no such folder; is {root} a Pascal VOC set?")
    names = arguments.splits or sorted(p.stem for p in lists.glob("*.txt") if not _is_class_list(p))
    if not names:
        raise ConversionError(f"{lists}: no image lists (*.txt)")
    splits = {name: _read_split(root, images, lists / f"{name}.txt", arguments) for name in names}
    categories = sorted({box.category for split in splits.values() for image in split for box in image.boxes})
    lines = write_coco(splits, categories, arguments.output)
    return [*lines, "", "use it with", config_lines(images, arguments.output, names)]


def _is_class_list(path: Path) -> bool:
    """Whether a list is one of VOC's per-class lists (`cat_train.txt`), which have a second column."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0].split()
    return len(first) == 2 and first[1] in ("-1", "0", "1")


def _read_split(root: Path, images: Path, listing: Path, arguments: argparse.Namespace) -> list[Labelled]:
    if not listing.is_file():
        available = ", ".join(sorted(p.stem for p in listing.parent.glob("*.txt") if not _is_class_list(p)))
        raise ConversionError(f"{listing}: no such list; there are: {available}")
    stems = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    repeated = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    if repeated:
        raise ConversionError(f"{listing}: {min(repeated)} is listed more than once")
    return [_read(root / "Annotations" / f"{stem}.xml", images, stem, arguments) for stem in stems]


def _read(path: Path, images: Path, stem: str, arguments: argparse.Namespace) -> Labelled:
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such annotation file") from None
    except ElementTree.ParseError as error:
        raise ConversionError(f"{path}: not valid XML ({error})") from None
    file = _image_file(images, stem, tree.findtext("filename") or "")
    size = image_size(file, turned=False)
    # The sizes in the XML are often absent or wrong; they decide only whether the boxes were drawn on the turned image.
    stated = (tree.findtext("size/width"), tree.findtext("size/height"))
    if size[0] != size[1] and stated == (str(size[1]), str(size[0])):
        size = image_size(file, turned=True)
    boxes = [_box(path, item, arguments) for item in tree.iter("object")]
    return Labelled(file.relative_to(images).as_posix(), size, [box for box in boxes if box is not None])


def _image_file(images: Path, stem: str, stated: str) -> Path:
    """The image of the list's entry; its suffix is the one that is there (`filename` in the XML is often stale)."""
    candidates = [images / f"{stem}{suffix}" for suffix in (Path(stated).suffix, *IMAGE_SUFFIXES) if suffix]
    for path in candidates:
        if path.is_file():
            return path
    raise ConversionError(f"{images / stem}.jpg: no such image file (nor .png, .bmp)")


def _box(path: Path, item: ElementTree.Element, arguments: argparse.Namespace) -> Box | None:
    name = (item.findtext("name") or "").strip()
    corners = []
    for key in ("xmin", "ymin", "xmax", "ymax"):
        text = item.findtext(f"bndbox/{key}")
        try:
            corners.append(float(text or ""))
        except ValueError:
            raise ConversionError(f"{path}: object {name!r} has {key} {text!r}, not a number") from None
    if not name:
        raise ConversionError(f"{path}: an object has no name")
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    if difficult and arguments.difficult == "drop":
        return None
    left, top, right, bottom = corners
    first = 0 if arguments.edges else 1
    bbox = (left - first, top - first, right - left + first, bottom - top + first)
    return Box(name, bbox, iscrowd=difficult and arguments.difficult == "ignore")


if __name__ == "__main__":
    sys.exit(run(convert, parser().parse_args()))
