"""`vistrain export`: a network as a file that other programs run, or a part of it under the names that they know."""

from __future__ import annotations

import argparse
import sys

from vistrain import processes
from vistrain.commands.shared import allow_option, composed, import_run, network_options, output_path, start_logging
from vistrain.errors import ConfigError

SUMMARY = "write a network as ONNX or a torch.export program, and compare it; or its backbone's weights"
USAGE = "(--ckpt FILE | --config FILE) --output FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain export --ckpt runs/mine/best.ckpt --output mine.onnx             mine.json and an example beside it
  vistrain export --ckpt runs/mine/best.ckpt --output mine.onnx --measure   its numbers beside the network's
  vistrain export --ckpt runs/mine/best.ckpt --output mine.onnx --measure --limit 100 data.root=FOLDER
  vistrain export --ckpt runs/mine/best.ckpt --output half.onnx --half --size 800 1344
  vistrain export -c vistrain:restore/dncnn_s25 --weights dncnn_25.pth --output dncnn.onnx --measure data.root=FOLDER
  vistrain export --ckpt runs/mine/best.ckpt --output mine.pt2              for torch.export.load
  vistrain export --ckpt runs/mae/best.ckpt --part backbone --as timm --output mae.pth

The last file is a state dict, for timm.create_model(NAME, checkpoint_path=FILE) and for
model.backbone.pretrained=FILE; what is printed says which NAME and arguments.
"""
OF_PARTS = ("measure", "limit", "size", "opset", "half", "sampling")  # options that mean nothing for them


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    network_options(parser, "a checkpoint of a run")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=output_path,
        required=True,
        help="the file to write: .onnx or .pt2; of a part, any",
    )
    parser.add_argument(
        "--measure", action="store_true", help="evaluate the network and the file on the test split, side by side"
    )
    parser.add_argument("--limit", metavar="N", type=int, help="images that --measure looks at; all by default")
    parser.add_argument(
        "--size", metavar="SIDE", type=int, nargs="+",
        help="height and width (or depth, height and width) of all images, pixels; free by default, if they can be",
    )  # fmt: skip
    parser.add_argument("--opset", metavar="N", type=int, help="of ONNX; torch's choice by default")
    parser.add_argument("--half", action="store_true", help="weights and arithmetic in float16")
    parser.add_argument(
        "--sampling", choices=("grid_sample", "gather"), help="of deformable attention (default: grid_sample)"
    )
    parser.add_argument("--part", metavar="PART", help="write a part's weights: backbone")
    parser.add_argument(
        "--as", metavar="NAMES", dest="naming", help="the names of a part's weights: timm (the default)"
    )
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write."""
    start_logging()
    if (arguments.ckpt is None) == (not arguments.config):
        raise ConfigError("export", "which network?", "give --ckpt FILE, or --config FILE with --weights FILE")
    given = [f"--{name}" for name in OF_PARTS if vars(arguments)[name]]
    if arguments.part is not None or arguments.naming is not None:
        given += arguments.overrides
        if given or arguments.config:
            word = given[0] if given else "config"
            raise ConfigError(word, "means nothing for a part's weights", "leave it out, or --part and --as")
        import_run()
        from vistrain.run.exported_parts import export

        told = export(arguments.ckpt, arguments.output, arguments.part or "backbone", arguments.naming or "timm")
        sys.stdout.write(f"{told}\n")
        return 0
    unused = ["--limit"] * (arguments.limit is not None) + (arguments.overrides if arguments.ckpt is not None else [])
    if unused and not arguments.measure:
        raise ConfigError(unused[0], "is for measuring", "give --measure, too")
    config = composed(arguments) if arguments.config else None
    runs = import_run()
    from vistrain.run.exported import export_network, refuse_form
    from vistrain.run.exported_runtime import refuse_missing_runtime

    if arguments.measure and arguments.output.suffix == ".onnx":
        refuse_missing_runtime()
    refuse_form(arguments.output, arguments.opset, arguments.half)
    if config is None:
        model, facts = runs.load(arguments.ckpt, arguments.allow)
    else:
        model, facts = runs.load_official(config, arguments.weights, arguments.allow)
    lines = export_network(
        model, facts, arguments.output, arguments.size, arguments.opset, half=arguments.half,
        sampling=arguments.sampling or "grid_sample", allow=arguments.allow,
    )  # fmt: skip
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if arguments.measure:
        from rich.console import Console

        from vistrain.run.exported_measured import measure, table_of

        with processes.leaving_at_once():
            numbers, times = measure(
                arguments.output, checkpoint=arguments.ckpt, config=config, weights=arguments.weights,
                limit=arguments.limit, overrides=arguments.overrides, allow=arguments.allow,
            )  # fmt: skip
        Console(markup=False).print(table_of(numbers, times, arguments.output))
    return 0
