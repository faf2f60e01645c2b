"""`vistrain reproduce`: published weights on a config's protocol, compared with the published numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, config_option, import_run, start_logging

SUMMARY = "evaluate published weights, and compare with the published numbers"
USAGE = "--config FILE --weights FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain reproduce -c vistrain:restore/dncnn_s25 --weights dncnn_25.pth data.root=/path/to/images
  vistrain reproduce -c vistrain:restore/bicubic_x4                 nothing is trained there, so no weights
  vistrain reproduce -c vistrain:det/deformable_detr_r50 --weights r50_deformable_detr-checkpoint.pth

Prints each number of the config's `reference` beside the one measured, and writes OUTPUT/reproduction.json: date,
commit, versions, hardware, the file of weights with its checksum, all numbers, the composed config.
Exit code: 0 if all are within the tolerance, 3 if one is outside, 2 if nothing could be compared. Where the data of
some is missing, it says `1 of 3 numbers`, records `complete: false`, and the code is of those that were measured.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument("--weights", metavar="FILE", help="the published checkpoint")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="for the record (default: reproduced/<name>)")
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare published weights with published numbers."""
    from vistrain.run.reproduce import published, reproduce

    config = composed(arguments)
    published(config.get("reference"))  # refused before torch is imported
    start_logging()
    import_run()
    from rich.console import Console

    report = reproduce(config, weights=arguments.weights, folder=arguments.output, allow=arguments.allow)
    if processes.is_first():
        Console().print(report)
        sys.stdout.write(f"{report.verdict}; record: {report.record}\n")
    return 0 if report.ok else 3
