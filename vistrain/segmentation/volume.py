"""Segmentation of volumes: what every network that gives voxels a class gets around it.

A network for volumes is a `VolumeNetwork`: images in, logits out, and nothing else. Labels, regions, losses, windows
and mirror images are the same for all of them, and stand here.
"""

from __future__ import annotations

import abc
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vistrain.checkpoints import KeyMap, under
from vistrain.devices import upload
from vistrain.errors import ConfigError
from vistrain.losses.class_maps import PixelCrossEntropy, PixelLoss, refuse_other_weights
from vistrain.losses.dice import PixelDice, PixelLosses
from vistrain.losses.set_criterion import average_over_processes
from vistrain.network import Network
from vistrain.predictions import Segmentation
from vistrain.segmentation.label_maps import label_maps
from vistrain.segmentation.volume_windows import enlarged_planes, sliding_planes, window_count
from vistrain.structures import Channels, Exported, Factory, LabelSpace, Preprocessing

log = logging.getLogger(__name__)

MANY = 10_000  # windows of a case, above which it is said before they are computed
IGNORED = 255  # where a label space does not say otherwise
Outputs = Literal["softmax", "regions"]


class VolumeNetwork(nn.Module, abc.ABC):
    """Base of networks for volumes, which are built with the channels of the images and the number of outputs.

    Args of every subclass, by these names: `in_channels` (C) and `out_channels` (K). A network for other channels or
    classes differs from it in the tensors of `input_layers` and `class_layers` alone.

    Attributes:
        divisors: whole numbers that the sides of what it is given must be multiples of, along depth, height and width.
        key_maps: names in its official files, as in `Network`.
        class_layers, input_layers: regular expressions of the tensors whose shape depends on K, and of those whose
            second axis is C, as in `Network`; they begin with `^`.
    """

    divisors: tuple[int, int, int] = (1, 1, 1)
    key_maps: Sequence[KeyMap] = ()
    class_layers: tuple[str, ...] = ()
    input_layers: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images `[B, C, D, H, W]` -> logits `[B, K, D, H, W]`.

        While training it may be a list of logits, the finest first, each of which is trained (deep supervision); the
        others have any smaller sides.
        """


class Slices(VolumeNetwork):
    """A network for pictures, applied to each slice of a volume by itself.

    Args:
        network: unbuilt; built with `in_channels` and `out_channels`, it takes `[B, C, H, W]` and gives logits
            `[B, K, H, W]` (or, while training, a list of them).
        in_channels, out_channels: C and K.
    """

    def __init__(self, network: Factory[SliceNetwork], in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.network = network(in_channels=in_channels, out_channels=out_channels)
        self.divisors = (1, *self.network.divisors)
        self.key_maps = inside("network.", self.network.key_maps)
        self.class_layers = under("network.", self.network.class_layers)
        self.input_layers = under("network.", self.network.input_layers)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """See `VolumeNetwork`."""
        batch, depth = images.shape[0], images.shape[2]
        found = self.network(images.transpose(1, 2).flatten(0, 1))
        if isinstance(found, Tensor):
            return found.unflatten(0, (batch, depth)).transpose(1, 2)
        return [logits.unflatten(0, (batch, depth)).transpose(1, 2) for logits in found]


class SliceNetwork(nn.Module, abc.ABC):
    """Base of networks for slices, see `Slices`.

    Attributes:
        divisors: whole numbers that the sides of what it is given must be multiples of, along height and width.
        key_maps, class_layers, input_layers: as in `VolumeNetwork`.
    """

    divisors: tuple[int, int] = (1, 1)
    key_maps: Sequence[KeyMap] = ()
    class_layers: tuple[str, ...] = ()
    input_layers: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images `[B, C, H, W]` -> logits `[B, K, H, W]`, see `VolumeNetwork`."""


def inside(prefix: str, key_maps: Sequence[KeyMap]) -> tuple[KeyMap, ...]:
    """Namings of a network's files for what holds it under a prefix (`network.`)."""
    found = []
    for known in key_maps:
        exports = ((f"^{re.escape(prefix)}", ("",)), *known.exports) if known.exports else ()
        found.append(replace(known, rules=(*known.rules, (r"^", prefix)), exports=exports))
    return tuple(found)


