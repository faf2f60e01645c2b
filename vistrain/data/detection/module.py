"""Detection data sets in COCO's format."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as mask_tools
from torch.utils.data import Dataset

from vistrain.data.base.images import read_listed_image
from vistrain.data.base.module import DataModule, SplitName, default_root
from vistrain.data.base.storage import file_names, is_folder
from vistrain.data.detection.coco import Annotations, Problems, encode_mask, read_coco, targets
from vistrain.data.detection.collate import Sample
from vistrain.data.detection.transforms import DetrAugment, EvalResize
from vistrain.errors import DataError, VistrainError
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)

LabelSpaceName = Literal["contiguous", "coco_ids"]
Exif = Literal["auto", "apply", "ignore"]
SizeRule = Literal["detr", "detectron2"]


@dataclass(frozen=True)
class CocoSplit:
    """Where a split lies, relative to the data set's root.

    Attributes:
        images: image folder; `file_name`s are relative to it.
        annotations: the JSON file.
    """

    images: str
    annotations: str


@dataclass
class _Loaded:
    annotations: Annotations
    categories: dict[int, str]
    problems: Problems


class CocoDataset(Dataset[Any]):
    """Images with their targets, read and transformed on demand.

    Args:
        annotations: the targets.
        folder: image folder.
        labels: gives categories their channels.
        transform: applied to each sample.
        exif: see `read_listed_image`.
    """

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        labels: LabelSpace,
        transform: DetrAugment | EvalResize,
        exif: Exif,
    ) -> None:
        self.annotations, self.folder, self.transform, self.exif = annotations, folder, transform, exif
        channel = labels.channel_of
        self.labels = np.array([channel[c] for c in annotations.categories.tolist()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | VistrainError:
        """The transformed sample of `index` or `(index, seed)`; what is wrong with its file is returned, not raised."""
        index, seed = key if isinstance(key, tuple) else (key, 0)
        try:
            return self.transform.apply(self.read(index), seed)
        except VistrainError as error:
            return error

    def where(self, index: int) -> str:
        """The file of an image."""
        return str(self.folder / self.annotations.files[index])

    def read(self, index: int) -> Sample:
        """The sample as it is on disk.

        Raises:
            DataError: its image or a mask cannot be read.
        """
        data = self.annotations
        height, width = data.sizes[index].tolist()
        image = read_listed_image(self.folder / data.files[index], height, width, self.exif)
        mine = slice(int(data.first[index]), int(data.first[index + 1]))
        masks = None
        if data.segmentations is not None:
            masks = np.zeros((mine.stop - mine.start, height, width), bool)
            for mask, segmentation in zip(masks, data.segmentations[mine], strict=True):
                where = f"a segmentation of {data.files[index]}"
                mask[:] = mask_tools.decode(encode_mask(where, segmentation, height, width))
        return Sample(
            image, int(data.ids[index]), (height, width), data.boxes[mine].copy(), self.labels[mine].copy(), masks
        )


class CocoDetection(DataModule):
    """Any detection set in COCO's format.

    Nothing is read on construction. Classes come from the training file, ordered by category id as the official code
    does.

    Args:
        root: folder that the splits' paths are relative to; `VISTRAIN_DATA` or `data/` if None.
        train, val: the splits.
        test: what `vistrain test` evaluates; the validation split if None. Its file may lack annotations.
        labels: `contiguous` (detectron2, detrex) or `coco_ids` (class channel = category id, as the DETR authors'
            models).
        batch_size, per_device, workers, seed, eval_batch_size: see `DataModule`.
        augment: training augmentation; the published DETR recipe if None.
        eval_short_side, eval_long_side: evaluation resize, pixels.
        resize: arithmetic of the evaluation size, see `transforms.output_size`.
        keep_empty: train on images without objects, too (the DETR authors do; detectron2 and detrex drop them).
        masks: load instance masks as well.
        exif: orientation of photographs, see `images.read_listed_image`.

    Attributes:
        problems: split -> what was skipped or mended in it; filled when the split is first read.
    """

    def __init__(
        self,
        train: CocoSplit,
        val: CocoSplit,
        test: CocoSplit | None = None,
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
        super().__init__(batch_size, per_device, workers, seed, eval_batch_size)
        self.root = Path(default_root() if root is None else root)
        self.splits: dict[SplitName, CocoSplit] = {"train": train, "val": val, "test": test or val}
        self.label_space = labels
        self.augment = DetrAugment() if augment is None else augment
        self.eval_short_side, self.eval_long_side, self.resize = eval_short_side, eval_long_side, resize
        self.keep_empty, self.masks, self.exif = keep_empty, masks, exif
        self.problems: dict[SplitName, Problems] = {}
        self._loaded: dict[SplitName, _Loaded] = {}
        self._labels: LabelSpace | None = None

    @property
    def labels(self) -> LabelSpace:
        """The classes of the training file (read the first time), ordered by category id."""
        if self._labels is None:
            names = self._load("train").categories
            ids = tuple(sorted(names))
            self._labels = LabelSpace(tuple(names[i] for i in ids), ids, self.label_space)
        return self._labels

    def setup(self, stage: str) -> None:
        """Reads what a stage (`fit`, `validate`, `test`) needs: whatever is missing is missed before the run."""
        needed: dict[str, tuple[SplitName, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in needed.get(stage, ()):
            self.dataset(split)

    def dataset(self, split: SplitName) -> CocoDataset:
        """The samples of a split: augmented for `train`, resized for evaluation otherwise."""
        loaded = self._load(split)
        _refuse_missing(loaded.annotations.files, self.folder(split), self.annotation_file(split))
        transform = self.augment if split == "train" else self.eval_resize
        return CocoDataset(loaded.annotations, self.folder(split), self.agreed_labels(split), transform, self.exif)

    @property
    def eval_resize(self) -> EvalResize:
        """The evaluation resize, with the filter that the model's weights want."""
        interpolation = self.preprocessing.interpolation
        return EvalResize(self.eval_short_side, self.eval_long_side, self.resize, interpolation)  # type: ignore[arg-type]

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Upper bounds of the short and long side of the transformed images, in pixels."""
        return (self.augment if split == "train" else self.eval_resize).largest

    def folder(self, split: SplitName) -> Path:
        """A split's image folder."""
        return self.root / self.splits[split].images

    def annotation_file(self, split: SplitName) -> Path:
        """A split's JSON file."""
        return self.root / self.splits[split].annotations

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """The COCO dictionary that the COCO tools evaluate against: all images, crowds included, read anew."""
        self.require(split)
        return read_coco(self.annotation_file(split), annotations=split != "test").ground_truth()

    def image_path(self, split: SplitName, image_id: int) -> Path:
        """The file of an image.

        Raises:
            DataError: the split has no such image (in training, images without objects may have been dropped).
        """
        data = self._load(split).annotations
        position = int(np.searchsorted(data.ids, image_id))
        if position == len(data) or data.ids[position] != image_id:
            raise DataError(str(self.annotation_file(split)), f"no image with id {image_id} in split {split!r}")
        return self.folder(split) / data.files[position]

    def require(self, split: SplitName) -> None:
        """Refuses a split whose folder or file is missing.

        Raises:
            DataError: naming what is missing and how to get it.
        """
        for path, what in ((self.annotation_file(split), "annotation file"), (self.folder(split), "image folder")):
            if not (path.is_file() if what == "annotation file" else is_folder(path)):
                raise DataError(str(path), f"no such {what}", self.remedy(split))

    def remedy(self, split: SplitName) -> str:
        """What to do where a split is missing."""
        return f"correct data.{split} or data.root (now {self.root}), or set VISTRAIN_DATA"

    def _load(self, split: SplitName) -> _Loaded:
        if split not in self._loaded:
            if split == "test" and self.splits["test"] == self.splits["val"]:
                return self._load("val")
            self.require(split)
            coco = read_coco(self.annotation_file(split), annotations=split != "test")
            annotations = targets(coco, keep_empty=self.keep_empty or split != "train", masks=self.masks)
            self.problems[split] = coco.problems
            if coco.problems and self.rank == 0:
                log.warning("%s: %s", self.annotation_file(split), coco.problems)
            self._loaded[split] = _Loaded(annotations, coco.categories, coco.problems)
        return self._loaded[split]

    def agreed_labels(self, split: SplitName) -> LabelSpace:
        """The label space, once it is sure that a split's file numbers and names the classes alike."""
        known = dict(zip(self.labels.ids, self.labels.names, strict=True))
        for category, name in self._load(split).categories.items():
            if known.get(category) != name:
                meant = f"{known[category]!r}" if category in known else "unknown"
                raise DataError(
                    str(self.annotation_file(split)),
                    f"category {category} is {name!r} here and {meant} in the label space",
                    "all splits must list the same categories",
                )
        return self.labels


def _refuse_missing(files: list[str], folder: Path, listing: Path) -> None:
    """One directory listing instead of a stat per file, so that no image is missed after hours of training."""
    present: dict[str, set[str]] = {}
    missing = []
    for name in files:
        parent, base = os.path.split(name)
        if parent not in present:
            present[parent] = file_names(folder / parent)
        if base not in present[parent]:
            missing.append(name)
    if missing:
        raise DataError(
            str(listing),
            f"{len(missing)} of {len(files)} listed images are not in {folder} (first: {missing[0]})",
            "complete the folder or correct the paths",
        )
