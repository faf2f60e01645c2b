"""A user's own pictures without labels, for networks that need none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from vistrain.data.base.collate import Batch
from vistrain.data.base.module import SplitName
from vistrain.data.base.storage import is_folder
from vistrain.data.classification.class_folders import hold_out, refuse_share
from vistrain.data.classification.module import (
    ClassificationData,
    LabelledImage,
    LabelledImages,
    collate_pictures,
)
from vistrain.data.classification.sources import Files, Split, image_files
from vistrain.errors import DataError


class UnlabelledFolder(ClassificationData):
    """Any folder of pictures, searched with the folders in it, whatever these are called.

    Args:
        train: folder of the training images, relative to the root.
        val: of those that evaluations look at; without it, every `holdout`-th part of the training images is held out,
            the same ones each time.
        test: what `vistrain test` evaluates; as `val` if None.
        holdout: share of the images that is held out.
        color: `rgb`, or `grey`, images of one channel.
        base: see `ClassificationData`.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        train: str = ".",
        val: str | None = None,
        test: str | None = None,
        holdout: float = 0.05,
        color: Literal["rgb", "grey"] = "rgb",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        refuse_share(holdout)
        self.folders: dict[SplitName, str | None] = {"train": train, "val": val, "test": test or val}
        self.holdout, self.channels = holdout, 1 if color == "grey" else 3

    def folder(self, split: SplitName) -> Path:
        """The folder of a split."""
        return self.root / (self.folders[split] or self.folders["train"] or ".")

    def load(self, split: SplitName) -> Split:
        """The images of a split.

        Raises:
            DataError: the folder is missing, or has too few images.
        """
        folder = self.folder(split)
        if not is_folder(folder):
            raise DataError(str(folder), "no such folder", self.remedy(split))
        files = image_files(folder)
        whole = Split(Files(folder, files), np.zeros(0, np.int64), np.zeros(len(files) + 1, np.int64))
        held_out = self.folders[split] is None
        if not (held_out or self.folders["val"] is None):
            return whole
        if not held_out and split != "train":
            return whole
        if len(files) == 1:
            raise DataError(str(folder), "has one image, of which none can be held out", "add images, or name data.val")
        return whole.subset(hold_out(np.zeros(len(files), np.int64), self.holdout, take=held_out))

    def dataset(self, split: SplitName) -> LabelledImages:
        """See `ClassificationData`; grey ones where that is asked for."""
        made = super().dataset(split)
        return GreyImages(made) if self.channels == 1 else made

    @property
    def collate(self) -> Callable[[Sequence[LabelledImage]], Batch]:
        """See `collate_pictures`."""
        return collate_pictures


class GreyImages(LabelledImages):
    """Images of one channel `[H, W, 1]`: the luma of those of another set.

    Args:
        images: that set.
    """

    def __init__(self, images: LabelledImages) -> None:
        mean = images.mean * (3 // len(images.mean))
        super().__init__(images.split, images.transform, size=images.size, mean=mean, views=images.views)

    def sample(self, index: int, seed: int = 0) -> LabelledImage:
        """See `LabelledImages`."""
        found = super().sample(index, seed)
        found.image, found.views = grey(found.image), tuple(grey(view) for view in found.views)
        return found


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` -> `[H, W, 1]`."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
