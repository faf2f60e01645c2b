"""Detection data: what all sets of images with boxes share."""

from __future__ import annotations

import functools
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import image_size, read_listed_image
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.storage import is_folder, refuse_missing
from vistrain.data.coco.instance_masks import InstanceMasks
from vistrain.data.coco.reader import (
    Annotations,
    Listing,
    Problems,
    checked,
    disagreements,
    targets,
)
from vistrain.data.coco.trainable import refuse_untrainable, share_without_masks
from vistrain.data.detection.collate import Sample, collate, relabelled
from vistrain.data.detection.repair import repaired
from vistrain.data.detection.transforms import DetrAugment, EvalResize, ScaleJitter, SizeRule
from vistrain.errors import ConfigError, DataError
from vistrain.metrics.coco_masks import encode_mask
from vistrain.structures import LabelSpace
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

LabelSpaceName = Literal["contiguous", "coco_ids"]
Exif = Literal["auto", "apply", "ignore"]


class BoxedImages(SampleSet):
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
        transform: DetrAugment | ScaleJitter | EvalResize,
        exif: Exif,
    ) -> None:
        self.annotations, self.folder, self.transform, self.exif = annotations, folder, transform, exif
        channel = labels.channel_of
        self.labels = np.array([channel[c] for c in annotations.categories.tolist()], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.annotations)

    def sample(self, index: int, seed: int = 0) -> Sample:
        """The transformed sample.

        Raises:
            DataError: its image or a mask cannot be read.
        """
        return self.transform.apply(self.read(index), seed)

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
            runs = [
                encode_mask(
                    f"{data.source}: annotation {data.numbers[i]} of {data.files[index]}",
                    data.segmentations[i],
                    height,
                    width,
                )
                for i in range(mine.start, mine.stop)
            ]
            masks = InstanceMasks.of(runs, (height, width))
        boxes, labels, name = data.boxes[mine].copy(), self.labels[mine].copy(), str(data.files[index])
        return Sample(image, int(data.ids[index]), (height, width), boxes, labels, masks, name)


