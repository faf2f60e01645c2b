"""`vistrain check`: open every file of the data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import allow_option, composed, config_option, start_logging

SUMMARY = "look at the data before a GPU is spent on it"
USAGE = "--config FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
exit code: 0 if a run can go through and uses everything, 2 if something would be refused or lost; all of it is listed
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, help="for the report and pictures (default: check/<name>)"
    )
    parser.add_argument(
        "--repair", metavar="FILE", type=Path, help="write a copy of the annotations with mended ids and sizes"
    )
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look at the data."""
    config = composed(arguments)
    start_logging()
    from rich.console import Console

    from vistrain.config import build
    from vistrain.data import DataModule

    data: DataModule = build(config.get("data"), DataModule, where="data", allow=arguments.allow)
    output = arguments.output or Path("check") / config["run"]["name"]
    findings = data.check(output)
    Console().print(findings.table())
    mended = [] if arguments.repair is None else data.repair(arguments.repair)
    sys.stdout.write("".join(f"{line}\n" for line in (*mended, f"report and pictures: {output}")))
    return 0 if findings.ok else 2
