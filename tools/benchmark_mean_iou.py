"""Counting for mean IoU: our confusion matrix against the three histograms of mmsegmentation 0.11, at equal counts.

    python tools/benchmark_mean_iou.py --output runs/benchmark_mean_iou

Both take turns in this process on one thread, on class maps of 1024x2048 as an evaluation has them: the truth uint8,
the prediction int64, whose conversion is counted in. CPU time is measured; printed is the median of repeats; written
are benchmark_mean_iou.json and benchmark_mean_iou.png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from benchmarking import alternate, medians, write
from torch import Tensor

from vistrain.metrics.mean_iou import confusion


def histograms(truth: Tensor, prediction: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Intersection, prediction and truth of each class, `[K]` float32 each: mmsegmentation's way."""
    kept = truth != 255
    found, labels = prediction[kept], truth[kept]
    right = found[found == labels]
    return tuple(torch.histc(x.float(), bins=classes, min=0, max=classes - 1) for x in (right, found, labels))


def case(classes: int, size: tuple[int, int] = (1024, 2048)) -> tuple[Tensor, Tensor]:
    """A truth of blocks, with an ignored border, and a prediction of which 80 % is right."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, classes, (size[0] // 32, size[1] // 32)).astype(np.uint8)
    truth = blocks.repeat(32, 0).repeat(32, 1)
    wrong = draw.random(size) < 0.2
    prediction = np.where(wrong, draw.integers(0, classes, size), truth).astype(np.int64)
    truth[:50] = 255
    return torch.from_numpy(truth), torch.from_numpy(prediction)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_mean_iou"), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, classes in {"Cityscapes, 19 classes": 19, "ADE20K, 150 classes": 150}.items():
        truth, prediction = case(classes)
        matrix = confusion(truth.numpy(), prediction.to(torch.uint8).numpy(), classes)[:-1]
        theirs = histograms(truth, prediction, classes)
        for mine, other in zip((np.diag(matrix), matrix.sum(0), matrix.sum(1)), theirs, strict=True):
            if not np.array_equal(mine, other.numpy()):
                raise SystemExit("not the same counts")
        sides = {
            "vistrain": lambda t=truth, p=prediction, k=classes: confusion(t.numpy(), p.to(torch.uint8).numpy(), k),
            "histograms": lambda t=truth, p=prediction, k=classes: histograms(t, p, k),
        }
        ms = {n: 1000 * s for n, s in medians(alternate(sides, arguments.repeats, clock=time.process_time)).items()}
        rows[name] = {**{n: round(v, 2) for n, v in ms.items()}, "ratio": round(ms["histograms"] / ms["vistrain"], 1)}
        print(name, rows[name])
    bars = {name: row["ratio"] for name, row in rows.items()}
    title = "mean IoU of 1024x2048: times as fast as three histograms"
    write(arguments.output, "benchmark_mean_iou", {"milliseconds": rows}, bars, title)


if __name__ == "__main__":
    main()
