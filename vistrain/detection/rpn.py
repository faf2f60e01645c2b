"""The region proposal network (Faster R-CNN, Ren et al. 2015, arXiv 1506.01497, section 3.1) on a feature pyramid.

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (dense_heads/rpn_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.detection.anchors import BoxDeltas, Size, anchor_grid
from vistrain.detection.dense_detector import by_anchor
from vistrain.devices import true_places, upload
from vistrain.layers.boxes import nms_by_group
from vistrain.matching.overlap import OverlapAssigner, RandomSampler

ASSIGNER = OverlapAssigner(0.7, 0.3, 0.3)
SAMPLER = RandomSampler(256, 0.5)


class RPNHead(nn.Module):
    """Says of every anchor whether it holds an object, and where.

    Args:
        channels, strides: of the levels, fine to coarse.
        embed_dim: width.
        scales, ratios: of the anchors.
        border: anchors that reach farther over the image's border (pixels) are not trained; None: all are, those on the
            padding of a batch, too.
        smooth: below this offset the box loss is a parabola; 0: L1.
        assigner, sampler: what is trained.
        nms_threshold: of the proposals.
        candidates, proposals: of each level and of an image, while training and in evaluation.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int = 256,
        scales: tuple[float, ...] = (8.0,),
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        border: float | None = None,
        smooth: float = 0.0,
        assigner: OverlapAssigner = ASSIGNER,
        sampler: RandomSampler = SAMPLER,
        nms_threshold: float = 0.7,
        candidates: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (1000, 1000),
    ) -> None:
        super().__init__()
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)
        self.border, self.smooth, self.deltas = border, smooth, BoxDeltas()
        self.assigner, self.sampler = assigner, sampler
        self.nms_threshold, self.num_candidates, self.num_proposals = nms_threshold, candidates, proposals
        anchors = len(scales) * len(ratios)
        self.rpn_conv = nn.Conv2d(channels[0], embed_dim, 3, padding=1)
        self.rpn_cls = nn.Conv2d(embed_dim, anchors, 1)
        self.rpn_reg = nn.Conv2d(embed_dim, 4 * anchors, 1)
        for conv in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Levels `[B, C, H_l, W_l]` -> logits `[B, A, H_l, W_l]` and offsets `[B, 4 A, H_l, W_l]` of each."""
        hidden = [self.rpn_conv(x).relu() for x in levels]
        return [(self.rpn_cls(x).float(), self.rpn_reg(x).float()) for x in hidden]

    def losses(
        self, outputs: Sequence[tuple[Tensor, Tensor]], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> dict[str, Tensor]:
        """`loss_rpn_class` and `loss_rpn_bbox`, over all anchors that were sampled (at least 1 of each kind and image).

        Args:
            outputs: of `forward`.
            boxes: per image `[N_b, 4]` xyxy in pixels.
            sizes: (height, width) of the images, without padding.
        """
        logits = torch.cat([by_anchor(x, 1)[..., 0] for x, _ in outputs], 1)
        offsets = torch.cat([by_anchor(x, 4) for _, x in outputs], 1)
        anchors = torch.cat(self._anchors(outputs))
        assignments = [
            self.assigner(anchors, box, self._inside(anchors, size)) for box, size in zip(boxes, sizes, strict=True)
        ]
        loss_class, loss_bbox, count = [], [], 0
        given = zip(logits, offsets, boxes, assignments, self.sampler(assignments), strict=True)
        for own, offset, box, assigned, sampled in given:
            positive, negative = sampled.positive, sampled.negative
            chosen = own[torch.cat((positive, negative))]
            truth = torch.cat((torch.ones_like(own[positive]), torch.zeros_like(own[negative])))
            loss_class.append(F.binary_cross_entropy_with_logits(chosen, truth, reduction="sum"))
            target = self.deltas.encode(anchors[positive], box[assigned[positive]])
            loss_bbox.append(smooth_l1(offset[positive], target, self.smooth))
            count += max(len(positive), 1) + max(len(negative), 1)
        return {
            "loss_rpn_class": torch.stack(loss_class).sum() / count,
            "loss_rpn_bbox": torch.stack(loss_bbox).sum() / count,
        }

    @torch.no_grad()
    def propose(self, outputs: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[Size]) -> list[Tensor]:
        """Boxes `[P, 4]` of each image, best first, within it. Waits for the device once, for which boxes are empty,
        and in each image for what torchvision's suppression left over: how many these are only the device knows, and
        suppressing all images at once would shift, and so round, coordinates otherwise (see `nms_by_group`)."""
        mode = 0 if self.training else 1
        grids, candidates = self._anchors(outputs), []
        for i, size in enumerate(sizes):
            boxes, scores, levels = [], [], []
            for level, ((logits, offsets), anchors) in enumerate(zip(outputs, grids, strict=True)):
                score, order = by_anchor(logits[i], 1)[:, 0].sigmoid().sort(descending=True)
                order = order[: torch.sym_min(order.shape[0], self.num_candidates[mode])]
                boxes.append(self.deltas.decode(anchors[order], by_anchor(offsets[i], 4)[order], size))
                scores.append(score[: order.shape[0]])
                levels.append(torch.full_like(order, level))
            candidates.append((torch.cat(boxes), torch.cat(scores), torch.cat(levels)))
        there = true_places([(box[:, 2:] > box[:, :2]).all(1) for box, _, _ in candidates])
        found = []
        for tensors, index in zip(candidates, there, strict=True):
            box, score, level_of = (x[index] for x in tensors)
            kept = nms_by_group(box, score, level_of, self.nms_threshold)
            found.append(box[kept[: self.num_proposals[mode]]])
        return found

    def _anchors(self, outputs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        shapes = [(x.shape[-2], x.shape[-1]) for x, _ in outputs]
        return anchor_grid(shapes, self.strides, self.scales, self.ratios, outputs[0][0].device)

    def _inside(self, anchors: Tensor, size: tuple[int, int]) -> Tensor | None:
        if self.border is None:
            return None
        far = upload((size[1], size[0]), anchors.device, anchors.dtype) + self.border
        return ((anchors[:, :2] >= -self.border) & (anchors[:, 2:] < far)).all(1)


def smooth_l1(found: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum of `|d|`, or of its smooth form with a parabola below `beta`."""
    if beta == 0:
        return (found - target).abs().sum()
    return F.smooth_l1_loss(found, target, reduction="sum", beta=beta)
