"""COCO 2017 (https://cocodataset.org): its classes, and what to download."""

from __future__ import annotations

from typing import Any

from vistrain.data.base.module import SplitName, data_root
from vistrain.data.detection.coco_sets import CocoDetection, CocoSplit
from vistrain.structures import LabelSpace

NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of the 90 ids, those that no annotated class has
IDS = tuple(i for i in range(1, 91) if i not in UNUSED)


class Coco2017(CocoDetection):
    """COCO 2017 detection: 118,287 training images (117,266 with objects), 5,000 for validation, 80 classes.

    The classes are known without any file, so models can be built before the download: 80 channels with
    `labels=contiguous`, 91, the DETR authors' raw ids, with `coco_ids`.

    Args:
        root: folder that holds `coco/train2017`, `coco/val2017` and `coco/annotations` (or is that `coco` itself);
            `VISTRAIN_DATA` or `data/` if None.
        base: see `CocoDetection`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(self, root: str | None = None, **base: Any) -> None:
        folder = data_root(root)
        folder = folder if (folder / "annotations").is_dir() else folder / "coco"
        train, val = (CocoSplit(name, f"annotations/instances_{name}.json") for name in ("train2017", "val2017"))
        super().__init__(train=train, val=val, root=str(folder), **base)

    @property
    def labels(self) -> LabelSpace:
        """The 80 classes; needs no file."""
        return LabelSpace(NAMES, IDS, self.label_space)

    def remedy(self, split: SplitName) -> str:
        """What to download, and where to put it."""
        return (
            "download train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org/#download"
            f" and unpack all three in {self.root}/ (or point VISTRAIN_DATA or data.root at the folder with coco/)"
        )
