"""What every detector does that predicts a set of boxes from queries: losses of a batch, detections of a batch.

DETR (arXiv 2005.12872) and Deformable-DETR (arXiv 2010.04159). Authors' codes: github.com/facebookresearch/detr and
github.com/fundamentalvision/Deformable-DETR, both Apache-2.0.
"""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detection.targets import check_labels, host_sizes, relative_targets, top_detections
from vistrain.detr import ContrastiveDenoising, DenoisingNoise, DenoisingQueries
from vistrain.layers.deformable import MSDeformAttn
from vistrain.layers.padding import Normalize
from vistrain.layers.precision import at_least_float32
from vistrain.losses import SetCriterion, SetPrediction
from vistrain.matching import HungarianMatcher
from vistrain.network import Network
from vistrain.predictions import Detections
from vistrain.structures import Exported, Factory, LabelSpace

UNMASKED = (
    "images of several sizes in a batch, and their padding is not hidden, as published: boxes come out misplaced. "
    "Set data.eval_batch_size=1, as the authors evaluate, or model.mask_padding_in_eval=true"
)


@dataclass(frozen=True)
class Decoded:
    """What a detector computes for a batch.

    Attributes:
        logits: `[L, B, Q, K]` of the decoder's layers; denoising queries, if any, come first in Q.
        boxes: `[L, B, Q, 4]` (cx, cy, w, h) in 0..1 of the unpadded image.
        proposals: two-stage: logits `[B, P, K]` and boxes `[B, P, 4]` of the encoder.
        shapes: (height, width) of the levels.
        extras: further outputs by name.
    """

    logits: Tensor
    boxes: Tensor
    proposals: tuple[Tensor, Tensor] | None = None
    shapes: Sequence[tuple[int, int]] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)


