"""What ATSS and GFL share: one square anchor in each cell, two towers of convolutions, and ATSS's assignment.

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (dense_heads/atss_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detection.anchors import anchor_grid
from vistrain.detection.dense_detector import DenseDetector, DenseHead, Scale
from vistrain.devices import true_places
from vistrain.layers.conv import ConvModule
from vistrain.matching.overlap import ATSSAssigner
from vistrain.necks import FPN
from vistrain.structures import Factory, LabelSpace

SIDE = (8.0,)  # of the one anchor of a cell, strides
SQUARE = (1.0,)


class SquareAnchorHead(DenseHead):
    """Base of the two heads: `cls_convs` and `reg_convs`, and a factor for each level.

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
        self.embed_dim, self.assigner = embed_dim, ATSSAssigner(topk)
        widths = [channels[0], *[embed_dim] * (num_convs - 1)]
        self.cls_convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm="gn") for c in widths)
        self.reg_convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm="gn") for c in widths)
        self.scales = nn.ModuleList(Scale() for _ in strides)

    def anchors(self, outputs: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, list[int]]:
        """`[A, 4]` anchors of all levels, one for each cell, and how many each level has."""
        shapes = [(level[0].shape[-2], level[0].shape[-1]) for level in outputs]
        anchors = anchor_grid(shapes, self.strides, SIDE, SQUARE, outputs[0][0].device)
        return torch.cat(anchors), [len(x) for x in anchors]

    def assign(
        self, anchors: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor], counts: Sequence[int]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each image the indices `[P]` of positive anchors, their objects' boxes `[P, 4]`, and every anchor's class
        `[A]`. Waits for the device once, for how many are positive."""
        assigned = [self.assigner(anchors, box, counts) for box in boxes]
        found = []
        positives = true_places([own >= 0 for own in assigned])
        for own, positive, box, label in zip(assigned, positives, boxes, labels, strict=True):
            classes = torch.full_like(own, self.num_classes)
            classes[positive] = label[own[positive]]
            found.append((positive, box[own[positive]], classes))
        return found


class SquareAnchorDetector(DenseDetector):
    """Base of the two detectors: a pyramid of strides 8 to 128.

    Args:
        nms_threshold: see `DenseDetector`.
        base: see `DenseDetector`.
    """

    default_neck = Factory(FPN, num_levels=5, extra="on_output")

    def __init__(
        self, backbone: Backbone | DenseBackbone, labels: LabelSpace, nms_threshold: float = 0.6, **base: Any
    ) -> None:
        super().__init__(backbone, labels, nms_threshold=nms_threshold, **base)
