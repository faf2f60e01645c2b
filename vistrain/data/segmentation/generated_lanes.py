"""A generated set of roads in CULane's layout on disk, so that its reader is what a demo goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.segmentation.lane_files import LINES, lane_mask, lines_text
from vistrain.data.segmentation.lanes import CATEGORIES, CULane
from vistrain.errors import refuse_below

VERSION = 1  # of the generator: part of the folder's name, so that a change never mixes with older files
HEIGHT, WIDTH = 590, 1640  # CULane's; the F1 is of lanes 30 of these pixels wide
DEALT = ("normal", "night", "normal", "cross")  # categories of images one after the other
LANES = 4


class GeneratedLanes(CULane):
    """The generated set; written on first use to `<root>/lanes-...`, one folder per choice of arguments.

    Straight and bent roads with up to four lanes, dashed or whole, by day and by night, and crossroads without any.
    The validation images are tested on, with their categories.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        train_images, val_images: how many.
        scenes_seed: of the generator; the training order has `seed`.
        scale: image sizes times this (1: 590 x 1640 pixels, for which the F1's width of lanes is meant).
        base: see `LaneData`.

    Raises:
        ConfigError: a number is too small.
    """

    sets_itself = ("train", "val", "test", "num_lanes")

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 400,
        val_images: int = 60,
        scenes_seed: int = 0,
        scale: float = 1.0,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        refuse_below(0.1, scale=scale)
        refuse_below(0, scenes_seed=scenes_seed)
        self.counts, self.scenes_seed, self.scale = {"train": train_images, "val": val_images}, scenes_seed, scale
        name = f"lanes-v{VERSION}-{train_images}-{val_images}-seed{scenes_seed}-x{scale:g}"
        super().__init__(root=str(data_root(root) / name), num_lanes=LANES, **base)

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
            write_lanes(self.root, self.counts, self.scenes_seed, self.scale)

    def find(self, split: SplitName) -> None:
        """Generate the set first if it is not there."""
        self.prepare_data()
        super().find(split)

    def remedy(self, split: SplitName) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def write_lanes(folder: Path, counts: dict[str, int], seed: int, scale: float) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of images.
        seed, scale: see `GeneratedLanes`.

    Raises:
        DataError: the folder cannot be written.
    """
    with whole_folder(folder, sum(counts.values())) as draft:
        (draft / CATEGORIES).mkdir(parents=True)
        rows: dict[str, list[str]] = {}
        for number, (split, count) in enumerate(counts.items()):
            listed = []
            for place in ("images", "laneseg_label_w16"):
                (draft / place / split).mkdir(parents=True)
            for index in range(count):
                kind = DEALT[index % len(DEALT)]
                pixels, lanes = draw_road(np.random.default_rng((seed, number, index)), kind, scale)
                image, mask = f"images/{split}/{index:05d}.jpg", f"laneseg_label_w16/{split}/{index:05d}.png"
                Image.fromarray(pixels).save(draft / image, quality=85)
                height, width = pixels.shape[:2]
                Image.fromarray(lane_mask(lanes, height, width, max(1, round(16 * scale)))).save(draft / mask)
                there = [lane for lane in lanes if lane is not None]
                (draft / image).with_suffix(LINES).write_text(lines_text(there), encoding="utf-8")
                listed.append(f"/{image} /{mask} {' '.join(str(int(lane is not None)) for lane in lanes)}\n")
                if split == "val":
                    rows.setdefault(kind, []).append(f"/{image}\n")
            (draft / f"list/{split}_gt.txt").write_text("".join(listed), encoding="utf-8")
        for number, (kind, lines) in enumerate(rows.items()):
            (draft / CATEGORIES / f"test{number}_{kind}.txt").write_text("".join(lines), encoding="utf-8")
        (draft / "list/test.txt").write_text("".join(line for lines in rows.values() for line in lines), "utf-8")


def draw_road(rng: np.random.Generator, kind: str, scale: float) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Draws one image.

    Args:
        rng: decides everything but
        kind: `normal`, `night` or `cross`.
        scale: of the image size.

    Returns:
        uint8 `[H, W, 3]`, and in four places from left to right the points of a lane `[N, 2]`, or None.
    """
    height, width = round(HEIGHT * scale), round(WIDTH * scale)
    horizon, middle = height * rng.uniform(0.35, 0.45), width * rng.uniform(0.42, 0.58)
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = rng.uniform(60, 130)
    canvas[: int(horizon)] = rng.uniform(120, 220, 3)
    texture = rng.normal(0, 12, (height // 8 + 1, width // 8 + 1)).astype(np.float32)
    canvas += cv2.resize(texture, (width, height))[..., None]
    gap, shift, bend = width * rng.uniform(0.3, 0.42), width * rng.uniform(-0.1, 0.1), width * rng.uniform(-0.25, 0.25)
    y = np.arange(height - 1, horizon + 0.04 * height, -max(1.0, 10 * scale))
    near = (y - horizon) / (height - horizon)  # 0 at the horizon, 1 below
    lanes: list[np.ndarray | None] = []
    for place in range(LANES):
        x = middle + (width / 2 + shift + (place - 1.5) * gap - middle) * near + bend * near * (1 - near)
        inside = (x >= 0) & (x < width)
        there = kind != "cross" and inside.sum() > 5 and rng.random() < (0.95 if place in (1, 2) else 0.7)
        lanes.append(np.stack([x, y], 1)[inside].astype(np.float32) if there else None)
        if lanes[-1] is not None:
            _paint(canvas, lanes[-1], near[inside], rng, scale)
    canvas *= 0.3 if kind == "night" else rng.uniform(0.8, 1.1)
    return canvas.clip(0, 255).astype(np.uint8), lanes


def _paint(canvas: np.ndarray, lane: np.ndarray, near: np.ndarray, rng: np.random.Generator, scale: float) -> None:
    """Paints a lane, thinner towards the horizon, whole or dashed."""
    colour = (rng.uniform(200, 250), rng.uniform(190, 250), rng.uniform(90, 250))
    dashed, start = rng.random() < 0.5, int(rng.integers(4))
    points = np.rint(lane).astype(np.int32)
    for i in range(len(points) - 1):
        if not dashed or (i + start) % 5 < 3:
            thickness = max(1, round(16 * scale * float(near[i])))
            cv2.line(canvas, points[i].tolist(), points[i + 1].tolist(), colour, thickness)
