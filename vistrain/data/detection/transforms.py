"""Geometry and photometry of images with boxes; the only file that imports albumentations, and only when colours are to
vary.

Geometry is drawn from a generator of our own and applied with OpenCV and torch directly: the official recipe's chain
(short side with a long-side cap, crop sizes of absolute range) has no albumentations counterpart, and OpenCV's
downscaling, which albumentations uses, is not antialiased while the evaluation resize is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vistrain.data.base.transform import EvalTransform
from vistrain.data.detection.collate import Sample
from vistrain.errors import ConfigError

SizeRule = Literal["detr", "detectron2"]
SCALES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def output_size(
    height: int, width: int, short: int, long: int | None, arithmetic: SizeRule = "detr"
) -> tuple[int, int]:
    """Size of an image whose short side is to be `short` pixels, or less where the long side would exceed `long`.

    Args:
        height, width: pixels.
        short, long: pixels; no limit for None.
        arithmetic: `detr`: as facebookresearch/detr `datasets/transforms.py: get_size_with_aspect_ratio` (also
            Deformable-DETR, DINO): a capped short side is rounded first (half to even), then the other side is cut off
            (so it may miss `long` by a few pixels, even exceed it). `detectron2`: as
            `ResizeShortestEdge.get_output_shape` (also detrex): both sides in floating point, rounded at the end.

    Returns:
        height, width.
    """
    low, high = min(height, width), max(height, width)
    if arithmetic == "detr":
        if long is not None and high / low * short > long:
            short = max(round(long * low / high), 1)  # official fails on slivers
        other = short if low == high else int(short * high / low)
    else:
        exact_short, exact_other = float(short), short / low * high
        if long is not None and max(exact_short, exact_other) > long:
            shrink = long / max(exact_short, exact_other)
            exact_short, exact_other = exact_short * shrink, exact_other * shrink
        short, other = max(int(exact_short + 0.5), 1), int(exact_other + 0.5)
    return (short, other) if height <= width else (other, short)


@dataclass(frozen=True)
class EvalResize(EvalTransform):
    """The evaluation resize of the DETR family: short side to a length, long side capped, Pillow's antialiased filter.

    Usable on a single image: `EvalResize(800, 1333)(image)`.

    Args:
        short, long: pixels.
        arithmetic: of the size, see `output_size`.
        interpolation: `bilinear` (all DETRs) or `bicubic`.

    Raises:
        ConfigError: the filter or the arithmetic is unknown.
    """

    short: int = 800
    long: int | None = 1333
    arithmetic: SizeRule = "detr"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in PIL_FILTERS:
            raise ConfigError(
                "interpolation", f"unknown filter {self.interpolation!r}", f"use one of {', '.join(PIL_FILTERS)}"
            )
        if self.arithmetic not in ("detr", "detectron2"):
            raise ConfigError("arithmetic", f"unknown rule {self.arithmetic!r}", "use 'detr' or 'detectron2'")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` to uint8 `[h, w, 3]`."""
        height, width = output_size(image.shape[0], image.shape[1], self.short, self.long, self.arithmetic)
        if (height, width) == image.shape[:2]:
            return image
        return np.array(Image.fromarray(image).resize((width, height), PIL_FILTERS[self.interpolation]))

    def in_python(self) -> tuple[str, ...]:
        """See `EvalTransform`."""
        if self.arithmetic == "detr":
            capped = (
                f"{self.short}"
                if self.long is None
                else (f"{self.short} if high / low * {self.short} <= {self.long} else round({self.long} * low / high)")
            )
            lines = (f"short = {capped}", "long = int(short * high / low)")
        else:
            exact = f"{self.short}" if self.long is None else f"min({self.short}, {self.long} * low / high)"
            lines = (f"short = {exact}", "short, long = max(int(short + 0.5), 1), int(short * high / low + 0.5)")
        return (
            "low, high = sorted(image.size)",
            *lines,
            "size = (long, short) if image.width > image.height else (short, long)",
            f"pixels = np.asarray(image.resize(size, Image.Resampling.{self.interpolation.upper()}))",
        )

    def apply(self, sample: Sample, seed: int = 0) -> Sample:
        """Resizes an image with its boxes and masks; there is nothing random."""
        return _replace_image(sample, self(sample.image))

    @property
    def largest(self) -> tuple[int, int]:
        """Upper bounds of an output's short and long side, in pixels."""
        return self.short, self.long if self.long is not None else 4 * self.short


