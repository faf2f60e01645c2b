"""The cores of multi-scale deformable sampling against each other: `layers.deformable.choose_core` follows the result.

    python tools/benchmark_msda.py --output runs/benchmarks

Checks that all agree to 1e-5, then measures each, in turns, forward and forward + backward, eager and compiled, for
encoders (every token is a query) and a decoder of several sizes and widths of heads. With `--threads 1` on a CPU these
are the processor's seconds, the least of all repeats, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarking import alternate, medians, write
from torch import Tensor

from vistrain.layers.deformable import choose_core, deformable_sampling

CORES = ("grid_sample", "embedding_bag", "gather")
# name: (batch, image, heads, channels per head, queries or None for one per token)
CASES: dict[str, tuple[int, tuple[int, int], int, int, int | None]] = {
    "encoder 480x640": (2, (480, 640), 8, 32, None),
    "decoder 480x640": (2, (480, 640), 8, 32, 300),
    "encoder 512x512": (1, (512, 512), 8, 32, None),
    "encoder 512x512, narrow": (1, (512, 512), 8, 16, None),
    "encoder 128x128": (8, (128, 128), 8, 32, None),
    "encoder 128x128, narrow": (8, (128, 128), 8, 16, None),
    "encoder 128x128, 8 channels": (2, (128, 128), 4, 8, None),
    "decoder 128x128, 8 channels": (2, (128, 128), 4, 8, 50),
    "encoder 64x64": (2, (64, 64), 8, 32, None),
    "encoder 480x640, 8 channels": (1, (480, 640), 8, 8, None),
}
POINTS, STRIDES = 4, (8, 16, 32, 64)


class Case:
    """Inputs of one case, and its runs.

    Args:
        batch, image, heads, depth, queries: as in `CASES`.
        device: where.
    """

    def __init__(
        self,
        batch: int,
        image: tuple[int, int],
        heads: int,
        depth: int,
        queries: int | None,
        device: torch.device,
    ) -> None:
        torch.manual_seed(0)
        self.shapes = [(-(-image[0] // s), -(-image[1] // s)) for s in STRIDES]
        tokens = sum(h * w for h, w in self.shapes)
        extents = torch.tensor([(w, h) for h, w in self.shapes])[:, None]
        points = torch.rand(batch, queries or tokens, heads, len(STRIDES), POINTS, 2) * extents * 1.1 - 0.5
        weights = torch.rand(points.shape[:-1]).flatten(3).softmax(-1).view(points.shape[:-1])
        value = torch.randn(batch, tokens, heads, depth)
        self.inputs = [x.to(device).requires_grad_() for x in (value, points, weights)]
        self.gradient = torch.randn(batch, points.shape[1], heads * depth, device=device)

    def forward(self, function: Callable[..., Tensor], core: str) -> Tensor:
        """Without gradients."""
        value, points, weights = self.inputs
        with torch.no_grad():
            return _finished(function(value, self.shapes, points, weights, core))

    def training(self, function: Callable[..., Tensor], core: str) -> Tensor:
        """Forward and backward."""
        value, points, weights = self.inputs
        for x in self.inputs:
            x.grad = None
        out = function(value, self.shapes, points, weights, core)
        out.backward(self.gradient)
        return _finished(out)


def _finished(out: Tensor) -> Tensor:
    if out.is_cuda:
        torch.cuda.synchronize()
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Checks, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled figures out")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    functions: dict[str, Callable[..., Tensor]] = {"eager": deformable_sampling}
    if not arguments.no_compile:
        functions["compiled"] = torch.compile(deformable_sampling, dynamic=False)
    milliseconds: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}
    alone = device.type == "cpu" and arguments.threads == 1
    for name in arguments.only:
        case = Case(*CASES[name], device)
        torch.compiler.reset()  # of one function only some eight forms are compiled, then it runs as it is
        expected = case.forward(deformable_sampling, "grid_sample")
        for core in CORES:
            torch.testing.assert_close(case.forward(deformable_sampling, core), expected, rtol=0, atol=1e-5)
        for mode in ("forward", "training"):
            # Compiled grid_sample and eager gather lose everywhere by far, and would take most of the time.
            kinds = [(how, core) for how in functions for core in CORES if (how, core) not in SLOW]
            runs = {
                f"{core}, {how}": lambda how=how, core=core: getattr(case, mode)(functions[how], core)  # noqa: B023
                for how, core in kinds
            }
            clock = time.process_time if alone else time.perf_counter
            times = alternate(runs, arguments.repeats, warm_up=2, clock=clock)
            seconds = {run: min(values) for run, values in times.items()} if alone else medians(times)
            milliseconds[f"{name}, {mode}"] = {run: 1000 * value for run, value in seconds.items()}
            for run, value in seconds.items():
                ratios[f"{name}, {mode}: {run}"] = seconds["grid_sample, eager"] / value
                print(f"{name + ', ' + mode:28s} {run:24s} {1000 * value:9.1f} ms")
    rule = {
        f"{channels} channels, needs_grad={grad}": choose_core(device, grad, depth=channels)
        for channels in (8, 32)
        for grad in (False, True)
    }
    print("eager rule:", rule)
    content = {
        "device": str(device),
        "milliseconds": milliseconds,
        "speed_over_eager_grid_sample": ratios,
        "rule": rule,
    }
    shown = {name: value for name, value in ratios.items() if not name.endswith("grid_sample, eager")}
    write(arguments.output, "msda", content, shown, "Deformable sampling: speed over eager grid_sample")


SLOW = {("compiled", "grid_sample"), ("eager", "gather")}

if __name__ == "__main__":
    main()