class VolumeSegmenter(Network):
    """Gives every voxel a class, with any `VolumeNetwork`.

    `target` of a batch holds `label_map` `[D, H, W]` of any integer type: class channels, or the ignore index (255 if
    the label space has none), as on everything that carries no annotation. `original_size` are the sides of the case
    before it was cropped to `box` and resampled; predictions are made in them.

    Args:
        labels: the classes, and the regions if `outputs` says so.
        network: unbuilt; built with `in_channels` and `out_channels`.
        outputs: `softmax`, one logit for each class, or `regions`, one for each region of the labels, by itself, so
            that regions may overlap (BraTS: WT, TC, ET). Then a voxel gets the class of the last of the labels' regions
            that it is in: the first class of that region which belongs to no later one.
        loss: of each output that is trained, of the classes; of a region, the loss of being in it or not, and the mean
            over the regions. None: cross-entropy and Dice without the background, in equal parts.
        deep_weights: factors on the losses of the logits of `network`, finest first; None: 1, 1/2, 1/4, ... for as many
            as it gives. Their sum is made 1.
        window: depth, height and width of the windows that cases are cut into for inference, voxels; None takes cases
            whole.
        overlap: of neighbouring windows, as a share of their sides.
        window_batch: windows that are computed at once.
        mirror: axes (0 depth, 1 height, 2 width) along which images are mirrored in all combinations for inference,
            whose logits are averaged.
        channels: C of the images.

    Raises:
        ConfigError: the labels have no regions, regions do not tell classes apart, or an argument makes no sense.
    """

    compiled_parts = ("network",)
    entrances = ("losses", "predict", "case_probabilities")
    measured_size = (128, 128, 128)
    labels: LabelSpace

    def __init__(
        self,
        labels: LabelSpace,
        network: Factory[VolumeNetwork],
        outputs: Outputs = "softmax",
        loss: PixelLoss | None = None,
        deep_weights: tuple[float, ...] | None = None,
        window: tuple[int, int, int] | None = None,
        overlap: float = 0.5,
        window_batch: int = 1,
        mirror: tuple[int, ...] = (),
        channels: Channels = Channels(1),  # noqa: B008 - an int
    ) -> None:
        super().__init__()
        if labels.num_classes < 2:
            raise ConfigError("data.labels", f"{labels.num_classes} classes", "name the background and something else")
        if not 0 <= overlap < 1:
            raise ConfigError("model.overlap", f"{overlap}", "a share of a window's side: from 0 to below 1")
        if len(set(mirror)) != len(mirror) or not set(mirror) <= {0, 1, 2}:
            raise ConfigError("model.mirror", f"{list(mirror)}", "some of the axes 0, 1 and 2")
        if deep_weights is not None and (not deep_weights or min(deep_weights) < 0 or deep_weights[0] <= 0):
            raise ConfigError("model.deep_weights", f"{list(deep_weights)}", "factors of 0 or more, the first above 0")
        self.labels, self.channels = labels, int(channels)
        self.preprocessing = Preprocessing((0.0,) * self.channels, (1.0,) * self.channels)
        self.ignore_index = IGNORED if labels.ignore_index is None else labels.ignore_index
        self.outputs, self.deep_weights = outputs, deep_weights
        self.painted = region_classes(labels) if outputs == "regions" else ()
        refuse_other_weights(loss or nn.Identity(), 2 if self.painted else labels.num_classes)
        self.criterion = loss or PixelLosses([PixelCrossEntropy(over_all=False), PixelDice(background=False)])
        self.overlap, self.window_batch, self.mirror = overlap, window_batch, tuple(mirror)
        self.network = network(in_channels=self.channels, out_channels=len(self.painted) or labels.num_classes)
        self.num_outputs = len(self.painted) or labels.num_classes
        self.window, self._told, self.averaged = window, False, list[VolumeSegmenter]()
        self.exported_size = window or tuple(4 * by for by in self.network.divisors)
        if window is not None:
            self.check_size(*window)
        self.key_maps = inside("network.", self.network.key_maps)
        self.class_layers = under("network.", self.network.class_layers)
        self.input_layers = under("network.", self.network.input_layers)

    def check_size(self, *size: int) -> None:
        """See `Network`: sides are multiples of the network's `divisors`."""
        divisors = self.network.divisors
        if len(size) != 3 or any(side < 1 or side % by for side, by in zip(size, divisors, strict=True)):
            nearest = [max(by, -(-side // by) * by) for side, by in zip(size, divisors, strict=False)]
            problem = f"sides of {list(size)} voxels, which are no multiples of {list(divisors)}"
            raise ConfigError("model.window", problem, f"such as {nearest}")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, C, D, H, W]` -> the finest logits `[B, K, D, H, W]` of classes, or of regions."""
        found = self.network(images)
        return found if isinstance(found, Tensor) else found[0]

    def exported_facts(self) -> Exported:
        """See `Network`."""
        kind = f"the regions {', '.join(name for name, _ in self.labels.regions or ())}" if self.painted else "classes"
        return Exported({"logits": f"[B, K, D, H, W] logits of {kind}, of a window of a prepared case"})

    # ---------------------------------------------------------------- training

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted training losses: `loss_seg` of the finest logits, `loss_deep1`, ... of the coarser ones.

        Args:
            batch: `image` floating point `[B, C, D, H, W]`, `size`, `target`, and `num_targets` (labelled voxels) and
                `micro_batches` where gradients are accumulated.

        Raises:
            DataError: a label map has another size than its image, or a value that is no class.
        """
        images = batch["image"].to(torch.float32)
        labels = label_maps(batch, self.labels.num_classes, self.ignore_index)
        count = None
        if "num_targets" in batch:
            count = average_over_processes(batch["num_targets"], images.device, batch.get("micro_batches", 1))
        found = self.network(images)
        levels = [found] if isinstance(found, Tensor) else list(found)
        factors = self._factors(len(levels))
        losses = {}
        for level, (logits, factor) in enumerate(zip(levels, factors, strict=True)):
            truth, of_level = _shrunk(labels, logits.shape[2:]), count
            if count is not None and level:
                of_level = count * (truth.numel() / labels.numel())
            losses["loss_seg" if level == 0 else f"loss_deep{level}"] = factor * self.output_loss(
                logits, truth, of_level
            )
        return losses

    def _factors(self, levels: int) -> list[float]:
        factors = [0.5**level for level in range(levels)] if self.deep_weights is None else list(self.deep_weights)
        if len(factors) < levels:
            problem = f"{len(factors)} factors, and the network gives logits of {levels} levels"
            raise ConfigError("model.deep_weights", problem, f"write {levels} of them, 0 where a level is not trained")
        factors = factors[:levels]
        return [factor / sum(factors) for factor in factors]

    def output_loss(self, logits: Tensor, labels: Tensor, count: Tensor | None = None) -> Tensor:
        """The criterion on one output.

        Args:
            logits: `[B, K, *S]` of classes, or of regions.
            labels: `[B, *S]` int64 class channels.
            count: labelled voxels to divide by, see `losses.class_maps`.
        """
        if not self.painted:
            return self.criterion(logits, labels, self.ignore_index, count)
        parts = []
        for index, (_, members) in enumerate(self.labels.regions or ()):
            inside_of = upload([int(label in members) for label in range(self.labels.num_classes)], labels.device)
            labelled = labels != self.ignore_index
            truth = torch.where(labelled, inside_of[labels.where(labelled, 0)], self.ignore_index)
            own = logits[:, index : index + 1]
            # The softmax of (0, x) is the sigmoid of x.
            parts.append(self.criterion(torch.cat((torch.zeros_like(own), own), 1), truth, self.ignore_index, count))
        return torch.stack(parts).mean()

    # ---------------------------------------------------------------- inference

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Segmentation]:
        """The class of each voxel of the original cases, `semantic` uint8 (int64 of more than 256 classes).

        Only slabs along the first axis that open windows touch are held; they are enlarged and reduced as soon as they
        close.

        Args:
            batch: `image`, `size`, `original_size`, and `box` `[B, 3, 2]` int64, the part of the original that the
                image shows (all of it if that is missing).
        """
        return [
            Segmentation(semantic=self.decided(self.mean_planes(image, box), size, box, 0.5))
            if self.averaged
            else Segmentation(semantic=self.decided(self.planes(image, box), size, box))
            for image, size, box in _cases(batch)
        ]

    @torch.no_grad()
    def case_probabilities(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Probabilities `[K, D, H, W]` float16 of the classes, or of the regions, in the original cases; outside the
        box 1 for the background, or 0.

        Args:
            batch: see `predict`.
        """
        found = []
        for image, size, box in _cases(batch):
            shares = torch.zeros((self.num_outputs, *size), dtype=torch.float16)
            if not self.painted:
                shares[0] = 1
            part = shares[:, *(slice(low, high) for low, high in box)]
            for index, plane in enumerate(self.mean_planes(image, box)):
                part[:, index] = plane.to(part)
            found.append(shares)
        return found

    def average_with(self, others: Sequence[Network]) -> None:
        """See `Network`: of their probabilities; mirror images, overlap and batches of windows are those of this one.

        Raises:
            ConfigError: they have other outputs.
        """
        for other in others:
            if not isinstance(other, VolumeSegmenter) or other.painted != self.painted:
                raise ConfigError("--ckpt", "networks of different outputs", "average networks of one config")
            other.mirror, other.overlap, other.window_batch = self.mirror, self.overlap, self.window_batch
            self.averaged.append(other.to(next(self.parameters()).device).eval())

    def mean_planes(self, image: Tensor, box: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        """Probabilities `[K, h, w]` of each plane, of this network or the mean with those of `average_with`.

        Args:
            image, box: see `planes`.
        """
        device = next(self.parameters()).device
        members = [self, *(other.to(device) for other in self.averaged)]  # which are no part of this module
        for planes in zip(*(member.planes(image, box) for member in members), strict=True):
            yield torch.stack([self.plane_probabilities(plane) for plane in planes]).mean(0)

    def plane_probabilities(self, logits: Tensor) -> Tensor:
        """Logits `[K, ...]` -> probabilities in 0..1 of the same shape."""
        return logits.sigmoid() if self.painted else logits.softmax(0)

    def plane_classes(self, scores: Tensor, threshold: float = 0.0) -> Tensor:
        """Classes `[...]` of logits `[K, ...]`; of regions those above the threshold count."""
        if not self.painted:
            return scores.max(0).indices
        classes = torch.zeros(scores.shape[1:], dtype=torch.long, device=scores.device)
        for own, channel in zip(scores, self.painted, strict=True):
            classes.masked_fill_(own > threshold, channel)
        return classes

    def decided(
        self, planes: Iterator[Tensor], size: Sequence[int], box: Sequence[tuple[int, int]], threshold: float = 0.0
    ) -> Tensor:
        """Classes `[*size]` from planes `[K, h, w]` of the box, which are forgotten one by one; see `plane_classes`."""
        few = self.labels.num_classes <= 256
        found = torch.zeros(tuple(size), dtype=torch.uint8 if few else torch.int64)
        part = found[tuple(slice(low, high) for low, high in box)]
        for index, plane in enumerate(planes):
            part[index] = self.plane_classes(plane, threshold).to(part)
        return found

    def planes(self, image: Tensor, box: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
        """Logits `[K, h, w]` float32 of each plane of the box, along the first axis.

        Args:
            image: `[C, d, h, w]`, in any resolution; it may lie on another device than the network.
            box: its place in the case, whose sides are those that are wanted.
        """
        sides = tuple(image.shape[1:])
        whole = tuple(-(-side // by) * by for side, by in zip(sides, self.network.divisors, strict=True))
        window = whole if self.window is None else self.window
        count = window_count(sides, window, self.overlap)
        if count > MANY and not self._told:
            self._told = True
            each = f", each in {2 ** len(self.mirror)} mirror images" if self.mirror else ""
            log.warning(
                "%s voxels are cut into %d windows of %s (model.window, model.overlap=%g)%s: this takes long",
                "x".join(map(str, sides)), count, "x".join(map(str, window)), self.overlap, each,
            )  # fmt: skip
        found = sliding_planes(self._mirrored, image, window, self.overlap, self.num_outputs, self.window_batch)
        return enlarged_planes(found, sides, tuple(high - low for low, high in box))

    def _mirrored(self, images: Tensor) -> Tensor:
        """Mean logits of the mirror images `[B, C, *S]`, on the network's device."""
        images = images.to(next(self.network.parameters()).device, torch.float32)
        total: Tensor | None = None
        turns = [t for n in range(len(self.mirror) + 1) for t in itertools.combinations(self.mirror, n)]
        for turn in turns:
            axes = tuple(axis + 2 for axis in turn)
            found = self(images.flip(axes) if axes else images).float()
            found = found.flip(axes) if axes else found
            total = found if total is None else total.add_(found)
        assert total is not None
        return total if len(turns) == 1 else total.div_(len(turns))


def region_classes(labels: LabelSpace) -> tuple[int, ...]:
    """The class channel that a voxel of each region gets: the first one that belongs to no later region.

    Raises:
        ConfigError: there are no regions, or a region lies within later ones.
    """
    if not labels.regions:
        raise ConfigError("model.outputs", "'regions', but the data names none", "write data.regions, or 'softmax'")
    found = []
    for index, (name, members) in enumerate(labels.regions):
        later = {channel for _, of_later in labels.regions[index + 1 :] for channel in of_later}
        own = [channel for channel in members if channel not in later]
        if not own:
            problem = f"each class of the region {name!r} belongs to a later one too"
            raise ConfigError("data.regions", problem, "write the larger region first, or model.outputs=softmax")
        found.append(own[0])
    return tuple(found)


def _cases(batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, list[int], list[tuple[int, int]]]]:
    """Image, original sides and box of each case of a batch."""
    originals = batch["original_size"].tolist()
    boxes = batch["box"].tolist() if "box" in batch else [[[0, side] for side in size] for size in originals]
    for image, size, original, box in zip(batch["image"], batch["size"].tolist(), originals, boxes, strict=True):
        yield image[:, : size[0], : size[1], : size[2]], original, [(low, high) for low, high in box]


def _shrunk(labels: Tensor, sides: Sequence[int]) -> Tensor:
    """Labels `[B, *S]` at the sides of coarser logits: those of the nearest voxels."""
    if labels.shape[1:] == torch.Size(sides):
        return labels
    for dim, side in enumerate(sides, start=1):
        old = labels.shape[dim]
        place = ((torch.arange(side, device=labels.device) + 0.5) * (old / side)).long().clamp(max=old - 1)
        labels = labels.index_select(dim, place)
    return labels
