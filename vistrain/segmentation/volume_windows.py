"""Sliding windows over volumes in bounded memory: planes of logits, one after the other.

Windows stand on a grid, and their Gaussian weights (nnU-Net's, Isensee et al. 2021, arXiv 1904.08128; MIC-DKFZ/nnUNet,
Apache-2.0) are products of one factor along each axis. So they are made to add up to 1 along each axis before anything
is computed, and neither the logits of the whole volume are held nor a map of weights: only slabs that windows touch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SHARE = 8.0  # a window's side in standard deviations of its weights
HELD = 2**31  # bytes of open slabs in float32, above which they are held in float16


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one axis: evenly spread, at least so much overlap, the last one ends at the border."""
    if side <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(side - window) // step) + 1
    return [round(index * (side - window) / (count - 1)) for index in range(count)]


def window_count(sides: Sequence[int], window: Sequence[int], overlap: float) -> int:
    """How many windows a volume is cut into: the product of `window_starts` along its axes."""
    return math.prod(len(window_starts(*axis, overlap)) for axis in zip(sides, window, strict=True))


def window_weights(side: int, window: int, starts: Sequence[int]) -> Tensor:
    """`[len(starts), window]` float64: Gaussian weights of each window along one axis, 1 in all at each place."""
    place = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    bell = torch.exp(-0.5 * (place * SHARE / window) ** 2)
    total = torch.zeros(max(side, window), dtype=torch.float64)
    for start in starts:
        total[start : start + window] += bell
    return torch.stack([bell / total[start : start + window] for start in starts])


def sliding_planes(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    overlap: float,
    outputs: int,
    batch: int = 1,
) -> Iterator[Tensor]:
    """Weighted means of the logits of overlapping windows, plane by plane along the first axis.

    Args:
        network: `[B, C, *window]` -> logits `[B, K, *window]`, on any device, which may be written to.
        image: `[C, d, h, w]`; a side smaller than the window is padded with zeros on both ends.
        window: depth, height, width.
        overlap: share of a window's sides.
        outputs: K.
        batch: windows that are computed at once.

    Yields:
        d planes `[K, h, w]` float32 on the image's device.
    """
    sides = image.shape[1:]
    extra = [max(0, length - side) for side, length in zip(sides, window, strict=True)]
    before = [more // 2 for more in extra]
    padded = [side + more for side, more in zip(sides, extra, strict=True)]
    if any(extra):
        image = F.pad(
            image, [n for more, low in zip(extra[::-1], before[::-1], strict=True) for n in (low, more - low)]
        )
    starts = [window_starts(side, length, overlap) for side, length in zip(padded, window, strict=True)]
    weights = [
        window_weights(side, length, first).to(image.device, torch.float32)
        for side, length, first in zip(padded, window, starts, strict=True)
    ]
    dtype = torch.float16 if 4 * outputs * window[0] * padded[1] * padded[2] > HELD else torch.float32
    inside = (slice(None), *(slice(b, b + side) for b, side in zip(before[1:], sides[1:], strict=True)))
    wanted = range(before[0], before[0] + sides[0])
    across = [(y, x) for y in range(len(starts[1])) for x in range(len(starts[2]))]
    edges = sorted({edge for start in starts[0] for edge in (start, start + window[0])})
    slabs: dict[int, Tensor] = {}  # first plane -> logits [K, planes, H, W]
    for row, top in enumerate(starts[0]):
        covered = [(low, high) for low, high in itertools.pairwise(edges) if top <= low < top + window[0]]
        for low, high in covered:
            if low not in slabs:
                slabs[low] = image.new_zeros((outputs, high - low, *padded[1:]), dtype=dtype)
        for begin in range(0, len(across), batch):
            part = across[begin : begin + batch]
            places = [
                tuple(slice(starts[axis][i], starts[axis][i] + window[axis]) for axis, i in enumerate((row, y, x)))
                for y, x in part
            ]
            logits = network(torch.stack([image[(slice(None), *place)] for place in places])).to(image.device)
            logits = logits.float()
            for index, ((y, x), place) in enumerate(zip(part, places, strict=True)):
                values = logits[index]
                # In place: a window of many classes is hundreds of megabytes, and so would each intermediate be.
                values *= weights[0][row][:, None, None] * weights[1][y][None, :, None] * weights[2][x][None, None, :]
                for low, high in covered:
                    slabs[low][:, :, place[1], place[2]] += values[:, low - top : high - top]
            del logits, values  # before the next ones are computed
        closing = starts[0][row + 1] if row + 1 < len(starts[0]) else padded[0]
        for low in [low for low in sorted(slabs) if low < closing]:
            slab = slabs.pop(low)
            for index in range(slab.shape[1]):
                if low + index in wanted:
                    yield slab[:, index].float()[inside]
            del slab  # before the next one is opened


def enlarged_planes(planes: Iterator[Tensor], old: Sequence[int], new: Sequence[int]) -> Iterator[Tensor]:
    """Linear interpolation of a volume that is given, and wanted, plane by plane; two planes are held.

    Args:
        planes: `[K, h, w]` float32, d of them.
        old: (d, h, w).
        new: (D, H, W); cells keep their borders, as in `torch.nn.functional.interpolate` without `align_corners`.

    Yields:
        D planes `[K, H, W]`.
    """
    if tuple(old) == tuple(new):
        yield from planes
        return
    held: dict[int, Tensor] = {}
    ready = 0
    for index in range(new[0]):
        place = min(max((index + 0.5) * old[0] / new[0] - 0.5, 0.0), old[0] - 1.0)
        low = min(int(place), old[0] - 1)
        high = min(low + 1, old[0] - 1)
        while ready <= high:
            plane = next(planes)
            if ready >= low:
                held[ready] = _in_plane(plane, new[1:])
            ready += 1
        held = {at: plane for at, plane in held.items() if at >= low}
        share = place - low
        yield held[low] if share == 0 else torch.lerp(held[low], held[high], share)


def _in_plane(plane: Tensor, sides: Sequence[int]) -> Tensor:
    if tuple(plane.shape[1:]) == tuple(sides):
        return plane
    return F.interpolate(plane[None], tuple(sides), mode="bilinear", align_corners=False)[0]
