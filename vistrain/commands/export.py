"""`vistrain export`: a network as a file that other programs run, or a part of it under the names that they know."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain import processes
from vistrain.commands.shared import allow_option, import_run, start_logging
from vistrain.errors import ConfigError

SUMMARY = "write a network as ONNX or a torch.export program, and compare it; or its backbone's weights"
USAGE = "--ckpt FILE --output FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain export --ckpt runs/mine/best.ckpt --output mine.onnx             mine.json and an example beside it
  vistrain export --ckpt runs/mine/best.ckpt --output mine.onnx --measure   its numbers beside the network's
  vistrain export --ckpt runs/mine/best.ckpt --output mine.onnx --measure --limit 100 data.root=FOLDER
  vistrain export --ckpt runs/mine/best.ckpt --output half.onnx --half --size 800 1344
  vistrain export --ckpt runs/mine/best.ckpt --output mine.pt2              for torch.export.load
  vistrain export --ckpt runs/mae/best.ckpt --part backbone --as timm --output mae.pth

The last file is a state dict, for timm.create_model(NAME, checkpoint_path=FILE) and for
model.backbone.pretrained=FILE; what is printed says which NAME and arguments.
"""
OF_PARTS = ("measure", "limit", "size", "opset", "half", "sampling")  # options that mean nothing for them


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--ckpt", metavar="FILE", type=Path, required=True, help="a checkpoint of a run")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="the file to write: .onnx or .pt2; of a part, any"
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
    given = [name for name in OF_PARTS if vars(arguments)[name]]
    if arguments.part is not None or arguments.naming is not None:
        if given or arguments.overrides:
            word = f"--{given[0]}" if given else arguments.overrides[0]
            raise ConfigError(word, "means nothing for a part's weights", "leave it out, or --part and --as")
        import_run()
        from vistrain.run.exported_parts import export

        told = export(arguments.ckpt, arguments.output, arguments.part or "backbone", arguments.naming or "timm")
        sys.stdout.write(f"{told}\n")
        return 0
    if not arguments.measure and (arguments.limit is not None or arguments.overrides):
        word = "--limit" if arguments.limit is not None else arguments.overrides[0]
        raise ConfigError(word, "is for measuring", "give --measure, too")
    import_run()
    from vistrain.run.exported import export_network
    from vistrain.run.exported_runtime import refuse_missing_runtime

    if arguments.measure and arguments.output.suffix == ".onnx":
        refuse_missing_runtime()
    lines = export_network(
        arguments.ckpt, arguments.output, arguments.size, arguments.opset, half=arguments.half,
        sampling=arguments.sampling or "grid_sample", allow=arguments.allow,
    )  # fmt: skip
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if arguments.measure:
        from rich.console import Console

        from vistrain.run.exported_measured import measure

        with processes.leaving_at_once():
            Console(markup=False).print(
                measure(arguments.ckpt, arguments.output, arguments.limit, arguments.overrides, arguments.allow)
            )
    return 0
