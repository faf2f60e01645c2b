"""Boxes: their two layouts, overlaps, and the logit that refinement works in."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms  # type: ignore[import-untyped]


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """`[..., 4]` (centre x, centre y, width, height) -> `[..., 4]` (x1, y1, x2, y2), any unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """`[..., 4]` (x1, y1, x2, y2) -> `[..., 4]` (centre x, centre y, width, height), any unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def box_area(boxes: Tensor) -> Tensor:
    """Area `[...]` of xyxy boxes `[..., 4]`."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def iou_and_union(a: Tensor, b: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Intersection over union of xyxy boxes, broadcast against each other.

    Args:
        a, b: `[..., 4]` boxes of broadcastable leading shapes, any unit.
        eps: added to the union before dividing (0 in DETR and Deformable-DETR, 1e-6 in detrex).

    Returns:
        IoU `[...]` in 0..1 and union area `[...]`.
    """
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = box_area(a) + box_area(b) - intersection
    return intersection / (union + eps), union


def giou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU of xyxy boxes, broadcast against each other (Rezatofighi et al., 2019, algorithm 1).

    Args:
        a, b: `[..., 4]` boxes of broadcastable leading shapes; `a[:, None], b[None]` gives all pairs.
        eps: added to both denominators, union and hull (0 in DETR and Deformable-DETR, 1e-6 in detrex).

    Returns:
        `[...]` in -1..1; NaN with `eps=0` where both boxes of a pair are one point.
    """
    iou, union = iou_and_union(a, b, eps)
    size = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = size[..., 0] * size[..., 1]
    return iou - (hull - union) / (hull + eps)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of values in 0..1, kept finite: `log(max(x, eps) / max(1 - x, eps))`.

    Args:
        x: `[...]`; values outside 0..1 are clamped to it first.
        eps: 1e-5 in Deformable-DETR, 1e-3 in DINO and all of detrex: it decides how far a box can move at the border.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def clamped_iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """As `iou_and_union`, but the union is at least `eps` instead of larger by it (OpenMMLab's convention)."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = (box_area(a) + box_area(b) - intersection).clamp(min=eps)
    return intersection / union, union


def clamped_giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """As `giou`, but union and hull are at least `eps` (OpenMMLab's convention)."""
    iou, union = clamped_iou(a, b, eps)
    size = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull = (size[..., 0] * size[..., 1]).clamp(min=eps)
    return iou - (hull - union) / hull


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each group (class, level).

    Groups are shifted apart and suppressed together, as OpenMMLab does: the shift rounds coordinates, and decides what
    lies exactly on the threshold.

    Args:
        boxes: `[N, 4]` xyxy, not all left of and above the image.
        scores: `[N]`.
        groups: `[N]` int64.
        threshold: boxes that overlap a better one by a larger IoU are dropped.

    Returns:
        `[M]` indices of what is kept, best first.
    """
    highest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()  # of no boxes, too
    shift = groups.to(boxes) * (highest + 1)
    return nms(boxes + shift[:, None], scores, threshold)
