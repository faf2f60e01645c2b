"""Generated textures: images that a restoration network can learn from, written on first use as PNG files.

Gratings, checks, bricks, rings, letters and cells with sharp edges in two or three colours, at any angle and size, some
with shading and grain: what bicubic enlargement blurs and a trained network can bring back.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import data_root
from vistrain.data.restoration.image_pairs import ImageSet
from vistrain.data.restoration.module import RestorationData
from vistrain.errors import refuse_below
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
        patch: side of training patches, in pixels of the degraded image.
        base: see `RestorationData`.

    Raises:
        ConfigError: a number is not positive.
    """

    sets_itself = ("train", "val", "test")

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 200,
        val_images: int = 12,
        textures_seed: int = 0,
        patch: int = 48,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        folder = data_root(root) / f"textures-v{VERSION}-{train_images}-{val_images}-seed{textures_seed}"
        val: dict[str, ImageSet | None] = {"Textures": ImageSet("val")}
        super().__init__(train=ImageSet("train"), val=val, root=str(folder), patch=patch, **base)
        self.counts, self.textures_seed = {"train": train_images, "val": val_images}, textures_seed

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
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
    with whole_folder(folder, sum(counts.values())) as draft:
        for part, (split, count) in enumerate(counts.items()):
            (draft / split).mkdir()
            numbers = track(range(count), f"drawing {split}", console=Console(stderr=True), transient=True)
            for number in numbers:
                pixels = texture(np.random.default_rng((seed, part, number)))
                Image.fromarray(pixels).save(draft / split / f"{number:04d}.png")


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
