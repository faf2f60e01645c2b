"""`vistrain lr-range`: which learning rates a network learns at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, config_option, import_run, output_path, start_logging

SUMMARY = "train with a rising learning rate, draw the loss over it, and suggest one"
USAGE = "--config FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain lr-range -c mine.yaml
  vistrain lr-range -c mine.yaml --steps 200 --lowest 1e-6 --highest 0.1 --output mine_range.png

The rate rises by the same factor at each step, the loss is smoothed. The suggestion is where it falls fastest, if it
falls: a start, not an answer. Nothing of the run is kept. Groups of parameters keep their ratios.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--lowest", type=float, default=1e-7, metavar="LR", help="first rate (default: %(default)s)")
    parser.add_argument("--highest", type=float, default=1.0, metavar="LR", help="last rate (default: %(default)s)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=output_path,
        default=Path("lr_range.png"),
        help="the picture (default: %(default)s)",
    )
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, draw, suggest."""
    with processes.leaving_at_once():
        config = composed(arguments)
        start_logging()
        import_run()
        from vistrain.run.lr_range import lr_range

        found = lr_range(
            config, arguments.steps, arguments.lowest, arguments.highest, png=arguments.output, allow=arguments.allow
        )
        sys.stdout.write(f"{arguments.output}: {len(found.rates)} steps\n")
        if found.suggestion is None:
            sys.stdout.write("no suggestion: the loss does not fall; give more steps, or a lower --lowest\n")
        else:
            sys.stdout.write(f"suggestion: optimizer.lr={found.suggestion:.2g}\n")
    return 0
