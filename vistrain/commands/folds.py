"""`vistrain folds`: cross-validation, a run for each fold, and their numbers together."""

from __future__ import annotations

import argparse
from pathlib import Path

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, config_option, import_run, start_logging

SUMMARY = "train a network for each fold of the data, and report them together"
USAGE = "--config FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain folds -c mine.yaml                      all folds, one after another; the same again goes on where it stopped
  CUDA_VISIBLE_DEVICES=1 vistrain folds -c mine.yaml --only 1 3        some of them: one process for each device
  vistrain folds --average runs/plan_3d runs/plan_2d -c mine.yaml run.folder=runs/both        their mean, by fold
  vistrain compare runs/plan_3d runs/plan_2d runs/both             names the best
  vistrain predict --ckpt runs/mine/fold_*/last.ckpt --input scans/ --output out/          the mean of all folds

Each fold is a run in fold_0, fold_1, ... of the run's folder. Its last state is measured on the cases that it has not
seen. When all are done, folds.json and the table hold the numbers of each fold and of all cases, with 95 % intervals
over the cases (bootstrap).
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument("--only", metavar="FOLD", type=int, nargs="+", help="run these folds alone")
    parser.add_argument(
        "--average", metavar="FOLDER", type=Path, nargs="+",
        help="train nothing: measure the mean of the networks of these folders of folds",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="see `vistrain fit`")
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, report."""
    with processes.leaving_at_once():
        config = composed(arguments)
        start_logging()
        import_run()
        from rich.console import Console

        from vistrain.run.folds import average, cross_validate

        if arguments.average is not None:
            found = average(config, arguments.average, arguments.allow)
        else:
            found = cross_validate(config, arguments.only, arguments.debug, arguments.allow)
        if processes.is_first():
            Console(markup=False, width=max(Console().width, 120)).print(found)
    return 0
