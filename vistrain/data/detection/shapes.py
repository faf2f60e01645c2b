"""A generated detection set in COCO's on-disk format: small, deterministic and, unless asked for, not easy.

The images are those of `data.base.scenes`, seven objects in an image as in COCO, with crowd regions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_tools
from rich.console import Console
from rich.progress import track

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.base.scenes import CATEGORIES, Scenes, draw, save_scene
from vistrain.data.detection.coco_sets import CocoDetection, CocoSplit
from vistrain.data.detection.transforms import DetrAugment, ScaleJitter
from vistrain.errors import refuse_below
from vistrain.metrics.coco_masks import plain_runs
from vistrain.structures import LabelSpace

VERSION = 2  # of the generator: part of the folder's name, so that a change never mixes with older files


class GeneratedShapes(CocoDetection):
    """The generated set; written on first use to `<root>/shapes-...`, one folder per choice of arguments.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        train_images, val_images: how many.
        shapes_seed: of the generator; the training order has `seed`.
        scale: image sizes times this (1: short sides of 96 to 128 pixels).
        scenes: what the images show; `Scenes()`, which is not easy, if None.
        augment: training augmentation; if None the published DETR recipe at sizes that suit these images.
        eval_short_side, eval_long_side: evaluation resize, pixels; what suits these images if None.
        base: see `CocoDetection`.

    Raises:
        ConfigError: a number is too small.
    """

    sets_itself = ("train", "val", "test")

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 1600,
        val_images: int = 200,
        shapes_seed: int = 0,
        scale: float = 1.0,
        scenes: Scenes | None = None,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        augment: DetrAugment | ScaleJitter | None = None,
        eval_short_side: int | None = None,
        eval_long_side: int | None = None,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        refuse_below(0.5, scale=scale)
        refuse_below(0, shapes_seed=shapes_seed)
        if augment is None:
            step = max(round(16 * scale), 1)
            augment = DetrAugment(
                scales=tuple(range(round(96 * scale), round(160 * scale) + 1, step)),
                long_side=round(216 * scale),
                crop_resize=tuple(round(s * scale) for s in (112, 128, 144)),
                crop_range=(round(80 * scale), round(128 * scale)),
            )
        scenes = scenes or Scenes()
        name = f"shapes-v{VERSION}-{train_images}-{val_images}-seed{shapes_seed}-x{scale:g}{scenes.mark}"
        train, val = (CocoSplit(split, f"annotations/{split}.json") for split in ("train", "val"))
        super().__init__(
            train=train, val=val, root=str(data_root(root) / name), batch_size=batch_size,
            eval_batch_size=eval_batch_size, augment=augment, **base,
        )  # fmt: skip
        self.eval_short_side = eval_short_side or round(128 * scale)
        self.eval_long_side = eval_long_side or round(216 * scale)
        self.counts: dict[str, int] = {"train": train_images, "val": val_images}
        self.shapes_seed, self.scale, self.scenes = shapes_seed, scale, scenes

    @property
    def labels(self) -> LabelSpace:
        """The classes drawn, by default eight; needs no file."""
        ids = tuple(sorted(self.scenes.categories))
        return LabelSpace(tuple(CATEGORIES[i] for i in ids), ids, self.label_space)

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
            write_shapes(self.root, self.counts, self.shapes_seed, self.scale, self.scenes)

    def require(self, split: SplitName) -> None:
        """Generate the set first if it is not there."""
        self.prepare_data()
        super().require(split)

    def remedy(self, split: SplitName) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def write_shapes(folder: Path, counts: dict[str, int], seed: int, scale: float, scenes: Scenes) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of images.
        seed, scale, scenes: see `GeneratedShapes`.

    Raises:
        DataError: the folder cannot be written.
    """
    with whole_folder(folder, sum(counts.values())) as draft:
        for number, (split, count) in enumerate(counts.items()):
            _write_split(draft, split, count, (seed, number), scale, scenes)


def _write_split(draft: Path, split: str, count: int, seed: tuple[int, int], scale: float, scenes: Scenes) -> None:
    (draft / split).mkdir()
    (draft / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    console = Console(stderr=True)
    steps = range(count)
    shown = (
        track(steps, f"generating {split} images", console=console, transient=True) if sys.stderr.isatty() else steps
    )
    for index in shown:
        drawing = draw(np.random.default_rng((*seed, index)), index, scale, scenes)
        height, width = drawing.pixels.shape[:2]
        entry = {"id": 10 + 3 * index, "file_name": f"{index:06d}.jpg", "width": width, "height": height}
        save_scene(draft / split / entry["file_name"], drawing.pixels, index)
        images.append(entry)
        found = [_annotation(mask, c) for mask, c in zip(drawing.masks, drawing.categories, strict=True)]
        found += [_annotation(mask, c, crowd=True) for mask, c in drawing.crowds]
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": entry["id"], **annotation})
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in scenes.categories.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (draft / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(mask: np.ndarray, category: int, crowd: bool = False) -> dict[str, Any]:
    """A COCO entry: polygons where the mask has no hole, run lengths otherwise and for crowds."""
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    polygons = None if crowd else polygons_of(mask)
    return {
        "category_id": category,
        "bbox": [x, y, w, h],
        "area": int(mask.sum()),
        "iscrowd": int(crowd),
        "segmentation": polygons or {"size": list(mask.shape), "counts": plain_runs(mask, 0, 0, mask.shape)},
    }


def polygons_of(mask: np.ndarray) -> list[list[float]] | None:
    """Polygons that pycocotools draws as exactly this mask `[H, W]`; None if it has holes or is too fine for them."""
    fine = mask.astype(np.uint8).repeat(4, 0).repeat(4, 1)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None or (hierarchy[0, :, 3] >= 0).any():
        return None
    polygons = [((c[:, 0] + 0.5) / 4).round(3).ravel().tolist() for c in contours]
    height, width = mask.shape
    drawn = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects(polygons, height, width)))
    return polygons if (drawn == mask).all() else None