class DetrAugment:
    """The DETR family's training augmentation (facebookresearch/detr `datasets/coco.py: make_coco_transforms`).

    Flip with probability `flip`; then, with probability `1 - crop`, resize the short side to one of `scales`; otherwise
    resize it to one of `crop_resize`, crop a window whose sides are drawn from `crop_range` (absolute pixels, at most
    the image), and resize that to one of `scales`. `crop=0` is the other published variant, flip and multi-scale only
    (the Focus-DETR authors' own mapper). After a crop boxes are clipped and those without area are dropped, as
    official.

    Everything is drawn from the sample's seed: the same seed gives the same result in any worker and on any rank.

    Differs from official in pixels, not in geometry: OpenCV (up) and torch (down, antialiased) resize within one grey
    level of Pillow at a fifth of its time.

    Args:
        scales: short sides in pixels, drawn uniformly.
        long_side: cap of the long side in pixels.
        flip: probability of a horizontal flip.
        crop: probability of the crop branch.
        crop_resize: short sides before the crop (without a cap, as official).
        crop_range: least and greatest side of the crop; a side shorter than the least is kept whole.
        color: strength of photometric changes (brightness, contrast, saturation by up to this share, hue by a fifth of
            it) with probability 0.8; 0, as published, leaves colours alone. Drawn by albumentations' `ColorJitter`.
        arithmetic: of sizes, see `output_size`.

    Raises:
        ConfigError: a probability outside 0..1, no scale, or a crop range that is upside down.
    """

    def __init__(
        self,
        scales: Sequence[int] = SCALES,
        long_side: int | None = 1333,
        flip: float = 0.5,
        crop: float = 0.5,
        crop_resize: Sequence[int] = (400, 500, 600),
        crop_range: tuple[int, int] = (384, 600),
        color: float = 0.0,
        arithmetic: SizeRule = "detr",
    ) -> None:
        for name, value in (("flip", flip), ("crop", crop), ("color", color)):
            if not 0 <= value <= 1:
                raise ConfigError(name, f"{value} is not in 0..1")
        if not scales or (crop > 0 and not crop_resize):
            raise ConfigError("scales", "no size to resize to", "give at least one short side in pixels")
        if crop_range[0] > crop_range[1] or crop_range[0] < 1:
            raise ConfigError("crop_range", f"{list(crop_range)} is not [least, greatest] side in pixels")
        self.scales, self.long_side, self.flip, self.crop = tuple(scales), long_side, flip, crop
        self.crop_resize, self.crop_range, self.color = tuple(crop_resize), tuple(crop_range), color
        self.arithmetic: SizeRule = arithmetic
        self._jitter: Any = None

    def apply(self, sample: Sample, seed: int) -> Sample:
        """Augments an image with its boxes, labels and masks; the sample given is not changed."""
        rng = np.random.default_rng(seed)
        if rng.random() < self.flip:
            sample = _flip(sample)
        if rng.random() < self.crop:
            sample = self._resize(sample, int(rng.choice(self.crop_resize)), None)
            sample = self._random_crop(sample, rng)
        sample = self._resize(sample, int(rng.choice(self.scales)), self.long_side)
        if self.color > 0 and rng.random() < 0.8:
            sample = replace(sample, image=self._vary_colors(sample.image, int(rng.integers(2**31))))
        return sample

    @property
    def largest(self) -> tuple[int, int]:
        """Upper bounds of an output's short and long side, in pixels."""
        return max(self.scales), self.long_side if self.long_side is not None else 4 * max(self.scales)

    def _resize(self, sample: Sample, short: int, long: int | None) -> Sample:
        size = output_size(sample.image.shape[0], sample.image.shape[1], short, long, self.arithmetic)
        return _replace_image(sample, _resize_fast(sample.image, *size))

    def _random_crop(self, sample: Sample, rng: np.random.Generator) -> Sample:
        least, greatest = self.crop_range
        sides = [int(rng.integers(min(least, side), min(greatest, side) + 1)) for side in sample.image.shape[1::-1]]
        width, height = sides
        top = int(rng.integers(sample.image.shape[0] - height + 1))
        left = int(rng.integers(sample.image.shape[1] - width + 1))
        return _crop(sample, top, left, height, width)

    def _vary_colors(self, image: np.ndarray, seed: int) -> np.ndarray:
        if self._jitter is None:
            os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks PyPI for a newer version
            import albumentations

            spread = (1 - self.color, 1 + self.color)
            self._jitter = albumentations.ColorJitter(spread, spread, spread, (-self.color / 5, self.color / 5), p=1.0)
        self._jitter.set_random_seed(seed)
        return self._jitter(image=image)["image"]