class DetectionData(DataModule):
    """Base of the detection sets: a subclass says what its splits list, in `read`, and where its images are.

    Classes come from the training split, ordered by category id as the official code does.

    Args:
        labels: `contiguous` (detectron2, detrex) or `coco_ids` (class channel = category id, as the DETR authors'
            models).
        augment: training augmentation; the published DETR recipe if None.
        eval_short_side, eval_long_side: evaluation resize, pixels.
        resize: arithmetic of the evaluation size, see `transforms.output_size`.
        keep_empty: train on images without objects, too (the DETR authors do; detectron2 and detrex drop them).
        masks: load instance masks as well.
        exif: orientation of photographs, see `images.read_listed_image`.
        leave_out: category ids that are not read, nor their objects: classes without objects, the root of an export.
        base: see `DataModule`.

    Attributes:
        problems: split -> what was skipped or mended in it; filled when the split is first read.
    """

    def __init__(
        self,
        labels: LabelSpaceName = "contiguous",
        augment: DetrAugment | ScaleJitter | None = None,
        eval_short_side: int = 800,
        eval_long_side: int | None = 1333,
        resize: SizeRule = "detr",
        keep_empty: bool = False,
        masks: bool = False,
        exif: Exif = "auto",
        leave_out: tuple[int, ...] = (),
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.leave_out = leave_out
        self.label_space = labels
        self.augment: DetrAugment | ScaleJitter = DetrAugment() if augment is None else augment
        self.eval_short_side, self.eval_long_side, self.resize = eval_short_side, eval_long_side, resize
        self.keep_empty, self.masks, self.exif = keep_empty, masks, exif
        self.problems: dict[SplitName, Problems] = {}
        self._loaded: dict[SplitName, tuple[Annotations, dict[int, str]]] = {}
        self._labels: LabelSpace | None = None

    # ---------------------------------------------------------------- what a set says

    @abstractmethod
    def annotation_file(self, split: SplitName) -> Path:
        """The file (or folder) that a split's annotations are read from. Of splits that share one, and the image
        folder, only one is read."""

    @abstractmethod
    def read(self, split: SplitName) -> Mapping[str, Any]:
        """What a split lists, as a dictionary in COCO's format; `data.coco.reader` checks every entry afterwards.

        Of other formats, `as_content` makes one. A test split may lack annotations.

        Raises:
            DataError: the annotations cannot be read.
        """

    def folder(self, split: SplitName) -> Path:
        """A split's image folder; the root unless a set says otherwise."""
        return self.root

    # ---------------------------------------------------------------- what follows from it

    @property
    def labels(self) -> LabelSpace:
        """The classes of the training split (read the first time), ordered by category id."""
        if self._labels is None:
            _, names = self._load("train")
            ids = tuple(sorted(names))
            self._labels = LabelSpace(tuple(names[i] for i in ids), ids, self.label_space)
        return self._labels

    def find(self, split: SplitName) -> None:
        """Reads a split's annotations, and looks whether all its images are there, and in training whether there is
        something to train on."""
        self.dataset(split)
        if split == "train":
            found, problems = self._load(split)[0], self.problems[split]
            refuse_untrainable(self.annotation_file(split), problems, found)
            if self.rank == 0 and (line := share_without_masks(problems, found)):
                log.warning("%s: %s", self.annotation_file(split), line)

    def dataset(self, split: SplitName) -> BoxedImages:
        """The samples of a split: augmented for `train`, resized for evaluation otherwise."""
        annotations, _ = self._load(split)
        remedy = "complete the folder or correct the paths"
        refuse_missing(annotations.files, self.folder(split), self.annotation_file(split), remedy)
        transform = self.augment if split == "train" else self.eval_transform
        return BoxedImages(annotations, self.folder(split), self.agreed_labels(split), transform, self.exif)

    @property
    def eval_transform(self) -> EvalResize:
        """The evaluation resize, with the filter that the model's weights want."""
        interpolation = cast(Any, self.preprocessing.interpolation)  # refused there if it is none
        return EvalResize(self.eval_short_side, self.eval_long_side, self.resize, interpolation)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Upper bounds of the short and long side of the transformed images, in pixels."""
        return (self.augment if split == "train" else self.eval_transform).largest

    @property
    def collate(self) -> Callable[[Sequence[Sample]], Batch]:
        """See `collate.collate`; sides are multiples of what the model's weights want."""
        return functools.partial(collate, size_divisor=self.preprocessing.size_divisor)

    def count_targets(self, target: Mapping[str, Any]) -> int:
        """The objects of an image."""
        return len(target["labels"])

    def relabelling(self, channels: tuple[int, ...]) -> Callable[[Sample], Sample]:
        """See `DataModule`."""
        return functools.partial(relabelled, channels=channels)

    def joined_truth(
        self, split: SplitName, parts: Sequence[tuple[DataModule, tuple[int, ...]]], labels: LabelSpace
    ) -> tuple[dict[str, Any], list[int]]:
        """See `DataModule`; the ids of each set's images (0 or more) follow those of the sets before it."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        starts: list[int] = []
        for part, channels in parts:
            truth = part.ground_truth(split)
            starts.append(max((image["id"] for image in images), default=-1) + 1)
            category = {old: labels.ids[new] for old, new in zip(part.labels.ids, channels, strict=True) if new >= 0}
            images += [{**image, "id": image["id"] + starts[-1]} for image in truth["images"]]
            annotations += [
                {
                    **object_,
                    "image_id": object_["image_id"] + starts[-1],
                    "category_id": category[object_["category_id"]],
                }
                for object_ in truth["annotations"]
                if object_["category_id"] in category
            ]
        numbered = [{**object_, "id": number} for number, object_ in enumerate(annotations, 1)]
        categories = [{"id": i, "name": name} for i, name in zip(labels.ids, labels.names, strict=True)]
        return {"images": images, "annotations": numbered, "categories": categories}, starts

    def listing(self, split: SplitName) -> Listing:
        """All that a split lists, read anew and checked.

        Raises:
            DataError: something is missing, or refused.
        """
        self.require(split)
        return self.chosen(checked(self.read(split), self.annotation_file(split), annotations=split != "test"))

    def chosen(self, listing: Listing) -> Listing:
        """A listing without the categories that are left out, and their annotations.

        Raises:
            ConfigError: one is not there, or no category would be left.
        """
        for category in self.leave_out:
            if category not in listing.categories:
                known = ", ".join(f"{i} ({name})" for i, name in sorted(listing.categories.items())[:6])
                raise ConfigError("data.leave_out", f"no category {category} in {listing.path}", f"there are: {known}")
        categories = {i: name for i, name in listing.categories.items() if i not in self.leave_out}
        if self.leave_out and not categories:
            raise ConfigError("data.leave_out", f"leaves no category of {listing.path}")
        kept = {
            image: [entry for entry in entries if entry["category_id"] in categories]
            for image, entries in listing.annotations.items()
        }
        return replace(listing, categories=categories, annotations=kept) if self.leave_out else listing

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """The COCO dictionary that the COCO tools evaluate against: all images, crowds included, read anew."""
        return self.listing(split).ground_truth()

    def image_path(self, split: SplitName, image_id: int) -> Path:
        """The file of an image.

        Raises:
            DataError: the split has no such image (in training, images without objects may have been dropped).
        """
        data, _ = self._load(split)
        position = int(np.searchsorted(data.ids, image_id))
        if position == len(data) or data.ids[position] != image_id:
            raise DataError(str(self.annotation_file(split)), f"no image with id {image_id} in split {split!r}")
        return self.folder(split) / data.files[position]

    def remedy_for_targets(self, missing: Sequence[str]) -> str:
        """See `DataModule`."""
        return "set data.masks=true" if list(missing) == ["masks"] else super().remedy_for_targets(missing)

    def place(self, split: SplitName) -> str:
        """The annotation file: splits may share a folder of images."""
        return str(self.annotation_file(split))

    def check(self, output: str | Path) -> Findings:
        """See `detection.check.check_boxes`."""
        from vistrain.data.detection.check import check_boxes  # it draws, which training need not load

        return check_boxes(self, output)

    def repair(self, file: Path) -> list[str]:
        """See `DataModule` and `detection.repair.repaired`."""
        lines = []
        made: dict[SplitName, tuple[dict[str, Any], dict[str, int]]] = {}
        for split in cast("tuple[SplitName, ...]", ("train", "val", "test")):
            if split == "test" and self.tests_on_val():
                continue
            self.require(split)
            copy, done = repaired(self.read(split), functools.partial(_size_in, self.folder(split)))
            if done:
                made[split] = copy, done
        for split, (copy, done) in made.items():
            path = file if len(made) == 1 else file.with_stem(f"{file.stem}-{split}")
            with whole_file(path) as partial:
                partial.write_text(json.dumps(copy), encoding="utf-8")
            what = ", ".join(f"{count} {kind}" for kind, count in done.items())
            lines.append(f"repaired copy of {split}: {path} ({what}); set data.{split}.annotations to it")
        return lines or ["nothing to repair: what is refused is for you to decide"]

    def require(self, split: SplitName) -> None:
        """Refuses a split whose annotations or image folder are missing.

        Raises:
            DataError: naming what is missing and how to get it.
        """
        if not self.annotation_file(split).exists():
            raise DataError(str(self.annotation_file(split)), "no such annotation file", self.remedy(split))
        if not is_folder(self.folder(split)):
            raise DataError(str(self.folder(split)), "no such image folder", self.remedy(split))

    def agreed_labels(self, split: SplitName) -> LabelSpace:
        """The label space, once it is sure that a split numbers and names the classes alike.

        Raises:
            DataError: it does not.
        """
        known = dict(zip(self.labels.ids, self.labels.names, strict=True))
        for fault in disagreements(known, self.annotation_file(split), self._load(split)[1]):
            raise fault
        return self.labels

    def tests_on_val(self) -> bool:
        """Whether the test split is the validation split."""
        places = [(self.annotation_file(split), self.folder(split)) for split in cast(Any, ("test", "val"))]
        return places[0] == places[1]

    def _load(self, split: SplitName) -> tuple[Annotations, dict[int, str]]:
        """The targets of a split, and its categories."""
        if split not in self._loaded:
            if split == "test" and self.tests_on_val():
                return self._load("val")
            listing = self.listing(split)
            annotations = targets(listing, keep_empty=self.keep_empty or split != "train", masks=self.masks)
            self.problems[split] = listing.problems
            if listing.problems and self.rank == 0:
                log.warning("%s: %s", self.annotation_file(split), listing.problems)
            self._loaded[split] = annotations, listing.categories
        return self._loaded[split]


def _size_in(folder: Path, name: str) -> tuple[int, int]:
    return image_size(folder / name)
