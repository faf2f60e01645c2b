"""Labelled images of one domain, and unlabelled ones of another beside them in each batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import functional as F

from vistrain.data.base.collate import Batch, stack_padded
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import SUFFIXES, read_image
from vistrain.data.base.module import SplitName
from vistrain.data.base.storage import files_below, is_folder
from vistrain.data.segmentation.mask_folders import MaskFolders
from vistrain.data.segmentation.module import MaskedImage, MaskedImages
from vistrain.data.segmentation.transforms import MaskAugment
from vistrain.errors import ConfigError, DataError


@dataclass
class PairedImage:
    """A labelled image, and an unlabelled one.

    Attributes:
        labelled: the first.
        unlabelled: uint8 `[h, w, 3]`, RGB.
    """

    labelled: MaskedImage
    unlabelled: np.ndarray


class PairedImages(SampleSet):
    """Labelled images, each with an unlabelled one that its seed draws.

    Args:
        labelled: the first.
        files: the images of the others.
        augment: of these.
        ignored: label without supervision.
    """

    def __init__(self, labelled: MaskedImages, files: Sequence[Path], augment: MaskAugment, ignored: int) -> None:
        self.labelled, self.files, self.augment, self.ignored = labelled, files, augment, ignored

    def __len__(self) -> int:
        return len(self.labelled)

    def sample(self, index: int, seed: int = 0) -> PairedImage:
        """Both.

        Raises:
            DataError: a file of either cannot be read.
        """
        draw = np.random.default_rng((seed, 2))  # apart from the labelled image's
        image = read_image(self.files[int(draw.integers(len(self.files)))])
        nothing = np.full(image.shape[:2], self.ignored, np.uint8)
        other, _ = self.augment(image, nothing, self.ignored, int(draw.integers(2**63)))
        return PairedImage(self.labelled.sample(index, seed), other)

    def where(self, index: int) -> str:
        """The labelled image's file."""
        return self.labelled.where(index)


class AdaptationFolders(MaskFolders):
    """Folders of images with masks to learn from, and one of another domain's images without, which evaluations are of.

    Args:
        unlabelled: folder of the other domain's training images, relative to the root, searched with the folders in it.
        base: see `MaskFolders`; `train` is of the labelled domain, `val` and `test` are of the other.

    Raises:
        ConfigError: images are of bands.
    """

    def __init__(self, unlabelled: str, **base: Any) -> None:
        super().__init__(**base)
        if self.bands is not None:
            raise ConfigError("data.bands", "are not adapted from domain to domain", "leave them out")
        self.unlabelled = unlabelled
        self._files: list[Path] = []

    def unlabelled_files(self) -> list[Path]:
        """The other domain's training images, listed the first time.

        Raises:
            DataError: the folder is missing, or has none.
        """
        folder = self.root / self.unlabelled
        if not self._files:
            if not is_folder(folder):
                raise DataError(str(folder), "no such folder", "correct data.unlabelled")
            self._files = [folder / name for name in files_below(folder) if name.lower().endswith(SUFFIXES)]
        if not self._files:
            raise DataError(str(folder), "has no images", "correct data.unlabelled")
        return self._files

    def find(self, split: SplitName) -> None:
        """See `SegmentationData`; the unlabelled images, too."""
        super().find(split)
        if split == "train":
            self.unlabelled_files()

    def dataset(self, split: SplitName) -> Any:
        """See `SegmentationData`; pairs for `train`."""
        made = super().dataset(split)
        if split != "train":
            return made
        augment = replace(self.augment, category_ratio=1.0)  # nothing is known of classes
        return PairedImages(made, self.unlabelled_files(), augment, self.rule.ignored)

    def images_beside(self, split: SplitName) -> Sequence[Path]:
        """See `SegmentationData`."""
        return self.unlabelled_files() if split == "train" else ()

    @property
    def collate(self) -> Callable[[Sequence[Any]], Batch]:
        """See `collate_pairs`."""
        return functools.partial(collate_pairs, masks=super().collate, divisor=self.preprocessing.size_divisor)


def collate_pairs(samples: Sequence[Any], masks: Callable[[Sequence[MaskedImage]], Batch], divisor: int) -> Batch:
    """Batches of `PairedImage`s, with `unlabelled` uint8 `[B, 3, H, W]`, where both are padded to one size,
    and `unlabelled_size` int64 `[B, 2]`; of `MaskedImage`s as `masks` makes them.

    Args:
        samples: all of one kind.
        masks: makes batches of labelled images.
        divisor: see `stack_padded`.
    """
    if not isinstance(samples[0], PairedImage):
        return masks(samples)
    batch = masks([sample.labelled for sample in samples])
    others, batch["unlabelled_size"] = stack_padded([sample.unlabelled for sample in samples], divisor)
    height, width = (max(sides) for sides in zip(batch["image"].shape[-2:], others.shape[-2:], strict=True))
    for name, images in (("image", batch["image"]), ("unlabelled", others)):
        batch[name] = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
    return batch
