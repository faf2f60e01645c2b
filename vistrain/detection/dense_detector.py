"""Detectors that classify every anchor of a pyramid: what RetinaNet, ATSS and GFL share.

RetinaNet (arXiv 1708.02002). Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0
(models/dense_heads).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.backbones.resnet_keys import torchvision_rules
from vistrain.checkpoints import KeyMap
from vistrain.contract import GuardedContract
from vistrain.detection.set_detector import layers_of_backbone
from vistrain.detection.targets import check_labels, host_sizes
from vistrain.layers.boxes import nms_by_group
from vistrain.layers.padding import Normalize
from vistrain.network import Network
from vistrain.predictions import Detections
from vistrain.structures import Exported, Factory, LabelSpace

MMDET = KeyMap("mmdetection", r"^neck\.lateral_convs\.", torchvision_rules("backbone.", "backbone.body."))


class Scale(nn.Module):
    """A learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * self.scale


class DenseHead(GuardedContract, nn.Module, abc.ABC):
    """Base of heads that all levels share.

    Args:
        channels, strides: of the levels, fine to coarse.
        num_classes: K.

    Attributes:
        output_names: what each of a level's outputs is.
    """

    output_names: tuple[str, ...] = ("classes", "boxes")

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.strides, self.num_classes = tuple(strides), num_classes

    @abc.abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Levels `[B, C, H_l, W_l]` -> for each the head's outputs `[B, A * n, H_l, W_l]`."""

    @abc.abstractmethod
    def losses(
        self, outputs: Sequence[tuple[Tensor, ...]], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Weighted losses.

        Args:
            outputs: of `forward`.
            boxes: per image `[N_b, 4]` xyxy in pixels.
            labels: per image `[N_b]` int64.
        """

    @abc.abstractmethod
    def candidates(self, outputs: Sequence[Tensor], level: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """One image's outputs `[A * n, H, W]` of a level: what may be objects.

        Returns:
            `[H W A, K]` probabilities, offsets `[H W A, n]` for `boxes`, and `[H W A]` factors of the scores, or None.
        """

    @abc.abstractmethod
    def boxes(
        self, offsets: Tensor, index: Tensor, shape: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Tensor:
        """Offsets `[M, n]` of the anchors `index` of a level of `shape` -> `[M, 4]` xyxy within an image of `size`."""


class DenseDetector(Network):
    """Backbone, feature pyramid, and a head that says of every anchor what it is.

    `target` of a batch holds `labels` `[N]` and `boxes` `[N, 4]` xyxy in pixels of the padded image.

    Args:
        backbone: gives maps of strides 8, 16 and 32.
        labels: the label space.
        neck: built with `channels` and `strides`; None: the detector's own (`default_neck`).
        head: built with `channels`, `strides` and `num_classes`; None: the detector's own (`default_head`).
        score_threshold: least probability of a candidate.
        candidates_per_level: the best of a level that are looked at.
        nms_threshold: largest IoU of two objects of a class.
        detections_per_image: objects kept.
    """

    default_neck: Factory[nn.Module]
    default_head: Factory[DenseHead]
    key_maps = (MMDET,)
    learns_from: tuple[str, ...] = ("labels", "boxes")

    labels: LabelSpace

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        *,
        neck: Factory[nn.Module] | None = None,
        head: Factory[DenseHead] | None = None,
        score_threshold: float = 0.05,
        candidates_per_level: int = 1000,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__()
        self.labels, self.preprocessing = labels, backbone.preprocessing
        self.channels = len(self.preprocessing.mean)
        self.normalize = Normalize(self.preprocessing)
        self.backbone: DenseBackbone = backbone
        self.neck: Any = (neck or self.default_neck)(channels=backbone.channels, strides=backbone.strides)
        self.bbox_head = (head or self.default_head)(
            channels=self.neck.channels, strides=self.neck.strides, num_classes=labels.num_classes
        )
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.candidates_per_level, self.detections_per_image = candidates_per_level, detections_per_image

    def forward(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Normalised images `[B, C, H, W]` -> the head's outputs of each level."""
        return self.bbox_head(self.neck(self.backbone(images)))

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses, each the sum over levels.

        Every anchor is trained, those on the padding of a batch, too.

        Args:
            batch: `image`, `size` and `target`.

        Raises:
            DataError: a label is outside the label space (checked where labels are on the CPU).
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        labels = [target["labels"] for target in batch["target"]]
        check_labels(labels, self.labels)
        outputs = self(images)
        with torch.autocast(images.device.type, enabled=False):
            outputs = [tuple(x.float() for x in level) for level in outputs]
            return self.bbox_head.losses(outputs, [t["boxes"].float() for t in batch["target"]], labels)

    def exported_facts(self) -> Exported:
        """See `Network`."""
        return Exported(
            {
                f"{kind}_{level}": f"[B, A * n, H, W] of stride {stride}: {kind} of each anchor, as the head gives"
                for level, stride in enumerate(self.bbox_head.strides)
                for kind in self.bbox_head.output_names
            }
        )

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Detections]:
        """Detections of each image, in pixels of the original image, best first.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        outputs = self(self.normalize(batch["image"], batch["size"])[0])
        found = []
        for i, (size, original) in enumerate(zip(host_sizes(batch), batch["original_size"].tolist(), strict=True)):
            own = [tuple(x[i].float() for x in level) for level in outputs]
            found.append(self._detections(own, size, tuple(original)))
        return found

    def _detections(
        self, outputs: Sequence[tuple[Tensor, ...]], size: tuple[int, int], original: tuple[int, int]
    ) -> Detections:
        boxes, scores, labels = [], [], []
        for level, own in enumerate(outputs):
            probability, offsets, factor = self.bbox_head.candidates(own, level)
            place = (probability > self.score_threshold).nonzero()
            best, order = probability[place[:, 0], place[:, 1]].sort(descending=True)
            best, place = best[: self.candidates_per_level], place[order[: self.candidates_per_level]]
            index, label = place.unbind(1)
            shape = (own[0].shape[1], own[0].shape[2])
            boxes.append(self.bbox_head.boxes(offsets[index], index, shape, level, size))
            scores.append(best if factor is None else best * factor[index])
            labels.append(label)
        scale = torch.tensor((original[1] / size[1], original[0] / size[0])).repeat(2)
        box, score, label = torch.cat(boxes) * scale.to(boxes[0]), torch.cat(scores), torch.cat(labels)
        kept = nms_by_group(box, score, label, self.nms_threshold)[: self.detections_per_image]
        return Detections(box[kept], score[kept], label[kept])

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the backbone's authors exempt."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: layers of the backbone; all that stands upon it is the top."""
        return layers_of_backbone(self.backbone)


def by_anchor(x: Tensor, width: int) -> Tensor:
    """`[..., A * width, H, W]` -> `[..., H * W * A, width]`, the order of `detection.anchors.anchor_grid`."""
    return x.movedim(-3, -1).unflatten(-1, (-1, width)).flatten(-4, -2)


def sigmoid_focal(logits: Tensor, targets: Tensor, weights: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of the focal loss (arXiv 1708.02002, equation 5).

    Args:
        logits: `[N, K]`.
        targets: `[N]` int64; K is background.
        weights: `[N]`.
        alpha: weight of positives; negatives weigh `1 - alpha`.
        gamma: focusing exponent.
    """
    positive = F.one_hot(targets, logits.shape[1] + 1)[:, :-1].to(torch.bool)
    signed = torch.where(positive, logits, -logits)  # the logit of the truth
    share = torch.where(positive, alpha, 1 - alpha) * (-signed).sigmoid() ** gamma
    return (share * F.softplus(-signed) * weights[:, None]).sum()
