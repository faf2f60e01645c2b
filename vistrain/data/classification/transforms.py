"""What classification does to a single image: the training crops and colours of the recipes, the evaluation crop.

Geometry is drawn from the sample's seed. A crop is chosen from the file's head; then no more is decoded than the crop
needs, and only the crop is resized, with torch's antialiased filters, which equal Pillow's but for a grey level.
RandAugment, AutoAugment, AugMix and 3-Augment are timm's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from vistrain.data.base.transform import EvalTransform
from vistrain.data.classification.sources import Encoded
from vistrain.errors import ConfigError
from vistrain.layers.seeding import seeded

Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Size = tuple[int, int]


class ImageAugment:
    """Training augmentation of one image, as timm's `transforms_imagenet_train` does it.

    A crop, resized; flips; an automatic policy; colour jitter. What works on whole batches (random erasing, Mixup,
    CutMix) belongs to the network: `model.augment`.

    Args:
        crop: `resized`: a window of random area and proportions (Inception's; `scale`, `ratio`); `padded`: a shift by
            up to an eighth of the side, as CIFAR's recipes do; `none`: the whole image, its proportions given up.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height.
        interpolation: `random` draws one of the two for each image (timm's default).
        flip, vertical_flip: probabilities.
        policy: timm's name of an automatic policy: `rand-m9-mstd0.5-inc1` (RandAugment, arXiv 1909.13719), `original`
            or `v0` (AutoAugment, arXiv 1805.09501), `augmix-m5-w4-d2`, `3a` (DeiT III); None for none.
        color: strength of changes of brightness, contrast and saturation, in random order; 0 leaves colours alone.
        hue: greatest turn of the hue, in turns (0 to 0.5).

    Raises:
        ConfigError: a probability or a range is wrong, or timm does not know the policy.
    """

    def __init__(
        self,
        crop: Literal["resized", "padded", "none"] = "resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Literal["random", "bilinear", "bicubic"] = "random",
        flip: float = 0.5,
        vertical_flip: float = 0.0,
        policy: str | None = None,
        color: float = 0.0,
        hue: float = 0.0,
    ) -> None:
        for name, value, most in (("flip", flip, 1), ("vertical_flip", vertical_flip, 1), ("hue", hue, 0.5)):
            if not 0 <= value <= most:
                raise ConfigError(name, f"{value} is not in 0..{most}")
        if color < 0:
            raise ConfigError("color", f"{color} is negative", "0 leaves colours alone")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError("scale", f"{list(scale)} is not [least, greatest] share of the area in 0..1")
        if not 0 < ratio[0] <= ratio[1]:
            raise ConfigError("ratio", f"{list(ratio)} is not [least, greatest] width / height")
        self.crop, self.scale, self.ratio, self.interpolation = crop, scale, ratio, interpolation
        self.flip, self.vertical_flip, self.policy, self.color, self.hue = flip, vertical_flip, policy, color, hue
        if policy is not None:
            _policy(policy, 224, (0.5, 0.5, 0.5), interpolation)  # a wrong name must not surface in a worker

    def apply(self, image: Encoded, size: Size, mean: tuple[float, ...], seed: int) -> np.ndarray:
        """Augment one image.

        Args:
            image: not decoded yet.
            size: height and width of the result.
            mean: of the model's normalisation; what policies fill corners with.
            seed: decides everything.

        Returns:
            uint8 `[height, width, 3]`.
        """
        rng = np.random.default_rng(seed)
        interpolation: Any = self.interpolation
        if interpolation == "random":
            interpolation = ("bilinear", "bicubic")[int(rng.integers(2))]
        pixels = self._crop(image, size, interpolation, rng)
        if rng.random() < self.flip:
            pixels = cv2.flip(pixels, 1)
        if self.vertical_flip and rng.random() < self.vertical_flip:
            pixels = cv2.flip(pixels, 0)
        if self.policy is not None:
            with seeded(int(rng.integers(2**32))):
                changed = _policy(self.policy, min(size), mean, self.interpolation)(Image.fromarray(pixels))
            pixels = np.array(changed)
        if self.color or self.hue:
            pixels = jitter(pixels, self.color, self.hue, rng)
        return pixels

    def _crop(self, image: Encoded, size: Size, interpolation: Interpolation, rng: np.random.Generator) -> np.ndarray:
        if self.crop == "none":
            return resize(image.decode(_shrink(image.size, size)), size, interpolation)
        if self.crop == "padded":
            pixels = resize(image.decode(_shrink(image.size, size)), size, interpolation)
            rows, columns = max(size[0] // 8, 1), max(size[1] // 8, 1)
            padded = cv2.copyMakeBorder(pixels, rows, rows, columns, columns, cv2.BORDER_CONSTANT)
            top, left = int(rng.integers(2 * rows + 1)), int(rng.integers(2 * columns + 1))
            return np.ascontiguousarray(padded[top : top + size[0], left : left + size[1]])
        top, left, height, width = random_window(*image.size, self.scale, self.ratio, rng)
        whole = image.size
        pixels = image.decode(_shrink((height, width), size))
        if pixels.shape[:2] != whole:  # decoded smaller: the window shrinks with it
            rows, columns = pixels.shape[0] / whole[0], pixels.shape[1] / whole[1]
            bottom, right = round((top + height) * rows), round((left + width) * columns)
            top, left = round(top * rows), round(left * columns)
            height, width = max(bottom - top, 1), max(right - left, 1)
        return resize(pixels[top : top + height, left : left + width], size, interpolation)


@dataclass(frozen=True)
class EvalCrop(EvalTransform):
    """timm's evaluation transform: the short side to `size / crop_pct`, the centre cut out; pixels are Pillow's.

    Args:
        size: height and width of the result.
        crop_pct: share of the resized image that is kept.
        interpolation: `bilinear` or `bicubic`.
        mode: `center`; `squash`: to the size at once, proportions given up; `border`: the long side to the size, with
            borders of the mean colour.
        mean: of the model's normalisation, for borders.

    Raises:
        ConfigError: the share is not in 0..1, or the filter or the mode is unknown.
    """

    size: Size
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mode: str = "center"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= 1.0:
            raise ConfigError("data.crop_pct", f"{self.crop_pct} is not in 0..1")
        if self.interpolation not in FILTERS:
            problem = f"unknown filter {self.interpolation!r}"
            raise ConfigError("data.interpolation", problem, f"use {' or '.join(FILTERS)}")
        if self.mode not in ("center", "squash", "border"):
            raise ConfigError("data", f"unknown way to crop {self.mode!r}", "use center, squash or border")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` to uint8 `[height, width, 3]`."""
        scaled = tuple(math.floor(side / self.crop_pct) for side in self.size)
        height, width = image.shape[:2]
        if self.mode == "squash":
            target = (scaled[0], scaled[1])
        elif self.mode == "center" and scaled[0] == scaled[1]:
            short = scaled[0]  # torchvision's Resize: the other side is cut off, not rounded
            target = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        else:
            ratios = [side / goal for side, goal in zip((height, width), scaled, strict=True)]
            ratio = min(ratios) if self.mode == "center" else max(ratios)
            target = (round(height / ratio), round(width / ratio))
        if target != (height, width):
            resized = Image.fromarray(image).resize(target[::-1], FILTERS[self.interpolation])
            image = np.array(resized)
        return self._centre(image)

    def in_python(self) -> tuple[str, ...]:
        """See `EvalTransform`; a crop that is larger than the resized picture is black around it, as Pillow's are."""
        scaled = [math.floor(side / self.crop_pct) for side in self.size]
        method = f"Image.Resampling.{self.interpolation.upper()}"
        if self.mode == "squash":
            lines = [f"image = image.resize({(scaled[1], scaled[0])}, {method})"]
        elif self.mode == "center" and scaled[0] == scaled[1]:
            lines = ["short = min(image.size)", f"size = [int({scaled[0]} * side / short) for side in image.size]"]
            lines.append(f"image = image.resize(size, {method})")
        else:
            best = "min" if self.mode == "center" else "max"
            lines = [f"ratio = {best}(image.width / {scaled[1]}, image.height / {scaled[0]})"]
            lines.append(f"image = image.resize([round(side / ratio) for side in image.size], {method})")
        if self.mode == "border":
            fill = tuple(round(255 * value) for value in self.mean[:3])
            lines += [
                f'canvas = Image.new("RGB", {self.size[::-1]}, {fill})',
                f"canvas.paste(image, (({self.size[1]} - image.width) // 2, ({self.size[0]} - image.height) // 2))",
                "pixels = np.asarray(canvas)",
            ]
            return tuple(lines)
        return (
            *lines,
            f"left, top = round((image.width - {self.size[1]}) / 2), round((image.height - {self.size[0]}) / 2)",
            f"pixels = np.asarray(image.crop((left, top, left + {self.size[1]}, top + {self.size[0]})))",
        )

    def _centre(self, image: np.ndarray) -> np.ndarray:
        missing = [max(goal - side, 0) for goal, side in zip(self.size, image.shape[:2], strict=True)]
        if any(missing):
            top, left = missing[0] // 2, missing[1] // 2
            fill = tuple(round(255 * value) for value in self.mean[:3]) if self.mode == "border" else (0, 0, 0)
            image = cv2.copyMakeBorder(
                image, top, missing[0] - top, left, missing[1] - left, cv2.BORDER_CONSTANT, value=fill
            )
        top, left = (round((side - goal) / 2) for side, goal in zip(image.shape[:2], self.size, strict=True))
        return np.ascontiguousarray(image[top : top + self.size[0], left : left + self.size[1]])


def random_window(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random window (Szegedy et al. 2015, arXiv 1409.4842, section 6; torchvision's
    `RandomResizedCrop`: ten tries, then the largest central window of an allowed shape)."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    shape = width / height
    w, h = width, height
    if shape < ratio[0]:
        h = max(round(width / ratio[0]), 1)
    elif shape > ratio[1]:
        w = max(round(height * ratio[1]), 1)
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: np.ndarray, size: Size, interpolation: Interpolation) -> np.ndarray:
    """uint8 `[H, W, 3]` (or a window of a larger array) to `[h, w, 3]`, antialiased, within a grey level of Pillow."""
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    if interpolation == "bilinear" and size[0] >= image.shape[0] and size[1] >= image.shape[1]:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)  # enlarging needs no antialiasing
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    smaller = F.interpolate(planes, size=size, mode=interpolation, antialias=True)
    return cv2.merge(list(smaller[0].numpy()))  # several times faster than torch's copy


def jitter(image: np.ndarray, color: float, hue: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation by a factor of 1 - color to 1 + color each, and the hue, in random order.

    As torchvision's `ColorJitter` on a PIL image, which rounds and clips after each step; here each step is one pass.

    Args:
        image: uint8 `[H, W, 3]`.
        color: strength.
        hue: greatest turn.
        rng: draws the order and the strengths.
    """
    low, high = max(0.0, 1 - color), 1 + color
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    if color:
        factors, kinds = rng.uniform(low, high, 3).tolist(), (_brighter, _contrast, _saturate)
        steps = [functools.partial(step, factor=f) for step, f in zip(kinds, factors, strict=True)]
    if hue:
        steps.append(functools.partial(_turn_hue, turn=float(rng.uniform(-hue, hue))))
    for number in rng.permutation(len(steps)).tolist():
        image = steps[number](image)
    return image


def _brighter(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=factor)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = round(float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]))
    values = np.clip(np.arange(256) * factor + mean * (1 - factor), 0, 255)
    return cv2.LUT(image, values.astype(np.uint8))


def _saturate(image: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def _turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)  # a circle of 256 steps, as bytes overflow
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@functools.lru_cache(maxsize=8)
def _policy(name: str, size: int, mean: tuple[float, ...], interpolation: str) -> Callable[[Any], Any]:
    """timm's automatic policy, with timm's settings for it."""
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    settings: dict[str, Any] = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean[:3]),
    }
    if interpolation in FILTERS:
        settings["interpolation"] = FILTERS[interpolation]
    make = auto_augment_transform
    if name.startswith("rand"):
        make = rand_augment_transform
    elif name.startswith("augmix"):
        make, settings["translate_pct"] = augment_and_mix_transform, 0.3
    try:
        found: Any = make(name, settings)
    except (AssertionError, KeyError, ValueError) as error:
        remedy = "such as rand-m9-mstd0.5-inc1, original, augmix-m5-w4-d2 or 3a"
        raise ConfigError("policy", f"timm has no policy {name!r} ({error})", remedy) from error
    steps = getattr(found, "ops", None) or [step for steps in getattr(found, "policy", ()) for step in steps]
    for step in steps:
        if step.aug_fn.__name__ == "posterize":
            step.aug_fn = _posterize
    policy: Callable[[Any], Any] = found
    return policy


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's; it asks for 0 bits at times, which gives black, and which newer Pillows refuse."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


def _shrink(window: Size, size: Size) -> float:
    """How many times smaller a window may be decoded and still be resized down."""
    return min(window[0] / size[0], window[1] / size[1])
