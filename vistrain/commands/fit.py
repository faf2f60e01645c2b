"""`vistrain fit`: train as a config says, or continue a run."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, config_option, import_run, start_logging
from vistrain.errors import ConfigError, VistrainError

SUMMARY = "train as a config says"
USAGE = "--config FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain fit -c vistrain:det/deformable_detr_r50 trainer.devices=8
  vistrain fit -c mine.yaml data.per_device=2 optimizer.lr=1e-4      accumulates up to data.batch_size
  vistrain fit -c mine.yaml --print-config                           the composed config, nothing runs
  vistrain fit -c mine.yaml --print-config full                      with every default, labels and preprocessing
  vistrain fit -c mine.yaml run.weights=runs/first/best.ckpt         start from weights; other classes are fine
  vistrain fit --resume runs/mine                                    continue an interrupted run, exactly
  vistrain fit -c mine.yaml --resume auto                            start, or continue: for scripts that run it again
  torchrun --nnodes 4 --nproc-per-node 8 ... -m vistrain fit -c ...  several machines

KEY=VALUE changes a key of the config; the value is YAML: [1, 2], {a: 1}, null, 1e-4.

Exit codes: 0 finished; 75 told to stop (SIGTERM, SIGUSR1, SIGHUP), saved: run it again with --resume auto; 130 Ctrl-C,
saved (a second Ctrl-C ends at once); 2 something is yours to mend; 1 a bug, or a process was lost.
"""
AUTO = Path("auto")  # of --resume; a folder of that name is ./auto, or its absolute path


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument(
        "--resume", metavar="FOLDER", type=Path,
        help="continue the run in this folder; `auto`: that of the config, if it was begun, else start it",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="start from these weights (the key run.weights)")
    parser.add_argument(
        "--debug", action="store_true", help="find errors: no worker processes, all operations checked, a line per step"
    )
    parser.add_argument(
        "--print-config", choices=("composed", "full"), help="print the config and stop; `full` with all defaults"
    )
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    with processes.leaving_at_once():
        config = _config(arguments)
        if arguments.print_config:
            return _print_config(config, arguments.print_config == "full", arguments.allow)
        start_logging(f"fit {arguments.resume or config['run']['name']}")
        processes.refuse_waiting_alone((config.get("trainer") or {}).get("num_nodes", 1))  # at once
        if processes.shares_store():
            logging.getLogger("vistrain").warning(
                "torchrun: processes that are restarted may not find each other - start it with "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
            )
        run, resume = import_run(), arguments.resume
        # A launcher that starts the command again after a failure means the run that it started first.
        if resume == AUTO or (resume is None and processes.restarted()):
            from vistrain.run.folders import own_run

            resume = own_run(config)
        code: int = run.fit(config, resume=resume, debug=arguments.debug, allow=arguments.allow)
        return code


def how_to_resume(arguments: argparse.Namespace) -> str:
    """How to continue the run that was interrupted, for the end of a line."""
    try:
        run = _config(arguments)["run"]
    except VistrainError:
        return ""
    given = None if arguments.resume == AUTO else arguments.resume
    folder = given or Path(run.get("folder") or Path("runs") / run["name"])
    saved = (folder / "last.ckpt").is_file()
    return f" - continue with: vistrain fit --resume {folder}" if saved else " - before anything was saved"


def _config(arguments: argparse.Namespace) -> dict[str, Any]:
    """Composed of the files that are given, or of a resumed run's own."""
    if arguments.resume not in (None, AUTO):
        _refuse_idle_changes(arguments)
    if arguments.config or arguments.resume in (None, AUTO):
        return composed(arguments)
    own = arguments.resume / "config.yaml"
    if not own.is_file():
        raise ConfigError("--resume", f"{arguments.resume} has no config.yaml", "it must be the folder of a run")
    return composed(arguments, [own])


def _refuse_idle_changes(arguments: argparse.Namespace) -> None:
    """Refuse to write down what would not act on a run that goes on: where it is kept, and what it started from."""
    words = [*arguments.overrides, *(["run.weights="] if arguments.weights else [])]
    for key in (word.partition("=")[0] for word in words):
        if key in ("run.folder", "run.weights"):
            remedy = "start another run: without --resume, with run.weights and run.folder"
            raise ConfigError(key, f"does not act on a run that goes on ({arguments.resume})", remedy)


def _print_config(config: dict[str, Any], full: bool, allow: Sequence[str]) -> int:
    """The composed config; `full` also builds it, for all that only building can tell."""
    from vistrain.config import index, to_yaml, without_pretrained
    from vistrain.config.builder import check_plain

    if not full:
        check_plain(config)
        sys.stdout.write(to_yaml(config))
        return 0
    from vistrain import run
    from vistrain.devices import on_meta

    # On the meta device nothing is allocated, so there is nothing to load weights into.
    with on_meta():
        parts = run.build_parts(without_pretrained(config), allow)
    labels, count = parts.data.labels, sum(p.numel() for p in parts.model.parameters())
    facts = {
        "labels": {"name": labels.name, "channels": labels.num_classes, "classes": list(labels.names)},
        "preprocessing": parts.data.preprocessing.to_dict(),
        "parameters": count,
    }
    comments = "".join(f"# {line}\n" for line in to_yaml(facts).splitlines())
    sys.stdout.write(to_yaml(index.complete(config)) + "# What the data and the weights say:\n" + comments)
    return 0
