"""ATSS: Bridging the Gap Between Anchor-based and Anchor-free Detection (Zhang et al. 2020, arXiv 1912.02424).

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (dense_heads/atss_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detection.anchors import BoxDeltas, anchor_grid
from vistrain.detection.dense_detector import DenseDetector, DenseHead, Scale, by_anchor, sigmoid_focal
from vistrain.detection.retinanet import run, start_like_retinanet
from vistrain.layers.boxes import clamped_giou
from vistrain.layers.conv import ConvModule
from vistrain.losses import average_over_processes
from vistrain.matching.overlap import ATSSAssigner
from vistrain.necks import FPN
from vistrain.structures import Factory, LabelSpace

SIDE = (8.0,)  # of the one anchor of a cell, strides
SQUARE = (1.0,)


class ATSSHead(DenseHead):
    """One square anchor in each cell; classes, boxes, and how central an object lies.

    Args:
        channels, strides, num_classes: see `DenseHead`.
        embed_dim, num_convs: of the convolutions, each with a group norm.
        topk: see `ATSSAssigner`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        num_convs: int = 4,
        topk: int = 9,
    ) -> None:
        super().__init__(channels, strides, num_classes)
        self.assigner, self.deltas = ATSSAssigner(topk), BoxDeltas((0.1, 0.1, 0.2, 0.2))
        widths = [channels[0], *[embed_dim] * (num_convs - 1)]
        self.cls_convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm="gn") for c in widths)
        self.reg_convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm="gn") for c in widths)
        self.atss_cls = nn.Conv2d(embed_dim, num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(embed_dim, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(embed_dim, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in strides)
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
        anchors, counts = square_anchors(outputs, self.strides)
        loss_class, loss_bbox, loss_central, weights, positives = [], [], [], [], 0
        for own, offset, near, box, label in zip(logits, offsets, central[..., 0], boxes, labels, strict=True):
            positive, target, classes = assign(self.assigner, anchors, box, label, counts, self.num_classes)
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


class ATSS(DenseDetector):
    """ATSS, with a pyramid of strides 8 to 128.

    Args:
        nms_threshold: see `DenseDetector`.
        base: see `DenseDetector`.
    """

    default_neck = Factory(FPN, num_levels=5, extra="on_output")
    default_head = Factory(ATSSHead)
    class_layers = (r"^bbox_head\.atss_cls\.",)

    def __init__(
        self, backbone: Backbone | DenseBackbone, labels: LabelSpace, nms_threshold: float = 0.6, **base: Any
    ) -> None:
        super().__init__(backbone, labels, nms_threshold=nms_threshold, **base)


def square_anchors(outputs: Sequence[tuple[Tensor, ...]], strides: Sequence[int]) -> tuple[Tensor, list[int]]:
    """`[A, 4]` anchors of all levels, one for each cell, and how many each level has."""
    shapes = [(level[0].shape[-2], level[0].shape[-1]) for level in outputs]
    anchors = anchor_grid(shapes, strides, SIDE, SQUARE, outputs[0][0].device)
    return torch.cat(anchors), [len(x) for x in anchors]


def assign(
    assigner: ATSSAssigner, anchors: Tensor, boxes: Tensor, labels: Tensor, counts: Sequence[int], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices `[P]` of one image's positive anchors, their objects' boxes `[P, 4]`, and every anchor's class `[A]`."""
    assigned = assigner(anchors, boxes, counts)
    positive = (assigned >= 0).nonzero()[:, 0]
    classes = torch.full_like(assigned, num_classes)
    classes[positive] = labels[assigned[positive]]
    return positive, boxes[assigned[positive]], classes


def centredness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """`[P]` in 0..1: how near an anchor's centre lies to its object's (FCOS, arXiv 1904.01355, equation 3)."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = torch.stack((centre - boxes[:, :2], boxes[:, 2:] - centre))  # [2, P, 2]
    ratios = sides.amin(0) / sides.amax(0)
    return (ratios[:, 0] * ratios[:, 1]).sqrt()
