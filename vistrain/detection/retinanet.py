"""RetinaNet: Focal Loss for Dense Object Detection (Lin et al. 2017, arXiv 1708.02002).

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (dense_heads/retina_head.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistrain.detection.anchors import BoxDeltas, anchor_grid
from vistrain.detection.dense_detector import DenseDetector, DenseHead, by_anchor, sigmoid_focal
from vistrain.devices import true_places
from vistrain.layers.conv import ConvModule
from vistrain.matching.overlap import IGNORED, OverlapAssigner
from vistrain.necks import FPN
from vistrain.structures import Factory

ASSIGNER = OverlapAssigner(0.5, 0.4, 0.0)


class RetinaHead(DenseHead):
    """Nine anchors in each cell, four convolutions before each of classes and boxes.

    Args:
        channels, strides, num_classes: see `DenseHead`.
        embed_dim, num_convs: of the convolutions.
        base_scale, scales_per_octave, ratios: of the anchors; sides are `base_scale` strides and more.
        assigner: of anchors to objects.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int = 256,
        num_convs: int = 4,
        base_scale: float = 4.0,
        scales_per_octave: int = 3,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        assigner: OverlapAssigner = ASSIGNER,
    ) -> None:
        super().__init__(channels, strides, num_classes)
        self.scales = tuple(base_scale * 2 ** (i / scales_per_octave) for i in range(scales_per_octave))
        self.ratios, self.assigner, self.deltas = tuple(ratios), assigner, BoxDeltas()
        widths = [channels[0], *[embed_dim] * (num_convs - 1)]
        self.cls_convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm=None) for c in widths)
        self.reg_convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm=None) for c in widths)
        anchors = len(self.scales) * len(ratios)
        self.retina_cls = nn.Conv2d(embed_dim, anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(embed_dim, anchors * 4, 3, padding=1)
        start_like_retinanet(self, self.retina_cls)

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """See `DenseHead`: classes and offsets."""
        return [
            (self.retina_cls(run(self.cls_convs, x)), self.retina_reg(run(self.reg_convs, x))) for x in levels
        ]  # fmt: skip

    def losses(
        self, outputs: Sequence[tuple[Tensor, ...]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """`loss_class` (focal) and `loss_bbox` (L1), over the positives of the batch (at least 1 of each image)."""
        logits = torch.cat([by_anchor(x, self.num_classes) for x, _ in outputs], 1)
        offsets = torch.cat([by_anchor(x, 4) for _, x in outputs], 1)
        anchors = torch.cat(self._anchors(outputs, logits.device))
        loss_class, loss_bbox, positives = [], [], 0
        assignments = [self.assigner(anchors, box) for box in boxes]
        places = true_places([assigned >= 0 for assigned in assignments])  # waits once, for how many are positive
        given = zip(logits, offsets, boxes, labels, assignments, places, strict=True)
        for own, offset, box, label, assigned, positive in given:
            classes = torch.full_like(assigned, self.num_classes)
            classes[positive] = label[assigned[positive]]
            loss_class.append(sigmoid_focal(own, classes, (assigned != IGNORED).to(own.dtype)))
            targets = self.deltas.encode(anchors[positive], box[assigned[positive]])
            loss_bbox.append((offset[positive] - targets).abs().sum())
            positives += max(len(positive), 1)
        return {
            "loss_class": torch.stack(loss_class).sum() / positives,
            "loss_bbox": torch.stack(loss_bbox).sum() / positives,
        }

    def candidates(self, outputs: Sequence[Tensor], level: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `DenseHead`."""
        return by_anchor(outputs[0], self.num_classes).sigmoid(), by_anchor(outputs[1], 4), None

    def boxes(
        self, offsets: Tensor, index: Tensor, shape: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Tensor:
        """See `DenseHead`."""
        anchors = anchor_grid([shape], [self.strides[level]], self.scales, self.ratios, offsets.device)[0]
        return self.deltas.decode(anchors[index], offsets, size)

    def _anchors(self, outputs: Sequence[tuple[Tensor, ...]], device: torch.device) -> list[Tensor]:
        shapes = [(x[0].shape[-2], x[0].shape[-1]) for x in outputs]
        return anchor_grid(shapes, self.strides, self.scales, self.ratios, device)


class RetinaNet(DenseDetector):
    """RetinaNet, with a pyramid of strides 8 to 128 whose coarse levels come from the backbone's last map.

    Args:
        base: see `DenseDetector`.
    """

    default_neck = Factory(FPN, num_levels=5, extra="on_input")
    default_head = Factory(RetinaHead)
    class_layers = (r"^bbox_head\.retina_cls\.",)


def run(convs: nn.ModuleList, x: Tensor) -> Tensor:
    """`[B, C, H, W]` through convolutions one after the other."""
    for conv in convs:
        x = conv(x)
    return x


def start_like_retinanet(head: nn.Module, classes: nn.Conv2d) -> None:
    """Small weights, and class scores of probability 0.01 (RetinaNet, section 4.1)."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if classes.bias is not None:
        nn.init.constant_(classes.bias, -math.log(99))
