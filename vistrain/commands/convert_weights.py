"""`vistrain convert-weights`: published weights under our names, and ours under the published ones."""

from __future__ import annotations

import argparse
import sys

from vistrain.commands.shared import allow_option, import_run, output_path, start_logging

SUMMARY = "rename weights: published ones to ours, or ours to the published names"
USAGE = "FILE --as CONFIG -o FILE [--official [NAMES]] [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain convert-weights official.pth --as det/focus_detr -o ours.safetensors
  vistrain convert-weights runs/mine/best.ckpt --as det/focus_detr --official -o official.pth
  vistrain convert-weights ours.pth --as det/dino_r50_4scale --official detrex -o detrex.pth
  vistrain convert-weights hf://owner/name/model.safetensors --as seg/upernet_swin_tiny -o ours.safetensors

The suffix of -o decides the format: .safetensors, .npz (for JAX and TensorFlow), any other is a state dict of torch.
What a file has and no network needs (counters, tables that follow from sizes) is left out, and named.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("weights", metavar="FILE", help="the weights: a file, https://, hf:// or timm://")
    parser.add_argument(
        "--as", metavar="CONFIG", dest="config", required=True, help="such as det/focus_detr, or a file"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=output_path, required=True, help="the file to write")
    parser.add_argument(
        "--official", metavar="NAMES", nargs="?", const="", default=None,
        help="write published names: the first that the network knows, or the one called NAMES",
    )  # fmt: skip
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Convert."""
    start_logging()
    import_run()
    from vistrain.config import compose
    from vistrain.run.converted import convert

    name = arguments.config
    named = name if name.endswith((".yaml", ".yml")) or name.startswith("vistrain:") else f"vistrain:{name}"
    config = compose([named], arguments.overrides)
    told = convert(arguments.weights, arguments.output, config, name, arguments.official, arguments.allow)
    sys.stdout.write(f"{told}\n")
    return 0
