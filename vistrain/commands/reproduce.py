"""`vistrain reproduce`: published weights on a config's protocol, compared with the published numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, config_option, import_run, output_path, start_logging
from vistrain.errors import ConfigError

SUMMARY = "evaluate published weights, and compare with the published numbers"
USAGE = "(--config FILE --weights FILE | --all) [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain reproduce -c vistrain:restore/dncnn_s25 --weights dncnn_25.pth data.root=/path/to/images
  vistrain reproduce -c vistrain:restore/bicubic_x4                 nothing is trained there, so no weights
  vistrain reproduce -c vistrain:det/deformable_detr_r50 --weights r50_deformable_detr-checkpoint.pth
  vistrain reproduce --all --data sets/ --data more/ --weights checkpoints/     whatever these folders suffice for
  vistrain reproduce --all --only 'restore/*' --data sets/ --weights checkpoints/ --limit 4

Prints each number of the config's `reference` beside the one measured, and writes OUTPUT/reproduction.json: date,
commit, versions, hardware, the file of weights with its checksum, all numbers, the composed config.
Exit code: 0 if all are within the tolerance, 3 if one is outside, 2 if nothing could be compared. Where the data of
some is missing, it says `1 of 3 numbers`, records `complete: false`, and the code is of those that were measured.

--all does this for every shipped config that publishes a number and whose data and weights are there, one after the
other, and prints one table: what came out, and for the rest what is missing. Data sets are recognised by their layout,
in the folders that are named or in those directly in them; weights by SHA-256, else by names and shapes. A config that
fails does not end the rest. Exit code: 3 if one number is outside, 2 if one config failed or none could be checked.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument(
        "--weights", metavar="FILE", action="append", default=[],
        help="the published checkpoint; with --all files or folders, as often as there are",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FOLDER", type=output_path, help="for the record (default: reproduced/<name>)"
    )
    parser.add_argument("--all", action="store_true", help="all shipped configs that --data and --weights suffice for")
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path, action="append", default=[],
        help="with --all: data sets, as often as there are folders",
    )  # fmt: skip
    parser.add_argument("--only", metavar="PATTERN", help="with --all: of configs, such as 'restore/*'")
    parser.add_argument("--limit", metavar="N", type=int, help="evaluate N images alone; the record says so")
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare published weights with published numbers."""
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError("--limit", f"{arguments.limit} images", "give 1 or more")
    if arguments.all:
        return _all(arguments)
    if arguments.data or arguments.only:
        given, remedy = ("--data", "write data.root=FOLDER") if arguments.data else ("--only", "write -c vistrain:NAME")
        raise ConfigError(given, "goes with --all", f"{remedy} for one config")
    if len(arguments.weights) > 1:
        raise ConfigError("--weights", "one config takes one file", "give several with --all")
    from vistrain.run.reproduce import published, reproduce

    arguments.weights = arguments.weights[0] if arguments.weights else None
    config = composed(arguments)
    published(config.get("reference"))  # refused before torch is imported
    start_logging()
    import_run()
    from rich.console import Console

    report = reproduce(
        config, weights=arguments.weights, folder=arguments.output, allow=arguments.allow, limit=arguments.limit
    )
    if processes.is_first():
        Console().print(report)
        sys.stdout.write(f"{report.verdict}; record: {report.record}\n")
    return 0 if report.passed else 3


def _all(arguments: argparse.Namespace) -> int:
    """All shipped configs that can be checked here."""
    if arguments.config:
        raise ConfigError("--config", "--all takes the shipped ones", "choose among them with --only PATTERN")
    start_logging()
    import_run()
    from rich.console import Console

    from vistrain.run import shipped
    from vistrain.run.reproduce import Report

    found = shipped.survey(arguments.data, arguments.weights, only=arguments.only or "*", overrides=arguments.overrides)
    output = arguments.output or Path("reproduced")
    outcomes = {}
    for claim, out in shipped.check_all(found, output, limit=arguments.limit, allow=arguments.allow):
        outcomes[claim.leaf] = out
        if processes.is_first() and isinstance(out, Report):
            Console().print(out)
    if processes.is_first():
        Console().print(shipped.table(found, outcomes))
        for line in shipped.advice(found):
            sys.stdout.write(f"{line}\n")
        sys.stdout.write(f"records: {output}/NAME/reproduction.json\n" if outcomes else "nothing could be checked\n")
    return shipped.exit_code(list(outcomes.values()))
