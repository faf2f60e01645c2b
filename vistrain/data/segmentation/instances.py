"""COCO's instances for networks that classify masks: objects that may overlap, run lengths until a batch is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import read_listed_image
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.base.storage import is_folder, refuse_missing
from vistrain.data.coco.instance_masks import InstanceMasks
from vistrain.data.coco.pidray import IDS, NAMES, REMEDY, Subset, pidray_files, pidray_folder
from vistrain.data.coco.reader import (
    Annotations,
    Listing,
    disagreements,
    read_coco,
    targets,
)
from vistrain.data.coco.trainable import refuse_untrainable, share_without_masks
from vistrain.data.segmentation.panoptic import JitteredData
from vistrain.data.segmentation.panoptic_sets import COCO_ROWS
from vistrain.data.segmentation.segment_transforms import SegmentAugment
from vistrain.data.segmentation.transforms import EvalScale
from vistrain.errors import DataError
from vistrain.layers.packed_masks import PackedMasks
from vistrain.metrics.coco_masks import encode_mask
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InstanceSplit:
    """Where a split's files are, relative to the root.

    Args:
        images: folder of the images.
        annotations: a JSON file in COCO's format, each annotation with a segmentation.
    """

    images: str
    annotations: str


@dataclass
class InstanceImage:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[h, w, 3]`, RGB.
        masks: of its objects; while training of `image`, in evaluation of the original.
        labels: `[N]` int64, class channels.
        id: in the annotations.
        original_size: H, W in pixels before any transform.
        name: of the image's file, as it is listed.
    """

    image: np.ndarray
    masks: InstanceMasks
    labels: np.ndarray
    id: int
    original_size: tuple[int, int]
    name: str = ""


class InstanceImages(SampleSet):
    """Images with their objects, read and transformed on demand.

    Args:
        data: what the annotations say.
        folder: of the images.
        channels: category id -> class channel.
        transform: augmentation, or the evaluation resize.
    """

    def __init__(
        self, data: Annotations, folder: Path, channels: dict[int, int], transform: SegmentAugment | EvalScale
    ) -> None:
        self.data, self.folder, self.channels, self.transform = data, folder, channels, transform

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, index: int, seed: int = 0) -> InstanceImage:
        """The transformed sample.

        Raises:
            DataError: the image cannot be read or has another size, or a segmentation is damaged.
        """
        data, where = self.data, self.where(index)
        height, width = (int(side) for side in data.sizes[index])
        mine = range(int(data.first[index]), int(data.first[index + 1]))
        image = read_listed_image(where, height, width)
        segmentations: Any = data.segmentations  # there, as `targets` was asked for them
        runs = [encode_mask(f"an object of {where}", segmentations[i], height, width) for i in mine]
        masks = InstanceMasks.of(runs, (height, width))
        labels = np.array([self.channels[int(data.categories[i])] for i in mine], np.int64)
        if isinstance(self.transform, SegmentAugment):
            image, choice = self.transform(image, seed)
            masks = InstanceMasks(masks.runs, choice.rows, choice.columns)
        else:
            image = self.transform(image)
        return InstanceImage(image, masks, labels, int(data.ids[index]), (height, width), str(data.files[index]))

    def where(self, index: int) -> str:
        """The image's file."""
        return str(self.folder / self.data.files[index])


@dataclass(frozen=True)
class InstanceCollate:
    """Makes batches of samples.

    Args:
        size_divisor: height and width of the batch are rounded up to multiples of it.
    """

    size_divisor: int

    def __call__(self, samples: Sequence[InstanceImage]) -> Batch:
        """Pads images bottom and right with zeros to a common size and stacks them; see `batch_of`.

        Returns:
            With `target`, a list of dicts: `labels` int64 `[N]` and `masks`, `PackedMasks`, of what is seen of the
            objects.
        """
        found = []
        for sample in samples:
            parts = list(sample.masks.parts())
            seen = [i for i, (_, _, mask) in enumerate(parts) if mask.any()]
            masks = PackedMasks.of([parts[i] for i in seen], sample.masks.size)
            found.append({"labels": torch.from_numpy(sample.labels[seen]), "masks": masks})
        sizes, ids, names = zip(*((s.original_size, s.id, s.name) for s in samples), strict=True)
        return batch_of([sample.image for sample in samples], sizes, ids, found, self.size_divisor, names)


