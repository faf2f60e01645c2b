"""What several commands take or do alike: options, composing a config, messages on stderr.

Commands import what they need when they run: `vistrain --help` declares them all, and must be quick.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vistrain import processes
from vistrain.errors import ConfigError


def output_path(text: str) -> Path:
    """What `--output` names.

    Raises:
        ConfigError: it is empty, such as a variable of a script that is not set.
    """
    if not text.strip():
        raise ConfigError("--output", "is empty", "name one; the current folder is .")
    return Path(text)


def config_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--config`."""
    parser.add_argument(
        "-c", "--config", metavar="FILE", action="append", default=[],
        help="a YAML file, or a shipped config as vistrain:det/name; several are merged, later ones win",
    )  # fmt: skip


def allow_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--allow`."""
    parser.add_argument(
        "--allow", metavar="PACKAGE", action="append", default=[],
        help="let the config name classes of this package, and so run its code",
    )  # fmt: skip


def network_options(parser: argparse.ArgumentParser, checkpoint: str, several: bool = False) -> None:
    """Declare `--ckpt`, `--config` and `--weights`: a trained network, or an official one.

    Args:
        parser: of the command.
        checkpoint: what the command says of `--ckpt`.
        several: whether more than one may be given.
    """
    parser.add_argument("--ckpt", metavar="FILE", type=Path, nargs="+" if several else None, help=checkpoint)
    config_option(parser)
    parser.add_argument("--weights", metavar="FILE", help="an official checkpoint, for the network of --config")


def composed(
    arguments: argparse.Namespace, files: Sequence[str | Path] = (), found: list[ConfigError] | None = None
) -> dict[str, Any]:
    """The config of a command; a run is called after its last file unless the config says otherwise.

    Args:
        arguments: of the command, with `config`, `overrides` and perhaps `weights`.
        files: in place of those of `--config`.
        found: see `config.compose`.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    from vistrain.config import compose

    files = files or arguments.config
    if not files:
        raise ConfigError(
            arguments.command, "which config?", "give --config FILE; `vistrain list configs` shows those shipped"
        )
    weights = vars(arguments).get("weights")
    return compose(
        files,
        arguments.overrides,
        start={"run": {"name": Path(str(files[-1]).rpartition(":")[2]).stem}},
        changes={"run": {"weights": weights}} if weights else {},
        found=found,
    )


def start_logging(doing: str = "") -> None:
    """Messages of ours on stderr, from one process of a run.

    Args:
        doing: what the command is about to do, which is said at once where torch is not imported yet: on a slow machine
            that takes a minute, and nothing else is printed before.
    """
    logger = logging.getLogger("vistrain")
    logger.setLevel(logging.INFO if processes.is_first() else logging.ERROR)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    if doing and "torch" not in sys.modules:
        logger.info("%s: loading libraries, data and network ...", doing)


def import_run() -> ModuleType:
    """`vistrain.run`, with Lightning's chatter off: importing Lightning sets its level, so it is changed after that."""
    from vistrain import run

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return run
