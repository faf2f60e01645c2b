"""Images in overlapping tiles: bounded memory, and no seams where the tiles meet."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from vistrain.layers.tiling import starts, warn_of_many


def tiled(
    run: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int, scale: int = 1, multiple: int = 1
) -> Tensor:
    """Runs a network tile by tile and blends the results.

    Where two tiles overlap, their weights go from 0 to 1 linearly over the middle half of the overlap, so that what a
    tile computed near its own edge, without knowing what lies beyond, does not count. If a quarter of the overlap is
    as far as the network sees, the result is that of the whole image.

    Args:
        run: `[B, C, h, w]` -> `[B, C', h * scale, w * scale]`.
        images: `[B, C, H, W]`.
        tile: side of a tile, pixels of `images`.
        overlap: of neighbouring tiles, pixels of `images`.
        scale: of the network.
        multiple: tiles start at multiples of this, so that windows lie as in the whole image.

    Returns:
        `[B, C', H * scale, W * scale]`.
    """
    height, width = images.shape[-2:]
    rows, columns = (starts(side, tile, overlap, multiple) for side in (height, width))
    warn_of_many(len(rows) * len(columns), height, width)
    result = total = images.new_zeros(())
    for top, left in product(rows, columns):
        piece = images[..., top : top + tile, left : left + tile]
        restored = run(piece).float()
        if result.dim() == 0:
            result = restored.new_zeros(*restored.shape[:2], height * scale, width * scale)
            total = restored.new_zeros(height * scale, width * scale)
        weights = [
            _ramp(first, size, side, overlap, scale, restored.device)
            for first, size, side in ((top, piece.shape[-2], height), (left, piece.shape[-1], width))
        ]
        weight = weights[0][:, None] * weights[1]
        place = (slice(top * scale, (top + piece.shape[-2]) * scale), slice(left * scale, (left + tile) * scale))
        result[..., place[0], place[1]] += restored * weight
        total[place] += weight
    return result / total


def _ramp(first: int, size: int, side: int, overlap: int, scale: int, device: torch.device) -> Tensor:
    """`[size * scale]` weights of a tile along one side; 1 towards the image's own border."""
    # Positive everywhere, for the last tile may be narrower than the ramp, and its pixels must count for something
    quarter, length = overlap * scale / 4, size * scale
    place = torch.arange(length, device=device) + 0.5
    weight = torch.ones(length, device=device)
    if first > 0:
        weight = ((place - quarter) / max(2 * quarter, 1)).clamp(1e-6, 1)
    if first + size < side:
        weight = weight.minimum(((length - place - quarter) / max(2 * quarter, 1)).clamp(1e-6, 1))
    return weight
