"""Geometry and colour of images with segments or instances, as detectron2 and Mask2Former do them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from vistrain.data.segmentation.transforms import distorted, refuse_large_sides, scaled_size
from vistrain.errors import ConfigError


class Choice(NamedTuple):
    """What a chain of mirroring, resizing to the nearest pixel and cutting comes to.

    Attributes:
        rows, columns: int64, what each row and column is of the original; -1 lies beside it.
    """

    rows: np.ndarray
    columns: np.ndarray

    def of(self, values: np.ndarray) -> np.ndarray:
        """A map `[H, W]` of the original in the new image; 0 beside it."""
        found = values[self.rows[:, None], self.columns]
        if len(self.rows) and self.rows[-1] < 0:
            found[self.rows < 0] = 0
        if len(self.columns) and self.columns[-1] < 0:
            found[:, self.columns < 0] = 0
        return found


@dataclass(frozen=True)
class SegmentAugment:
    """Training augmentation: a flip, a random size, a crop, and colours. Defaults are large-scale jitter (Ghiasi et al.
    2021, arXiv 2012.07177), as Mask2Former trains on COCO.

    Images are resized by Pillow's antialiased bilinear filter, maps to the nearest pixel.

    Args:
        crop: height and width of training images, pixels; None trains on whole ones.
        jitter: least and greatest factor of the size at which an image fits into `crop`, drawn evenly.
        short_sides: lengths of the short side, of which one is drawn; instead of `jitter`.
        long_side: the most that the long side may have then.
        flip: probability.
        color: the photometric distortion of SSD.
        fill: grey value beside images that are smaller than `crop`, which networks see as they see images; None pads
            them with zeros after normalisation, to no more than their batch needs.

    Raises:
        ConfigError: a value is out of its range, or two say how large images become.
    """

    crop: tuple[int, int] | None = (1024, 1024)
    jitter: tuple[float, float] | None = (0.1, 2.0)
    short_sides: tuple[int, ...] = ()
    long_side: int | None = None
    flip: float = 0.5
    color: bool = False
    fill: int | None = 128

    def __post_init__(self) -> None:
        """Check."""
        if self.crop is not None and min(self.crop) < 1:
            raise ConfigError("data.augment.crop", f"{list(self.crop)} are no sides in pixels")
        if self.jitter is not None:
            if not 0 < self.jitter[0] <= self.jitter[1]:
                raise ConfigError("data.augment.jitter", f"{list(self.jitter)}", "two factors, the smaller one first")
            if self.crop is None or self.short_sides:
                problem = "goes with a crop, and without short_sides"
                raise ConfigError("data.augment.jitter", problem, "set jitter to null, or correct the others")
            else:
                refuse_large_sides("data.augment.jitter", self.crop, self.jitter[1])
        if self.short_sides:
            most = max(self.short_sides)
            refuse_large_sides("data.augment.short_sides", (self.long_side or most, most))
        if self.short_sides and min(self.short_sides) < 1:
            raise ConfigError("data.augment.short_sides", f"{list(self.short_sides)} are no sides in pixels")
        if not 0 <= self.flip <= 1:
            raise ConfigError("data.augment.flip", f"{self.flip} is not in 0..1")
        if self.fill is not None and not 0 <= self.fill <= 255:
            raise ConfigError("data.augment.fill", f"{self.fill} is not in 0..255")

    def __call__(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, Choice]:
        """One version of an image; the same for a seed wherever it is made.

        Args:
            image: uint8 `[H, W, 3]`.
            seed: decides all that is random.

        Returns:
            uint8 `[h, w, 3]`, and what maps and masks of the image become.
        """
        draw = np.random.default_rng(seed)
        mirrored = draw.random() < self.flip
        height, width = image.shape[:2]
        size = self._size(height, width, draw)
        part = self._window(*size, draw)
        image, choice = resized(cv2.flip(image, 1) if mirrored else image, size, part)
        if mirrored:
            choice = Choice(choice.rows, width - 1 - choice.columns)
        if self.color:
            image = distorted(image, draw)
        if self.crop is not None and self.fill is not None:
            below, beside = (max(c - n, 0) for c, n in zip(self.crop, image.shape[:2], strict=True))
            if below or beside:
                value = (self.fill,) * 3
                image = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=value)
                choice = Choice(
                    *(np.pad(x, (0, n), constant_values=-1) for x, n in zip(choice, (below, beside), strict=True))
                )
        return np.ascontiguousarray(image), choice

    def _size(self, height: int, width: int, draw: np.random.Generator) -> tuple[int, int]:
        if self.jitter is not None and self.crop is not None:
            factor = draw.uniform(*self.jitter) * min(self.crop[0] / height, self.crop[1] / width)
            return max(round(height * factor), 1), max(round(width * factor), 1)
        if self.short_sides:
            short = int(draw.choice(self.short_sides))
            return scaled_size(height, width, (self.long_side or 1 << 30, short))
        return height, width

    def _window(self, height: int, width: int, draw: np.random.Generator) -> tuple[slice, slice]:
        if self.crop is None:
            return slice(0, height), slice(0, width)
        free = [max(side - length, 0) for side, length in zip((height, width), self.crop, strict=True)]
        if self.jitter is not None:  # one number for both sides, as in detectron2's FixedSizeCrop
            share = draw.random()
            top, left = (round(n * share) for n in free)
        else:
            top, left = (int(draw.integers(n + 1)) for n in free)
        return slice(top, min(top + self.crop[0], height)), slice(left, min(left + self.crop[1], width))

    @property
    def largest(self) -> tuple[int, int] | None:
        """Bounds of what comes out, pixels; None: the images' own."""
        if self.crop is not None:
            return self.crop
        short = max(self.short_sides, default=0)
        return (short, self.long_side or 4 * short) if short else None


def resized(image: np.ndarray, size: tuple[int, int], part: tuple[slice, slice]) -> tuple[np.ndarray, Choice]:
    """A part of a resized image, without making the rest, and what maps of it become.

    Args:
        image: uint8 `[H, W, 3]`.
        size: (height, width) of the whole.
        part: rows and columns of it.
    """
    sides = image.shape[:2]
    choice = Choice(
        *(
            (2 * np.arange(side.start, side.stop) + 1) * old // (2 * new)
            for side, old, new in zip(part, sides, size, strict=True)
        )
    )
    if size == sides:
        return image[part], choice
    (top, bottom), (left, right) = (
        (side.start * old / new, side.stop * old / new) for side, old, new in zip(part, sides, size, strict=True)
    )
    wanted = len(choice.columns), len(choice.rows)
    small = Image.fromarray(image).resize(wanted, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.array(small), choice
