"""COCO 2017 (https://cocodataset.org): its classes, and what to download."""

from __future__ import annotations

from pathlib import Path

from vistrain.data.base.module import SplitName, default_root
from vistrain.data.detection.module import CocoDetection, CocoSplit, Exif, LabelSpaceName, SizeRule
from vistrain.data.detection.transforms import DetrAugment
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

    The classes are known without any file, so models can be built before the download.

    Args:
        root: folder that holds `coco/train2017`, `coco/val2017` and `coco/annotations` (or is that `coco` itself);
            `VISTRAIN_DATA` or `data/` if None.
        labels: `contiguous`: 80 channels; `coco_ids`: 91, the DETR authors' raw ids.
        others: see `CocoDetection`.
    """

    def __init__(
        self,
        root: str | None = None,
        labels: LabelSpaceName = "contiguous",
        batch_size: int = 16,
        per_device: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int = 1,
        augment: DetrAugment | None = None,
        eval_short_side: int = 800,
        eval_long_side: int | None = 1333,
        resize: SizeRule = "detr",
        keep_empty: bool = False,
        masks: bool = False,
        exif: Exif = "auto",
    ) -> None:
        folder = Path(default_root() if root is None else root)
        folder = folder if (folder / "annotations").is_dir() else folder / "coco"
        train, val = (CocoSplit(name, f"annotations/instances_{name}.json") for name in ("train2017", "val2017"))
        super().__init__(
            train, val, None, str(folder), labels, batch_size, per_device, workers, seed, eval_batch_size, augment,
            eval_short_side, eval_long_side, resize, keep_empty, masks, exif,
        )  # fmt: skip

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
