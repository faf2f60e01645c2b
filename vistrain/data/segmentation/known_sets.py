"""The sets that papers report, in the layouts in which they are given out: ADE20K, Cityscapes, CamVid, PASCAL VOC and
Context, COCO-Stuff."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vistrain.data.segmentation.label_files import RGB, ClassList, LabelRule, read_label_file
from vistrain.data.segmentation.mask_folders import MaskFolders
from vistrain.data.segmentation.mask_pairs import MaskPair, MaskSplit

ADE20K_NAMES = (Path(__file__).parent / "ade20k.txt").read_text(encoding="utf-8").split("\n")[:150]
# Value and name; the ids that COCO has no annotations of are left out.
COCO_STUFF = tuple(
    (int(value), name)
    for value, _, name in (
        line.partition("\t")
        for line in (Path(__file__).parent / "coco_stuff.txt").read_text(encoding="utf-8").splitlines()
    )
)
# Name, label id, colour; ids 0-6, 9, 10, 14-16, 18, 29, 30 and -1 are not evaluated (cityscapesScripts, labels.py).
CITYSCAPES_CLASSES: tuple[tuple[str, int, RGB], ...] = (
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip
CITYSCAPES_CATEGORIES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("flat", (0, 1)), ("construction", (2, 3, 4)), ("object", (5, 6, 7)), ("nature", (8, 9)), ("sky", (10,)),
    ("human", (11, 12)), ("vehicle", (13, 14, 15, 16, 17, 18)),
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_PALETTE: tuple[RGB, ...] = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
)  # fmt: skip
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip


CONTEXT_CLASSES = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building", "bus",
    "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog", "door", "fence",
    "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse",
    "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky",
    "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood",
)  # fmt: skip


class ADE20K(MaskFolders):
    """ADE20K's scene parsing challenge (Zhou et al. 2017): 150 classes, stored as 1 to 150; 0 is anything else.

    `ADEChallengeData2016/` with `images/` and `annotations/`, `training` (20,210) and `validation` (2,000).

    Args:
        folder: below the root.
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors")

    def __init__(
        self, folder: str = "ADEChallengeData2016", eval_scale: tuple[int, int] | None = (2048, 512), **base: Any
    ) -> None:
        splits: dict[str, Any] = {
            split: MaskSplit(f"{folder}/images/{name}", f"{folder}/annotations/{name}")
            for split, name in (("train", "training"), ("val", "validation"))
        }
        facts: dict[str, Any] = {"classes": tuple(ADE20K_NAMES), "first_value": 1, "ignore": (0,)}
        super().__init__(eval_scale=eval_scale, **splits, **facts, **base)


