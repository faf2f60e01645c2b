"""PIDray for detectors with boxes or masks."""

from __future__ import annotations

from typing import Any

from vistrain.data.base.module import SplitName
from vistrain.data.coco.pidray import IDS, NAMES, REMEDY, Subset, pidray_files, pidray_folder
from vistrain.data.detection.coco_sets import CocoDetection, CocoSplit
from vistrain.structures import LabelSpace


class PIDray(CocoDetection):
    """PIDray (arXiv 2108.07020): 12 classes of prohibited items with boxes and masks, 47,677 X-ray pictures.

    There is no validation split: evaluation is of one of the three subsets of the test pictures, and papers print all
    three and their mean.

    Args:
        root: folder that holds `pidray/` (or is it), with `train/`, `easy/`, `hard/`, `hidden/` and `annotations/`;
            `VISTRAIN_DATA` or `data/` if None.
        subset: of the test pictures that is evaluated.
        base: see `CocoDetection`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(self, root: str | None = None, subset: Subset = "easy", **base: Any) -> None:
        train, val = (CocoSplit(*pidray_files(part)) for part in (None, subset))
        super().__init__(train=train, val=val, root=str(pidray_folder(root)), **base)

    @property
    def labels(self) -> LabelSpace:
        """The 12 classes; needs no file."""
        return LabelSpace(NAMES, IDS, self.label_space)

    def remedy(self, split: SplitName) -> str:
        """Where to put what is downloaded."""
        return f"{REMEDY} {self.root}/ (or point VISTRAIN_DATA or data.root at the folder with pidray/)"
