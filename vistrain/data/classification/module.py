"""Classification data: the module that all such sets share."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_of, stack_padded
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.classification.sources import Split
from vistrain.data.classification.transforms import EvalCrop, ImageAugment
from vistrain.errors import ConfigError, DataError, refuse_below
from vistrain.structures import LabelSpace

Filter = Literal["bilinear", "bicubic"]
FALLBACK = (224, 224)  # for weights that name no size


@dataclass
class LabelledImage:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB; of clips `[T, H, W, 3]`.
        id: its index in the split.
        original_size: height, width in pixels before any transform; of clips the frames before them.
        labels: its classes.
        views: further versions of it, each `[H, W, 3]`.
    """

    image: np.ndarray
    id: int
    original_size: tuple[int, ...]
    labels: tuple[int, ...]
    views: tuple[np.ndarray, ...] = ()


class LabelledImages(SampleSet):
    """Images with their classes, read and transformed on demand.

    Args:
        split: the images.
        transform: augmentation, or the evaluation crop.
        size: of the augmented images.
        mean: of the model's normalisation.
        views: how many times each image is augmented.
    """

    def __init__(
        self,
        split: Split,
        transform: ImageAugment | EvalCrop,
        size: tuple[int, int] = FALLBACK,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        views: int = 1,
    ) -> None:
        self.split, self.transform, self.size, self.mean = split, transform, size, mean
        self.views = views

    def __len__(self) -> int:
        return len(self.split)

    def sample(self, index: int, seed: int = 0) -> LabelledImage:
        """The transformed sample.

        Raises:
            DataError: its image cannot be read.
        """
        encoded = self.split.source.open(index)
        views: tuple[np.ndarray, ...] = ()
        if isinstance(self.transform, ImageAugment):
            image = self.transform.apply(encoded, self.size, self.mean, seed)
            if self.views > 1:
                seeds = np.random.SeedSequence(seed).generate_state(self.views - 1, np.uint64).tolist()
                views = tuple(self.transform.apply(encoded, self.size, self.mean, other) for other in seeds)
        else:
            image = self.transform(encoded.decode())
        return LabelledImage(image, index, encoded.size, self.split.of(index), views)

    def where(self, index: int) -> str:
        """The file of an image (of all images, where one file holds them)."""
        return str(self.split.source.path(index))