class Cityscapes(MaskFolders):
    """Cityscapes (Cordts et al. 2016), fine annotations: 19 classes, all others ignored; their categories are the label
    space's regions.

    `leftImg8bit/` and `gtFine/` with `train` (2,975) and `val` (500). Label ids as they are given out
    (`*_labelIds.png`), the train ids (`*_labelTrainIds.png`) that cityscapesScripts make of them, or the polygons
    (`*_polygons.json`) that both are drawn from.

    Args:
        files: which label files.
        with_instances: evaluation reads `*_instanceIds.png`, too, for the iIoU of the protocol `cityscapes`.
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors")

    def __init__(
        self,
        files: Literal["labelIds", "labelTrainIds", "polygons"] = "labelIds",
        with_instances: bool = False,
        **base: Any,
    ) -> None:
        splits: dict[str, Any] = {
            split: MaskSplit(f"leftImg8bit/{split}", f"gtFine/{split}", "_leftImg8bit", f"_gtFine_{files}")
            for split in ("train", "val")
        }
        super().__init__(classes=tuple(name for name, *_ in CITYSCAPES_CLASSES), ignore="others", **splits, **base)
        self.files, self.with_instances = files, with_instances

    @property
    def rule(self) -> LabelRule:
        """See `SegmentationData`."""
        if self._rule is None:
            names, ids, palette = zip(*CITYSCAPES_CLASSES, strict=True)
            values = tuple(range(len(names))) if self.files == "labelTrainIds" else ids
            self._rule = LabelRule(ClassList(names, values, palette), "others")
            self._rule.labels = replace(self._rule.labels, regions=CITYSCAPES_CATEGORIES)
        return self._rule

    @property
    def instances(self) -> Callable[[MaskPair], np.ndarray] | None:
        """See `SegmentationData`."""
        return cityscapes_instances if self.with_instances else None


def cityscapes_instances(pair: MaskPair) -> np.ndarray:
    """See `SegmentationData.instances`, from the file `*_instanceIds.png` beside a label file.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    stem = pair.mask.name.rpartition("_gtFine_")[0]
    stored = read_label_file(pair.mask.with_name(f"{stem}_gtFine_instanceIds.png")).astype(np.int32)
    channels = np.full(stored.max(initial=0) // 1000 + 1, -1, np.int32)
    for channel, (_, label_id, _) in enumerate(CITYSCAPES_CLASSES):
        channels[label_id : label_id + 1] = channel
    number = np.where(stored > 1000, channels[stored // 1000], -1)  # 1000 itself is the official code's, too
    return np.where(number >= 0, (number + 1) * 1000 + stored % 1000, 0).astype(np.int32)


class CamVid(MaskFolders):
    """CamVid (Brostow et al. 2009) with the 11 classes and the splits of SegNet: 367, 101 and 233 images of 480 x 360.

    Label files hold 0 to 10, and 11 for void. `images/` and `annotations/` with `train`, `val` and `test`.

    Args:
        void: void is a 12th class, which is trained and predicted (ESPNet); otherwise it is ignored.
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors", "palette")

    def __init__(self, void: bool = False, **base: Any) -> None:
        splits: dict[str, Any] = {
            split: MaskSplit(f"images/{split}", f"annotations/{split}") for split in ("train", "val", "test")
        }
        classes = (*CAMVID_CLASSES, "void") if void else CAMVID_CLASSES
        facts: dict[str, Any] = {"palette": CAMVID_PALETTE[: len(classes)], "ignore": (255,) if void else (11, 255)}
        super().__init__(classes=classes, **splits, **facts, **base)


class PascalVOC(MaskFolders):
    """PASCAL VOC 2012 (Everingham et al. 2010): 20 classes and the background; outlines, stored as 255, are ignored.

    `VOC2012/` (or `VOC2007/` ...) with `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/`.

    Args:
        folder: below the root.
        masks: folder of the label files in it (`SegmentationClassAug` for SBD's).
        train_list, val_list: which images, files in `ImageSets/Segmentation` (`trainaug.txt`).
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors", "palette")

    def __init__(
        self,
        folder: str = "VOCdevkit/VOC2012",
        masks: str = "SegmentationClass",
        train_list: str = "train.txt",
        val_list: str = "val.txt",
        **base: Any,
    ) -> None:
        splits: dict[str, Any] = {
            split: MaskSplit(
                f"{folder}/JPEGImages", f"{folder}/{masks}", names=f"{folder}/ImageSets/Segmentation/{file}"
            )
            for split, file in (("train", train_list), ("val", val_list))
        }
        palette = tuple(voc_colour(i) for i in range(len(VOC_CLASSES)))
        super().__init__(classes=VOC_CLASSES, palette=palette, **splits, **base)


class PascalContext(MaskFolders):
    """PASCAL Context (Mottaghi et al. 2014): 59 classes, 4,998 + 5,105 images of PASCAL VOC 2010.

    `VOC2010/` with `JPEGImages/`, the label files of 0 to 59 that mmsegmentation's converter writes in
    `SegmentationClassContext/`, and lists in `ImageSets/SegmentationContext/`.

    Args:
        background: 0, the background, is a class, too: 60 of them; otherwise it is ignored.
        folder: below the root.
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors")

    def __init__(self, background: bool = False, folder: str = "VOCdevkit/VOC2010", **base: Any) -> None:
        splits: dict[str, Any] = {
            split: MaskSplit(
                f"{folder}/JPEGImages",
                f"{folder}/SegmentationClassContext",
                names=f"{folder}/ImageSets/SegmentationContext/{split}.txt",
            )
            for split in ("train", "val")
        }
        classes = ("background", *CONTEXT_CLASSES) if background else CONTEXT_CLASSES
        facts: dict[str, Any] = (
            {"first_value": 0, "ignore": (255,)} if background else {"first_value": 1, "ignore": (0, 255)}
        )
        super().__init__(classes=classes, **facts, **splits, **base)


class COCOStuff(MaskFolders):
    """COCO-Stuff 164k (Caesar et al. 2018, arXiv 1612.03716): 80 things and 91 kinds of stuff, 118,287 + 5,000 images.

    `images/` and `annotations/` with `train2017` and `val2017`, the latter the unpacked `stuffthingmaps_trainval2017`:
    values are COCO's ids less 1, and 255 is ignored.

    Args:
        base: see `MaskFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "first_value", "values", "ignore", "colors")

    def __init__(self, **base: Any) -> None:
        splits: dict[str, Any] = {
            split: MaskSplit(f"images/{split}2017", f"annotations/{split}2017") for split in ("train", "val")
        }
        values = tuple(value for value, _ in COCO_STUFF)
        super().__init__(classes=tuple(name for _, name in COCO_STUFF), values=values, ignore=(255,), **splits, **base)


def voc_colour(index: int) -> RGB:
    """PASCAL VOC's colour of a label: bits 0, 3, 6 ... of it are those of red from the highest down, 1, 4, 7 ... green,
    2, 5, 8 ... blue."""
    channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    return channels[0], channels[1], channels[2]
