"""The panoptic sets that papers report, in the layouts in which they are given out: COCO, Cityscapes, ADE20K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vistrain.data.base.module import SplitName, data_root
from vistrain.data.segmentation.known_sets import ADE20K_NAMES, CITYSCAPES_CLASSES
from vistrain.data.segmentation.panoptic import PanopticFolders, PanopticSplit
from vistrain.data.segmentation.panoptic_files import Category

COCO_ROWS = (Path(__file__).parent / "coco_panoptic.txt").read_text(encoding="utf-8").splitlines()
CITYSCAPES_THINGS = 24  # label ids from it on are counted one by one
# Of ADE20K's 150 classes those that are not counted one by one; ids as in the challenge of 2017, from 0.
ADE20K_STUFF = {
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
}  # fmt: skip


class CocoPanoptic(PanopticFolders):
    """COCO 2017 panoptic (https://cocodataset.org/#panoptic-2018): 118,287 training images, 5,000 for validation, 80
    things and 53 kinds of stuff.

    Args:
        root: folder that holds `coco/train2017`, `coco/val2017` and `coco/annotations` (or is that `coco` itself);
            `VISTRAIN_DATA` or `data/` if None.
        base: see `PanopticFolders`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(self, root: str | None = None, **base: Any) -> None:
        folder = data_root(root)
        folder = folder if (folder / "annotations").is_dir() else folder / "coco"
        train, val = (
            PanopticSplit(
                name,
                f"annotations/panoptic_{name}",
                f"annotations/panoptic_{name}.json",
                f"annotations/instances_{name}.json",
            )
            for name in ("train2017", "val2017")
        )
        super().__init__(train=train, val=val, root=str(folder), **base)

    def known(self) -> tuple[Category, ...]:
        """The 133 classes; needs no file."""
        rows = (row.split("\t") for row in COCO_ROWS)
        return tuple(Category(int(key), name, kind == "thing") for key, kind, name in rows)

    def remedy(self, split: SplitName) -> str:
        """What to download, and where to put it."""
        return (
            "download train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip from"
            f" https://cocodataset.org/#download, unpack all in {self.root}/, and the two zips of PNGs in annotations/"
            " (or point VISTRAIN_DATA or data.root at the folder with coco/)"
        )


class CityscapesPanoptic(PanopticFolders):
    """Cityscapes, fine annotations, as cityscapesScripts' `createPanopticImgs.py` writes them: 8 things, 11 kinds of
    stuff, categories by label ids.

    `leftImg8bit/{train,val}/CITY/`, and `gtFine/cityscapes_panoptic_{train,val}` with `.json` beside it.

    Args:
        eval_scale, base: see `PanopticFolders`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(self, eval_scale: tuple[int, int] | None = (2048, 1024), **base: Any) -> None:
        train, val = (
            PanopticSplit(f"leftImg8bit/{name}", f"gtFine/{stem}", f"gtFine/{stem}.json")
            for name, stem in ((split, f"cityscapes_panoptic_{split}") for split in ("train", "val"))
        )
        super().__init__(train=train, val=val, eval_scale=eval_scale, **base)

    def known(self) -> tuple[Category, ...]:
        """The 19 classes; needs no file."""
        return tuple(Category(key, name, key >= CITYSCAPES_THINGS, rgb) for name, key, rgb in CITYSCAPES_CLASSES)

    def image_file(self, split: SplitName, key: int | str, name: str) -> Path:
        """Below its city; the names that the annotations list are not those of the files."""
        return self.root / self.splits[split].images / str(key).split("_")[0] / f"{key}_leftImg8bit.png"

    def remedy(self, split: SplitName) -> str:
        """What to download and run."""
        return (
            "download leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com,"
            f" unpack both in {self.root}/, and run cityscapesScripts' createPanopticImgs.py"
        )


class ADE20KPanoptic(PanopticFolders):
    """ADE20K with the instances of the Places challenge 2017, as Mask2Former's `prepare_ade20k_pan_seg.py` writes it:
    100 things, 50 kinds of stuff.

    `ADEChallengeData2016/` with `images/{training,validation}`, and `ade20k_panoptic_{train,val}` with `.json` beside.

    Args:
        folder: below the root.
        eval_scale, base: see `PanopticFolders`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(
        self, folder: str = "ADEChallengeData2016", eval_scale: tuple[int, int] | None = (2560, 640), **base: Any
    ) -> None:
        train, val = (
            PanopticSplit(f"{folder}/images/{images}", f"{folder}/{stem}", f"{folder}/{stem}.json")
            for images, stem in (("training", "ade20k_panoptic_train"), ("validation", "ade20k_panoptic_val"))
        )
        super().__init__(train=train, val=val, eval_scale=eval_scale, **base)

    def known(self) -> tuple[Category, ...]:
        """The 150 classes; needs no file."""
        return tuple(Category(i, name, i not in ADE20K_STUFF) for i, name in enumerate(ADE20K_NAMES))