class InstanceFolders(JitteredData):
    """Images with objects in COCO's format, which may overlap; of annotations, see `data.coco.reader`.

    Args:
        train, val: where the files are.
        test: what `vistrain test` evaluates; `val` if None.
        base: see `JitteredData`.
    """

    def __init__(
        self, train: InstanceSplit, val: InstanceSplit, test: InstanceSplit | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        self.splits: dict[SplitName, InstanceSplit] = {"train": train, "val": val, "test": test or val}
        self._read: dict[InstanceSplit, Listing] = {}
        self._targets: dict[tuple[InstanceSplit, bool], Annotations] = {}

    def known(self) -> dict[int, str]:
        """Category id -> name where they are known without a file; else none, and the training annotations say them."""
        return {}

    @property
    def labels(self) -> LabelSpace:
        """The classes; may read the training annotations the first time."""
        found = self.known() or self.listed("train").categories
        return LabelSpace(tuple(found.values()), tuple(found))

    def listed(self, split: SplitName) -> Listing:
        """What a split's annotations list, read the first time.

        Raises:
            DataError: they cannot be read, or list other classes than training.
        """
        where = self.splits[split]
        if where not in self._read:
            path = self.root / where.annotations
            if not is_folder(self.root / where.images):
                raise DataError(str(self.root / where.images), "no such folder of images", self.remedy(split))
            found = read_coco(path)
            if split != "train" or self.known():
                other = disagreements(self.known() or self.listed("train").categories, path, found.categories)
                if other:
                    raise other[0]
            self._read[where] = found
        return self._read[where]

    def annotations(self, split: SplitName) -> Annotations:
        """The objects of a split; of training, images without any are left out, as detectron2 does."""
        where, training = self.splits[split], split == "train"
        if (where, training) not in self._targets:
            listed = self.listed(split)
            found = targets(listed, keep_empty=not training, masks=True)
            if listed.problems and self.rank == 0:
                log.warning("%s: %s", listed.path, listed.problems)
            self._targets[where, training] = found
        return self._targets[where, training]

    def image_files(self, split: SplitName) -> list[tuple[Any, Path]]:
        """See `JitteredData`."""
        found, folder = self.annotations(split), self.root / self.splits[split].images
        return [(int(key), folder / name) for key, name in zip(found.ids, found.files, strict=True)]

    def find(self, split: SplitName) -> None:
        """Look whether all files of a split are there.

        Raises:
            DataError: naming some that are not.
        """
        where = self.splits[split]
        listing = self.root / where.annotations
        found, problems = self.annotations(split), self.listed(split).problems
        refuse_missing(found.files, self.root / where.images, listing, self.remedy(split))
        if split == "train":
            refuse_untrainable(listing, problems, found)
            if self.rank == 0 and (line := share_without_masks(problems, found)):
                log.warning("%s: %s", listing, line)

    def dataset(self, split: SplitName) -> InstanceImages:
        """The samples of a split: augmented for `train`, resized for evaluation otherwise."""
        transform = self.augment if split == "train" else self.eval_transform
        folder, channels = self.root / self.splits[split].images, self.labels.channel_of
        return InstanceImages(self.annotations(split), folder, channels, transform)

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """The split in COCO's terms."""
        return self.listed(split).ground_truth()

    def place(self, split: SplitName) -> str:
        """The annotation file: splits may share a folder of images."""
        return str(self.root / self.splits[split].annotations)

    @property
    def collate(self) -> Callable[[Sequence[InstanceImage]], Batch]:
        """See `InstanceCollate`."""
        return InstanceCollate(self.preprocessing.size_divisor)

    def check(self, output: str | Path) -> Findings:
        """See `segmentation.instance_check.check_instances`."""
        from vistrain.data.segmentation.instance_check import check_instances  # it draws, which training need not load

        return check_instances(self, output)


class CocoInstances(InstanceFolders):
    """COCO 2017's instances (https://cocodataset.org): 118,287 training images (117,266 with objects), 5,000 for
    validation, 80 classes.

    Args:
        root: folder that holds `coco/train2017`, `coco/val2017` and `coco/annotations` (or is that `coco` itself);
            `VISTRAIN_DATA` or `data/` if None.
        base: see `InstanceFolders`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(self, root: str | None = None, **base: Any) -> None:
        folder = data_root(root)
        folder = folder if (folder / "annotations").is_dir() else folder / "coco"
        train, val = (InstanceSplit(name, f"annotations/instances_{name}.json") for name in ("train2017", "val2017"))
        super().__init__(train=train, val=val, root=str(folder), **base)

    def known(self) -> dict[int, str]:
        """The 80 classes; needs no file."""
        rows = (row.split("\t") for row in COCO_ROWS)
        return {int(key): name for key, kind, name in rows if kind == "thing"}


class PIDrayInstances(InstanceFolders):
    """PIDray (arXiv 2108.07020) for networks that classify masks: 12 classes of prohibited items in X-ray pictures.

    Args:
        root: folder that holds `pidray/` (or is it), with `train/`, `easy/`, `hard/`, `hidden/` and `annotations/`;
            `VISTRAIN_DATA` or `data/` if None.
        subset: of the test pictures that is evaluated; papers print all three, and their mean.
        base: see `InstanceFolders`.
    """

    sets_itself = ("train", "val", "test")

    def __init__(self, root: str | None = None, subset: Subset = "easy", **base: Any) -> None:
        train, val = (InstanceSplit(*pidray_files(part)) for part in (None, subset))
        super().__init__(train=train, val=val, root=str(pidray_folder(root)), **base)

    def known(self) -> dict[int, str]:
        """The 12 classes; needs no file."""
        return dict(zip(IDS, NAMES, strict=True))

    def remedy(self, split: SplitName) -> str:
        """Where to put what is downloaded."""
        return f"{REMEDY} {self.root}/ (or point VISTRAIN_DATA or data.root at the folder with pidray/)"
