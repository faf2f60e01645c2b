"""From what a set is like to a proposal: spacing, patch, batch and network, as a config to be read and changed.

The rules are nnU-Net's in outline (Isensee et al. 2021, arXiv 1904.08128, supplementary note 2), written from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ANISOTROPIC = 3.0  # times as far apart are slices, before they are treated as slices
BUDGET = 128**3  # voxels of a patch in 3-D, two of which make a batch
SLICE_BUDGET = 512 * 512  # pixels of a slice, 12 of which make one
WIDEST = {2: 512, 3: 320}  # channels
LEAST_SIDE = 4  # voxels of the coarsest level
COVERED = 0.25  # of the median case, below which a plan at a lower resolution is added
LEAST_SHARE = 0.05  # of all voxels that a batch may show


@dataclass
class Fingerprint:
    """What a set is like.

    Attributes:
        cases: how many.
        spacing: median, mm along z, y, x.
        sides: median of the cases in voxels, cropped to the brain if that is what the config does.
        smallest, largest: sides.
        orientations: `RAS` -> cases.
        foreground: share of the voxels that have a class, 0..1.
        shares: class -> share of the voxels.
        without: class -> cases that have none of it.
        intensities: modality -> `low` and `high` (percentiles 0.5 and 99.5), `mean` and `std` of the voxels with a
            class, as measured.
    """

    cases: int = 0
    spacing: list[float] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    smallest: list[int] = field(default_factory=list)
    largest: list[int] = field(default_factory=list)
    orientations: dict[str, int] = field(default_factory=dict)
    foreground: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)
    intensities: dict[str, dict[str, float]] = field(default_factory=dict)


def plans(found: Fingerprint, spacings: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Configs to merge over that of the data, by name: `3d`, `2d` and, for large cases, `low_resolution`.

    Args:
        found: of the set.
        spacings: of each case, mm along z, y, x.
    """
    target = np.median(np.asarray(spacings, float), 0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > ANISOTROPIC * max(target[others]):
        # Slices as far apart as those of the finer cases, so that little is invented between them.
        target[worst] = max(np.percentile(np.asarray(spacings)[:, worst], 10), max(target[others]))
    sides = np.asarray(found.sides, float) * found.spacing / target
    resample = np.ptp(np.asarray(spacings, float), 0).max() > 0.01 * target.min()
    made = {"3d": _volume_plan(target, sides, resample, found), "2d": _slice_plan(target, sides, resample, found)}
    patch = made["3d"]["data"]["patch"]
    low, coarse = target.copy(), sides.copy()
    while math.prod(patch) < COVERED * float(np.prod(coarse)):
        finest = low.min()
        grown = np.where(low < 2 * finest, 1.03, 1.0)
        low, coarse = low * grown, coarse / grown
        patch = _patch(coarse, low, BUDGET)[0]
    if not np.allclose(low, target):
        made["low_resolution"] = _volume_plan(low, coarse, True, found)
    if any(max(mm) > ANISOTROPIC * min(mm) for mm in spacings):
        for plan in made.values():
            plan["data"]["augment"] = {"in_plane": True}
    return made


def _volume_plan(spacing: np.ndarray, sides: np.ndarray, resample: bool, found: Fingerprint) -> dict[str, Any]:
    patch, strides, kernels = _patch(sides, spacing, BUDGET)
    widths = [min(32 * 2**level, WIDEST[3]) for level in range(len(strides))]
    batch = _batch(2 * BUDGET, patch, sides, found.cases)
    network = {"type": "segmentation.UNet3d", "widths": widths, "strides": strides, "kernels": kernels}
    return _plan(patch, batch, spacing if resample else None, network, found)


def _slice_plan(spacing: np.ndarray, sides: np.ndarray, resample: bool, found: Fingerprint) -> dict[str, Any]:
    # Slices stand one behind the other along z, unless another axis is the coarse one: z is where slices lie here.
    flat = np.array([1.0, *sides[1:]])
    patch, strides, kernels = _patch(flat, np.array([1e6, *spacing[1:]]), SLICE_BUDGET)
    widths = [min(32 * 2**level, WIDEST[2]) for level in range(len(strides))]
    inner = {
        "type": "segmentation.UNet2d", "widths": widths,
        "strides": [step[1:] for step in strides], "kernels": [side[1:] for side in kernels],
    }  # fmt: skip
    batch = _batch(12 * SLICE_BUDGET, patch, sides, found.cases)
    return _plan(patch, batch, spacing if resample else None, {"type": "segmentation.Slices", "network": inner}, found)


def _plan(
    patch: list[int], batch: int, spacing: np.ndarray | None, network: Mapping[str, Any], found: Fingerprint
) -> dict[str, Any]:
    data: dict[str, Any] = {"patch": patch, "batch_size": batch}
    data["spacing"] = None if spacing is None else [round(float(mm), 4) for mm in spacing]
    is_ct = {name: "ct" in name.lower().split() for name in found.intensities}
    if any(is_ct.values()):
        data["intensities"] = ["window" if ct else "zscore" for ct in is_ct.values()]
        first = found.intensities[next(name for name, ct in is_ct.items() if ct)]
        data["window"] = [round(first[key], 4) for key in ("low", "high", "mean", "std")]
    return {"data": data, "model": {"network": dict(network), "window": list(patch)}}


def _patch(sides: np.ndarray, spacing: np.ndarray, budget: int) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Sides of a patch, of the shape of a median case and not larger than it, and the network that halves it.

    Returns:
        patch, and strides and kernels of each level.
    """
    wanted = np.maximum(sides, 1.0)
    if np.prod(wanted) > budget:
        free = wanted > 1
        for _ in range(64):  # an axis that becomes as short as it may be passes its share on to the others
            factor = (budget / np.prod(wanted)) ** (1 / max(1, int(free.sum())))
            if factor >= 1:
                break
            wanted = np.where(free, wanted * factor, wanted)
    patch = np.maximum(np.round(wanted), 1).astype(int)
    strides, kernels = _levels(patch, spacing)
    for _ in range(8):
        divisors = np.prod(np.asarray(strides), 0)
        rounded = np.maximum(divisors, np.ceil(patch / divisors - 0.25).astype(int) * divisors)
        again = _levels(rounded, spacing)
        if again[0] == strides:
            return [int(side) for side in rounded], *again
        patch, (strides, kernels) = rounded, again
    divisors = np.prod(np.asarray(strides), 0)
    return [int(side) for side in np.maximum(1, patch // divisors) * divisors], strides, kernels


def _levels(patch: np.ndarray, spacing: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernels of each level: an axis is halved while it is long enough and not twice as coarse as the
    finest, and convolutions reach along it once it is."""
    sides, mm = patch.astype(float), np.asarray(spacing, float).copy()
    strides: list[list[int]] = [[1, 1, 1]]
    kernels = [_kernel(mm)]
    while len(strides) < 6:
        able = sides >= 2 * LEAST_SIDE
        if not able.any():
            break
        finest = mm[able].min()
        halved = able & (mm < 2 * finest)
        strides.append([2 if half else 1 for half in halved])
        sides, mm = np.where(halved, sides / 2, sides), np.where(halved, mm * 2, mm)
        kernels.append(_kernel(mm))
    return strides, kernels


def _kernel(mm: np.ndarray) -> list[int]:
    return [3 if side < 2 * mm.min() else 1 for side in mm]


def _batch(budget: int, patch: Sequence[int], sides: np.ndarray, cases: int) -> int:
    most = LEAST_SHARE * float(np.prod(sides)) * cases / math.prod(patch)
    return int(max(2, min(budget // math.prod(patch), round(most))))


def memory_of(plan: Mapping[str, Any], channels: int) -> float:
    """GiB that a training step of a plan holds in float32 at least: what convolutions, norms and activations keep for
    the way back, weights, gradients and momentum; an estimate."""
    network = plan["model"]["network"]
    network = network.get("network", network)
    sides = np.asarray(list(plan["data"]["patch"]), float)[-len(network["strides"][0]) :]
    kept, weights, before = 0.0, 0.0, channels
    for level, (width, stride, kernel) in enumerate(
        zip(network["widths"], network["strides"], network["kernels"], strict=True)
    ):
        sides = sides / stride
        last = level == len(network["widths"]) - 1
        kept += float(np.prod(sides)) * width * (6 if last else 14)
        weights += math.prod(kernel) * width * (before + width + (0 if last else 3 * width))
        before = width
    depth = 1 if len(sides) == 3 else plan["data"]["patch"][0]
    return (4 * kept * plan["data"]["batch_size"] * depth + 12 * weights) / 2**30