class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, arXiv 2012.07177, section 3): flip, resize by a wide range, and cut or
    pad to one square.

    The image is resized so that it just fits a square of `scale` times `size`, with `scale` drawn uniformly. Where it
    is larger then, a window of `size` is drawn from it; where it is smaller, the rest is grey and counts as image, as
    in detectron2 (`ResizeScale`, `FixedSizeCrop`). Boxes are clipped, and objects without area dropped.

    Args:
        size: side of the square, pixels.
        scale: least and greatest.
        flip: probability of a horizontal flip.
        pad_value: 0..255, of what lies beyond the image.

    Raises:
        ConfigError: a probability outside 0..1, or a range that is upside down.
    """

    def __init__(
        self, size: int = 1024, scale: tuple[float, float] = (0.1, 2.0), flip: float = 0.5, pad_value: int = 128
    ) -> None:
        if not 0 <= flip <= 1:
            raise ConfigError("flip", f"{flip} is not in 0..1")
        if not 0 < scale[0] <= scale[1] or size < 1:
            raise ConfigError("scale", f"{list(scale)} of {size} pixels", "least and greatest factor, above 0")
        self.size, self.scale, self.flip, self.pad_value = size, scale, flip, pad_value

    def apply(self, sample: Sample, seed: int) -> Sample:
        """Augments an image with its boxes, labels and masks; the sample given is not changed."""
        rng = np.random.default_rng(seed)
        if rng.random() < self.flip:
            sample = _flip(sample)
        height, width = sample.image.shape[:2]
        factor = rng.uniform(*self.scale) * self.size / max(height, width)
        size = (max(round(height * factor), 1), max(round(width * factor), 1))
        sample = _replace_image(sample, _resize_fast(sample.image, *size))
        top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in size)
        sample = _crop(sample, top, left, min(size[0], self.size), min(size[1], self.size))
        below, right = (self.size - side for side in sample.image.shape[:2])
        image = cv2.copyMakeBorder(sample.image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(self.pad_value,) * 3)
        masks = None if sample.masks is None else sample.masks.window(0, 0, self.size, self.size)
        return replace(sample, image=image, masks=masks)

    @property
    def largest(self) -> tuple[int, int]:
        """Short and long side of the output, in pixels."""
        return self.size, self.size


def _resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    if height >= image.shape[0] and width >= image.shape[1]:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    # Smaller: OpenCV would skip pixels, and the network would be evaluated on smoother images than it was trained on.
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    smaller = F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return smaller[0].permute(1, 2, 0).contiguous().numpy()


def _replace_image(sample: Sample, image: np.ndarray) -> Sample:
    """The sample with a resized image; boxes and masks follow."""
    (old_h, old_w), (h, w) = sample.image.shape[:2], image.shape[:2]
    if (old_h, old_w) == (h, w):
        return sample
    # In float64: float32's 80 * (96 / 80) is 96.00001, outside the image.
    boxes = (sample.boxes * np.array([w / old_w, h / old_h] * 2)).astype(np.float32)
    masks = None if sample.masks is None else sample.masks.resized(h, w)
    return replace(sample, image=image, boxes=boxes, masks=masks)


def _flip(sample: Sample) -> Sample:
    boxes = sample.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
    boxes += np.array([sample.image.shape[1], 0] * 2, np.float32)
    masks = None if sample.masks is None else sample.masks.mirrored()
    return replace(sample, image=cv2.flip(sample.image, 1), boxes=boxes, masks=masks)


def _crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    image = sample.image[top : top + height, left : left + width]
    boxes = sample.boxes - np.array([left, top] * 2, np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    masks = None if sample.masks is None else sample.masks.kept(keep).window(top, left, height, width)
    return replace(sample, image=image, boxes=boxes[keep], labels=sample.labels[keep], masks=masks)
