"""Classification data: the module that all such sets share."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from vistrain.data.base.module import DataModule, SplitName, default_root
from vistrain.data.classification.sources import Split
from vistrain.data.classification.transforms import EvalCrop, ImageAugment
from vistrain.errors import ConfigError, DataError, VistrainError

Filter = Literal["bilinear", "bicubic"]
FALLBACK = (224, 224)  # for weights that name no size


@dataclass
class LabelledImage:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        id: its index in the split.
        original_size: height, width in pixels before any transform.
        labels: its classes.
    """

    image: np.ndarray
    id: int
    original_size: tuple[int, int]
    labels: tuple[int, ...]


class ClassificationDataset(Dataset[Any]):
    """Images with their classes, read and transformed on demand.

    Args:
        split: the images.
        transform: augmentation, or the evaluation crop.
        size: of the augmented images.
        mean: of the model's normalisation.
    """

    def __init__(
        self,
        split: Split,
        transform: ImageAugment | EvalCrop,
        size: tuple[int, int] = FALLBACK,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        self.split, self.transform, self.size, self.mean = split, transform, size, mean

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> LabelledImage | VistrainError:
        """The transformed sample of `index` or `(index, seed)`; what is wrong with its file is returned, not raised."""
        index, seed = key if isinstance(key, tuple) else (key, 0)
        try:
            encoded = self.split.source.open(index)
            if isinstance(self.transform, ImageAugment):
                image = self.transform.apply(encoded, self.size, self.mean, seed)
            else:
                image = self.transform(encoded.decode())
            return LabelledImage(image, index, encoded.size, self.split.of(index))
        except VistrainError as error:
            return error

    def where(self, index: int) -> str:
        """The file of an image (of all images, where one file holds them)."""
        return str(self.split.source.path(index))


class ClassificationData(DataModule):
    """Base of the classification sets: a subclass says what its splits hold, in `load`.

    Args:
        root: folder of the set, or the one that holds it; `VISTRAIN_DATA` or `data/` if None.
        batch_size, per_device, workers, seed, eval_batch_size: see `DataModule`.
        image_size: height and width of training images, pixels; the model's own if None.
        eval_size: of evaluation images; if None `image_size`, or what the weights' accuracy is published for.
        crop_pct: share of the resized image that the evaluation crop keeps; that of the weights if None.
        interpolation: of the evaluation resize; that of the weights if None.
        augment: training augmentation; crops and flips if None.
        repeats: repeated augmentation, versions of each image in an epoch that is no longer for it.

    Attributes:
        multi_label: whether an image may have any number of classes.

    Raises:
        ConfigError: a number is out of its range.
    """

    multi_label = False

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        per_device: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int = 64,
        image_size: int | tuple[int, int] | None = None,
        eval_size: int | tuple[int, int] | None = None,
        crop_pct: float | None = None,
        interpolation: Filter | None = None,
        augment: ImageAugment | None = None,
        repeats: int = 1,
    ) -> None:
        super().__init__(batch_size, per_device, workers, seed, eval_batch_size)
        if repeats < 1:
            raise ConfigError("repeats", f"{repeats} is too small", "1 turns repeated augmentation off")
        self.root = Path(default_root() if root is None else root)
        self.image_size, self.eval_size = _pair(image_size, "image_size"), _pair(eval_size, "eval_size")
        self.crop_pct, self.interpolation, self.repeats = crop_pct, interpolation, repeats
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
                raise DataError(str(self.root), f"split {name!r} has no images", self.remedy())
            self._splits[name] = found
        return self._splits[name]

    def remedy(self) -> str:
        """What to do where the set is missing."""
        return f"correct data.root (now {self.root}), or set VISTRAIN_DATA"

    def setup(self, stage: str) -> None:
        """Finds what a stage (`fit`, `validate`, `test`) needs: whatever is missing is missed before the run."""
        needed: dict[str, tuple[SplitName, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for name in needed.get(stage, ()):
            self.split(name)

    def dataset(self, split: SplitName) -> ClassificationDataset:
        """The samples of a split: augmented for `train`, cropped for evaluation otherwise."""
        if split != "train":
            return ClassificationDataset(self.split(split), self.eval_crop)
        return ClassificationDataset(self.split(split), self.augment, self.train_size, self.preprocessing.mean)

    def plain_train_dataset(self) -> ClassificationDataset:
        """The training images under the evaluation crop, for neighbours and features."""
        return ClassificationDataset(self.split("train"), self.eval_crop)

    @property
    def train_size(self) -> tuple[int, int]:
        """Height and width of training images."""
        return self.image_size or self.preprocessing.input_size or FALLBACK

    @property
    def eval_crop(self) -> EvalCrop:
        """The evaluation transform, as the model's weights want it."""
        wanted = self.preprocessing
        size = self.eval_size or self.image_size or wanted.test_size or self.train_size
        share = self.crop_pct
        if share is None:
            share = wanted.test_crop_pct if size == wanted.test_size and wanted.test_crop_pct else wanted.crop_pct
        return EvalCrop(size, share, self.interpolation or wanted.interpolation, wanted.crop_mode, wanted.mean)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """The short and the long side of a split's images, which all have one size, in pixels."""
        height, width = self.train_size if split == "train" else self.eval_crop.size
        return min(height, width), max(height, width)

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of the images, by the key that sets it: what a model must be able to take."""
        return {"image_size": self.train_size, "eval_size": self.eval_crop.size}

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """`images`: how many there are; `labels`: tuple of class channels for each, by id."""
        found = self.split(split)
        return {"images": len(found), "labels": [found.of(i) for i in range(len(found))]}

    def image_path(self, split: SplitName, image_id: int) -> Path:
        """The file of an image (of all images, where one file holds them)."""
        return self.split(split).source.path(image_id)

    def collate_function(self) -> Any:
        """What makes a batch of samples; a batch of errors passes as its first error, for the main process to raise."""
        channels = self.labels.num_classes if self.multi_label else None
        return functools.partial(collate_images, multi_label=channels)


def collate_images(samples: Sequence[LabelledImage | VistrainError], multi_label: int | None = None) -> Any:
    """Stacks images of one size.

    Args:
        samples: at least one; an error among them is returned in the batch's place.
        multi_label: number of class channels, if images may have any number of classes.

    Returns:
        `image` uint8 `[B, 3, H, W]`, `size` and `original_size` int64 `[B, 2]`, `id` list of int, `labels` int64 `[B]`
        (with `multi_label` 0 and 1, `[B, K]`), `target` list of dicts with `labels`, a tuple of int.
    """
    for sample in samples:
        if isinstance(sample, VistrainError):
            return sample
    good: Any = samples
    height, width = good[0].image.shape[:2]
    images = np.empty((len(good), 3, height, width), np.uint8)
    for planes, sample in zip(images, good, strict=True):
        cv2.split(sample.image, list(planes))
    if multi_label is None:
        labels = torch.tensor([s.labels[0] for s in good], dtype=torch.int64)
    else:
        labels = torch.zeros(len(good), multi_label, dtype=torch.int64)
        for row, sample in zip(labels, good, strict=True):
            row[list(sample.labels)] = 1
    return {
        "image": torch.from_numpy(images),
        "size": torch.tensor([[height, width]] * len(good), dtype=torch.int64),
        "original_size": torch.tensor([s.original_size for s in good], dtype=torch.int64),
        "id": [s.id for s in good],
        "labels": labels,
        "target": [{"labels": s.labels} for s in good],
    }


def _pair(size: int | tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(pair) < 1:
        raise ConfigError(name, f"{size} is not a size in pixels")
    return pair
