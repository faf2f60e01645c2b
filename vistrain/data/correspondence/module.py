"""Pairs of images with disparity or optical flow, of any folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_of, stack_padded
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import image_size, read_image
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.correspondence.displacement_files import Finds, read_displacement
from vistrain.data.correspondence.pair_files import PairFiles, PairSplit, find_pairs_of
from vistrain.errors import DataError, refuse_below


@dataclass
class PairSample:
    """A pair on its way to a batch.

    Attributes:
        name: of the pair.
        first, second: uint8 `[H, W, 3]`.
        field: float32 `[A, H, W]`, NaN where nothing is known.
        full: height and width of the whole images, pixels.
    """

    name: str
    first: np.ndarray
    second: np.ndarray
    field: np.ndarray
    full: tuple[int, int]


class ImagePairs(SampleSet):
    """Pairs, read on demand: whole, or a random window.

    Args:
        files: of the pairs.
        finds: `disparity` or `flow`.
        crop: height and width of the windows, pixels; None: whole images.
    """

    def __init__(self, files: Sequence[PairFiles], finds: Finds, crop: tuple[int, int] | None = None) -> None:
        self.files, self.finds, self.crop = files, finds, crop

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int, seed: int = 0) -> PairSample:
        """A pair; both images and the displacements have the same window.

        Raises:
            DataError: a file cannot be read, sizes differ, or the images are smaller than the window.
        """
        files = self.files[index]
        first, second = read_image(files.first), read_image(files.second)
        field = read_displacement(files.truth, self.finds)
        height, width = first.shape[:2]
        for path, (h, w) in ((files.second, second.shape[:2]), (files.truth, field.shape[1:])):
            if (h, w) != (height, width):
                problem = f"is {w}x{h} pixels, the first image ({files.first.name}) {width}x{height}"
                raise DataError(str(path), problem, "the three files of a pair have one size: rectify or leave it out")
        if self.crop is not None:
            rows, columns = self.crop
            if height < rows or width < columns:
                problem = f"is {width}x{height} pixels, smaller than windows of {columns}x{rows}"
                raise DataError(str(files.first), problem, "lower data.crop, or leave it out")
            draw = np.random.default_rng(seed)
            top, left = (int(draw.integers(n + 1)) for n in (height - rows, width - columns))
            window = slice(top, top + rows), slice(left, left + columns)
            first, second, field = first[window], second[window], field[(slice(None), *window)]
        return PairSample(files.name, first, second, field, (height, width))

    def where(self, index: int) -> str:
        """The first image."""
        return str(self.files[index].first)


class MatchingFolders(DataModule):
    """Pairs of images with what is known of where the first one's pixels are in the second, in any folders.

    Args:
        finds: `disparity` (of rectified pairs: pixels to the left) or `flow` (pixels to the right and down).
        train, val: where the files are.
        test: what `vistrain test` evaluates; `val` if None.
        crop: height and width of the windows that are trained on, pixels; None: whole images, which then must have one
            size.
        base: see `DataModule`.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        finds: Finds,
        train: PairSplit,
        val: PairSplit,
        test: PairSplit | None = None,
        crop: tuple[int, int] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        refuse_below(1, crop=None if crop is None else min(crop))
        self.finds, self.crop = finds, crop
        self.pair_splits: dict[SplitName, PairSplit] = {"train": train, "val": val, "test": test or val}
        self._pairs: dict[SplitName, list[PairFiles]] = {}

    def pairs(self, split: SplitName) -> list[PairFiles]:
        """The files of a split's pairs, listed the first time.

        Raises:
            DataError: some are missing.
        """
        if split not in self._pairs:
            self._pairs[split] = find_pairs_of(self.root, self.pair_splits[split], f"data.{split}")
        return self._pairs[split]

    def find(self, split: SplitName) -> None:
        """Lists the pairs of a split."""
        self.pairs(split)

    def dataset(self, split: SplitName) -> ImagePairs:
        """Windows for `train`, whole images otherwise."""
        return ImagePairs(self.pairs(split), self.finds, self.crop if split == "train" else None)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Of both images together: twice the height, and the width, pixels."""
        sizes = [self.crop] if split == "train" and self.crop else [image_size(p.first) for p in self.pairs(split)]
        return 2 * max(height for height, _ in sizes), max(width for _, width in sizes)

    def count_targets(self, target: Any) -> int:
        """Pixels whose displacement is known."""
        return int(target[self.finds].isfinite().all(0).sum())

    @property
    def collate(self) -> Callable[[Sequence[PairSample]], Batch]:
        """See `PairCollate`."""
        return PairCollate(self.finds)

    def ground_truth(self, split: SplitName) -> None:
        """Nothing beside what each batch holds."""

    def image_path(self, split: SplitName, image_id: str) -> Path:
        """The first image of a pair."""
        for pair in self.pairs(split):
            if pair.name == image_id:
                return pair.first
        raise DataError(f"data.{split}", f"has no pair {image_id}")

    def remedy_for_targets(self, missing: Sequence[str]) -> str:
        """Disparity for flow, or the other way."""
        return f"set model.finds to {self.finds}, or take data of the other kind"

    def check(self, output: str | Path) -> Findings:
        """See `matching_check.check_matches`."""
        from vistrain.data.correspondence.matching_check import check_matches  # it draws, which training need not load

        return check_matches(self, output)


@dataclass(frozen=True)
class PairCollate:
    """Pairs -> a batch: see `batch_of`; `views` `[1, B, C, H, W]` holds the second images, each of `target` what is
    looked for, by its name, float32 `[A, h, w]`, NaN where it is not known.

    Args:
        finds: that name.
    """

    finds: str

    def __call__(self, samples: Sequence[PairSample]) -> Batch:
        """See the class."""
        targets = [{self.finds: torch.from_numpy(np.ascontiguousarray(s.field))} for s in samples]
        names = [s.name for s in samples]
        batch = batch_of([s.first for s in samples], [s.full for s in samples], names, targets)
        return {**batch, "views": stack_padded([s.second for s in samples])[0][None]}
