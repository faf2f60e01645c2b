"""Which tokens lie on objects: the supervision of Focus-DETR's token selector (arXiv 2307.12612, section 3.2).

Authors' code: github.com/huawei-noah/noah-research, Focus-DETR, Apache-2.0 (foreground_supervision.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.layers.precision import at_least_float32


def foreground_targets(
    boxes: Tensor, shapes: Sequence[tuple[int, int]], strides: Sequence[int], limits: Sequence[float]
) -> Tensor:
    """Which tokens of one image are foreground.

    A token is if its centre lies strictly inside some box, and the largest of its four distances to that box's sides
    lies in the level's range: above the limit of the level before (-1 on the finest), up to its own.

    Args:
        boxes: `[M, 4]` float32 xyxy in pixels of the resized image.
        shapes: (height, width) of each of the L levels, fine to coarse.
        strides: of the levels, pixels.
        limits: greatest distance of each level, pixels, ascending; the last is usually infinite.

    Returns:
        `[N]` bool, all levels end to end, each row by row.
    """
    found, lowest = [], -1.0
    for (height, width), stride, limit in zip(shapes, strides, limits, strict=True):
        y_inside, y_far = _along(boxes[:, 1], boxes[:, 3], height, stride)
        x_inside, x_far = _along(boxes[:, 0], boxes[:, 2], width, stride)
        far = torch.maximum(y_far[:, None], x_far[None])  # [H, W, M]
        hit = (far > lowest) & (far <= limit) & y_inside[:, None] & x_inside[None]
        found.append(hit.any(-1).flatten())
        lowest = limit
    return torch.cat(found)


def foreground_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of foreground logits, over the number of foreground tokens (at least 1) of each image, averaged.

    Args:
        logits: `[B, N]`; those on padding count too, as in the official code (`foreground_supervision.py`).
        targets: `[B, N]` bool.
        alpha: weight of foreground; background weighs `1 - alpha`.
        gamma: focusing exponent.

    Returns:
        a scalar, at least float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        signed = torch.where(targets, logits, -logits)  # the logit of the truth
        weight = torch.where(targets, alpha, 1 - alpha) * (-signed).sigmoid() ** gamma
        sums = (weight * F.softplus(-signed)).sum(1)
        return (sums / targets.sum(1).clamp(min=1)).mean()


def _along(low: Tensor, high: Tensor, cells: int, stride: int) -> tuple[Tensor, Tensor]:
    """For the cells of one axis and M intervals: strictly inside? and the farther end's distance; both `[cells, M]`."""
    centre = torch.arange(cells, device=low.device, dtype=torch.float32)[:, None] * stride + stride // 2
    before, after = centre - low, high - centre
    return (before > 0) & (after > 0), torch.maximum(before, after)