class ClassificationData(DataModule):
    """Base of the classification sets: a subclass says what its splits hold, in `load`.

    Args:
        batch_size, eval_batch_size: see `DataModule`.
        image_size: height and width of training images, pixels; the model's own if None.
        eval_size: of evaluation images; if None `image_size`, or what the weights' accuracy is published for.
        crop_pct: share of the resized image that the evaluation crop keeps; that of the weights if None.
        interpolation: of the evaluation resize; that of the weights if None.
        augment: training augmentation; crops and flips if None.
        repeats: repeated augmentation, versions of each image in an epoch that is no longer for it.
        views: versions of each training image in its batch, for methods that compare them.
        base: see `DataModule`.

    Attributes:
        multi_label: whether an image may have any number of classes.

    Raises:
        ConfigError: a number is out of its range.
    """

    multi_label = False

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 64,
        image_size: int | tuple[int, int] | None = None,
        eval_size: int | tuple[int, int] | None = None,
        crop_pct: float | None = None,
        interpolation: Filter | None = None,
        augment: ImageAugment | None = None,
        repeats: int = 1,
        views: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, **base)
        refuse_below(1, views=views)
        if repeats < 1:
            raise ConfigError("repeats", f"{repeats} is too small", "1 turns repeated augmentation off")
        self.image_size, self.eval_size = _pair(image_size, "image_size"), _pair(eval_size, "eval_size")
        self.crop_pct, self.interpolation, self.repeats = crop_pct, interpolation, repeats
        self.views = views
        self.augment = ImageAugment() if augment is None else augment
        self._splits: dict[SplitName, Split] = {}

    @abstractmethod
    def load(self, split: SplitName) -> Split:
        """The images of a split with their classes.

        Raises:
            DataError: files are missing or wrong.
        """

    def split(self, name: SplitName) -> Split:
        """The images of a split, read the first time."""
        if name not in self._splits:
            found = self.load(name)
            if not len(found):
                raise DataError(str(self.root), f"split {name!r} has no images", self.remedy(name))
            self._splits[name] = found
        return self._splits[name]

    def find(self, split: SplitName) -> None:
        """Finds the images of a split and their classes."""
        self.split(split)

    def dataset(self, split: SplitName) -> LabelledImages:
        """The samples of a split: augmented for `train`, cropped for evaluation otherwise."""
        if split != "train":
            return LabelledImages(self.split(split), self.eval_transform)
        return LabelledImages(self.split(split), self.augment, self.train_size, self.preprocessing.mean, self.views)

    def plain_train_dataset(self) -> LabelledImages:
        """The training images under the evaluation crop, for neighbours and features."""
        return LabelledImages(self.split("train"), self.eval_transform)

    @property
    def train_size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.image_size or self.preprocessing.input_size or FALLBACK

    @property
    def eval_transform(self) -> EvalCrop:
        """The evaluation crop, as the model's weights want it."""
        wanted = self.preprocessing
        size = self.eval_size or self.image_size or wanted.test_size or self.train_size
        share = self.crop_pct
        if share is None:
            share = wanted.test_crop_pct if size == wanted.test_size and wanted.test_crop_pct else wanted.crop_pct
        return EvalCrop(size, share, self.interpolation or wanted.interpolation, wanted.crop_mode, wanted.mean)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """The short and the long side of a split's images, which all have one size, in pixels."""
        height, width = self.train_size if split == "train" else self.eval_transform.size
        return min(height, width), max(height, width)

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of the images, by the key that sets it: what a model must be able to take."""
        return {"image_size": self.train_size, "eval_size": self.eval_transform.size}

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """`images`: how many there are; `labels`: tuple of class channels for each, by id."""
        found = self.split(split)
        return {"images": len(found), "labels": [found.of(i) for i in range(len(found))]}

    def image_path(self, split: SplitName, image_id: int) -> Path:
        """The file of an image (of all images, where one file holds them)."""
        return self.split(split).source.path(image_id)

    @property
    def collate(self) -> Callable[[Sequence[LabelledImage]], Batch]:
        """See `collate_images`."""
        return functools.partial(collate_images, multi_label=self.labels.num_classes if self.multi_label else None)

    def count_targets(self, target: Mapping[str, Any]) -> int:
        """The classes of an image."""
        return len(target["labels"])

    def relabelling(self, channels: tuple[int, ...]) -> Callable[[LabelledImage], LabelledImage]:
        """See `DataModule`.

        Raises:
            ConfigError: an image may have any number of classes, or would be left with none.
        """
        if self.multi_label:
            raise ConfigError("data.sets", "images of any number of classes are not put together", "train on one set")
        lost = [name for name, channel in zip(self.class_names, channels, strict=True) if channel < 0]
        if lost:
            problem = f"an image of class {lost[0]!r} would be left with none"
            raise ConfigError("data.others", problem, "set it to add, or leave such images out by the set's train_on")
        return functools.partial(relabelled, channels=channels)

    def joined_truth(
        self, split: SplitName, parts: Sequence[tuple[DataModule, tuple[int, ...]]], labels: LabelSpace
    ) -> tuple[dict[str, Any], list[int]]:
        """See `DataModule`; images are counted on from set to set."""
        found: list[tuple[int, ...]] = []
        starts = []
        for part, channels in parts:
            starts.append(len(found))
            found += [tuple(channels[label] for label in image) for image in part.ground_truth(split)["labels"]]
        return {"images": len(found), "labels": found}, starts

    def check(self, output: str | Path) -> Findings:
        """See `classification.check.check_classes`."""
        from vistrain.data.classification.check import check_classes  # it draws, which training need not load

        return check_classes(self, output)


def relabelled(sample: LabelledImage, channels: tuple[int, ...]) -> LabelledImage:
    """A sample with other class channels: its labels are places in `channels`."""
    return replace(sample, labels=tuple(channels[label] for label in sample.labels))


def collate_images(samples: Sequence[LabelledImage], multi_label: int | None = None) -> Batch:
    """Stacks images of one size.

    Args:
        samples: at least one.
        multi_label: number of class channels, if images may have any number of classes.

    Returns:
        `image` uint8 `[B, 3, H, W]`, `size` and `original_size` int64 `[B, 2]`, `id` list of int, `labels` int64 `[B]`
        (with `multi_label` 0 and 1, `[B, K]`), `target` list of dicts with `labels`, a tuple of int; where there are
        several views, all but the first as `views` uint8 `[V - 1, B, 3, H, W]`.
    """
    if multi_label is None:
        labels = torch.tensor([s.labels[0] for s in samples], dtype=torch.int64)
    else:
        labels = torch.zeros(len(samples), multi_label, dtype=torch.int64)
        for row, sample in zip(labels, samples, strict=True):
            row[list(sample.labels)] = 1
    return {**collate_pictures(samples), "labels": labels}


def collate_pictures(samples: Sequence[LabelledImage]) -> Batch:
    """As `collate_images`, without `labels`."""
    images, sizes, ids = zip(*((s.image, s.original_size, s.id) for s in samples), strict=True)
    batch = batch_of(images, sizes, ids, [{"labels": s.labels} for s in samples])
    if samples[0].views:
        batch["views"] = torch.stack([stack_padded(view)[0] for view in zip(*(s.views for s in samples), strict=True)])
    return batch


def _pair(size: int | tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(pair) < 1:
        raise ConfigError(name, f"{size} is not a size in pixels")
    return pair
