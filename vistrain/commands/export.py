"""`vistrain export`: a part of a checkpoint under the names that other programs know."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import import_run, start_logging

SUMMARY = "write a part of a checkpoint under others' names"
USAGE = "--ckpt FILE --output FILE [OPTIONS]"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain export --ckpt runs/mae/best.ckpt --part backbone --as timm --output mae.pth

The file is a state dict, for timm.create_model(NAME, checkpoint_path=FILE) and for model.backbone.pretrained=FILE; what
is printed says which NAME and arguments.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--ckpt", metavar="FILE", type=Path, required=True, help="a checkpoint of a run")
    parser.add_argument("--output", metavar="FILE", type=Path, required=True, help="the file to write")
    parser.add_argument("--part", metavar="PART", default="backbone", help="backbone (the default)")
    parser.add_argument("--as", metavar="NAMES", dest="naming", default="timm", help="timm (the default)")


def run(arguments: argparse.Namespace) -> int:
    """Write."""
    start_logging()
    import_run()
    from vistrain.run.exported_parts import export

    told = export(arguments.ckpt, arguments.output, arguments.part, arguments.naming)
    sys.stdout.write(f"{told}\n")
    return 0
