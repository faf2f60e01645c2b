"""Cascade R-CNN: High Quality Object Detection and Instance Segmentation (Cai and Vasconcelos 2019, arXiv 1906.09756).

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0
(roi_heads/cascade_roi_head.py); the form with four convolutions and GIoU is Swin's:
github.com/SwinTransformer/Swin-Transformer-Object-Detection, commit c7b2011, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detection.anchors import Size
from vistrain.detection.mask_rcnn import POOLED, RoIHead, TwoStageDetector, of_class
from vistrain.detection.roi_heads import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead, Samples, on_host, pool
from vistrain.detection.rpn import RPNHead
from vistrain.detection.targets import host_sizes
from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_negative
from vistrain.matching.overlap import OverlapAssigner
from vistrain.structures import Factory, LabelSpace

STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class CascadeMaskRCNN(TwoStageDetector):
    """Three stages, each trained on what the one before found, for ever larger overlaps.

    Args:
        box_head: of each stage, built with `channels`, `num_classes` and `stds`; None: two linear layers and one box
            for all classes.
        mask_head: of each stage; None: four convolutions.
        overlaps: least IoU of a stage's positives.
        stage_weights: of the stages' losses.
        with_masks: False trains and finds boxes alone (Cascade R-CNN).
        base: see `TwoStageDetector`.

    Raises:
        ConfigError: the overlaps are none, or more than published ones, or the weights are not as many, or negative.
    """

    default_rpn = Factory(RPNHead, border=0.0, smooth=1 / 9, proposals=(2000, 1000))
    default_box_head = Factory(BoxHead, class_agnostic=True, box_loss="smooth_l1")
    default_mask_head = Factory(MaskHead)
    class_layers = (r"^roi_head\.bbox_head\.\d\.fc_(cls|reg)\.", r"^roi_head\.mask_head\.\d\.conv_logits\.")

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        box_head: Factory[BoxHead] | None = None,
        mask_head: Factory[MaskHead] | None = None,
        overlaps: tuple[float, ...] = (0.5, 0.6, 0.7),
        stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25),
        with_masks: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(backbone, labels, **base)
        if not 1 <= len(overlaps) <= len(STDS):
            raise ConfigError("overlaps", f"{len(overlaps)} stages", f"give the overlaps of 1 to {len(STDS)}")
        if len(stage_weights) != len(overlaps):
            problem = f"{len(stage_weights)} weights for {len(overlaps)} stages"
            raise ConfigError("stage_weights", problem, "one for each of the overlaps")
        refuse_negative(stage_weights=stage_weights)
        self.assigners = [OverlapAssigner(overlap, overlap) for overlap in overlaps]
        self.stage_weights, self.trains_masks = stage_weights, with_masks
        self.learns_from = ("labels", "boxes", "masks") if with_masks else ("labels", "boxes")
        facts = {"channels": self.neck.channels[0], "num_classes": labels.num_classes}
        boxes, masks = box_head or self.default_box_head, mask_head or self.default_mask_head
        stages = range(len(overlaps))
        self.roi_head = RoIHead(
            nn.ModuleList(boxes(**facts, stds=STDS[i]) for i in stages),
            nn.ModuleList(masks(**facts) for _ in stages) if with_masks else None,
        )

    def region_losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """See `TwoStageDetector`: `loss_class_0`, `loss_bbox_0`, `loss_mask_0` and so on."""
        losses: dict[str, Tensor] = {}
        strides = self.neck.strides[:POOLED]
        sizes = host_sizes(batch)
        for stage, (head, assigner, weight) in enumerate(
            zip(self.roi_head.bbox_head, self.assigners, self.stage_weights, strict=True)
        ):
            samples = self.sample(proposals, batch, assigner)
            where, owners = on_host(samples, len(levels))
            logits, offsets = head(pool(levels, strides, [s.boxes for s in samples], BOX_SIDE, where))
            loss_class, loss_bbox = head.losses(logits, offsets, samples)
            losses |= {f"loss_class_{stage}": weight * loss_class, f"loss_bbox_{stage}": weight * loss_bbox}
            if self.trains_masks:
                mask_head = self.roi_head.mask_head[stage]
                of_positives = [own[: len(owner)] for own, owner in zip(where, owners, strict=True)]
                masks = mask_head(pool(levels, strides, [s.positives for s in samples], MASK_SIDE, of_positives))
                loss = mask_head.loss(masks, samples, owners, [t["masks"] for t in batch["target"]])
                losses[f"loss_mask_{stage}"] = weight * loss
            proposals = self._refined(head, logits.detach(), offsets.detach(), samples, sizes)
        return losses

    @torch.no_grad()
    def _refined(
        self,
        head: BoxHead,
        logits: Tensor,
        offsets: Tensor,
        samples: Sequence[Samples],
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """The next stage's proposals: this one's regions, moved; the annotated boxes among them join anew."""
        counts, found = [len(s.boxes) for s in samples], []
        parts = zip(samples, logits.split(counts), offsets.split(counts), sizes, strict=True)
        for own, logit, offset, size in parts:
            labels = torch.where(own.labels == head.num_classes, logit[:, :-1].argmax(1), own.labels)
            found.append(head.refine(own.boxes, offset, labels, size)[own.objects :])
        return found

    def regions(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """See `TwoStageDetector`: the last stage's boxes, and the stages' mean logits."""
        boxes, total = list(proposals), [torch.zeros(()) for _ in proposals]
        heads = list(self.roi_head.bbox_head)
        for stage, head in enumerate(heads):
            logits, offsets = head(pool(levels, self.neck.strides[:POOLED], boxes, BOX_SIDE))
            counts = [p.shape[0] for p in boxes]
            split = list(zip(logits.split(counts), offsets.split(counts), strict=True))
            total = [before.to(own) + own / len(heads) for before, (own, _) in zip(total, split, strict=True)]
            if stage < len(heads) - 1:
                boxes = [
                    head.refine(box, offset, own[:, :-1].argmax(1), size)
                    for box, (own, offset), size in zip(boxes, split, sizes, strict=True)
                ]
        last = heads[-1].deltas
        return [
            (last.decode(box[:, None], offset, size), mean)
            for box, (_, offset), mean, size in zip(boxes, split, total, sizes, strict=True)
        ]

    def masks(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """See `TwoStageDetector`: the stages' mean probabilities."""
        pooled = pool(levels, self.neck.strides[:POOLED], boxes, MASK_SIDE)
        found = [head(pooled).float().sigmoid() for head in self.roi_head.mask_head]
        return of_class(torch.stack(found).mean(0), labels)
