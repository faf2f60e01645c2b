"""Maps and masks at points, bilinearly: what point-sampled losses look at (PointRend, Kirillov et al. 2020, arXiv
1912.08193; written from the paper, its code is github.com/facebookresearch/detectron2, Apache-2.0).

Points are (x, y) in 0..1 of the padded image, borders included: 0 is the left edge of the first pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.devices import upload
from vistrain.layers.packed_masks import PackedMasks


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """`[B, C, H, W]` at `[B, P, 2]` -> `[B, C, P]`; zero beyond the border."""
    grid = points[:, :, None] * 2 - 1
    return F.grid_sample(maps, grid.to(maps.dtype), align_corners=False)[..., 0]


def sample_masks(
    masks: Tensor | PackedMasks, points: Tensor, extent: tuple[int, int], index: Tensor | None = None
) -> Tensor:
    """Binary masks at points; they are neither padded, unpacked nor turned into floating point.

    Args:
        masks: `[N, H, W]` bool or uint8, of the image without its padding; or packed.
        points: `[M, P, 2]`, or `[1, P, 2]` the same for all.
        extent: (height, width) of the padded image that the points refer to.
        index: `[M]` int64, which masks; None: all, M = N. (Selecting them first would copy them.)

    Returns:
        `[M, P]` float in 0..1, in the type of the points.
    """
    count, height, width = masks.shape
    place = points * upload((extent[1], extent[0]), points.device, points.dtype) - 0.5
    low = place.floor()
    fraction = place - low
    shares = ((1 - fraction[..., 0], fraction[..., 0]), (1 - fraction[..., 1], fraction[..., 1]))
    index = torch.arange(count, device=masks.device) if index is None else index
    total = points.new_zeros((len(index), points.shape[1]))
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0].long() + dx, low[..., 1].long() + dy
            weight = shares[0][dx] * shares[1][dy]
            if isinstance(masks, PackedMasks):
                total = total + masks.at(index, y, x) * weight
                continue
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            cell = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
            found = masks.flatten()[index[:, None] * (height * width) + cell]
            total = total + found.to(total.dtype) * (weight * inside)
    return total
