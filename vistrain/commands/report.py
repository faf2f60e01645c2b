"""`vistrain report`: the page of a run, made again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import start_logging

SUMMARY = "write the page of a run: numbers, pictures, cost, how to do it again"
USAGE = "RUN [RUN ...]"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain report runs/mine                      report.html, one file that opens offline, and report.md

`fit` and `test` write it by themselves.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run")


def run(arguments: argparse.Namespace) -> int:
    """Write the pages."""
    start_logging()
    from vistrain.run.run_page import write_report

    for folder in arguments.runs:
        sys.stdout.write(f"{write_report(folder)[0]}\n")
    return 0
