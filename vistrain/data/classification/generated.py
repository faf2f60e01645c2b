"""A generated classification set in the folder layout: ten patterns that only their structure tells apart.

Colours, contrast, grain, direction and place are drawn alike for all classes; each image is lit unevenly and noisy, a
patch of another class's pattern and a few plain shapes cover a part of it. Some files are grey, sizes differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.classification.class_folders import ImageFolder
from vistrain.errors import refuse_below
from vistrain.structures import LabelSpace

VERSION = 2  # of the generator: part of the folder's name, so that a change never mixes with older files
SIZES = ((64, 64), (56, 80), (80, 60), (72, 64), (64, 88), (96, 72))  # height, width
Field = np.ndarray


def _triangle(x: Field) -> Field:
    """A wave of period 1 that rises and falls evenly between -1 and 1."""
    return 4 * np.abs(x - np.floor(x + 0.5)) - 1


def _bricks(x: Field, y: Field) -> Field:
    row = np.floor(y)
    shifted = x / 2 + 0.5 * (row % 2)
    edge_x, edge_y = np.abs(shifted - np.round(shifted)) * 2, np.abs(y - np.round(y))
    return np.where(np.minimum(edge_x, edge_y) < 0.14, 1.0, -1.0)


def _dots(x: Field, y: Field) -> Field:
    row = np.round(y / 0.87)
    u, v = x + 0.5 * (row % 2), y - row * 0.87
    return np.where(np.hypot(u - np.round(u), v) < 0.3, 1.0, -1.0)


# Pattern -> value in -1..1 at coordinates in periods, whose origin lies in the image.
PATTERNS: dict[str, Callable[[Field, Field], Field]] = {
    "bricks": _bricks,
    "checks": lambda x, y: np.sign(np.sin(math.pi * x) * np.sin(math.pi * y)),
    "dots": _dots,
    "grid": lambda x, y: np.where(np.minimum(np.abs(x - np.round(x)), np.abs(y - np.round(y))) < 0.14, 1.0, -1.0),
    "rays": lambda x, y: np.sign(np.sin(8 * np.arctan2(y, x))),
    "rings": lambda x, y: np.sign(np.sin(2 * math.pi * np.hypot(x, y))),
    "scales": lambda x, y: np.sign(np.sin(2 * math.pi * (y + 0.9 * np.abs(np.sin(math.pi * x))))),
    "stripes": lambda x, y: np.sign(np.sin(2 * math.pi * x)),
    "waves": lambda x, y: np.sign(np.sin(2 * math.pi * (x + 0.35 * np.sin(2 * math.pi * y / 2.2)))),
    "zigzag": lambda x, y: np.sign(np.sin(2 * math.pi * (x + 0.9 * _triangle(y / 2.2)))),
}


class GeneratedPatterns(ImageFolder):
    """The generated set; written on first use to `<root>/patterns-...`, one folder per choice of arguments.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        train_images, val_images: how many of each of the ten classes.
        patterns_seed: of the generator; the training order has `seed`.
        batch_size, eval_batch_size: see `DataModule`.
        image_size: height and width of training images, pixels; the model's own if None.
        base: see `ImageFolder`.

    Raises:
        ConfigError: a number is not positive.
    """

    sets_itself = ("train", "val", "test", "holdout", "classes")

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 300,
        val_images: int = 50,
        patterns_seed: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 100,
        image_size: int | tuple[int, int] | None = 64,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        refuse_below(0, patterns_seed=patterns_seed)
        folder = data_root(root) / f"patterns-v{VERSION}-{train_images}-{val_images}-seed{patterns_seed}"
        super().__init__(
            root=str(folder), batch_size=batch_size, eval_batch_size=eval_batch_size, image_size=image_size, **base
        )
        self.counts, self.patterns_seed = {"train": train_images, "val": val_images}, patterns_seed

    @property
    def labels(self) -> LabelSpace:
        """The ten classes; needs no file."""
        return LabelSpace(tuple(PATTERNS), tuple(range(len(PATTERNS))))

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
            write_patterns(self.root, self.counts, self.patterns_seed)

    def find(self, split: SplitName) -> None:
        """Generate the set first if it is not there."""
        self.prepare_data()
        super().find(split)

    def remedy(self, split: SplitName) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def write_patterns(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of images of each class.
        seed: see `GeneratedPatterns`.

    Raises:
        DataError: the folder cannot be written.
    """
    with whole_folder(folder, sum(counts.values()) * len(PATTERNS)) as draft:
        for number, (split, count) in enumerate(counts.items()):
            for label, name in enumerate(PATTERNS):
                (draft / split / name).mkdir(parents=True)
                for index in range(count):
                    image = Image.fromarray(draw(np.random.default_rng((seed, number, label, index)), name))
                    image = image.convert("L") if index % 40 == 7 else image
                    image.save(draft / split / name / f"{index:05d}.jpg", quality=90)


def draw(rng: np.random.Generator, name: str) -> np.ndarray:
    """One image of a class, uint8 `[H, W, 3]`."""
    height, width = SIZES[rng.integers(len(SIZES))]
    canvas = _textured(rng, name, height, width)
    others = [other for other in PATTERNS if other != name]
    if rng.random() < 0.5:  # a patch of another pattern, up to a fifth of the image
        h, w = (int(side * rng.uniform(0.25, 0.45)) for side in (height, width))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        canvas[top : top + h, left : left + w] = _textured(rng, others[rng.integers(len(others))], h, w)
    for _ in range(rng.poisson(1.5)):
        centre = tuple(int(rng.integers(side)) for side in (width, height))
        axes = tuple(int(rng.uniform(0.04, 0.14) * min(height, width)) for _ in range(2))
        cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, rng.uniform(0, 255, 3).tolist(), -1)
    light = cv2.resize(rng.uniform(0.65, 1.25, (3, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = canvas * light[..., None] + rng.normal(0, rng.uniform(3, 14), canvas.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _textured(rng: np.random.Generator, name: str, height: int, width: int) -> np.ndarray:
    """Float `[height, width, 3]` in 0..255: two colours in a pattern of random direction, place and grain."""
    fine = 3  # samples per pixel and axis: edges are smooth
    y, x = np.mgrid[: height * fine, : width * fine] / fine
    y, x = y - rng.uniform(0.25, 0.75) * height, x - rng.uniform(0.25, 0.75) * width
    turn, period = rng.uniform(0, 2 * math.pi), rng.uniform(8, 16)
    u = (x * math.cos(turn) + y * math.sin(turn)) / period
    v = (y * math.cos(turn) - x * math.sin(turn)) / period * rng.uniform(0.8, 1.2)
    field = PATTERNS[name](u, v) * (1 if rng.random() < 0.5 else -1)
    mix = cv2.resize(field.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)[..., None] * 0.5 + 0.5
    first, second = rng.uniform(20, 235, 3), rng.uniform(20, 235, 3)
    while np.abs(first - second).max() < 60:
        second = rng.uniform(20, 235, 3)
    return np.ascontiguousarray(first + (second - first) * mix)
