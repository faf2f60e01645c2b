"""`vistrain predict`: run a network on images."""

from __future__ import annotations

import argparse

from vistrain.commands import task_options
from vistrain.commands.shared import allow_option, composed, network_options, output_path, start_logging
from vistrain.errors import ConfigError

SUMMARY = "run a network on images"
USAGE = "--ckpt FILE --input IMAGES --output FOLDER [OPTIONS]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain predict --ckpt runs/mine/best.ckpt --input photo.jpg --output out/
  vistrain predict --ckpt runs/mine/best.ckpt --input 'photos/*.png' --output out/ --threshold 0.3
  vistrain predict -c CONFIG --weights official.pth --input photos/ --output out/ --tile 256
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    network_options(
        parser, "a checkpoint of a run; nothing else is needed. Several are averaged, where the task can", several=True
    )
    parser.add_argument(
        "--input", metavar="IMAGES", nargs="+", required=True, help="files, folders, or patterns in quotes"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=output_path, required=True, help="for predictions.json, pictures"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: %(default)s)")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; an accelerator if there is one by default"
    )
    allow_option(parser)
    task_options.declare(parser, "predict")


def run(arguments: argparse.Namespace) -> int:
    """Run a network on images."""
    if (arguments.ckpt is None) == (not arguments.config):
        raise ConfigError("predict", "which network?", "give --ckpt FILE, or --config FILE with --weights FILE")
    if arguments.ckpt is not None and arguments.overrides:
        raise ConfigError(arguments.overrides[0], "a checkpoint is run as it is", "changes belong to --config")
    config = composed(arguments) if arguments.config else None
    options = task_options.values(arguments, "predict")
    start_logging()
    from vistrain.run.predict import predict_paths

    single = arguments.ckpt is not None and len(arguments.ckpt) == 1
    predict_paths(
        arguments.ckpt[0] if single else arguments.ckpt,
        arguments.input,
        arguments.output,
        batch_size=arguments.batch_size,
        device=arguments.device,
        allow=arguments.allow,
        config=config,
        weights=arguments.weights,
        **options,
    )
    return 0
