"""Anchors: boxes on a grid that detectors start from, and the offsets that lead from them to objects.

Faster R-CNN (Ren et al. 2015, arXiv 1506.01497), section 3.1; order and centres as in OpenMMLab's detectors
(github.com/open-mmlab/mmdetection, Apache-2.0, core/anchor and core/bbox/coder).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistrain.devices import upload

Size = tuple[int, int] | Tensor  # (height, width) of an image, numbers or int64 `[2]`

MAX_RATIO = abs(math.log(16 / 1000))  # of a side to its anchor's, as a logarithm


def anchor_grid(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float],
    device: torch.device,
) -> list[Tensor]:
    """Anchors of each level, centred on the upper left corners of the cells.

    Args:
        shapes: (height, width) of the levels.
        strides: of the levels, pixels.
        scales: sides of square anchors, in strides.
        ratios: heights over widths.
        device: where to make them.

    Returns:
        per level `[H * W * A, 4]` float32 xyxy in pixels: row by row, in a cell ratio by ratio, in a ratio scale by
        scale.
    """
    found = []
    root = upload(ratios, device).sqrt()[:, None]
    scale = upload(scales, device)[None]
    for (height, width), stride in zip(shapes, strides, strict=True):
        half_width, half_height = (stride / root * scale).flatten() / 2, (stride * root * scale).flatten() / 2
        base = torch.stack((-half_width, -half_height, half_width, half_height), 1)
        x = torch.arange(width, device=device, dtype=torch.float32) * stride
        y = torch.arange(height, device=device, dtype=torch.float32) * stride
        corner = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1).repeat(1, 2)
        found.append((corner[:, None] + base).flatten(0, 1))
    return found


@dataclass(frozen=True)
class BoxDeltas:
    """Offsets of boxes from anchors: (dx, dy) in sides of the anchor, (dw, dh) logarithms of ratios.

    Attributes:
        stds: by which the four are divided.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """`[N, 4]` xyxy anchors and boxes -> `[N, 4]` offsets."""
        centre, size = _centres(anchors)
        to_centre, to_size = _centres(boxes)
        offsets = torch.cat(((to_centre - centre) / size, (to_size / size).log()), 1)
        return offsets / upload(self.stds, anchors.device, anchors.dtype)

    def decode(self, anchors: Tensor, offsets: Tensor, size: Size | None = None) -> Tensor:
        """The inverse of `encode`; sides change 62.5 times at the most.

        Args:
            anchors: `[N, 4]` xyxy, or `[N, 1, 4]`.
            offsets: `[N, 4]`, or `[N, K, 4]`.
            size: (height, width) of the image, that boxes are cut to; None leaves them.

        Returns:
            the shape of the offsets, xyxy.
        """
        offsets = offsets * upload(self.stds, offsets.device, offsets.dtype)
        centre, side = _centres(anchors)
        centre = centre + side * offsets[..., :2]
        side = side * offsets[..., 2:].clamp(-MAX_RATIO, MAX_RATIO).exp()
        boxes = torch.cat((centre - side * 0.5, centre + side * 0.5), -1)
        return boxes if size is None else clip_boxes(boxes, size)


def clip_boxes(boxes: Tensor, size: Size) -> Tensor:
    """`[..., 4]` xyxy cut at the borders of an image of (height, width)."""
    sides = size if isinstance(size, Tensor) else upload(size, boxes.device)
    return boxes.clamp(min=0).minimum(sides.flip(0).repeat(2).to(boxes))


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low
