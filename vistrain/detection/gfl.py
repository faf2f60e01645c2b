"""GFL: Generalized Focal Loss (Li et al. 2020, arXiv 2006.04388).

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (dense_heads/gfl_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.detection.anchors import clip_boxes
from vistrain.detection.dense_detector import by_anchor
from vistrain.detection.retinanet import run, start_like_retinanet
from vistrain.detection.square_anchors import SquareAnchorDetector, SquareAnchorHead
from vistrain.layers.boxes import clamped_giou, clamped_iou
from vistrain.layers.loss_weights import refuse_negative
from vistrain.losses import average_over_processes
from vistrain.structures import Factory


class Integral(nn.Module):
    """The expectation of a distribution over 0 to `reg_max` (section 3.2, equation 4).

    Args:
        reg_max: the largest distance, strides.
    """

    project: Tensor

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.register_buffer("project", torch.linspace(0, reg_max, reg_max + 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 4 * (reg_max + 1)]` logits -> `[N, 4]` distances, strides."""
        return x.unflatten(-1, (4, -1)).softmax(-1) @ self.project


class GFLHead(SquareAnchorHead):
    """Classes that are qualities, and distances to the four sides as distributions.

    Args:
        channels, strides, num_classes: see `DenseHead`.
        reg_max: the largest distance, strides.
        beta: focusing exponent of the quality focal loss.
        box_weight, distribution_weight: of the losses.
        base: see `SquareAnchorHead`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        reg_max: int = 16,
        beta: float = 2.0,
        box_weight: float = 2.0,
        distribution_weight: float = 0.25,
        **base: Any,
    ) -> None:
        super().__init__(channels, strides, num_classes, **base)
        self.reg_max, self.beta = reg_max, beta
        refuse_negative(box_weight=box_weight, distribution_weight=distribution_weight)
        self.box_weight, self.distribution_weight = box_weight, distribution_weight
        self.gfl_cls = nn.Conv2d(self.embed_dim, num_classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(self.embed_dim, 4 * (reg_max + 1), 3, padding=1)
        self.integral = Integral(reg_max)
        start_like_retinanet(self, self.gfl_cls)

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """See `DenseHead`: qualities and distributions."""
        return [
            (self.gfl_cls(run(self.cls_convs, x)), scale(self.gfl_reg(run(self.reg_convs, x))).float())
            for scale, x in zip(self.scales, levels, strict=True)
        ]

    def losses(
        self, outputs: Sequence[tuple[Tensor, ...]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_class` (quality focal), `loss_bbox` (GIoU) and `loss_dfl` (distribution focal)."""
        logits = torch.cat([by_anchor(x, self.num_classes) for x, _ in outputs], 1)
        corners = torch.cat([by_anchor(x, 4 * (self.reg_max + 1)) for _, x in outputs], 1)
        anchors, counts = self.anchors(outputs)
        stride = torch.cat([anchors.new_full((n,), s) for n, s in zip(counts, self.strides, strict=True)])[:, None]
        centre = (anchors[:, :2] + anchors[:, 2:]) / 2 / stride
        loss_class, loss_bbox, loss_dfl, weights, positives = [], [], [], [], 0
        assigned = self.assign(anchors, boxes, labels, counts)
        for own, corner, (positive, target, classes) in zip(logits, corners, assigned, strict=True):
            target, corner, middle = target / stride[positive], corner[positive], centre[positive]
            distance = self.integral(corner)
            found = torch.cat((middle - distance[:, :2], middle + distance[:, 2:]), 1)
            quality = clamped_iou(found.detach(), target)[0]
            loss_class.append(self._quality_focal(own, positive, classes, quality))
            weight = own.detach().sigmoid().amax(1)[positive]
            loss_bbox.append(((1 - clamped_giou(found, target)) * weight).sum())
            wanted = torch.cat((middle - target[:, :2], target[:, 2:] - middle), 1).clamp(0, self.reg_max - 0.1)
            loss_dfl.append((distribution_focal(corner.unflatten(1, (4, -1)), wanted) * weight[:, None]).sum() / 4)
            weights.append(weight.sum())
            positives += max(len(positive), 1)
        count = average_over_processes(positives, logits.device).to(logits.dtype).clamp(min=1)
        total = average_over_processes(torch.stack(weights).sum(), logits.device).to(logits.dtype).clamp(min=1)
        return {
            "loss_class": torch.stack(loss_class).sum() / count,
            "loss_bbox": self.box_weight * torch.stack(loss_bbox).sum() / total,
            "loss_dfl": self.distribution_weight * torch.stack(loss_dfl).sum() / total,
        }

    def _quality_focal(self, logits: Tensor, positive: Tensor, classes: Tensor, quality: Tensor) -> Tensor:
        """Sum of equation 5: towards the IoU for the object's class, towards 0 for all others."""
        target = torch.zeros_like(logits)
        target[positive, classes[positive]] = quality
        distance = (target - logits.sigmoid()).abs() ** self.beta
        return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * distance).sum()

    def candidates(self, outputs: Sequence[Tensor], level: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `DenseHead`."""
        return by_anchor(outputs[0], self.num_classes).sigmoid(), by_anchor(outputs[1], 4 * (self.reg_max + 1)), None

    def boxes(
        self, offsets: Tensor, index: Tensor, shape: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Tensor:
        """See `DenseHead`."""
        stride, width = self.strides[level], shape[1]
        centre = torch.stack((index % width, index // width), 1).to(offsets) * stride
        distance = self.integral(offsets) * stride
        return clip_boxes(torch.cat((centre - distance[:, :2], centre + distance[:, 2:]), 1), size)


class GFL(SquareAnchorDetector):
    """GFL.

    Args:
        base: see `SquareAnchorDetector`.
    """

    default_head = Factory(GFLHead)
    class_layers = (r"^bbox_head\.gfl_cls\.",)


def distribution_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to the two integers beside the target, weighted by nearness (equation 6).

    Args:
        logits: `[N, 4, reg_max + 1]`.
        targets: `[N, 4]` in 0 to below reg_max.

    Returns:
        `[N, 4]`.
    """
    low = targets.long()
    fraction = targets - low
    logs = logits.log_softmax(-1)
    near, far = (logs.gather(2, (low + i)[..., None])[..., 0] for i in (0, 1))
    return -((1 - fraction) * near + fraction * far)
