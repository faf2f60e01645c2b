"""HD95 of a volume of BraTS's size: ours against MedPy's and MONAI's, at equal values.

    python -m pip install medpy monai
    python tools/benchmark_hd95.py --output runs/benchmark_hd95

All take turns in this process on one thread, on two ragged balls in 240 x 240 x 155 voxels, with and without a single
false positive far away. CPU time is measured; printed is the median of repeats; written are benchmark_hd95.json and
benchmark_hd95.png. MedPy takes one percentile of both directions' distances, MONAI the greater of both percentiles:
each is compared with the definition of ours that it shares.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from benchmarking import alternate, medians, write
from scipy.ndimage import gaussian_filter

from vistrain.metrics.surfaces import bounding_box, voxel_distances

SIZE, SPACING = (240, 240, 155), (1.0, 1.0, 1.0)


def ball(centre: tuple[int, int, int], radius: float, seed: int) -> np.ndarray:
    """A ragged ball, bool."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=SIZE), 2.0)
    grid = np.indices(SIZE, dtype=np.float32)
    apart = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
    return apart + 60 * noise < radius


def ours(truth: np.ndarray, found: np.ndarray, pooled: bool) -> float:
    """HD95 as `metrics.RegionOverlap` computes it."""
    box = bounding_box(truth | found)
    return voxel_distances(truth[box], found[box], SPACING).hausdorff(95, pooled)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_hd95"), help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    from medpy.metric.binary import hd95
    from monai.metrics import compute_hausdorff_distance

    torch.set_num_threads(1)
    truth, near = ball((120, 110, 80), 35, 0), ball((122, 112, 79), 34, 1)
    far = near.copy()
    far[5, 5, 5] = True
    rows, bars = {}, {}
    for name, found in {"tumours": near, "with one voxel far away": far}.items():
        tensors = [torch.from_numpy(x)[None, None].float() for x in (found, truth)]

        def monai(pair: list[torch.Tensor] = tensors) -> float:
            return float(compute_hausdorff_distance(*pair, include_background=True, percentile=95))

        sides = {
            "vistrain": lambda f=found: ours(truth, f, pooled=False),
            "vistrain, pooled": lambda f=found: ours(truth, f, pooled=True),
            "MedPy": lambda f=found: hd95(f, truth),
            "MONAI": monai,
        }
        values = {side: run() for side, run in sides.items()}
        for mine, theirs in (("vistrain", "MONAI"), ("vistrain, pooled", "MedPy")):
            if not np.isclose(values[mine], values[theirs], rtol=1e-5):
                raise SystemExit(f"{mine} gives {values[mine]}, {theirs} {values[theirs]}")
        seconds = medians(alternate(sides, arguments.repeats, clock=time.process_time))
        bars[f"MedPy / ours, {name}"] = seconds["MedPy"] / seconds["vistrain, pooled"]
        bars[f"MONAI / ours, {name}"] = seconds["MONAI"] / seconds["vistrain"]
        rows[name] = {"seconds": seconds, "values": values}
        print(f"{name}: " + ", ".join(f"{side} {1000 * s:.0f} ms" for side, s in seconds.items()))
    for name, ratio in bars.items():
        print(f"{name}: {ratio:.1f}x")
    write(arguments.output, "benchmark_hd95", {"cases": rows}, bars, "HD95: times as fast")


if __name__ == "__main__":
    main()
