"""A generated set in ADE20K's layout on disk: the scenes of `data.base.scenes` with a class for each shape and one for
the ground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.base.scenes import Drawing, Scenes, draw, save_scene
from vistrain.data.segmentation.label_files import ClassList, LabelRule
from vistrain.data.segmentation.mask_folders import MaskFolders
from vistrain.data.segmentation.mask_pairs import MaskSplit
from vistrain.data.segmentation.transforms import MaskAugment
from vistrain.errors import refuse_below

VERSION = 1  # of the generator: part of the folder's name, so that a change never mixes with older files
FOLDERS = {"train": "training", "val": "validation"}
CLASS_FILE = "classes.txt"


class GeneratedMasks(MaskFolders):
    """The generated set; written on first use to `<root>/masks-...`, one folder per choice of arguments.

    Label files are ADE20K's in kind: 0 is anything that is not judged (heaps of small shapes), classes count from 1.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        train_images, val_images: how many.
        scenes_seed: of the generator; the training order has `seed`.
        scale: image sizes times this (1: short sides of 96 to 128 pixels).
        scenes: what the images show; `Scenes()`, which is not easy, if None.
        batch_size, augment: see `SegmentationData`; an augmentation that suits these images if None.
        base: see `MaskFolders`.

    Raises:
        ConfigError: a number is too small.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors", "palette")

    def __init__(
        self,
        root: str | None = None,
        train_images: int = 1000,
        val_images: int = 100,
        scenes_seed: int = 0,
        scale: float = 1.0,
        scenes: Scenes | None = None,
        batch_size: int = 8,
        augment: MaskAugment | None = None,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        refuse_below(0.5, scale=scale)
        refuse_below(0, scenes_seed=scenes_seed)
        side = round(96 * scale)
        self.counts, self.scenes_seed, self.scale = {"train": train_images, "val": val_images}, scenes_seed, scale
        self.scenes = scenes or Scenes()
        name = f"masks-v{VERSION}-{train_images}-{val_images}-seed{scenes_seed}-x{scale:g}{self.scenes.mark}"
        splits: dict[str, Any] = {split: MaskSplit(f"images/{f}", f"annotations/{f}") for split, f in FOLDERS.items()}
        super().__init__(
            root=str(data_root(root) / name),
            augment=augment or MaskAugment(crop=(side, side), scale=None, ratio=(0.75, 1.5)),
            classes=CLASS_FILE,
            ignore=(0,),
            batch_size=batch_size,
            **splits,
            **base,
        )

    @property
    def rule(self) -> LabelRule:
        """The ground and the shapes drawn; needs no file."""
        if self._rule is None:
            names = class_names(self.scenes)
            self._rule = LabelRule(ClassList(names, tuple(range(1, len(names) + 1))), (0,))
        return self._rule

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
            write_masks(self.root, self.counts, self.scenes_seed, self.scale, self.scenes)

    def find(self, split: SplitName) -> None:
        """Generate the set first if it is not there."""
        self.prepare_data()
        super().find(split)

    def remedy(self, split: SplitName) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def class_names(scenes: Scenes) -> tuple[str, ...]:
    """The classes in the order of their values, which count from 1."""
    return ("ground", *(scenes.categories[i] for i in sorted(scenes.categories)))


def write_masks(folder: Path, counts: dict[str, int], seed: int, scale: float, scenes: Scenes) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of images.
        seed, scale, scenes: see `GeneratedMasks`.

    Raises:
        DataError: the folder cannot be written.
    """
    names = class_names(scenes)
    value = {category: names.index(name) + 1 for category, name in scenes.categories.items()}
    with whole_folder(folder, sum(counts.values())) as draft:
        (draft / CLASS_FILE).write_text("".join(f"{i}\t{n}\n" for i, n in enumerate(names, 1)), encoding="utf-8")
        for number, (split, count) in enumerate(counts.items()):
            images, masks = (draft / kind / FOLDERS[split] for kind in ("images", "annotations"))
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for index in range(count):
                drawing = draw(np.random.default_rng((seed, number, index)), index, scale, scenes)
                save_scene(images / f"{index:06d}.jpg", drawing.pixels, index)
                Image.fromarray(label_map(drawing, value)).save(masks / f"{index:06d}.png")


def label_map(drawing: Drawing, value: dict[int, int]) -> np.ndarray:
    """What is stored of a drawing, uint8 `[H, W]`: 1 the ground, the shapes' values, 0 heaps of small shapes."""
    stored = np.ones(drawing.pixels.shape[:2], np.uint8)
    for mask, _ in drawing.crowds:
        stored[mask] = 0
    for mask, category in zip(drawing.masks, drawing.categories, strict=True):
        stored[mask] = value[category]
    return stored
