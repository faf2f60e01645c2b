"""Any detection set in COCO's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistrain.data.base.module import SplitName
from vistrain.data.coco.reader import read_content
from vistrain.data.detection.module import DetectionData


@dataclass(frozen=True)
class CocoSplit:
    """Where a split lies, relative to the data set's root.

    Attributes:
        images: image folder; `file_name`s are relative to it.
        annotations: the JSON file.
    """

    images: str
    annotations: str


class CocoDetection(DetectionData):
    """Any detection set in COCO's format.

    Nothing is read on construction. Classes come from the training file, ordered by category id as the official code
    does.

    Args:
        train, val: the splits, relative to the root.
        test: what `vistrain test` evaluates; the validation split if None. Its file may lack annotations.
        base: see `DetectionData`.
    """

    def __init__(self, train: CocoSplit, val: CocoSplit, test: CocoSplit | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.splits: dict[SplitName, CocoSplit] = {"train": train, "val": val, "test": test or val}

    def folder(self, split: SplitName) -> Path:
        """A split's image folder."""
        return self.root / self.splits[split].images

    def annotation_file(self, split: SplitName) -> Path:
        """A split's JSON file."""
        return self.root / self.splits[split].annotations

    def read(self, split: SplitName) -> dict[str, Any]:
        """The content of a split's file."""
        return read_content(self.annotation_file(split))

    def remedy(self, split: SplitName) -> str:
        """What to do where a split is missing."""
        return f"correct data.{split} or data.root (now {self.root}), or set VISTRAIN_DATA"
