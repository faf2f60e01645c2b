"""ATSS: Bridging the Gap Between Anchor-based and Anchor-free Detection (Zhang et al. 2020, arXiv 1912.02424).

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (dense_heads/atss_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.detection.anchors import BoxDeltas, anchor_grid
from vistrain.detection.dense_detector import by_anchor, sigmoid_focal
from vistrain.detection.retinanet import run, start_like_retinanet
from vistrain.detection.square_anchors import SIDE, SQUARE, SquareAnchorDetector, SquareAnchorHead
from vistrain.layers.boxes import clamped_giou
from vistrain.losses import average_over_processes
from vistrain.structures import Factory


class ATSSHead(SquareAnchorHead):
    """Classes, boxes, and how central an object lies.

    Args:
        channels, strides, num_classes, base: see `SquareAnchorHead`.
    """

    output_names = ("classes", "boxes", "centredness")

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, **base: Any) -> None:
        super().__init__(channels, strides, num_classes, **base)
        self.deltas = BoxDeltas((0.1, 0.1, 0.2, 0.2))
        self.atss_cls = nn.Conv2d(self.embed_dim, num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(self.embed_dim, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(self.embed_dim, 1, 3, padding=1)
        start_like_retinanet(self, self.atss_cls)

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """See `DenseHead`: classes, offsets, centredness."""
        outputs: list[tuple[Tensor, ...]] = []
        for scale, x in zip(self.scales, levels, strict=True):
            reg = run(self.reg_convs, x)
            outputs.append(
                (self.atss_cls(run(self.cls_convs, x)), scale(self.atss_reg(reg)), self.atss_centerness(reg))
            )
        return outputs

    def losses(
        self, outputs: Sequence[tuple[Tensor, ...]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_class` (focal), `loss_bbox` (GIoU, weighted by centredness) and `loss_centerness`."""
        logits, offsets, central = (
            torch.cat([by_anchor(level[i], width) for level in outputs], 1)
            for i, width in enumerate((self.num_classes, 4, 1))
        )
        anchors, counts = self.anchors(outputs)
        loss_class, loss_bbox, loss_central, weights, positives = [], [], [], [], 0
        assigned = self.assign(anchors, boxes, labels, counts)
        for own, offset, near, assignment in zip(logits, offsets, central[..., 0], assigned, strict=True):
            positive, target, classes = assignment
            loss_class.append(sigmoid_focal(own, classes, own.new_ones(len(own))))
            weight = centredness(anchors[positive], target)
            overlap = clamped_giou(self.deltas.decode(anchors[positive], offset[positive]), target)
            loss_bbox.append(((1 - overlap) * weight).sum())
            loss_central.append(F.binary_cross_entropy_with_logits(near[positive], weight, reduction="sum"))
            weights.append(weight.sum())
            positives += max(len(positive), 1)
        count = average_over_processes(positives, logits.device).to(logits.dtype).clamp(min=1)
        weight = (
            average_over_processes(torch.stack(weights).sum().detach(), logits.device).to(logits.dtype).clamp(min=1)
        )
        return {
            "loss_class": torch.stack(loss_class).sum() / count,
            "loss_bbox": 2.0 * torch.stack(loss_bbox).sum() / weight,
            "loss_centerness": torch.stack(loss_central).sum() / count,
        }

    def candidates(self, outputs: Sequence[Tensor], level: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `DenseHead`: scores are multiplied by centredness after the candidates are chosen."""
        logits, offsets, central = outputs
        return by_anchor(logits, self.num_classes).sigmoid(), by_anchor(offsets, 4), central.flatten().sigmoid()

    def boxes(
        self, offsets: Tensor, index: Tensor, shape: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Tensor:
        """See `DenseHead`."""
        anchors = anchor_grid([shape], [self.strides[level]], SIDE, SQUARE, offsets.device)[0]
        return self.deltas.decode(anchors[index], offsets, size)


class ATSS(SquareAnchorDetector):
    """ATSS.

    Args:
        base: see `SquareAnchorDetector`.
    """

    default_head = Factory(ATSSHead)
    class_layers = (r"^bbox_head\.atss_cls\.",)


def centredness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """`[P]` in 0..1: how near an anchor's centre lies to its object's (FCOS, arXiv 1904.01355, equation 3)."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = torch.stack((centre - boxes[:, :2], boxes[:, 2:] - centre))  # [2, P, 2]
    ratios = sides.amin(0) / sides.amax(0)
    return (ratios[:, 0] * ratios[:, 1]).sqrt()
