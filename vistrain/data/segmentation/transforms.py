"""Geometry and colour of images with class maps, and the evaluation resize, as mmsegmentation does them, by OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vistrain.data.base.bands import MatchedBands
from vistrain.data.base.images import PIXELS
from vistrain.data.base.transform import EvalTransform
from vistrain.errors import ConfigError, DataError

CROPS = 10  # that are drawn again while one class fills them
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 18  # of SSD's photometric distortion
ONE_BAND = MatchedBands((0,), (0.0,), (1.0,), to_mean=(0.0,), to_std=(1.0,))  # grey as it is
LEVELS = np.arange(256, dtype=np.float64)

BILINEAR = (  # OpenCV's, without antialiasing, of `pixels`, to `height` and `width`
    "for axis, (old, new) in enumerate(zip(pixels.shape, (height, width))):",
    "    place = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)",
    "    low, share = place.astype(int), (place % 1).reshape(-1, *[1] * (2 - axis))",
    "    nearby = pixels.take(low, axis), pixels.take((low + 1).clip(max=old - 1), axis)",
    "    pixels = nearby[0] * (1 - share) + nearby[1] * share",
)


def scaled_size(height: int, width: int, bounds: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image that is made as large as fits: its long side into the larger bound, and its short
    side into the smaller one (mmcv's `rescale_size`)."""
    factor = min(max(bounds) / max(height, width), min(bounds) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def refuse_large_sides(key: str, bounds: tuple[int, int], factor: float = 1.0) -> None:
    """Refuse bounds, see `scaled_size`, up to which nobody has the memory to enlarge a square image.

    Raises:
        ConfigError: naming the key.
    """
    side = min(bounds) * factor
    if side * side > PIXELS:
        problem = f"{list(bounds)} makes images of {side:.0f} x {side:.0f} pixels"
        raise ConfigError(key, problem, f"{PIXELS / 1e6:.0f} million pixels are the most")


@dataclass(frozen=True)
class EvalScale(EvalTransform):
    """The evaluation resize, bilinear and, unless asked for, not antialiased, as in mmsegmentation.

    Args:
        scale: bounds of the long and the short side, pixels; None leaves images as they are.
        multiple: sides are rounded up to multiples of it, which changes proportions a little (VWFormer).
        antialias: Pillow's filter, as in detectron2.
    """

    scale: tuple[int, int] | None = None
    multiple: int = 1
    antialias: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, C]` to uint8 `[h, w, C]`."""
        height, width = self.size(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        if self.antialias:
            return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def in_python(self) -> tuple[str, ...]:
        """See `EvalTransform`."""
        if self.scale is None and self.multiple == 1:
            return ("pixels = np.asarray(image)",)
        factor = (
            "1"
            if self.scale is None
            else f"min({max(self.scale)} / max(image.size), {min(self.scale)} / min(image.size))"
        )
        rounded = "max(int(side * factor + 0.5), 1) for side in image.size"
        if self.multiple > 1:
            rounded = (
                f"-(-max(int(side * factor + 0.5), 1) // {self.multiple}) * {self.multiple} for side in image.size"
            )
        lines = (f"factor = {factor}", f"width, height = ({rounded})")
        if self.antialias:
            return (*lines, "pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))")
        return (*lines, "pixels = np.asarray(image)", *BILINEAR)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what an image of this size becomes."""
        if self.scale is not None:
            height, width = scaled_size(height, width, self.scale)
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple


@dataclass(frozen=True)
class EvalBands(EvalScale):
    """The evaluation resize of images of any channels, which are then brought to what the network's weights expect.

    Args:
        bands: which channels, and what is known of them.
        base: see `EvalScale`; bands are never resized by Pillow's filter.

    Raises:
        ConfigError: Pillow's filter is asked for.
    """

    bands: MatchedBands = ONE_BAND

    def __post_init__(self) -> None:
        """Check."""
        if self.antialias:
            raise ConfigError("antialias", "Pillow resizes no bands", "leave it out")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """`[H, W, C]`, as `Bands.read` gives it, to float32 `[h, w, C]`."""
        return self.bands(super().__call__(image))

    def in_python(self) -> tuple[str, ...]:
        """See `EvalTransform`: nothing that Pillow reads."""
        return ()

    def read(self, source: Any) -> np.ndarray:
        """The channels of a file, see `Bands.read`; or of an array of these channels alone, see `Bands.given`."""
        if isinstance(source, np.ndarray):
            return self.bands.given(source)
        if not isinstance(source, str | Path):
            raise DataError("image", f"a {type(source).__name__} has no bands", "give a path, or an array [H, W, C]")
        return self.bands.read(source)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """See `Bands.picture`."""
        return self.bands.picture(image)


@dataclass(frozen=True)
class EvalStretch(EvalTransform):
    """Images of one size, their proportions given up; bilinear.

    Args:
        size: (height, width), pixels.
        antialias: as Pillow resizes; otherwise as OpenCV does.
    """

    size: tuple[int, int]
    antialias: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` to `[h, w, 3]`."""
        if image.shape[:2] == self.size:
            return image
        if self.antialias:
            return np.array(Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR))
        return cv2.resize(image, self.size[::-1])

    def in_python(self) -> tuple[str, ...]:
        """See `EvalTransform`."""
        if self.antialias:
            return (f"pixels = np.asarray(image.resize({self.size[::-1]}, Image.Resampling.BILINEAR))",)
        return (f"height, width = {self.size}", "pixels = np.asarray(image)", *BILINEAR)


@dataclass(frozen=True)
class MaskAugment:
    """Training augmentation: a random scale, a crop, flips and colours. Defaults are ADE20K's in mmsegmentation.

    Args:
        crop: height and width of training images, pixels; smaller images stay as they are, and are padded in
            their batch. None trains on whole ones.
        scale: bounds of the long and the short side that `ratio` multiplies, see `scaled_size`; None: the image's own
            size.
        ratio: least and greatest factor, drawn evenly.
        category_ratio: a crop of which one class has this share of the labelled pixels is drawn again, ten times at the
            most; 1 takes any.
        flip, vertical_flip: probabilities.
        color: the photometric distortion of SSD (Liu et al. 2016, arXiv 1512.02325), as in mmsegmentation.

    Raises:
        ConfigError: a value is out of its range.
    """

    crop: tuple[int, int] | None = (512, 512)
    scale: tuple[int, int] | None = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    category_ratio: float = 0.75
    flip: float = 0.5
    vertical_flip: float = 0.0
    color: bool = True

    def __post_init__(self) -> None:
        """Check."""
        for name, pair in (("crop", self.crop), ("scale", self.scale)):
            if pair is not None and min(pair) < 1:
                raise ConfigError(f"data.augment.{name}", f"{list(pair)} are no sides in pixels")
        if self.scale is not None:
            refuse_large_sides("data.augment.scale", self.scale, self.ratio[1])
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError("data.augment.ratio", f"{list(self.ratio)}", "two factors, the smaller one first")
        for name, value in (("category_ratio", self.category_ratio), ("flip", self.flip)):
            if not 0 <= value <= 1:
                raise ConfigError(f"data.augment.{name}", f"{value} is not in 0..1")

    def __call__(
        self,
        image: np.ndarray,
        label_map: np.ndarray,
        ignored: int,
        seed: int,
        wanted: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One version of an image; the same for a seed wherever it is made.

        Args:
            image: uint8 `[H, W, 3]`; without `color` of any channels and any type that OpenCV resizes.
            label_map: `[H, W]`, uint8 or int16.
            ignored: label without supervision.
            seed: decides all that is random.
            wanted: a label, and how many pixels of it the crop should have: it is drawn again until it has, ten times
                at the most.

        Returns:
            Both, `[h, w, C]` and `[h, w]`, of `crop`'s size or smaller.
        """
        draw = np.random.default_rng(seed)
        image, label_map = self._rescaled(image, label_map, draw)
        if self.crop is not None:
            part = self._window(label_map, ignored, draw, wanted)
            image, label_map = image[part], label_map[part]
        for probability, axis in ((self.flip, 1), (self.vertical_flip, 0)):
            if draw.random() < probability:
                image, label_map = cv2.flip(image, axis), cv2.flip(label_map, axis)
        return distorted(image, draw) if self.color else np.ascontiguousarray(image), np.ascontiguousarray(label_map)

    def _rescaled(
        self, image: np.ndarray, label_map: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        factor, size = draw.uniform(*self.ratio), label_map.shape[:2]
        long, short = (max(size), min(size)) if self.scale is None else (max(self.scale), min(self.scale))
        height, width = scaled_size(size[0], size[1], (int(long * factor), int(short * factor)))
        if (height, width) == size:
            return image, label_map
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return image, cv2.resize(label_map, (width, height), interpolation=cv2.INTER_NEAREST)

    def _window(
        self, label_map: np.ndarray, ignored: int, draw: np.random.Generator, wanted: tuple[int, int] | None
    ) -> tuple[slice, slice]:
        assert self.crop is not None
        free = [max(side - length, 0) for side, length in zip(label_map.shape, self.crop, strict=True)]
        for attempt in range(CROPS + 1):
            top, left = (int(draw.integers(n + 1)) for n in free)
            part = slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
            if (self.category_ratio >= 1 and wanted is None) or attempt == CROPS:
                break
            cut = label_map[part]
            counts = np.bincount(cut[cut != ignored], minlength=1)
            is_mixed = (counts > 0).sum() > 1 and counts.max() < self.category_ratio * counts.sum()
            has_wanted = wanted is None or counts[wanted[0] : wanted[0] + 1].sum() >= wanted[1]
            if (is_mixed or self.category_ratio >= 1) and has_wanted:
                break
        return part


def distorted(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """SSD's photometric distortion, each step with probability 0.5: brightness, contrast (before or after the others),
    saturation and hue.

    Each step is a table of 256 values; as in mmsegmentation its results are cut off to whole numbers in 0..255.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        draw: of everything random.
    """
    table = LEVELS
    if draw.random() < 0.5:
        table = _bytes(table + draw.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = draw.random() < 0.5
    contrast = draw.uniform(*CONTRAST) if draw.random() < 0.5 else 1.0
    if contrast_first:
        table = _bytes(table * contrast)
    image = cv2.LUT(image, table.astype(np.uint8))
    saturation = draw.uniform(*SATURATION) if draw.random() < 0.5 else 1.0
    turn = int(draw.integers(-HUE, HUE)) if draw.random() < 0.5 else 0
    if saturation != 1 or turn:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        tables = np.stack([(LEVELS + turn) % 180, _bytes(LEVELS * saturation), LEVELS], 1)[None]
        image = cv2.cvtColor(cv2.LUT(hsv, tables.astype(np.uint8)), cv2.COLOR_HSV2RGB)
    if not contrast_first and contrast != 1:
        image = cv2.LUT(image, _bytes(LEVELS * contrast).astype(np.uint8))
    return np.ascontiguousarray(image)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8).astype(np.float64)
