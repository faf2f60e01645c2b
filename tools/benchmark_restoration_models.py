"""HAT, RGT, DRCT and SwinIR against `spandrel`'s implementations: same weights, same images, in turns.

    pip install --target SOMEWHERE --no-deps spandrel einops     # for this benchmark only
    python tools/benchmark_restoration_models.py --spandrel SOMEWHERE --output runs/benchmarks

Checks first that both sides compute the same image, then measures inference (processor time on one thread) and the peak
memory that each side needs on top of model and image, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarking import alternate, medians, peak_mib, write
from torch import Tensor, nn

from vistrain.checkpoints import load_weights
from vistrain.restoration import DRCT, HAT, RGT, SwinIR

# Name -> our class, spandrel's module, arguments of both
SIX, EIGHT = [6] * 6, [6] * 8
MODELS: dict[str, tuple[type[nn.Module], str, dict[str, Any]]] = {
    "HAT": (
        HAT,
        "HAT.__arch.HAT",
        {"embed_dim": 180, "depths": SIX, "num_heads": SIX, "window_size": 16, "mlp_ratio": 2},
    ),
    "RGT": (
        RGT,
        "RGT.__arch.rgt",
        {"embed_dim": 180, "depth": EIGHT, "num_heads": EIGHT, "mlp_ratio": 2, "split_size": (8, 32), "c_ratio": 0.5},
    ),
    "DRCT": (
        DRCT,
        "DRCT.__arch.drct_arch",
        {"embed_dim": 180, "depths": SIX, "num_heads": SIX, "window_size": 16, "mlp_ratio": 2, "gc": 32},
    ),
    "SwinIR": (
        SwinIR,
        "SwinIR.__arch.SwinIR",
        {"embed_dim": 180, "depths": SIX, "num_heads": SIX, "window_size": 8, "mlp_ratio": 2},
    ),
}


def make_sides(name: str, groups: int | None) -> dict[str, nn.Module]:
    """Both implementations with equal weights, none of which is at a special value.

    Args:
        name: of the model.
        groups: residual groups; None for all of the published model.
    """
    ours_class, module, arguments = MODELS[name]
    arguments = {"img_size": 64, "upscale": 4, "img_range": 1.0, **arguments}
    if name != "RGT":
        arguments["upsampler"] = "pixelshuffle"
    if groups is not None:
        arguments |= {key: arguments[key][:groups] for key in ("depth", "depths", "num_heads") if key in arguments}
    theirs_class = getattr(importlib.import_module(f"spandrel.architectures.{module}"), ours_class.__name__)
    torch.manual_seed(0)
    theirs = theirs_class(**arguments).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    ours = ours_class(**arguments).eval()
    load_weights(ours, theirs.state_dict(), key_maps=ours.key_maps)
    return {"spandrel": theirs, "ours": ours}


@torch.inference_mode()
def infer(model: nn.Module, image: Tensor) -> Tensor:
    """The enlarged image."""
    return model(image)


def check_equal(sides: dict[str, nn.Module], image: Tensor) -> float:
    """Largest difference over the largest value; an AssertionError where it is not rounding."""
    theirs, ours = (infer(sides[name], image) for name in ("spandrel", "ours"))
    difference = ((theirs - ours).abs().max() / theirs.abs().max()).item()
    assert difference < 1e-5, difference
    return difference


def peak_memory(arguments: argparse.Namespace, name: str, side: str) -> float:
    """MiB that a process needs for one inference on top of model and image."""
    command = [sys.executable, __file__, "--memory-of", name, side, "--spandrel", str(arguments.spandrel)]
    command += [f"--{key}={getattr(arguments, key)}" for key in ("height", "width", "batch", "threads")]
    command += [f"--groups={arguments.groups}"] if arguments.groups else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(model: nn.Module, image: Tensor) -> float:
    """The other end of `peak_memory`."""
    infer(model, image[..., :16, :16])  # libraries load what they need
    return peak_mib(lambda: infer(model, image))


def main(argv: Sequence[str] | None = None) -> None:
    """Checks, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["HAT", "RGT"], choices=MODELS)
    parser.add_argument("--spandrel", type=Path, help="folder that spandrel was installed to, if it is elsewhere")
    parser.add_argument("--groups", type=int, help="residual groups; all by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.spandrel:
        sys.path.append(str(arguments.spandrel))
    if importlib.util.find_spec("spandrel") is None:
        parser.error(
            "spandrel is missing: pip install --target FOLDER --no-deps spandrel einops, then --spandrel FOLDER"
        )
    torch.set_num_threads(arguments.threads)
    image = torch.rand(arguments.batch, 3, arguments.height, arguments.width)
    if arguments.memory_of:
        name, side = arguments.memory_of
        print(measure_memory(make_sides(name, arguments.groups).pop(side), image))
        return
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    content: dict[str, Any] = {"image": list(image.shape), "groups": arguments.groups, "models": {}}
    ratios: dict[str, float] = {}
    for name in arguments.models:
        sides = make_sides(name, arguments.groups)
        difference = check_equal(sides, image)
        runs = {side: lambda model=model: infer(model, image) for side, model in sides.items()}
        seconds = medians(alternate(runs, arguments.repeats, clock=clock))
        ratios[f"{name}: speed"] = seconds["spandrel"] / seconds["ours"]
        content["models"][name] = {"difference": difference, "seconds": seconds}
        del sides, runs
        if not arguments.no_memory:
            memory = {side: peak_memory(arguments, name, side) for side in ("spandrel", "ours")}
            ratios[f"{name}: peak memory, share"] = memory["ours"] / memory["spandrel"]
            content["models"][name]["peak_memory_mib"] = memory
        print(json.dumps({name: content["models"][name]}))
    for what, value in ratios.items():
        print(f"{what:35s} {value:.2f}")
    title = "Inference against spandrel, float32, CPU"
    write(arguments.output, "restoration_models", content | {"ratios": ratios}, ratios, title)


if __name__ == "__main__":
    main()
