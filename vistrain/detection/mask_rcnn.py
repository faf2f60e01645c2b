"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) on a feature pyramid.

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0. torchvision's models differ:
background is its first class, RoIAlign half a pixel away, anchors its own.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detection.anchors import Size
from vistrain.detection.dense_detector import MMDET
from vistrain.detection.roi_heads import (
    BOX_SIDE,
    MASK_SIDE,
    BoxHead,
    MaskHead,
    Samples,
    best_boxes,
    on_host,
    paste,
    pool,
    sample,
)
from vistrain.detection.rpn import RPNHead
from vistrain.detection.set_detector import layers_of_backbone
from vistrain.detection.targets import check_labels, host_sizes
from vistrain.devices import upload
from vistrain.errors import DataError
from vistrain.layers.padding import Normalize
from vistrain.matching.overlap import OverlapAssigner, RandomSampler
from vistrain.necks import FPN
from vistrain.network import Network
from vistrain.predictions import Detections, InstanceDetections
from vistrain.structures import Exported, Factory, LabelSpace

SAMPLER = RandomSampler(512, 0.25)
POOLED = 4  # levels that regions are pooled from; the proposals' coarser ones are not


class TwoStageDetector(Network):
    """Base: backbone, feature pyramid, proposals; a subclass says what regions become.

    `target` of a batch holds `labels` `[N]` and `boxes` `[N, 4]` xyxy in pixels of the padded image, and `masks`
    `[N, H, W]` bool, or `PackedMasks`, of the image without its padding where masks are trained.

    Args:
        backbone: gives maps of strides 4, 8, 16 and 32.
        labels: the label space.
        neck: built with `channels` and `strides`; None: a pyramid of five levels.
        rpn: built with `channels` and `strides`; None: OpenMMLab's.
        sampler: of regions that are trained.
        score_threshold, nms_threshold, detections_per_image: of the result.
        mask_threshold: least probability of a mask's pixels.
    """

    default_neck = Factory(FPN, num_levels=5)
    default_rpn = Factory(RPNHead)
    key_maps = (MMDET,)
    trains_masks = False
    learns_from: tuple[str, ...] = ("labels", "boxes")

    labels: LabelSpace
    roi_head: RoIHead

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        *,
        neck: Factory[nn.Module] | None = None,
        rpn: Factory[RPNHead] | None = None,
        sampler: RandomSampler = SAMPLER,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        mask_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.labels, self.preprocessing = labels, backbone.preprocessing
        self.channels = len(self.preprocessing.mean)
        self.normalize = Normalize(self.preprocessing)
        self.backbone: DenseBackbone = backbone
        self.neck: Any = (neck or self.default_neck)(channels=backbone.channels, strides=backbone.strides)
        facts = {"channels": self.neck.channels, "strides": self.neck.strides}
        self.rpn_head = (rpn or self.default_rpn)(**facts)
        self.sampler = sampler
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.detections_per_image, self.mask_threshold = detections_per_image, mask_threshold

    @abc.abstractmethod
    def region_losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Weighted losses of what regions become, given proposals `[P, 4]` of each image."""

    @abc.abstractmethod
    def regions(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes `[P, K or 1, 4]` within each image, pixels of the batch, and logits `[P, K + 1]` of proposals."""

    def masks(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Probabilities `[M, 28, 28]` within boxes `[M, 4]` of each image; only where `trains_masks`."""
        raise NotImplementedError

    def forward(
        self, images: Tensor, size: Tensor | None = None, original_size: Tensor | None = None
    ) -> list[tuple[Tensor, ...]]:
        """What is found in normalised images `[B, C, H, W]`.

        Args:
            images: zero on padding.
            size: int64 `[B, 2]`, (height, width) without padding; None: nothing is padded.
            original_size: the same before any transform, in whose pixels boxes are; None: `size`.

        Returns:
            of each image boxes `[M, 4]` xyxy, scores `[M]` and labels `[M]` int64, best first; and probabilities
            `[M, 28, 28]` within the boxes where masks are trained.
        """
        if size is None:
            size = upload([images.shape[2:]] * images.shape[0], images.device)
        levels, sizes = self.neck(self.backbone(images)), size.unbind()
        proposals = self.rpn_head.propose(self.rpn_head(levels), sizes)
        levels, found, scales = levels[:POOLED], [], []
        originals = sizes if original_size is None else original_size.unbind()
        regions = self.regions(levels, proposals, sizes)
        for (boxes, logits), own, original in zip(regions, sizes, originals, strict=True):
            scale = (original / own).flip(0).repeat(2).to(boxes)
            scores = logits.softmax(1)[:, :-1]
            limits = (self.score_threshold, self.nms_threshold, self.detections_per_image)
            found.append(best_boxes(boxes * scale, scores, *limits))
            scales.append(scale)
        if not self.trains_masks:
            return [*found]
        shrunk = [box / scale for (box, _, _), scale in zip(found, scales, strict=True)]
        masks = self.masks(levels, shrunk, [label for _, _, label in found])
        return [(*each, mask) for each, mask in zip(found, masks, strict=True)]

    def counted(self, images: Tensor) -> None:
        """See `Network`: all proposals' boxes and as many masks as an image can have objects, as OpenMMLab counts."""
        levels = self.neck(self.backbone(images))
        self.rpn_head(levels)
        boxes, masks = len(images) * self.rpn_head.num_proposals[1], len(images) * self.detections_per_image
        for part, count, side in (
            (self.roi_head.bbox_head, boxes, BOX_SIDE),
            (self.roi_head.mask_head, masks, MASK_SIDE),
        ):
            for head in part if isinstance(part, nn.ModuleList) else [part] if part is not None else ():
                head(levels[0].new_zeros(count, levels[0].shape[1], side, side))

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image`, `size` and `target`.

        Raises:
            DataError: masks are missing or of another size than their image; a label is outside the label space
                (checked where labels are on the CPU).
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        check_labels([t["labels"] for t in batch["target"]], self.labels)
        sizes = host_sizes(batch)
        if self.trains_masks:
            for i, (target, size) in enumerate(zip(batch["target"], sizes, strict=True)):
                shape = tuple(target["masks"].shape) if "masks" in target else None
                if shape is None:
                    raise DataError(f"target {i} of the batch", "has no masks", "set data.masks=true")
                if shape != (len(target["labels"]), *size):
                    problem = f"masks of shape {shape} for {len(target['labels'])} objects in an image of {size}"
                    raise DataError(f"target {i} of the batch", problem)
        levels = self.neck(self.backbone(images))
        outputs = self.rpn_head(levels)
        boxes = [t["boxes"].float() for t in batch["target"]]
        losses = self.rpn_head.losses(outputs, boxes, sizes)
        return losses | self.region_losses(levels[:POOLED], self.rpn_head.propose(outputs, sizes), batch)

    def sample(self, proposals: Sequence[Tensor], batch: Mapping[str, Any], assigner: OverlapAssigner) -> list[Samples]:
        """What is trained of each image's proposals."""
        boxes, labels = [t["boxes"].float() for t in batch["target"]], [t["labels"] for t in batch["target"]]
        return sample(proposals, boxes, labels, self.labels.num_classes, assigner, self.sampler)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Any]:
        """Detections of each image, with masks if it has them, in pixels of the original image, best first.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        found = self(images, size=batch["size"], original_size=batch["original_size"])
        if not self.trains_masks:
            return [Detections(*each) for each in found]
        originals = [(h, w) for h, w in batch["original_size"].tolist()]
        return [
            InstanceDetections(box, score, label, paste(mask, box, original, self.mask_threshold))
            for (box, score, label, mask), original in zip(found, originals, strict=True)
        ]

    def exported_facts(self) -> Exported:
        """See `Network`."""
        outputs = {
            "boxes": "[M, 4] (x1, y1, x2, y2) in pixels of the original image, best first",
            "scores": f"[M] in {self.score_threshold}..1, M at most {self.detections_per_image}",
            "labels": "[M] int64, which of the classes",
        }
        reading: tuple[str, ...] = (
            'for q in np.flatnonzero(found["scores"] >= 0.3):',
            '    print(facts["classes"][found["labels"][q]], found["scores"][q].round(4), *found["boxes"][q].round(2))',
        )
        if self.trains_masks:
            outputs["masks"] = "[M, 28, 28] probabilities of a mask within each box"
            reading = ("numbers = np.zeros(image.size[::-1], np.uint8)", *reading, *_PASTING)
        return Exported(outputs, reading, of_one=True)

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the backbone's authors exempt."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: layers of the backbone; all that stands upon it is the top."""
        return layers_of_backbone(self.backbone)


# How a program without this package pastes masks, see `Exported`: Pillow enlarges each to its box in whole pixels.
_PASTING = (
    '    x0, y0, x1, y1 = found["boxes"][q].round().astype(int)',
    '    mask = Image.fromarray(found["masks"][q]).resize((max(x1 - x0, 1), max(y1 - y0, 1)), 2)',
    "    place = numbers[y0:y1, x0:x1]",
    "    place[(np.asarray(mask)[: len(place), : place.shape[1]] >= 0.5) & (place == 0)] = q + 1",
    "Image.fromarray(numbers).save(sys.argv[2])",
)


class RoIHead(nn.Module):
    """Holds a box head and a mask head under OpenMMLab's names.

    Args:
        bbox_head: a head, or one for each stage.
        mask_head: the same, or None.
    """

    def __init__(self, bbox_head: nn.Module, mask_head: nn.Module | None) -> None:
        super().__init__()
        self.bbox_head: Any = bbox_head
        self.mask_head: Any = mask_head


class FasterRCNN(TwoStageDetector):
    """Faster R-CNN.

    Args:
        box_head: built with `channels` and `num_classes`; None: two linear layers.
        assigner: of regions to objects.
        base: see `TwoStageDetector`.
    """

    default_box_head = Factory(BoxHead)
    default_assigner = OverlapAssigner(0.5, 0.5, 0.5)
    class_layers = (r"^roi_head\.bbox_head\.fc_(cls|reg)\.", r"^roi_head\.mask_head\.conv_logits\.")

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        box_head: Factory[BoxHead] | None = None,
        assigner: OverlapAssigner | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, labels, **base)
        self.assigner = assigner or self.default_assigner
        facts = {"channels": self.neck.channels[0], "num_classes": labels.num_classes}
        self.roi_head = RoIHead((box_head or self.default_box_head)(**facts), None)

    def region_losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """See `TwoStageDetector`: `loss_class` and `loss_bbox`."""
        return self._losses(levels, self.sample(proposals, batch, self.assigner), batch)

    def _losses(
        self, levels: Sequence[Tensor], samples: Sequence[Samples], batch: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        strides, (where, owners) = self.neck.strides[:POOLED], on_host(samples, len(levels))
        head, mask_head = self.roi_head.bbox_head, self.roi_head.mask_head
        pooled = pool(levels, strides, [s.boxes for s in samples], BOX_SIDE, where)
        loss_class, loss_bbox = head.losses(*head(pooled), samples)
        losses = {"loss_class": loss_class, "loss_bbox": loss_bbox}
        if mask_head is not None:
            of_positives = [own[: len(owner)] for own, owner in zip(where, owners, strict=True)]
            logits = mask_head(pool(levels, strides, [s.positives for s in samples], MASK_SIDE, of_positives))
            losses["loss_mask"] = mask_head.loss(logits, samples, owners, [t["masks"] for t in batch["target"]])
        return losses

    def regions(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """See `TwoStageDetector`."""
        head = self.roi_head.bbox_head
        logits, offsets = head(pool(levels, self.neck.strides[:POOLED], proposals, BOX_SIDE))
        counts = [p.shape[0] for p in proposals]
        parts = zip(proposals, logits.split(counts), offsets.split(counts), sizes, strict=True)
        return [(head.deltas.decode(box[:, None], offset, size), own) for box, own, offset, size in parts]


class MaskRCNN(FasterRCNN):
    """Mask R-CNN.

    Args:
        mask_head: built with `channels` and `num_classes`; None: four convolutions.
        base: see `FasterRCNN`.
    """

    default_mask_head = Factory(MaskHead)
    trains_masks = True
    learns_from = ("labels", "boxes", "masks")

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        mask_head: Factory[MaskHead] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, labels, **base)
        facts = {"channels": self.neck.channels[0], "num_classes": labels.num_classes}
        self.roi_head.mask_head = (mask_head or self.default_mask_head)(**facts)

    def masks(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """See `TwoStageDetector`."""
        logits = self.roi_head.mask_head(pool(levels, self.neck.strides[:POOLED], boxes, MASK_SIDE))
        return of_class(logits.float().sigmoid(), labels)


def of_class(masks: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """`[M, K, h, w]` of all images -> per image `[M_b, h, w]`, those of the labels."""
    label = torch.cat(list(labels))
    chosen = masks[torch.arange(label.shape[0], device=label.device), label]
    return list(chosen.split([x.shape[0] for x in labels]))