class SetDetector(Network):
    """Base of the DETR family: a subclass says how queries become boxes, in `decode`.

    Per local batch, as in the authors' codes: images are padded to the largest that one process sees at once, which
    moves the cells of the feature maps; and denoising, see `ContrastiveDenoising`. All else is per image, or divided by
    the objects of the global batch.

    Args:
        backbone: gives maps `[B, C_i, H_i, W_i]`, fine to coarse. The DETR family resizes bilinearly, whatever its
            weights saw.
        labels: the label space; its `num_classes` is the number of logits K (91 for COCO's raw ids).
        matcher, criterion: assignment and losses; None: the detector's own (`default_matcher`, `default_criterion`).
        denoising: noised objects as extra training queries (DINO); None: the detector's own, which may be none.
        aux_loss: losses on every decoder layer.
        detections_per_image: (query, class) pairs kept.
        clip_boxes: cut detections at the image's border and drop empty ones (detectron2, detrex).
        mask_padding_in_eval: hide padding from the transformer in evaluation too; detrex does in training only.

    Attributes:
        class_agnostic_proposals: whether every object counts as class 0 in the losses of two-stage proposals.
    """

    default_matcher: Factory[HungarianMatcher] = Factory(HungarianMatcher)
    default_criterion: Factory[SetCriterion] = Factory(SetCriterion)
    default_denoising: Factory[ContrastiveDenoising] | None = None
    class_agnostic_proposals = False
    learns_from: tuple[str, ...] = ("labels", "boxes")

    labels: LabelSpace

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        *,
        matcher: HungarianMatcher | None = None,
        criterion: SetCriterion | None = None,
        denoising: ContrastiveDenoising | None = None,
        aux_loss: bool = True,
        detections_per_image: int = 100,
        clip_boxes: bool = False,
        mask_padding_in_eval: bool = True,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.preprocessing = replace(backbone.preprocessing, interpolation="bilinear")
        self.channels = len(self.preprocessing.mean)
        self.normalize = Normalize(self.preprocessing)
        self.backbone: DenseBackbone = backbone
        self.matcher, self.criterion = matcher or self.default_matcher(), criterion or self.default_criterion()
        own = self.default_denoising
        self.denoising = denoising or (None if own is None else own())
        self.aux_loss = aux_loss
        self.detections_per_image, self.clip_boxes = detections_per_image, clip_boxes
        self.mask_padding_in_eval = mask_padding_in_eval

    @abc.abstractmethod
    def decode(
        self,
        images: Tensor,
        padding_mask: Tensor | None,
        extra: DenoisingQueries | None = None,
        last_only: bool = False,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Decoded:
        """Run the network.

        Args:
            images: `[B, 3, H, W]` normalised, zero on padding.
            padding_mask: `[B, H, W]` bool, True on (bottom, right) padding; None if nothing is padded.
            extra: denoising queries to put in front.
            last_only: only the last layer is wanted; what only losses read may be left out.
            sizes: (height, width) of each image without padding, for the host; None: it reads what it wants of
                `padding_mask`, and waits for the device.
        """

    @abc.abstractmethod
    def idle_parameters(self, extra: DenoisingQueries | None) -> list[nn.Parameter]:
        """Trainable parameters that the losses of a batch with these denoising queries do not reach."""

    def further_losses(self, decoded: Decoded, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted losses beyond those of the set criterion; none unless a subclass has some."""
        return {}

    def forward(self, images: Tensor, padding_mask: Tensor | None = None, last_only: bool = False) -> dict[str, Any]:
        """All outputs of the network.

        Args:
            images: `[B, 3, H, W]` normalised, zero on padding.
            padding_mask: `[B, H, W]` bool, True on (bottom, right) padding; None if nothing is padded.
            last_only: only `pred_logits` and `pred_boxes`, what `predict` reads.

        Returns:
            `pred_logits` `[B, Q, K]` and `pred_boxes` `[B, Q, 4]` (cx, cy, w, h in 0..1 of the unpadded image) of the
            last layer; `aux_outputs`, the same of the earlier layers (with `aux_loss`); `enc_outputs`, the same of the
            encoder's proposals (two-stage); and what the subclass adds.
        """
        decoded = self.decode(images, padding_mask, last_only=last_only)
        if last_only:
            return {"pred_logits": decoded.logits[-1], "pred_boxes": decoded.boxes[-1]}
        layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(decoded.logits, decoded.boxes, strict=True)]
        outputs: dict[str, Any] = layers.pop()
        if self.aux_loss:
            outputs["aux_outputs"] = layers
        if decoded.proposals is not None:
            outputs["enc_outputs"] = dict(zip(("pred_logits", "pred_boxes"), decoded.proposals, strict=True))
        return outputs | decoded.extras

    def losses(self, batch: Mapping[str, Any], noise: DenoisingNoise | None = None) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image`, `size`, `target`, and `num_targets` and `micro_batches` where gradients are accumulated.
            noise: stored draws for the denoising queries; None draws new ones.

        Returns:
            scalars `loss_class`, `loss_bbox`, `loss_giou`; with suffix `_0`, `_1` ... of earlier decoder layers, `_enc`
            of the proposals, `_dn`, `_dn_0` ... of denoising (zeros where no image has an object); and what the
            subclass adds. Their gradients reach every trainable parameter. All are NaN where the predictions are.

        Raises:
            DataError: a label is outside the label space (checked where labels are on the CPU: elsewhere the check
                would wait for the device).
        """
        images, mask = self.normalize(batch["image"], batch["size"])
        labels, boxes = relative_targets(batch)
        boxes = [box.to(images.dtype) for box in boxes]  # float64 in a network of float64, else float32
        check_labels(labels, self.labels)
        extra = None if self.denoising is None else self.denoising(labels, boxes, self.labels.num_classes, noise)
        decoded = self.decode(images, mask, extra, sizes=host_sizes(batch) if "host_size" in batch else None)
        predictions = self._predictions(decoded, extra)
        losses = self.criterion(
            predictions, labels, boxes, self.matcher, batch.get("num_targets"), batch.get("micro_batches", 1)
        )
        if self.denoising is not None and extra is None:
            zero = decoded.logits.new_zeros((), dtype=torch.float32)
            losses |= {_denoised(name): zero for name in list(losses) if not name.endswith("_enc")}
        losses |= self.further_losses(decoded, batch)
        idle = [p for p in self.idle_parameters(extra) if p.requires_grad]
        if idle:  # a parameter without gradient stops DistributedDataParallel
            losses["loss_class"] = losses["loss_class"] + sum(at_least_float32(p).sum() for p in idle) * 0.0
        return losses

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Detections]:
        """Detections of each image, in pixels of the original image, best first.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        images, mask = self.normalize(batch["image"], batch["size"])
        if not self.mask_padding_in_eval and len(set(map(tuple, batch["size"].tolist()))) > 1:
            warnings.warn(UNMASKED, stacklevel=2)  # once, by Python's default filter
        last = self(images, mask if self.mask_padding_in_eval else None, last_only=True)
        limits = self.detections_per_image, self.clip_boxes
        return top_detections(last["pred_logits"], last["pred_boxes"], batch["original_size"], *limits)

    def exported(self, images: Tensor, *sizes: Tensor) -> dict[str, Tensor]:
        """See `Network`."""
        found: dict[str, Tensor] = self(images, last_only=True)
        return found

    def exported_facts(self) -> Exported:
        """See `Network`."""
        outputs = {
            "logits": "[B, Q, K] logits of each query's classes; sigmoid makes scores of them",
            "boxes": "[B, Q, 4] (cx, cy, w, h) in 0..1 of the image's width and height",
        }
        reading = (
            'scores = 1 / (1 + np.exp(-found["logits"]))',
            'cx, cy, w, h = (found["boxes"] * np.tile(image.size, 2)).T',
            "boxes = np.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), 1)",
            "for q, k in np.argwhere(scores >= 0.3):",
            '    print(facts["classes"][k], f"{scores[q, k]:.4f}", *boxes[q].round(2))',
        )
        return Exported(outputs, reading)

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the backbone's authors exempt."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: layers of the backbone; all that stands upon it is the top."""
        return layers_of_backbone(self.backbone)

    def _predictions(self, decoded: Decoded, extra: DenoisingQueries | None) -> Sequence[SetPrediction]:
        """Outputs as the criterion takes them; the order decides the order of the losses."""
        logits, boxes = decoded.logits, decoded.boxes
        suffixes: tuple[str, ...] = (*(f"_{i}" for i in range(len(logits) - 1)), "")
        if not self.aux_loss:
            logits, boxes, suffixes = logits[-1:], boxes[-1:], ("",)
        count = 0 if extra is None else extra.labels.shape[1]
        predictions = [SetPrediction(logits[:, :, count:], boxes[:, :, count:], suffixes)]
        if decoded.proposals is not None:
            scores, proposed = decoded.proposals
            agnostic = self.class_agnostic_proposals
            predictions.append(SetPrediction(scores[None], proposed[None], ("_enc",), class_agnostic=agnostic))
        if extra is not None:
            names = tuple(f"_dn{suffix}" for suffix in suffixes)
            predictions.append(
                SetPrediction(logits[:, :, :count], boxes[:, :, :count], names, match=extra.match, groups=extra.groups)
            )
        return predictions


def layers_of_backbone(backbone: DenseBackbone) -> dict[str, int] | None:
    """`Network.layers_above` of a detector whose backbone is called so."""
    layers = backbone.layers_above()
    return None if layers is None else {f"backbone.{name}": above for name, above in layers.items()}


def class_head(embed_dim: int, num_classes: int) -> nn.Linear:
    """`[..., C]` -> `[..., K]` logits, at first of probability 0.01 (RetinaNet, arXiv 1708.02002, section 4.1)."""
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log(99))
    return head


def initialize(part: nn.Module) -> None:
    """The authors' start of a transformer's part: matrices Xavier-uniform, deformable attention its own grid."""
    for parameter in part.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in part.modules():
        if isinstance(module, MSDeformAttn):
            module.reset_parameters()


def _denoised(name: str) -> str:
    """`loss_class_3` -> `loss_class_dn_3`."""
    kind, _, layer = name.removeprefix("loss_").partition("_")
    return f"loss_{kind}_dn" + (f"_{layer}" if layer else "")
