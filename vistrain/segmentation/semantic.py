"""Semantic segmentation: what every network that classifies pixels gets around it, and the one of backbone and head."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.checkpoints import KeyMap, under
from vistrain.errors import ConfigError
from vistrain.layers.axis import Axis
from vistrain.layers.conv import resize
from vistrain.layers.loss_weights import refuse_negative
from vistrain.layers.padding import Normalize
from vistrain.losses.class_maps import PixelCrossEntropy, PixelLoss, refuse_other_weights
from vistrain.losses.set_criterion import average_over_processes
from vistrain.necks import default_neck
from vistrain.network import Network
from vistrain.predictions import Segmentation
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.inference import (
    Seen,
    View,
    best_classes,
    enlarged_in_python,
    probabilities,
    probability_tiles,
)
from vistrain.segmentation.label_maps import label_maps
from vistrain.segmentation.sliding_windows import Merge, Windows
from vistrain.structures import Exported, Factory, LabelSpace, Preprocessing

IGNORED = 255  # where a label space does not say otherwise
MOST_SCALE = 16.0  # of an image's sides, for inference


class SemanticNetwork(Network):
    """Base of networks that give every pixel a class.

    `target` of a batch holds `label_map`, `[*S]` of any integer type: class channels, or the label space's ignore index
    (255 if it has none).

    Args:
        labels: the classes.
        preprocessing: how images must reach it.
        loss: of each output that is trained; None: the network's own (`default_loss`).
        align_corners: of the enlargement of logits to the labels and to the image.
        window, window_stride: (height, width) of the windows that images are cut into for inference, and their steps,
            pixels; None takes images whole.
        window_batch: windows that are computed at once.
        window_merge: what is done where windows overlap, see `sliding_windows.Windows`.
        scales: of the views of an image that inference takes the mean probability of; 1 is the size that evaluation
            gave it. Enlarging that adds no detail.
        flip: each view also mirrored left to right.

    Raises:
        ConfigError: no scale, or one that is not above 0; or a stride that is larger than its window.
    """

    default_loss: Factory[PixelLoss] = Factory(PixelCrossEntropy, over_all=False)
    learns_from = ("label_map",)
    measured_size = (512, 512)

    labels: LabelSpace

    def __init__(
        self,
        labels: LabelSpace,
        preprocessing: Preprocessing,
        *,
        loss: PixelLoss | None = None,
        align_corners: bool = False,
        window: tuple[int, int] | None = None,
        window_stride: tuple[int, int] | None = None,
        window_batch: int = 4,
        window_merge: Merge = "mean",
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.labels, self.preprocessing = labels, preprocessing
        self.ignore_index = IGNORED if labels.ignore_index is None else labels.ignore_index
        self.channels = len(preprocessing.mean)
        self.normalize = Normalize(preprocessing)
        self.criterion = loss or self.default_loss()
        self.align_corners = align_corners
        self.window, self.window_stride, self.window_batch = window, window_stride or window, window_batch
        self.window_merge, self.scales, self.flip = window_merge, tuple(scales), flip
        refuse_other_weights(self.criterion, labels.num_classes)
        if window_batch < 1:
            raise ConfigError("model.window_batch", f"{window_batch} is too small", "use 1 or more")
        check_scales(scales, "model.scales")
        pairs = zip(self.window_stride or (), window or (), strict=False)
        if any(not 0 < step <= side for step, side in pairs):
            problem = f"{list(self.window_stride or ())} with windows of {list(window or ())}"
            raise ConfigError("model.window_stride", problem, "a stride is 1 to the window's side")

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, C, H, W]` -> logits `[B, K, h, w]`, of any stride."""

    def training_losses(self, images: Tensor, labels: Tensor, count: Tensor | None) -> dict[str, Tensor]:
        """Weighted losses: that of `forward`'s logits, unless a subclass has more.

        Args:
            images: `[B, C, H, W]`, normalised.
            labels: `[B, H, W]` int64, the ignore index on padding.
            count: labelled pixels to divide by, see `losses.class_maps`.
        """
        return {"loss_seg": self.pixel_loss(self(images), labels, count)}

    def pixel_loss(self, logits: Tensor, labels: Tensor, count: Tensor | None) -> Tensor:
        """The criterion on logits that are enlarged to the labels' size."""
        return self.criterion.enlarged(logits, labels, self.ignore_index, count, self.align_corners)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image`, `size`, `target`, and `num_targets` (labelled pixels) and `micro_batches` where
                gradients are accumulated.

        Returns:
            scalars by name.

        Raises:
            DataError: a label map has another size than its image, or (checked on the CPU, where it costs no waiting)
                a value that is no class.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        labels = self.label_maps(batch)
        count = None
        if "num_targets" in batch:
            count = average_over_processes(batch["num_targets"], images.device, batch.get("micro_batches", 1))
        return self.training_losses(images, labels, count)

    def label_maps(self, batch: Mapping[str, Any]) -> Tensor:
        """`[B, H, W]` int64 labels of a batch, padded with the ignore index.

        Raises:
            DataError: see `losses`.
        """
        return label_maps(batch, self.labels.num_classes, self.ignore_index)

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Segmentation]:
        """The class of each pixel of the original images. Images of other sizes beside one change nothing.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        sizes, originals = batch["size"].tolist(), batch["original_size"].tolist()
        if self.window is not None and self.scales == (1.0,) and not self.flip:
            maps = []
            for image, size, original in zip(images, sizes, originals, strict=True):
                cut, windows = self._windows(image[:, : size[0], : size[1]])
                maps.append(windows.class_map(self, cut, tuple(size), tuple(original)))
        else:
            maps = [best_classes(views) for views in self._views(images, sizes, originals)]
        return [Segmentation(semantic=labels) for labels in maps]

    def exported_facts(self) -> Exported:
        """See `Network`; images are read whole, by Pillow's filter."""
        reading = (
            *enlarged_in_python("logits"),
            "labels = planes.argmax(0)",
            "for k, count in zip(*np.unique(labels, return_counts=True)):",
            '    print(facts["classes"][k], f"{count / labels.size:.4f}")',
            "Image.fromarray(labels.astype(np.uint8)).save(sys.argv[2])",
        )
        corners = ", corners aligned" if self.align_corners else ""
        return Exported({"logits": f"[B, K, h, w] logits of the classes, to be enlarged bilinearly{corners}"}, reading)

    @torch.no_grad()
    def image_probabilities(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Probabilities `[K, H, W]` float32 of the classes in the original images, K x H x W numbers in memory.

        Args:
            batch: see `predict`.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        views = self._views(images, batch["size"].tolist(), batch["original_size"].tolist())
        return [probabilities(of_image) for of_image in views]

    @torch.no_grad()
    def probability_tiles(self, batch: Mapping[str, Any]) -> Iterator[tuple[slice, slice, Tensor]]:
        """`image_probabilities` of a batch of one image in parts: rows, columns, and `[K, h, w]` float32, whose arg-max
        is what `predict` gives. What all parts together fill is never held: of windows the rows of one window's height.

        Args:
            batch: see `predict`.
        """
        images, _ = self.normalize(batch["image"], batch["size"])
        (size,), (original,) = batch["size"].tolist(), batch["original_size"].tolist()
        if self.window is None or self.scales != (1.0,) or self.flip:
            for views in self._views(images, [size], [original]):
                yield from probability_tiles(views)
            return
        cut, windows = self._windows(images[0, :, : size[0], : size[1]])
        for top, band in windows.bands(self, cut, tuple(size), tuple(original)):
            for rows, columns, tile in probability_tiles([band]):
                yield slice(top + rows.start, top + rows.stop), columns, tile

    @torch.no_grad()
    def image_logits(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Logits `[K, h, w]` of each image at the size at which the network saw it, without its padding."""
        images, _ = self.normalize(batch["image"], batch["size"])
        sizes = batch["size"].tolist()
        if self.window is None:
            return [self._at_size(x, size) for x, size in zip(self._whole(images, sizes), sizes, strict=True)]
        found = []
        for image, (height, width) in zip(images, sizes, strict=True):
            cut, windows = self._windows(image[:, :height, :width])
            found.append(windows.logits(self, cut, (height, width)))
        return found

    def _views(
        self, images: Tensor, sizes: Sequence[Sequence[int]], originals: Sequence[Sequence[int]]
    ) -> Iterator[list[Seen]]:
        """The views of each image."""
        if self.window is None and self.scales == (1.0,) and not self.flip:
            for logits, size, original in zip(self._whole(images, sizes), sizes, originals, strict=True):
                yield [View(logits, *self._axes(logits, size, original))]
            return
        for image, size, original in zip(images, sizes, originals, strict=True):
            views: list[Seen] = []
            for scale in self.scales:
                sides = [max(1, int(side * scale + 0.5)) for side in size]
                scaled = resize(image[None, :, : size[0], : size[1]], tuple(sides))[0]
                for flip in (False, True)[: 1 + self.flip]:
                    view = scaled.flip(-1) if flip else scaled
                    if self.window is not None:
                        cut, windows = self._windows(view)
                        views.append(windows.whole(self, cut, (sides[0], sides[1]), (original[0], original[1]), flip))
                        continue
                    logits = self._whole(view[None], [sides])[0]
                    rows, columns = self._axes(logits, sides, original)
                    views.append(View(logits, rows, columns.mirrored() if flip else columns))
            yield views

    def _axes(self, logits: Tensor, size: Sequence[int], original: Sequence[int]) -> tuple[Axis, Axis]:
        """From logits of an image with its own padding to the original image."""
        rows, columns = (
            Axis.resized(cells, _up(side, self.preprocessing.size_divisor), self.align_corners)
            .first(side)
            .then(Axis.resized(side, whole, self.align_corners))
            for cells, side, whole in zip(logits.shape[1:], size, original, strict=True)
        )
        return rows, columns

    def _whole(self, images: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits `[K, h, w]` of images with no more than their own padding, of the network's stride."""
        if all(list(size) == list(images.shape[2:]) for size in sizes):
            return list(self(images).float())
        divisor, found = self.preprocessing.size_divisor, []
        for image, size in zip(images, sizes, strict=True):
            height, width = (_up(side, divisor) for side in size)
            # What lies beyond the image's own padding would enter means over the image.
            image = image[:, :height, :width]
            image = F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
            found.append(self(image[None])[0].float())
        return found

    def _at_size(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits of `_whole` at the size of the image, without its padding."""
        padded = [_up(side, self.preprocessing.size_divisor) for side in size]
        return resize(logits[None], tuple(padded), self.align_corners)[0, :, : size[0], : size[1]]

    def _windows(self, image: Tensor) -> tuple[Tensor, Windows]:
        """An image `[C, H, W]`, padded where it is smaller than a window, and how it is cut into windows."""
        assert self.window is not None
        assert self.window_stride is not None
        divisor, whole = self.preprocessing.size_divisor, image.shape[1:]
        padded = [
            _up(side, divisor) if side < window else side for side, window in zip(whole, self.window, strict=True)
        ]
        image = F.pad(image, (0, padded[1] - whole[1], 0, padded[0] - whole[0]))
        windows = (self.window, self.window_stride, self.window_batch, self.window_merge, self.align_corners)
        return image, Windows(*windows)


def check_scales(scales: Sequence[float], where: str) -> None:
    """Refuse sizes of views that inference cannot take; `where` is the key or the option.

    Raises:
        ConfigError: there are none, or one is not above 0 and at most 16 (NaN is neither).
    """
    if not scales or not all(0 < scale <= MOST_SCALE for scale in scales):
        problem, remedy = f"{list(scales)} are no scales", f"give numbers above 0 and at most {MOST_SCALE:g}"
        raise ConfigError(where, problem, remedy)


def _up(side: int, divisor: int) -> int:
    """The next multiple."""
    return -(-side // divisor) * divisor


class SemanticSegmenter(SemanticNetwork):
    """A backbone, a neck if need be, and a head; another head on the same maps while training.

    Modules have the names of mmsegmentation's `EncoderDecoder`.

    Args:
        backbone: gives maps `[B, C_i, H_i, W_i]`, fine to coarse. Images are resized bilinearly, whatever its weights
            saw.
        labels: the classes.
        head: from maps to logits; built with `channels`, `strides` and `num_classes`.
        neck: between them, built with `channels` and `strides`; None: none, but a pyramid where the backbone gives one
            map for several strides (see `necks.default_neck`).
        auxiliary: a further head that is trained with `auxiliary_weight` and not used otherwise (0.4 in the papers);
            or several: deep supervision.
        auxiliary_weight: of the loss of each.
        base: see `SemanticNetwork`.
    """

    default_loss = Factory(PixelCrossEntropy)
    class_layers = (r"^(decode|auxiliary)_head\.(\d+\.)?(conv_seg|linear_pred)\.",)
    sets_itself = ("preprocessing", "align_corners")

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        head: Factory[DecodeHead],
        *,
        neck: Factory[nn.Module] | None = None,
        auxiliary: Factory[DecodeHead] | tuple[Factory[DecodeHead], ...] | None = None,
        auxiliary_weight: float = 0.4,
        **base: Any,
    ) -> None:
        super().__init__(labels, replace(backbone.preprocessing, interpolation="bilinear"), **base)
        self.backbone: DenseBackbone = backbone
        self.neck: Any = None
        facts: dict[str, Any] = {"channels": backbone.channels, "strides": backbone.strides}
        wanted = backbone.wanted_strides or backbone.strides
        if neck is not None:
            self.neck = neck(**facts)
        elif len(backbone.strides) < len(wanted):
            width = {"num_levels": len(wanted), "embed_dim": backbone.channels[-1]}
            self.neck = default_neck(backbone, len(wanted))(**facts, **width)
        if self.neck is not None:
            facts = {"channels": self.neck.channels, "strides": self.neck.strides}
        self.decode_head = head(**facts, num_classes=labels.num_classes)
        self.align_corners = self.decode_head.align_corners
        facts |= {"num_classes": labels.num_classes}
        self.auxiliary_head: nn.Module | None = None
        if isinstance(auxiliary, tuple):
            self.auxiliary_head = nn.ModuleList(factory(**facts) for factory in auxiliary) if auxiliary else None
        elif auxiliary is not None:
            self.auxiliary_head = auxiliary(**facts)
        refuse_negative(auxiliary_weight=auxiliary_weight)
        self.auxiliary_weight = auxiliary_weight
        self.key_maps = tuple(_key_maps(backbone, self.decode_head))
        self.input_layers = under("backbone.", backbone.input_layers)

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Normalised images `[B, C, H, W]` -> what the heads see."""
        maps = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, C, H, W]` -> logits `[B, K, h, w]`."""
        return self.decode_head(self.maps(images))

    def training_losses(self, images: Tensor, labels: Tensor, count: Tensor | None) -> dict[str, Tensor]:
        """See `SemanticNetwork`; with an auxiliary head `loss_aux`, too."""
        maps = self.maps(images)
        losses = {"loss_seg": self.pixel_loss(self.decode_head(maps), labels, count)}
        if isinstance(self.auxiliary_head, nn.ModuleList):
            for i, head in enumerate(self.auxiliary_head):
                losses[f"loss_aux_{i}"] = self.auxiliary_weight * self.pixel_loss(head(maps), labels, count)
        elif self.auxiliary_head is not None:
            losses["loss_aux"] = self.auxiliary_weight * self.pixel_loss(self.auxiliary_head(maps), labels, count)
        return losses

    def no_weight_decay(self) -> set[str]:
        """See `Network`: what the backbone's authors exempt."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def layers_above(self) -> dict[str, int] | None:
        """See `Network`: layers of the backbone; all that stands upon it is the top."""
        layers = self.backbone.layers_above()
        return None if layers is None else {f"backbone.{name}": above for name, above in layers.items()}


def _key_maps(backbone: DenseBackbone, head: DecodeHead) -> Iterator[KeyMap]:
    """Namings of a segmenter's files: ours but for what a head does not use; mmsegmentation's, which all authors have,
    whatever the backbone is called in it; and that of `transformers`."""
    unused = tuple(rf"^decode_head\.{pattern}" for pattern in head.unused)
    for known in backbone.key_maps:
        inside = (("backbone.", "backbone.", known),)
        yield KeyMap(f"mmsegmentation's {known.name}", r"^decode_head\.", drop=unused, parts=inside)
        if head.transformers and known.name == "dense transformers":
            parts = (
                ("segformer.", "backbone.", known),
                ("decode_head.", "decode_head.", KeyMap("head", r"", rules=head.transformers)),
            )
            yield KeyMap("transformers", r"^segformer\.", parts=parts)
    yield KeyMap("mmsegmentation", r"^decode_head\.", drop=unused)
