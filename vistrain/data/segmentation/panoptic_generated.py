"""A generated panoptic set in COCO's layout on disk: the scenes of `data.base.scenes`, each shape a segment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.base.scenes import Drawing, Scenes, draw, save_scene
from vistrain.data.segmentation.panoptic import PanopticFolders, PanopticSplit
from vistrain.data.segmentation.panoptic_files import MOST, Category, write_numbers
from vistrain.data.segmentation.segment_transforms import SegmentAugment
from vistrain.errors import refuse_below

VERSION = 1  # of the generator: part of the folder's name, so that a change never mixes with older files
GROUND = 200  # category id


class GeneratedPanoptic(PanopticFolders):
    """The generated set; written on first use to `<root>/panoptic-...`, one folder per choice of arguments.

    Shapes are things, some of them stuff; the ground is stuff. Heaps of small shapes are crowds, with void around them.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        train_images, val_images: how many.
        scenes_seed: of the generator; the training order has `seed`.
        scale: image sizes times this (1: short sides of 96 to 128 pixels).
        scenes: what the images show; `Scenes()`, which is not easy, if None.
        stuff: shapes that are stuff, where the scenes have them.
        batch_size, augment, eval_scale: see `PanopticFolders`; an augmentation that suits these images if None.
        base: see `PanopticFolders`.

    Raises:
        ConfigError: a number is too small.
    """

    sets_itself = ("train", "val", "test")

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 1000,
        val_images: int = 100,
        scenes_seed: int = 0,
        scale: float = 1.0,
        scenes: Scenes | None = None,
        stuff: tuple[str, ...] = ("crescent",),
        batch_size: int = 8,
        augment: SegmentAugment | None = None,
        eval_scale: tuple[int, int] | None = None,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        refuse_below(0.5, scale=scale)
        refuse_below(0, scenes_seed=scenes_seed)
        self.counts: dict[str, int] = {"train": train_images, "val": val_images}
        self.scenes_seed, self.scale, self.scenes = scenes_seed, scale, scenes or Scenes()
        self.stuff = tuple(name for name in self.scenes.classes if name in stuff)
        side = round(96 * scale)
        mark = "".join(f"-{name}" for name in self.stuff)
        name = f"panoptic-v{VERSION}-{train_images}-{val_images}-seed{scenes_seed}-x{scale:g}{self.scenes.mark}{mark}"
        train, val = (
            PanopticSplit(split, f"annotations/panoptic_{split}", f"annotations/panoptic_{split}.json")
            for split in ("train", "val")
        )
        super().__init__(
            train=train, val=val, root=str(data_root(root) / name), batch_size=batch_size, eval_scale=eval_scale,
            augment=augment or SegmentAugment(crop=(side, side), jitter=(0.75, 1.5)), **base,
        )  # fmt: skip

    def known(self) -> tuple[Category, ...]:
        """The ground and the shapes drawn; needs no file."""
        return categories(self.scenes, self.stuff)

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
            write_segments(self.root, self.counts, self.scenes_seed, self.scale, self.scenes, self.stuff)

    def find(self, split: SplitName) -> None:
        """Generate the set first if it is not there."""
        self.prepare_data()
        super().find(split)

    def remedy(self, split: SplitName) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def categories(scenes: Scenes, stuff: tuple[str, ...]) -> tuple[Category, ...]:
    """Shapes with their ids, in the order of the scenes, which is not sorted; the ground last."""
    shapes = (Category(key, name, name not in stuff) for key, name in scenes.categories.items())
    return (*shapes, Category(GROUND, "ground", False))


def write_segments(
    folder: Path, counts: dict[str, int], seed: int, scale: float, scenes: Scenes, stuff: tuple[str, ...]
) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of images.
        seed, scale, scenes, stuff: see `GeneratedPanoptic`.

    Raises:
        DataError: the folder cannot be written.
    """
    classes = categories(scenes, stuff)
    listed = [{"id": c.id, "name": c.name, "isthing": int(c.thing), "supercategory": "shape"} for c in classes]
    with whole_folder(folder, sum(counts.values())) as draft:
        for number, (split, count) in enumerate(counts.items()):
            (draft / split).mkdir()
            (draft / f"annotations/panoptic_{split}").mkdir(parents=True)
            images, annotations = [], []
            for index in range(count):
                rng = np.random.default_rng((seed, number, index))
                drawing = draw(rng, index, scale, scenes)
                height, width = drawing.pixels.shape[:2]
                name, key = f"{index:06d}", 10 + 3 * index
                save_scene(draft / split / f"{name}.jpg", drawing.pixels, index)
                numbers, segments = segments_of(drawing, rng, {c.id for c in classes if not c.thing})
                write_numbers(draft / f"annotations/panoptic_{split}/{name}.png", numbers)
                images.append({"id": key, "file_name": f"{name}.jpg", "width": width, "height": height})
                annotations.append({"image_id": key, "file_name": f"{name}.png", "segments_info": segments})
            content = {"images": images, "annotations": annotations, "categories": listed}
            (draft / f"annotations/panoptic_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def segments_of(drawing: Drawing, rng: np.random.Generator, stuff: set[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """What is stored of a drawing: the number of each pixel's segment `[H, W]`, and `segments_info`.

    Args:
        drawing: shapes that do not overlap.
        rng: draws the numbers.
        stuff: category ids.
    """
    left = np.ones(drawing.pixels.shape[:2], bool)
    found: dict[Any, tuple[np.ndarray, int, bool]] = {}
    for i, (mask, category) in enumerate(zip(drawing.masks, drawing.categories, strict=True)):
        key = ("stuff", category) if category in stuff else i
        known = found.get(key)
        found[key] = (mask if known is None else known[0] | mask), category, False
        left &= ~mask
    for mask, category in drawing.crowds:
        if category not in stuff:
            found["crowd", category] = mask, category, True
        left &= ~cv2.dilate(mask.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)
    found["ground"] = left, GROUND, False
    numbers = np.zeros(left.shape, np.int32)
    entries = []
    for number, (mask, category, crowd) in zip(
        rng.choice(MOST - 1, len(found), replace=False).tolist(), found.values(), strict=True
    ):
        if mask.any():
            numbers[mask] = number + 1
            box = list(cv2.boundingRect(mask.view(np.uint8)))
            area = int(mask.sum())
            entries.append(
                {"id": number + 1, "category_id": category, "iscrowd": int(crowd), "bbox": box, "area": area}
            )
    return numbers, entries
