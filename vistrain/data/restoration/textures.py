"""Generated textures: images that a restoration network can learn from, written on first use as PNG files.

Gratings, checks, bricks, rings, letters and cells with sharp edges in two or three colours, at any angle and size, some
with shading and grain: what bicubic enlargement blurs and a trained network can bring back.
"""

from __future__ import annotations

import shutil
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from vistrain.data.base.module import default_root
from vistrain.data.restoration.degradations import Degradation
from vistrain.data.restoration.image_pairs import ImageSet
from vistrain.data.restoration.module import RestorationData
from vistrain.data.restoration.pixels import ColorName
from vistrain.errors import ConfigError, DataError
from vistrain.pictures.text import font

VERSION = 1  # of the generator: part of the folder's name, so that a change never mixes with older files
SUPERSAMPLE = 3  # drawn this much larger and averaged: edges as a camera sees them
SIZES = ((192, 192), (192, 256), (256, 192), (160, 240))  # height, width


class GeneratedTextures(RestorationData):
    """The generated set; written on first use to `<root>/textures-...`, one folder per choice of arguments.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        train_images, val_images: how many.
        textures_seed: of the generator; the training order has `seed`.
        scale, degradation, eval_degradation, color, patch, progressive, augment, repeat, cache, batch_size,
            per_device, workers, seed, eval_batch_size: see `RestorationData`.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 200,
        val_images: int = 12,
        textures_seed: int = 0,
        scale: int | None = None,
        degradation: Degradation | None = None,
        eval_degradation: Degradation | None = None,
        color: ColorName = "rgb",
        patch: int = 48,
        progressive: tuple[tuple[int, int], ...] = (),
        augment: bool = True,
        repeat: int = 1,
        cache: bool | Literal["auto"] = "auto",
        batch_size: int = 16,
        per_device: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int = 1,
    ) -> None:
        for name, value, least in (("train_images", train_images, 1), ("val_images", val_images, 1)):
            if value < least:
                raise ConfigError(name, f"{value} is too small", f"use {least} or more")
        self.counts, self.textures_seed = {"train": train_images, "val": val_images}, textures_seed
        folder = f"textures-v{VERSION}-{train_images}-{val_images}-seed{textures_seed}"
        super().__init__(
            ImageSet("train"), {"Textures": ImageSet("val")}, None,
            str(Path(default_root() if root is None else root) / folder), scale, degradation, eval_degradation, color,
            patch, progressive, augment, repeat, cache, batch_size, per_device, workers, seed, eval_batch_size,
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if not self.root.is_dir():
            write_textures(self.root, self.counts, self.textures_seed)


def write_textures(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of images.
        seed: of the generator.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for part, (split, count) in enumerate(counts.items()):
                (draft / split).mkdir()
                numbers = track(range(count), f"drawing {split}", console=Console(stderr=True), transient=True)
                for number in numbers:
                    pixels = texture(np.random.default_rng((seed, part, number)))
                    Image.fromarray(pixels).save(draft / split / f"{number:04d}.png")
            draft.chmod(0o755)
            if not folder.is_dir():
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster
            raise DataError(str(folder), f"cannot be written ({error.strerror or error})") from error


def texture(draw: np.random.Generator) -> np.ndarray:
    """One image, uint8 `[H, W, 3]`: regions of different patterns."""
    height, width = SIZES[draw.integers(len(SIZES))]
    large = height * SUPERSAMPLE, width * SUPERSAMPLE
    image = _pattern(draw, large)
    for _ in range(draw.integers(1, 5)):
        mask = np.zeros(large, np.uint8)
        center = draw.uniform(0, 1, 2) * large
        angles = np.sort(draw.uniform(0, 2 * np.pi, draw.integers(3, 9)))
        radius = draw.uniform(0.15, 0.5) * min(large) * draw.uniform(0.6, 1, len(angles))
        points = center[::-1] + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(mask, [points.round().astype(np.int32)], 1)
        image = np.where(mask[..., None] == 1, _pattern(draw, large), image)
    if draw.random() < 0.5:
        _write_text(draw, image)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    light = draw.uniform(0.75, 1.1, (3, 4)).astype(np.float32)
    shading = cv2.resize(light, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = draw.normal(0, draw.uniform(0, 2), image.shape)
    return (image * shading[..., None] + grain).clip(0, 255).round().astype(np.uint8)


def _pattern(draw: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """float32 `[H, W, 3]` of one pattern in two colours."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle = draw.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    period = SUPERSAMPLE * draw.uniform(4, 24)
    kinds: list[Callable[[], np.ndarray]] = [
        lambda: (u / period) % 1 < duty,
        lambda: ((u / period) % 1 < 0.5) ^ ((v / period) % 1 < 0.5),
        lambda: _bricks(u / period, v / period),
        lambda: (np.hypot(x - center[1], y - center[0]) / period) % 1 < duty,
        lambda: np.hypot((u / period) % 1 - 0.5, (v / period) % 1 - 0.5) < 0.2 + 0.25 * duty,
        lambda: _cells(draw, size, period),
        lambda: np.zeros(size, bool),
    ]
    duty, center = draw.uniform(0.2, 0.6), draw.uniform(-0.2, 1.2, 2) * size
    mask = kinds[draw.integers(len(kinds))]()
    colors = draw.uniform(0, 255, (2, 3)).astype(np.float32)
    if draw.random() < 0.3:
        colors[:] = colors.mean(1, keepdims=True)
    return np.where(mask[..., None], colors[0], colors[1])


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v)
    return (v % 1 < 0.15) | ((u / 2 + row * 0.5) % 1 < 0.08)


def _cells(draw: np.random.Generator, size: tuple[int, int], period: float) -> np.ndarray:
    """Borders between the cells nearest to random points."""
    count = int(np.clip(size[0] * size[1] / period**2 / 4, 4, 400))
    labels = np.zeros(size, np.uint8)
    labels[draw.integers(0, size[0], count), draw.integers(0, size[1], count)] = 1
    _, index = cv2.distanceTransformWithLabels(1 - labels, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    edge = (index != np.roll(index, 1, 0)) | (index != np.roll(index, 1, 1))
    return cv2.dilate(edge.astype(np.uint8), np.ones((SUPERSAMPLE + 1,) * 2, np.uint8)) == 1


def _write_text(draw: np.random.Generator, image: np.ndarray) -> None:
    letters = "".join(draw.choice(list(string.ascii_letters + string.digits), 60))
    size = int(SUPERSAMPLE * draw.uniform(8, 28))
    layer = Image.new("L", (image.shape[1], image.shape[0]))
    pen = ImageDraw.Draw(layer)
    for line in range(draw.integers(1, 4)):
        pen.text((size, size + line * size * 3 // 2), letters[line * 20 : line * 20 + 20], fill=255, font=font(size))
    mask = np.asarray(layer, np.float32)[..., None] / 255
    image[:] = image * (1 - mask) + draw.uniform(0, 255, 3) * mask
