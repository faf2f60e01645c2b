"""Images for restoration: any folders, paired or degraded on the fly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch
from vistrain.data.base.images import image_size
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.samplers import ResumableSampler
from vistrain.data.restoration.decoded import choose_reader
from vistrain.data.restoration.degradations import Degradation
from vistrain.data.restoration.image_pairs import ImageSet, Pair, find_pairs
from vistrain.data.restoration.pixels import ColorName
from vistrain.data.restoration.samples import RestorationDataset, RestorationSample, collate_pairs
from vistrain.errors import ConfigError, DataError, refuse_below

log = logging.getLogger(__name__)

CACHE = ".decoded"  # folder below the root


class RestorationData(DataModule):
    """Any sets of images, paired or degraded on the fly. Nothing is read on construction.

    Grey, RGBA, palette, CMYK and 16-bit files are read as `data.images.read_image` reads them. Truth is cut at the
    bottom and right to a multiple of the scale, as the protocols do.

    Args:
        train: one set or several, relative to the root.
        val: sets by name; numbers come out by that name. null takes out one that a base names.
        test: what `vistrain test` evaluates; `val` if None. Sets that are not there are left out, with a warning.
        scale: how many times smaller degraded images are; that of the degradation if None.
        degradation: for sets without degraded files.
        eval_degradation: the same in evaluation, if it differs (a fixed noise level after blind training).
        color: `rgb`, `grey` or `luma`, see `data.pixels.read_pixels`.
        patch: side of training patches, in pixels of the degraded image.
        progressive: `[[step, patch], ...]`: from this optimizer step on, patches have this side (MIRNet-v2, Restormer).
        augment: turn and mirror training patches.
        repeat: how often each training image counts in an epoch, with another patch each time.
        cache: how training images are decoded once, see `data.decoded.choose_reader`. `auto` keeps a set of up to 256
            MiB in each worker's memory, and decodes a larger one for each patch. true keeps decoded copies below the
            root, of which patches alone are read (DF2K: 29 GB), if the disk has room; images need then not be cut into
            sub-images. false decodes each time.
        base: see `DataModule`. Images of several sizes in one evaluation batch are restored one by one.

    Raises:
        ConfigError: the scales differ, or a number is not positive.
    """

    def __init__(
        self,
        train: ImageSet | tuple[ImageSet, ...],
        val: dict[str, ImageSet | None],
        test: dict[str, ImageSet | None] | None = None,
        scale: int | None = None,
        degradation: Degradation | None = None,
        eval_degradation: Degradation | None = None,
        color: ColorName = "rgb",
        patch: int = 64,
        progressive: tuple[tuple[int, int], ...] = (),
        augment: bool = True,
        repeat: int = 1,
        cache: bool | Literal["auto"] = "auto",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.sets: dict[SplitName, dict[str, ImageSet]] = {
            "train": {str(i): s for i, s in enumerate((train,) if isinstance(train, ImageSet) else train)},
            "val": {name: s for name, s in val.items() if s is not None},
            "test": {name: s for name, s in (test or val).items() if s is not None},
        }
        self.degradation, self.eval_degradation = degradation, eval_degradation or degradation
        made = {d.scale for d in (self.degradation, self.eval_degradation) if d is not None}
        self.scale = scale if scale is not None else max(made, default=1)
        if made - {self.scale}:
            raise ConfigError("scale", f"{self.scale}, but degraded {max(made)} times", "give one of the two")
        refuse_below(1, patch=patch, repeat=repeat, scale=self.scale)
        if any(side < 1 for _, side in progressive) or sorted(progressive) != list(progressive):
            raise ConfigError("progressive", f"{progressive} are not patches by ascending step")
        self.color, self.patch, self.progressive = color, patch, progressive
        self.channels = 3 if color == "rgb" else 1
        self.augment, self.times, self.cache = augment, repeat, cache
        self._pairs: dict[SplitName, list[tuple[str, Pair]]] = {}

    def find(self, split: SplitName) -> None:
        """Finds the pairs of a split."""
        self.pairs(split)

    def pairs(self, split: SplitName) -> list[tuple[str, Pair]]:
        """`(set/name, pair)` of all images of a split.

        Raises:
            DataError: a set has no images, or an image no degraded version.
        """
        if split not in self._pairs:
            degradation = self.degradation if split == "train" else self.eval_degradation
            found: list[tuple[str, Pair]] = []
            missing: list[DataError] = []
            for name, images in self.sets[split].items():
                if images.low is None and degradation is None:
                    raise ConfigError(f"data.{split}", f"set {name} has no `low`", "give it, or data.degradation")
                try:
                    found += [(f"{name}/{p.name}", p) for p in find_pairs(self.root, images, self.scale)]
                except DataError as error:
                    if split != "test" or (self.root / images.truth).exists():
                        raise
                    missing.append(error)
                    log.warning("test set %s left out: %s", name, error)
            if not found:
                raise missing[0] if missing else DataError(f"data.{split}", "no sets")
            self._pairs[split] = found
        return self._pairs[split]

    def dataset(self, split: SplitName) -> RestorationDataset:
        """The samples of a split: patches for `train`, whole images otherwise."""
        pairs, common = self.pairs(split), (self.scale, self.color)
        if split != "train":
            return RestorationDataset(pairs, *common, self.eval_degradation)
        paths = [path for _, pair in pairs for path in (pair.truth, pair.low) if path is not None]
        reader = choose_reader(paths, self.color, self.cache, self.root / CACHE)
        return RestorationDataset(pairs, *common, self.degradation, self.patch, self.augment, self.times, reader)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Upper bounds of the short and long side of the truth, in pixels."""
        if split == "train":
            side = max([self.patch, *(patch for _, patch in self.progressive)]) * self.scale
            return side, side
        sizes = [image_size(pair.truth) for _, pair in self.pairs(split)]
        return max(map(min, sizes)), max(map(max, sizes))

    def training_sampler(self, length: int) -> ResumableSampler:
        """Shuffled order, and the side of the patches where it changes."""
        if not self.progressive:
            return super().training_sampler(length)
        arguments = (length, self.batch_size, self.seed, self.rank, self.world, self.resume)
        return ProgressiveSampler(*arguments, patches=((0, self.patch), *self.progressive))

    def place(self, split: SplitName) -> str:
        """The folders of its sets."""
        return ", ".join(str(self.root / images.truth) for images in self.sets[split].values())

    @property
    def collate(self) -> Callable[[Sequence[RestorationSample]], Batch]:
        """See `collate_pairs`."""
        return collate_pairs

    def check(self, output: str | Path) -> Findings:
        """See `restoration.check.check_pairs`."""
        from vistrain.data.restoration.check import check_pairs  # it draws, which training need not load

        return check_pairs(self, output)


class ProgressiveSampler(ResumableSampler):
    """A `ResumableSampler` that yields `(index, seed, patch)`, with patches that change at given optimizer steps.

    Args:
        arguments: of `ResumableSampler`.
        patches: `(first step, side)` in ascending order, the first from step 0.
    """

    def __init__(self, *arguments: Any, patches: Sequence[tuple[int, int]]) -> None:
        super().__init__(*arguments)
        self.batch_size, self.patches = arguments[1], patches

    def __iter__(self) -> Iterator[tuple[int, ...]]:  # type: ignore[override]
        places = range(self.start + self.rank, self.used, self.world)
        for place, drawn in zip(places, super().__iter__(), strict=True):
            step = (self.epoch * self.used + place) // self.batch_size
            yield (*drawn, next(side for first, side in reversed(self.patches) if step >= first))
