"""Degraded images and their truth: whole for evaluation, patches for training, and how they become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.base.dataset import SampleSet
from vistrain.data.restoration.decoded import Reader
from vistrain.data.restoration.degradations import Degradation, as_float, generator
from vistrain.data.restoration.image_pairs import Pair
from vistrain.data.restoration.pixels import ColorName, read_pixels
from vistrain.errors import DataError
from vistrain.metrics.image import luma


@dataclass
class RestorationSample:
    """One image on its way to a batch.

    Attributes:
        id: `set/name`.
        low: `[h, w, C]` uint8, or float32 with brightest pixel 1.
        truth: uint8 `[h * scale, w * scale, C]`.
    """

    id: str
    low: np.ndarray
    truth: np.ndarray


class RestorationDataset(SampleSet):
    """Pairs, read on demand: whole for evaluation, patches for training.

    Args:
        pairs: `(id, pair)`.
        scale: how many times smaller the degraded images are.
        color: see `read_pixels`.
        degradation: for pairs without a degraded file.
        patch: side of the patches in pixels of the degraded image; None gives whole images.
        augment: turn and mirror patches.
        repeat: how often each image counts.
        reader: of the files; None decodes each time.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, Pair]],
        scale: int,
        color: ColorName,
        degradation: Degradation | None,
        patch: int | None = None,
        augment: bool = False,
        repeat: int = 1,
        reader: Reader | None = None,
    ) -> None:
        self.pairs, self.scale, self.color, self.degradation = pairs, scale, color, degradation
        self.patch, self.augment, self.repeat = patch, augment, repeat
        self.read = Reader(color) if reader is None else reader

    def __len__(self) -> int:
        return len(self.pairs) * self.repeat

    def sample(self, index: int, seed: int = 0, patch: int | None = None) -> RestorationSample:
        """A whole image, or a patch of `patch` pixels, in a progressive training another number than the set's.

        Raises:
            DataError: a file cannot be read, or the sizes do not pair up.
        """
        name, pair = self.pairs[index % len(self.pairs)]
        if self.patch is None:
            return RestorationSample(name, *self.whole(pair))
        return RestorationSample(name, *self.crop(pair, patch or self.patch, generator(seed)))

    def where(self, index: int) -> str:
        """The file of an image."""
        return str(self.pairs[index % len(self.pairs)][1].truth)

    def whole(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Degraded image and truth, cut to a multiple of the scale at the bottom and right; random choices have seed 0.

        Raises:
            DataError: a file cannot be read, or the sizes do not pair up.
        """
        truth, low = self._open(pair)
        if low is None:
            assert self.degradation is not None
            return self.degradation(np.ascontiguousarray(truth), generator(0)), truth
        if self.color == "luma":  # of a given colour image Y is not rounded: it is an input, not a truth
            low = luma(read_pixels(pair.low or pair.truth)).astype(np.float32) / 255
        return low, truth

    def crop(self, pair: Pair, patch: int, draw: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """A random patch of an image: only the pixels that it depends on are degraded.

        Args:
            pair: the image; one smaller than the patch is mirrored beyond its border.
            patch: side in pixels of the degraded image.
            draw: of place, turn and degradation.

        Raises:
            DataError: see `whole`.
        """
        truth, low = self._open(pair)
        height, width = (side // self.scale for side in truth.shape[:2])
        top, left = (int(draw.randint(0, max(side - patch, 0) + 1)) for side in (height, width))
        bottom, right = min(top + patch, height), min(left + patch, width)
        if low is None:
            assert self.degradation is not None
            edge, s = self.degradation.margin, self.scale
            first = max(top - edge, 0), max(left - edge, 0)
            last = min(bottom + edge, height), min(right + edge, width)
            around = np.ascontiguousarray(truth[first[0] * s : last[0] * s, first[1] * s : last[1] * s])
            degraded = self.degradation(around, draw)
            low = degraded[top - first[0] : bottom - first[0], left - first[1] : right - first[1]]
        else:
            low = low[top:bottom, left:right]
        truth = truth[top * self.scale : bottom * self.scale, left * self.scale : right * self.scale]
        low, truth = _filled(low, patch), _filled(truth, patch * self.scale)
        if self.augment:
            turns, flip = int(draw.randint(4)), bool(draw.randint(2))
            low, truth = (np.rot90(x[:, ::-1] if flip else x, turns) for x in (low, truth))
        return low, truth

    def _open(self, pair: Pair) -> tuple[np.ndarray, np.ndarray | None]:
        """Truth, cut to a multiple of the scale, and the degraded image where there is a file."""
        truth = self.read(pair.truth)
        height, width = (side // self.scale for side in truth.shape[:2])
        if min(height, width) == 0:
            size = f"{truth.shape[1]}x{truth.shape[0]}"
            raise DataError(str(pair.truth), f"{size} pixels cannot be reduced {self.scale} times", "leave it out")
        low = None if pair.low is None else self.read(pair.low)
        if low is not None and low.shape[:2] != (height, width):
            raise DataError(
                str(pair.low),
                f"{low.shape[1]}x{low.shape[0]} pixels, but {self.scale} times less than {truth.shape[1]}x"
                f"{truth.shape[0]} is {width}x{height}",
                "is it the degraded version of this image, and data.scale right?",
            )
        return truth[: height * self.scale, : width * self.scale], low


def _filled(image: np.ndarray, side: int) -> np.ndarray:
    """`[side, side, C]`: an image that is smaller is mirrored at its bottom and right border, edge pixel included."""
    missing = [max(side - n, 0) for n in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), "symmetric")


def collate_pairs(samples: Sequence[RestorationSample]) -> Batch:
    """Pads degraded images bottom and right with zeros to a common size and stacks them.

    Returns:
        `image` uint8 (or float32 where a degradation made it so) `[B, C, h, w]`, `size` and `original_size` int64
        `[B, 2]` (of the degraded image and of the truth), `id`, and `target`, dicts with `image` uint8 `[C, H, W]`.
    """
    lows = [sample.low for sample in samples]
    if any(low.dtype != np.uint8 for low in lows):
        lows = [as_float(low) for low in lows]
    targets = [{"image": torch.from_numpy(np.ascontiguousarray(s.truth.transpose(2, 0, 1)))} for s in samples]
    return batch_of(lows, [s.truth.shape[:2] for s in samples], [s.id for s in samples], targets)
