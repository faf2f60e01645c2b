"""Two sets in formats of one's own, as a user would write them: what adding a data set costs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from vistrain.data import ClassificationData, DetectionData
from vistrain.data.base.images import image_size
from vistrain.data.base.storage import read_text
from vistrain.data.classification.sources import Files, Split, image_files
from vistrain.data.coco.reader import BoxedImage, as_content
from vistrain.structures import LabelSpace


class BoxTable(DetectionData):
    """Boxes in CSV files: a line `file,x1,y1,x2,y2,class` for each object, pixels; without a class, there is none.

    Args:
        classes: their names.
        train, val: the tables, relative to the root; so are the files.
        base: see `DetectionData`.
    """

    def __init__(self, classes: tuple[str, ...], train: str = "train.csv", val: str = "val.csv", **base: Any) -> None:
        super().__init__(**base)
        self.classes, self.tables = classes, {"train": train, "val": val, "test": val}

    def annotation_file(self, split: str) -> Path:
        return self.root / self.tables[split]

    def read(self, split: str) -> dict[str, Any]:
        path, images = self.annotation_file(split), dict[str, BoxedImage]()
        for row in csv.DictReader(read_text(path).splitlines()):
            file = row["file"]
            image = images.setdefault(file, BoxedImage(file, image_size(self.root / file)))
            if row["class"]:
                image.boxes.append((float(row["x1"]), float(row["y1"]), float(row["x2"]), float(row["y2"])))
                image.classes.append(row["class"])
        return as_content(images.values(), self.classes, path)


class ClassInName(ClassificationData):
    """Images named after their class: `train/cat_17.png`, `val/dog_3.png`.

    Args:
        classes: their names.
        base: see `ClassificationData`.
    """

    def __init__(self, classes: tuple[str, ...], **base: Any) -> None:
        super().__init__(**base)
        self.classes = classes

    @property
    def labels(self) -> LabelSpace:
        return LabelSpace(self.classes, tuple(range(len(self.classes))))

    def load(self, split: str) -> Split:
        folder = self.root / ("train" if split == "train" else "val")
        files = image_files(folder)
        return Split.single(Files(folder, files), [self.classes.index(name.partition("_")[0]) for name in files])
