"""Mask classification: losses and predictions of networks whose queries are masks with classes (arXiv 2107.06278).

Written after Mask2Former's code: github.com/facebookresearch/Mask2Former, commit 9b0651c, MIT (maskformer_model.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vistrain import devices
from vistrain.backbones import Backbone, DenseBackbone
from vistrain.backbones.resnet_keys import COUNTERS, detectron2_exports, detectron2_rules
from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError, DataError
from vistrain.layers.conv import resize
from vistrain.layers.padding import Normalize
from vistrain.losses import MaskCriterion
from vistrain.losses.mask_criterion import PointNoise
from vistrain.matching import MaskMatcher
from vistrain.network import Network
from vistrain.predictions import InstanceDetections, PanopticMap, Segment, Segmentation
from vistrain.segmentation.inference import SLAB, class_map, enlarged, enlarged_in_python
from vistrain.segmentation.pixel_decoder import PixelDecoder, PixelFeatures
from vistrain.segmentation.query_decoder import QueryDecoder, stacked
from vistrain.structures import Exported, Factory, LabelSpace

Output = Literal["semantic", "panoptic", "instances"]

OFFICIAL = KeyMap(
    name="official",
    marker=r"^sem_seg_head\.",
    rules=(
        *detectron2_rules("backbone.", "backbone.body."),
        (r"^sem_seg_head\.predictor\.static_query\.", "decoder.query_feat."),  # before version 2 of the files
        (r"^sem_seg_head\.predictor\.", "decoder."),
        (r"^sem_seg_head\.pixel_decoder\.(transformer\.)?", "pixel_decoder."),
    ),
    drop=(r"^criterion\.empty_weight$", *COUNTERS),
    exports=(
        *detectron2_exports("backbone.", "backbone.body."),
        (r"^pixel_decoder\.(level_embed$|encoder\.)", (r"sem_seg_head.pixel_decoder.transformer.\1",)),
        (r"^pixel_decoder\.", ("sem_seg_head.pixel_decoder.",)),
        (r"^decoder\.", ("sem_seg_head.predictor.",)),
    ),
)


class MaskClassifier(Network):
    """Base: a backbone, a pixel decoder, and queries that become classes and masks.

    `target` of a batch holds `labels` `[N]` int64, class channels, and `masks` `[N, H, W]` bool (or `PackedMasks`), of
    the image without its padding: objects, and for semantic and panoptic training regions of stuff.

    Args:
        backbone: gives maps `[B, C_i, H_i, W_i]`, fine to coarse. Images are resized bilinearly, whatever its weights
            saw.
        labels: the classes; `things` are those that instances and panoptic segments count one by one (None: all).
        pixel_decoder: built with `channels` and `strides`; None: the network's own (`default_pixel_decoder`).
        decoder: built with `in_channels`, `num_classes` and `mask_dim`; None: the network's own (`default_decoder`).
        matcher, criterion: assignment and losses; None: Mask2Former's.
        outputs: what `predict` gives.
        object_threshold: least score of a panoptic segment.
        overlap_threshold: least share of a segment that is left to it by better ones.
        detections_per_image: (query, class) pairs that become instances.
        size_divisor: padded height and width are multiples of it.

    Raises:
        ConfigError: unknown outputs.
    """

    default_pixel_decoder: Factory[PixelDecoder]
    default_decoder: Factory[QueryDecoder]
    key_maps = (OFFICIAL,)
    class_layers = (r"^decoder\.class_embed\.",)
    learns_from = ("labels", "masks")
    measured_size = (512, 512)

    labels: LabelSpace

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        *,
        pixel_decoder: Factory[PixelDecoder] | None = None,
        decoder: Factory[QueryDecoder] | None = None,
        matcher: MaskMatcher | None = None,
        criterion: MaskCriterion | None = None,
        outputs: tuple[Output, ...] = ("semantic",),
        object_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        detections_per_image: int = 100,
        size_divisor: int = 32,
    ) -> None:
        super().__init__()
        if not outputs or set(outputs) - {"semantic", "panoptic", "instances"}:
            raise ConfigError("model.outputs", f"{list(outputs)}", "some of semantic, panoptic, instances")
        if len(set(outputs)) < len(outputs):
            raise ConfigError("model.outputs", f"{list(outputs)} repeats one", "name each once")
        for name, share in (("object_threshold", object_threshold), ("overlap_threshold", overlap_threshold)):
            if not 0 <= share <= 1:
                raise ConfigError(f"model.{name}", f"{share} is not in 0..1")
        if size_divisor < 1:
            raise ConfigError("model.size_divisor", f"{size_divisor} is too small", "use 1 or more")
        if detections_per_image < 1:
            raise ConfigError("model.detections_per_image", f"{detections_per_image} is too small", "use 1 or more")
        self.labels, self.outputs = labels, tuple(outputs)
        divisor = max(size_divisor, backbone.preprocessing.size_divisor)
        self.preprocessing = replace(backbone.preprocessing, interpolation="bilinear", size_divisor=divisor)
        self.channels = len(self.preprocessing.mean)
        self.normalize = Normalize(self.preprocessing)
        self.backbone: DenseBackbone = backbone
        pixels = pixel_decoder or self.default_pixel_decoder
        self.pixel_decoder = pixels(channels=backbone.channels, strides=backbone.strides)
        self.decoder = (decoder or self.default_decoder)(
            in_channels=self.pixel_decoder.embed_dim,
            num_classes=labels.num_classes,
            mask_dim=self.pixel_decoder.mask_dim,
        )
        self.matcher, self.criterion = matcher or MaskMatcher(), criterion or MaskCriterion()
        self.object_threshold, self.overlap_threshold = object_threshold, overlap_threshold
        self.detections_per_image = detections_per_image
        things = range(len(labels.ids)) if labels.things is None else labels.things
        self.things = {labels.channel_of[labels.ids[i]] for i in things}

    def forward(self, images: Tensor, last_only: bool = False) -> dict[str, Any]:
        """All outputs of the network.

        Args:
            images: `[B, C, H, W]`, normalised, zero on padding, sides multiples of the size divisor.
            last_only: without `aux_outputs`, what `predict` reads.

        Returns:
            `pred_logits` `[B, Q, K + 1]` and `pred_masks` `[B, Q, H / 4, W / 4]` logits; `aux_outputs`, the same of the
            earlier predictions.
        """
        pixels = self.pixel_decoder(self.backbone(images))
        if last_only:
            return stacked(self.decoder(pixels)[-1:], pixels)[0]
        *earlier, last = stacked(self.decoder(pixels), pixels)
        return {**last, "aux_outputs": earlier}

    def counted(self, images: Tensor) -> dict[str, Any]:
        """See `Network`: all layers, also of a pixel decoder that would leave some out."""
        self.pixel_decoder.complete = True
        return type(self).forward(self, images)  # a counter calls this in place of `forward`

    def losses(self, batch: Mapping[str, Any], noise: Sequence[PointNoise] | None = None) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image`, `size`, `target`, and `num_targets` and `micro_batches` where gradients are accumulated.
            noise: stored points for each prediction; None draws new ones.

        Returns:
            scalars `loss_class`, `loss_mask`, `loss_dice`; with suffix `_0`, `_1` ... of earlier predictions.

        Raises:
            DataError: masks have another size than their image, or a label is no class (checked on the CPU).
        """
        self.check_targets(batch)
        images, _ = self.normalize(batch["image"], batch["size"])
        pixels = self.pixel_decoder(self.backbone(images))
        predictions = self.decoder(pixels)
        losses = self.criterion(
            predictions,
            pixels.mask_features,
            [t["labels"] for t in batch["target"]],
            [t["masks"] for t in batch["target"]],
            (images.shape[2], images.shape[3]),
            self.matcher,
            batch.get("num_targets"),
            batch.get("micro_batches", 1),
            noise,
        )
        return self.weighed(losses, pixels, batch)

    def weighed(self, losses: dict[str, Tensor], pixels: PixelFeatures, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The criterion's losses, and what a subclass makes of them or adds."""
        return losses

    def check_targets(self, batch: Mapping[str, Any]) -> None:
        """Raise `DataError` where masks and labels do not fit each other, or (checked on the CPU, where it costs no
        waiting) the images and classes."""
        sizes = batch["size"].tolist() if devices.reads_freely(batch["size"]) else None
        for i, target in enumerate(batch["target"]):
            name = str(batch["id"][i]) if "id" in batch else f"image {i} of the batch"
            labels, masks = target["labels"], target["masks"]
            size = list(masks.shape[1:]) if sizes is None else sizes[i]
            if len(labels) != len(masks) or list(masks.shape[1:]) != size:
                raise DataError(name, f"{len(labels)} labels, masks of shape {list(masks.shape)}, image of size {size}")
            if devices.reads_freely(labels) and len(labels):
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or high >= self.labels.num_classes:
                    raise DataError(name, f"label {low if low < 0 else high} of {self.labels.num_classes} classes")

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Segmentation]:
        """What it finds in each image, in the original image's size.

        As published, the padding of a batch is not hidden: evaluate images one by one where their sizes differ.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        last = self(images, last_only=True)
        logits, masks, padded = last["pred_logits"].float(), last["pred_masks"].float(), images.shape[2:]
        sizes, originals = batch["size"].tolist(), batch["original_size"].tolist()
        return [
            self.describe(logits[i], masks[i], padded, tuple(sizes[i]), tuple(originals[i])) for i in range(len(images))
        ]

    def exported(self, images: Tensor, *sizes: Tensor) -> dict[str, Tensor]:
        """See `Network`."""
        found: dict[str, Tensor] = self(images, last_only=True)
        return found

    def exported_facts(self) -> Exported:
        """See `Network`; in a few lines the first of semantic, panoptic and instances that it was asked for."""
        outputs = {
            "logits": "[B, Q, K + 1] logits of each query's class, the last of them none; softmax makes shares of them",
            "masks": "[B, Q, h, w] logits of each query's mask, a quarter of the padded image; sigmoid makes shares",
        }
        return Exported(outputs, (*_SHARES, *_READING[min(self.outputs, key=tuple(_READING).index)]))

    def describe(
        self, logits: Tensor, masks: Tensor, padded: torch.Size, size: tuple[int, int], original: tuple[int, int]
    ) -> Segmentation:
        """One image's queries, `[Q, K + 1]` and `[Q, h, w]`, as what was asked for, in its original size.

        Masks are enlarged to the padded image, cut to the image and brought to the original size. For semantic maps
        alone the authors combine queries first and bring the classes' scores to that size instead.
        """
        masks = resize(masks[None], padded)[0][:, : size[0], : size[1]]
        if self.outputs == ("semantic",):
            return Segmentation(semantic=class_map(semantic_scores(logits, masks), original))
        return Segmentation(
            semantic=self._semantic(logits, masks, original) if "semantic" in self.outputs else None,
            panoptic=self._panoptic(logits, masks, original) if "panoptic" in self.outputs else None,
            instances=self._instances(logits, masks, original) if "instances" in self.outputs else None,
        )

    def _semantic(self, logits: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """`[H, W]` int64, in slabs of rows: neither enlarged masks nor scores of all classes are held at once."""
        found = []
        for slab in enlarged(masks, size):
            rows = max(1, SLAB // (logits.shape[1] * slab.shape[2]))
            found += [semantic_scores(logits, part).argmax(0) for part in slab.split(rows, 1)]
        return torch.cat(found)

    def _panoptic(self, logits: Tensor, masks: Tensor, size: tuple[int, int]) -> PanopticMap:
        """Each pixel goes to the query of the highest score times mask probability; what little is left of a query is
        dropped, and stuff of one class is one segment.
        """
        scores, labels = logits.softmax(-1).max(-1)
        kept = (labels != self.labels.num_classes) & (scores > self.object_threshold)
        scores, labels, masks = scores[kept], labels[kept], masks[kept]
        count = len(scores)
        if not count:
            return PanopticMap(torch.zeros(size, dtype=torch.int32, device=masks.device), ())
        table = torch.zeros((3, count), dtype=torch.int64, device=masks.device)
        owners = []  # the query of each pixel from 1, 0 where its own mask does not reach
        for slab in enlarged(masks, size):
            shares = slab.sigmoid()
            owner = (scores[:, None, None] * shares).argmax(0)
            inside = shares >= 0.5
            owned = inside.gather(0, owner[None])[0]
            table[0] += torch.bincount(owner.flatten(), minlength=count)
            table[1] += inside.flatten(1).sum(1)
            table[2] += torch.bincount(owner[owned], minlength=count)
            owners.append(torch.where(owned, owner + 1, 0).to(torch.int16))
        segments: list[Segment] = []
        stuff: dict[int, int] = {}
        value = [0] * (count + 1)
        for i, (area, whole, seen) in enumerate(zip(*table.tolist(), strict=True)):
            if not seen or area / whole < self.overlap_threshold:
                continue
            label = int(labels[i])
            thing = label in self.things
            if not thing and label in stuff:
                value[i + 1] = stuff[label]
                continue
            value[i + 1] = len(segments) + 1
            segments.append(Segment(value[i + 1], label, thing, float(scores[i])))
            if not thing:
                stuff[label] = value[i + 1]
        names = torch.tensor(value, dtype=torch.int32, device=masks.device)
        return PanopticMap(torch.cat([names[owner.int()] for owner in owners]), tuple(segments))

    def _instances(self, logits: Tensor, masks: Tensor, size: tuple[int, int]) -> InstanceDetections:
        """The best (query, class) pairs that are things; a score is the class's times the mean inside the mask."""
        classes = logits.shape[1] - 1
        scores, index = logits.softmax(-1)[:, :-1].flatten().topk(min(self.detections_per_image, len(logits) * classes))
        labels = index % classes
        kept = torch.tensor([label in self.things for label in labels.tolist()], dtype=torch.bool, device=labels.device)
        scores, labels, query = scores[kept], labels[kept], (index // classes)[kept]
        needed, query = query.unique(return_inverse=True)
        total, count, parts = masks.new_zeros(len(needed)), masks.new_zeros(len(needed)), []
        for slab in enlarged(masks[needed], size):
            part = slab > 0
            total += (slab.sigmoid() * part).flatten(1).sum(1)
            count += part.flatten(1).sum(1)
            parts.append(part)
        found = torch.cat(parts, 1)
        scores, order = (scores * (total / (count + 1e-6))[query]).sort(descending=True, stable=True)
        query, labels = query[order], labels[order]
        return InstanceDetections(boxes_of(found)[query], scores, labels, found[query])

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the backbone's authors exempt, and embeddings."""
        own = {f"backbone.{name}" for name in self.backbone.no_weight_decay()}
        return own | {f"decoder.{name}.weight" for name in ("query_feat", "query_embed", "level_embed")}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: layers of the backbone; all that stands upon it is the top."""
        layers = self.backbone.layers_above()
        return None if layers is None else {f"backbone.{name}": above for name, above in layers.items()}


# How a program without this package reads the outputs, see `Exported`. Masks are enlarged, cut and brought to the
# picture's size by Pillow, and what is left to a segment is not compared with what it had.
_SHARES = (
    'classes = np.exp(found["logits"] - found["logits"].max(1, keepdims=True))',
    "classes /= classes.sum(1, keepdims=True)",
    *enlarged_in_python("masks"),
    "masks = 1 / (1 + np.exp(-planes))",
)
_READING = {
    "semantic": (
        'labels = np.einsum("qk,qhw->khw", classes[:, :-1], masks).argmax(0)',
        "Image.fromarray(labels.astype(np.uint8)).save(sys.argv[2])",
    ),
    "panoptic": (
        "scores, labels = classes.max(1), classes.argmax(1)",
        "owner = (np.where(labels < len(classes[0]) - 1, scores, 0)[:, None, None] * masks).argmax(0)",
        "for q in np.unique(owner):",
        '    print(q, facts["classes"][labels[q]], f"{scores[q]:.4f}", (owner == q).sum(), "pixels")',
        "Image.fromarray(owner.astype(np.uint8)).save(sys.argv[2])",
    ),
    "instances": (
        "for q, k in np.argwhere(classes[:, :-1] >= 0.5):",
        '    print(q, facts["classes"][k], f"{classes[q, k]:.4f}", (masks[q] >= 0.5).sum(), "pixels")',
        "numbers = np.arange(1, len(masks) + 1)[:, None, None]",
        "Image.fromarray(((masks >= 0.5) * numbers).max(0).astype(np.uint8)).save(sys.argv[2])",
    ),
}


def semantic_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """`[Q, K + 1]` and `[Q, H, W]` logits -> `[K, H, W]`: sum over queries of class times mask probability."""
    return torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], masks.sigmoid())


def boxes_of(masks: Tensor) -> Tensor:
    """`[N, H, W]` bool -> `[N, 4]` float32 (x1, y1, x2, y2) around them, pixels; zeros around nothing."""
    sides = []
    for axis in (1, 2):  # columns, rows
        any_ = masks.any(axis)
        length = any_.shape[1]
        place = torch.arange(length, device=masks.device)
        sides.append(torch.where(any_, place, length).amin(1))
        sides.append(torch.where(any_, place + 1, 0).amax(1))
    boxes = torch.stack((sides[0], sides[2], sides[1], sides[3]), 1)
    return (boxes * masks.flatten(1).any(1)[:, None]).float()
