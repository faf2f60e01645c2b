"""MATLAB's bicubic resize: ours against a loop over output rows and columns, as BasicSR's is, at equal output.

    python tools/benchmark_imresize.py --output runs/benchmark_imresize

Both take turns in this process on one thread and get the same float32 image; CPU time is measured, weights of ours are
made anew in the first round alone (a training run meets the same sizes again), the loop's each time, as BasicSR does;
what is left of the ratio when the loop gets its weights for nothing is printed, too.
Printed is the median of repeats; written are benchmark_imresize.json and benchmark_imresize.png.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import median

import torch
from benchmarking import write
from torch import Tensor

from vistrain.layers.imresize import imresize, taps

Tables = list[tuple[Tensor, Tensor]]


def tables(image: Tensor, scale: float) -> Tables:
    """First inputs and weights of both sides."""
    made = (taps(math.ceil(n * scale), scale) for n in image.shape[1:])
    return [(torch.from_numpy(first), torch.from_numpy(weights).float()) for first, weights in made]


def loop(image: Tensor, sides: Tables) -> Tensor:
    """`[C, H, W]` resized by one small product for each output row, then column, and channel."""
    for axis, (first, weights) in enumerate(sides, 1):
        length, count = image.shape[axis], weights.shape[1]
        reach = max(-int(first.min()), int(first.max()) + count - length, 0)
        before = image.narrow(axis, 0, reach).flip(axis)
        after = image.narrow(axis, length - reach, reach).flip(axis)
        mirrored = torch.cat([before, image, after], axis)
        shape = list(image.shape)
        shape[axis] = len(first)
        output = torch.zeros(shape)
        for i in range(len(first)):
            part = mirrored.narrow(axis, int(first[i]) + reach, count)
            for channel in range(len(image)):
                if axis == 1:
                    output[channel, i, :] = part[channel].transpose(0, 1).mv(weights[i])
                else:
                    output[channel, :, i] = part[channel].mv(weights[i])
        image = output
    return image


def measure(image: Tensor, scale: float, repeats: int) -> dict[str, float]:
    """Milliseconds of CPU of both, and ratios; medians of rounds in turn."""
    times: dict[str, list[float]] = {"vistrain": [], "loop": [], "loop without weights": []}
    ready = tables(image, scale)
    sides = {
        "vistrain": lambda: imresize(image, scale),
        "loop": lambda: loop(image, tables(image, scale)),
        "loop without weights": lambda: loop(image, ready),
    }
    difference = (sides["vistrain"]() - sides["loop"]()).abs().max().item()
    if difference > 1e-5:
        raise SystemExit(f"not the same output: they differ by {difference}")
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) * 1000)
    ms = {name: round(median(values), 2) for name, values in times.items()}
    ratios = {
        f"ratio to {name}": round(median(b / a for a, b in zip(times["vistrain"], times[name], strict=True)), 1)
        for name in ("loop", "loop without weights")
    }
    return {**ms, **ratios, "largest difference": difference}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_imresize"), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    cases = {
        "480x480 / 4": (480, 480, 1 / 4),
        "1356x2040 / 2": (1356, 2040, 1 / 2),
        "1356x2040 / 4": (1356, 2040, 1 / 4),
    }
    cases |= {"128x128 x 4": (128, 128, 4), "481x321 x 0.7": (481, 321, 0.7)}
    results = {}
    for name, (height, width, scale) in cases.items():
        results[name] = measure(torch.rand(3, height, width, generator=draw), scale, arguments.repeats)
        print(f"{name}: {results[name]}")
    bars = {name: result["ratio to loop"] for name, result in results.items()}
    write(arguments.output, "benchmark_imresize", {"results": results}, bars, "MATLAB resize: times as fast as a loop")


if __name__ == "__main__":
    main()
