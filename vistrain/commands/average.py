"""`vistrain average`: one checkpoint of several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import import_run, output_path, start_logging

SUMMARY = "average the weights of several checkpoints of one network"
USAGE = "FILE [FILE ...] -o FILE"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain average runs/seed_1/last.ckpt runs/seed_2/last.ckpt -o soup.ckpt
  vistrain test --ckpt soup.ckpt

Networks that began from the same weights can be averaged; those that began from different random ones cannot, and the
test says so. Of one checkpoint, a copy is written without what only a run needs. Running statistics of batch norms are
averaged as the weights are.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("checkpoints", metavar="FILE", type=Path, nargs="+", help="checkpoints that `fit` wrote")
    parser.add_argument("-o", "--output", metavar="FILE", type=output_path, required=True, help="the file to write")


def run(arguments: argparse.Namespace) -> int:
    """Average and save."""
    start_logging()
    import_run()
    from vistrain.run.averaging import average_checkpoints

    count = average_checkpoints(arguments.checkpoints, arguments.output)
    sys.stdout.write(f"{arguments.output}: {count} tensors, mean of {len(arguments.checkpoints)} checkpoint(s)\n")
    return 0
