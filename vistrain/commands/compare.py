"""`vistrain compare`: runs side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import output_path, start_logging

SUMMARY = "put runs side by side: numbers, configs, curves"
USAGE = "RUN RUN [RUN ...] [--output FOLDER]"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain compare runs/first runs/second
  vistrain compare runs/softmax runs/window runs/agent --output comparison/
  vistrain compare runs/plan_3d runs/plan_2d          folds of two configs

The first run is what the others are compared with. The folders of `vistrain folds` are compared by all their cases, as
of several configs; the best is named. After `vistrain test` of both on the same samples, differences come
with 95 % intervals.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run, or of folds")
    parser.add_argument(
        "--output", metavar="FOLDER", type=output_path, default=Path("compared"),
        help="for compare.html, compare.md and curves.png (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Compare."""
    start_logging()
    from rich.console import Console

    from vistrain.run.comparison import Comparison

    found = Comparison.of(arguments.runs)
    console = Console(markup=False)
    console.print(found.table())
    if said := found.best():
        console.print(said)
    sys.stdout.write(f"{found.write(arguments.output)[0]}\n")
    return 0
