"""`vistrain test`: evaluate a checkpoint of ours, or a config's network with official weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, import_run, network_options, start_logging
from vistrain.errors import ConfigError

SUMMARY = "evaluate a checkpoint"
USAGE = "--ckpt FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain test --ckpt runs/mine/best.ckpt
  vistrain test --ckpt runs/mine/best.ckpt data.root=other/ data.eval_batch_size=8
  vistrain test -c vistrain:det/deformable_detr_r50 --weights r50_deformable_detr-checkpoint.pth
  vistrain test --ckpt runs/mine/best.ckpt --analysis runs/mine/analysis          what goes wrong, with pictures
  vistrain test --ckpt runs/mine/best.ckpt --exported mine.onnx data.eval_batch_size=1
  vistrain test --ckpt runs/mine/best.ckpt task.tta.flip=true 'task.tta.scales=[0.8, 1, 1.2]'
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    network_options(parser, "a checkpoint of a run; it carries its config")
    parser.add_argument(
        "--analysis", metavar="FOLDER", type=Path,
        help="write there what goes wrong, and how often, with curves and the worst images; for tasks that analyse it",
    )  # fmt: skip
    parser.add_argument(
        "--exported", metavar="FILE", type=Path,
        help="an .onnx file of the network, which onnxruntime runs in its place; `vistrain export` writes it",
    )  # fmt: skip
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate."""
    if arguments.ckpt is None and not arguments.config:
        raise ConfigError("test", "nothing to evaluate", "give --ckpt FILE, or --config FILE with --weights FILE")
    from vistrain.config import compose

    if arguments.ckpt is None:
        config: dict[str, Any] | None = composed(arguments)
        overrides: list[str] = []
    else:  # files and changes come over the checkpoint's own config, which only `run` can read
        config = compose(arguments.config) if arguments.config else None
        overrides = arguments.overrides
    start_logging(f"test {arguments.ckpt or arguments.config[-1]}")
    run = import_run()
    prepare = None
    if arguments.exported is not None:
        from vistrain.run.exported_runtime import replacing

        prepare = replacing(arguments.exported)
    with processes.leaving_at_once():
        run.test(
            config,
            checkpoint=arguments.ckpt,
            overrides=overrides,
            weights=arguments.weights,
            allow=arguments.allow,
            analysis=arguments.analysis,
            prepare=prepare,
        )
    return 0
