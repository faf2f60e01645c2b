"""Data for networks that classify masks: images whose pixels belong to segments, things one by one, stuff by class."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from pycocotools import mask as mask_tools

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import image_size
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.storage import is_folder, refuse_missing
from vistrain.data.coco.reader import read_coco
from vistrain.data.segmentation.mask_pairs import MaskPair
from vistrain.data.segmentation.module import sized_image
from vistrain.data.segmentation.panoptic_files import Category, Segments, read_numbers, read_panoptic, segment_map
from vistrain.data.segmentation.segment_transforms import SegmentAugment
from vistrain.data.segmentation.transforms import EvalScale, refuse_large_sides
from vistrain.errors import ConfigError, DataError, refuse_below
from vistrain.layers.packed_masks import PackedMasks
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)

LOOKED_AT = 32  # PNGs that a run looks at before it begins
IGNORED = 255  # of label maps; -1 where there are as many classes
Targets = Literal["panoptic", "semantic", "instances"]


@dataclass(frozen=True)
class PanopticSplit:
    """Where a split's files are, relative to the root.

    Args:
        images, masks: folders of the images and of the panoptic PNGs.
        annotations: the JSON file.
        instances: a JSON file in COCO's format, whose instances mask AP is measured with; null takes the things of the
            PNGs.
    """

    images: str
    masks: str
    annotations: str
    instances: str | None = None


@dataclass
class SegmentedImage:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[h, w, 3]`, RGB.
        segments: `[h, w]` while training, in evaluation `[H, W]` of the original image: i + 1 is the i-th segment, 0
            void.
        labels: `[N]` int64, class channels of the segments.
        crowd: `[N]` bool.
        id: as the annotations have it.
        original_size: H, W in pixels before any transform.
        training: whether masks are wanted as targets.
        name: of the image's file, as it is listed.
    """

    image: np.ndarray
    segments: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    id: int | str
    original_size: tuple[int, int]
    training: bool
    name: str = ""


class SegmentedImages(SampleSet):
    """Images with their segments, read and transformed on demand.

    Args:
        listed: what the annotations say.
        pairs: the files of each image.
        channels: category id -> class channel.
        transform: augmentation, or the evaluation resize.
    """

    def __init__(
        self,
        listed: Segments,
        pairs: Sequence[MaskPair],
        channels: Mapping[int, int],
        transform: SegmentAugment | EvalScale,
    ) -> None:
        self.listed, self.pairs, self.channels, self.transform = listed, pairs, channels, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, seed: int = 0) -> SegmentedImage:
        """The transformed sample.

        Raises:
            DataError: a file cannot be read, their sizes differ, or no listed segment is in the PNG.
        """
        numbers, classes, crowd = self.listed.of(index)
        found, strangers = segment_map(read_numbers(self.pairs[index].mask), numbers)
        path = self.pairs[index].mask
        if strangers and not found.any():
            problem = "none of the segments that the JSON lists is in this PNG, whose pixels have other numbers"
            if not len(numbers):
                problem = "the JSON lists no segments of this image (its segments_info is empty), this PNG has some"
            raise DataError(str(path), problem, "see `vistrain check`; are these the PNGs of this JSON?")
        self.listed.refuse_other_size(index, path, found.shape)
        image = sized_image(self.pairs[index], found.shape)
        size = found.shape[0], found.shape[1]
        labels = np.array([self.channels[c] for c in classes.tolist()], np.int64)
        training = isinstance(self.transform, SegmentAugment)
        if isinstance(self.transform, SegmentAugment):
            image, choice = self.transform(image, seed)
            found = choice.of(found)
        else:
            image = self.transform(image)
        key, name = self.listed.ids[index], self.listed.images[index]
        return SegmentedImage(image, found, labels, crowd, key, size, training, name)

    def where(self, index: int) -> str:
        """The image's file."""
        return str(self.pairs[index].image)


@dataclass(frozen=True)
class SegmentCollate:
    """Makes batches of samples; evaluation's hold the segments, training's the masks of targets.

    Args:
        size_divisor: height and width of the batch are rounded up to multiples of it.
        targets: what a mask is: a segment (`panoptic`), all of one class (`semantic`), or a thing (`instances`).
        things: channels of classes that are counted one by one.
        keep_hidden: segments that lie outside a crop stay targets, with an empty mask.
        ignored: value of unlabelled pixels in label maps.
    """

    size_divisor: int
    targets: Targets
    things: frozenset[int]
    keep_hidden: bool
    ignored: int

    def __call__(self, samples: Sequence[SegmentedImage]) -> Batch:
        """Pads images bottom and right with zeros to a common size and stacks them; see `batch_of`.

        Returns:
            With `target`, a list of dicts. Training: `labels` int64 `[N]` and `masks`, `PackedMasks` of the image.
            Evaluation, in the original size: `segment_map`, `segment_labels` and `segment_crowd`, see
            `metrics.PanopticQuality`, and `label_map`, class channels.
        """
        targets = [self._masks(s) if s.training else self._truth(s) for s in samples]
        sizes, ids, names = zip(*((s.original_size, s.id, s.name) for s in samples), strict=True)
        return batch_of([s.image for s in samples], sizes, ids, targets, self.size_divisor, names)

    def _masks(self, sample: SegmentedImage) -> dict[str, Any]:
        groups: dict[tuple[int, int], list[int]] = {}
        for position, (label, crowd) in enumerate(zip(sample.labels.tolist(), sample.crowd.tolist(), strict=True), 1):
            one_by_one = self.targets != "semantic" and (self.targets == "panoptic" or label in self.things)
            if not one_by_one and self.targets == "instances":
                continue
            if self.targets == "semantic" or not crowd:
                groups.setdefault((label, position if one_by_one else 0), []).append(position)
        labels, parts = [], []
        for (label, _), members in groups.items():
            part = region(sample.segments, members)
            if part[2].size or self.keep_hidden:
                labels.append(label)
                parts.append(part)
        size = sample.segments.shape[0], sample.segments.shape[1]
        return {"labels": torch.tensor(labels, dtype=torch.int64), "masks": PackedMasks.of(parts, size)}

    def _truth(self, sample: SegmentedImage) -> dict[str, Any]:
        kind = np.uint8 if self.ignored == IGNORED else np.int16
        table = np.array([self.ignored, *sample.labels.tolist()]).astype(kind)
        return {
            "segment_map": torch.from_numpy(sample.segments),
            "segment_labels": torch.from_numpy(sample.labels),
            "segment_crowd": torch.from_numpy(sample.crowd),
            "label_map": torch.from_numpy(table[sample.segments]),
        }


def region(segments: np.ndarray, members: Sequence[int]) -> tuple[int, int, np.ndarray]:
    """Top, left and bool `[h, w]` of the pixels that belong to some segments, in the box around them; of none an empty
    array."""
    mask = np.isin(segments, members) if len(members) > 1 else segments == members[0]
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    return y, x, np.ascontiguousarray(mask[y : y + h, x : x + w])


class JitteredData(DataModule):
    """Base of the sets for networks that classify masks: how large images are made, and where they are.

    Args:
        augment: training augmentation; Mask2Former's on COCO if None.
        eval_scale: bounds of the long and the short side that evaluation makes images as large as, antialiased; None
            leaves them as they are. Predictions are measured in the original size, either way.
        base: see `DataModule`.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        augment: SegmentAugment | None = None,
        eval_scale: tuple[int, int] | None = (1333, 800),
        batch_size: int = 16,
        **base: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **base)
        refuse_below(1, eval_scale=min(eval_scale or (1,)))
        refuse_large_sides("data.eval_scale", eval_scale or (1, 1))
        self.augment = SegmentAugment() if augment is None else augment
        self.eval_scale = eval_scale

    @abstractmethod
    def image_files(self, split: SplitName) -> list[tuple[Any, Path]]:
        """Id and file of each image of a split."""

    @property
    def eval_transform(self) -> EvalScale:
        """The evaluation resize."""
        return EvalScale(self.eval_scale, antialias=True)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Upper bounds of the short and the long side of a split's images in a batch, in pixels."""
        bounds = self.augment.largest if split == "train" else self.eval_scale
        if bounds is None:
            sizes = [image_size(path) for _, path in self.image_files(split)]
            bounds = max(map(min, sizes)), max(map(max, sizes))
        return min(bounds), max(bounds)

    def image_path(self, split: SplitName, image_id: Any) -> Path:
        """The file of an image.

        Raises:
            DataError: the split has no such image.
        """
        for key, path in self.image_files(split):
            if str(key) == str(image_id):
                return path
        raise DataError(str(self.root), f"no image {image_id!r} in split {split!r}")

    def count_targets(self, target: Mapping[str, Any]) -> int:
        """The masks of an image."""
        return len(target["labels"])


class PanopticFolders(JitteredData):
    """Images with segments in COCO's panoptic layout; of annotations, see `panoptic_files`.

    Args:
        train, val: where the files are.
        test: what `vistrain test` evaluates; `val` if None.
        targets: what a network is trained to find: `panoptic` segments, the region of each class (`semantic`), or the
            things alone (`instances`).
        keep_hidden: segments that lie outside a crop stay targets, with an empty mask, as published.
        base: see `JitteredData`.

    Raises:
        ConfigError: the targets are of no known kind.
    """

    def __init__(
        self,
        train: PanopticSplit,
        val: PanopticSplit,
        test: PanopticSplit | None = None,
        targets: Targets = "panoptic",
        keep_hidden: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if targets not in ("panoptic", "semantic", "instances"):
            raise ConfigError("data.targets", f"{targets!r}", "one of panoptic, semantic, instances")
        self.splits: dict[SplitName, PanopticSplit] = {"train": train, "val": val, "test": test or val}
        self.targets, self.keep_hidden = targets, keep_hidden
        self._read: dict[PanopticSplit, Segments] = {}
        self._labels: LabelSpace | None = None
        self._told: set[SplitName] = set()

    # ---------------------------------------------------------------- what is listed

    def known(self) -> tuple[Category, ...]:
        """The classes where they are known without a file; else none, and the training annotations say them."""
        return ()

    @property
    def labels(self) -> LabelSpace:
        """The classes; may read the training annotations the first time."""
        if self._labels is None:
            self._labels = labels_of(self.known() or self.listed("train").categories)
        return self._labels

    def listed(self, split: SplitName) -> Segments:
        """What a split's annotations list, read the first time.

        Raises:
            DataError: they cannot be read, or list other classes than training.
        """
        where = self.splits[split]
        if where not in self._read:
            path = self.root / where.annotations
            if not is_folder(self.root / where.images):
                raise DataError(str(self.root / where.images), "no such folder of images", self.remedy(split))
            found = read_panoptic(path)
            for finding, (examples, count) in found.skipped.items():
                log.warning("%s: %d x %s, such as %s", path, count, finding, examples[0])
            if split != "train" or self.known():
                wanted = self.known() or self.listed("train").categories
                refuse_other_categories(found.categories, wanted, path, names=not self.known())
            self._read[where] = found
        return self._read[where]

    def image_file(self, split: SplitName, key: int | str, name: str) -> Path:
        """The file of an image, by its id and the `file_name` that is listed."""
        return self.root / self.splits[split].images / name

    def pairs(self, split: SplitName) -> list[MaskPair]:
        """The files of a split's images, in the order of its annotations."""
        listed, masks = self.listed(split), self.root / self.splits[split].masks
        rows = zip(listed.ids, listed.images, listed.masks, strict=True)
        return [MaskPair(str(key), self.image_file(split, key, name), masks / mask) for key, name, mask in rows]

    def find(self, split: SplitName) -> None:
        """Look whether all files of a split are there.

        Raises:
            DataError: naming some that are not.
        """
        listed, where = self.listed(split), self.splits[split]
        listing = self.root / where.annotations
        images = [str(pair.image.relative_to(self.root / where.images)) for pair in self.pairs(split)]
        refuse_missing(images, self.root / where.images, listing, self.remedy(split))
        refuse_missing(listed.masks, self.root / where.masks, listing, self.remedy(split))
        if split == "train":
            self.refuse_untrainable(listed)
        if split not in self._told and self.rank == 0:
            self._told.add(split)
            self._say_disagreements(split)

    def refuse_untrainable(self, listed: Segments) -> None:
        """Refuse training annotations without a segment that is a target.

        Raises:
            DataError: there is none.
        """
        things = [c.id for c in listed.categories if c.thing]
        wanted = np.isin(listed.classes, things) if self.targets == "instances" else np.ones(len(listed.classes), bool)
        if not (wanted if self.targets == "semantic" else wanted & ~listed.crowds).any():
            what = "no thing" if self.targets == "instances" else "no segment"
            problem = f"lists {what} to train on (data.targets={self.targets})"
            raise DataError(
                str(self.root / self.splits["train"].annotations), problem, "annotate some, or train other targets"
            )

    def _say_disagreements(self, split: SplitName) -> None:
        """Look at some PNGs, spread over all, and say where they and the JSON speak of other segments."""
        pairs, listed = self.pairs(split), self.listed(split)
        looked_at = range(0, len(pairs), max(len(pairs) // LOOKED_AT, 1))
        hidden, strangers, files = 0, 0, []
        for index in looked_at:
            numbers = listed.of(index)[0]
            with suppress(DataError):  # what cannot be read is said when it is needed
                found, unknown = segment_map(read_numbers(pairs[index].mask), numbers)
                missing = len(numbers) - int((np.bincount(found.reshape(-1), minlength=len(numbers) + 1)[1:] > 0).sum())
                hidden, strangers = hidden + missing, strangers + unknown
                files += [str(pairs[index].mask)] if missing or unknown else []
        if files:
            log.warning(
                "%s: in %d of %d PNGs that were looked at, %d segments of the JSON are missing (no targets), and %d "
                "pixels have a number that the JSON lacks (void), such as in %s; `vistrain check` names all",
                split, len(files), len(looked_at), hidden, strangers, files[0],
            )  # fmt: skip

    # ---------------------------------------------------------------- what a data module is

    def dataset(self, split: SplitName) -> SegmentedImages:
        """The samples of a split: augmented for `train`, resized for evaluation otherwise."""
        transform = self.augment if split == "train" else self.eval_transform
        return SegmentedImages(self.listed(split), self.pairs(split), self.labels.channel_of, transform)

    def image_files(self, split: SplitName) -> list[tuple[Any, Path]]:
        """See `JitteredData`."""
        return [(pair.name, pair.image) for pair in self.pairs(split)]

    def ground_truth(self, split: SplitName) -> dict[str, Any]:
        """Things as instances in COCO's terms, for its mask AP: those of the split's `instances`, else those of the
        PNGs, which are all read; with both, crowds are marked.

        Raises:
            DataError: a file cannot be read.
        """
        where = self.splits[split]
        if where.instances:
            return read_coco(self.root / where.instances, files=False).ground_truth()
        listed = self.listed(split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        things = {c.id for c in listed.categories if c.thing}
        for index, pair in enumerate(self.pairs(split)):
            numbers, classes, crowd = listed.of(index)
            found, _ = segment_map(read_numbers(pair.mask), numbers)
            height, width = found.shape
            size = {"height": height, "width": width}
            images.append({"id": listed.ids[index], "file_name": listed.images[index], **size})
            for i, (category, is_crowd) in enumerate(zip(classes.tolist(), crowd.tolist(), strict=True)):
                mask = (found == i + 1).view(np.uint8)
                if category in things and mask.any():
                    entry = {"id": len(annotations) + 1, "image_id": listed.ids[index], "category_id": category}
                    entry |= {"iscrowd": int(is_crowd), "area": int(mask.sum()), "bbox": list(cv2.boundingRect(mask))}
                    annotations.append({**entry, "segmentation": mask_tools.encode(np.asfortranarray(mask))})
        categories = [{"id": c.id, "name": c.name} for c in listed.categories if c.thing]
        return {"images": images, "annotations": annotations, "categories": categories}

    @property
    def collate(self) -> Callable[[Sequence[SegmentedImage]], Batch]:
        """See `SegmentCollate`."""
        labels = self.labels
        things = frozenset(labels.channel_of[labels.ids[i]] for i in labels.things or ())
        ignored = IGNORED if labels.ignore_index is None else labels.ignore_index
        return SegmentCollate(self.preprocessing.size_divisor, self.targets, things, self.keep_hidden, ignored)

    def check(self, output: str | Path) -> Findings:
        """See `segmentation.panoptic_check.check_panoptic`."""
        from vistrain.data.segmentation.panoptic_check import check_panoptic  # it draws, which training need not load

        return check_panoptic(self, output)


def labels_of(classes: Sequence[Category]) -> LabelSpace:
    """The label space of classes, in their order."""
    palette = tuple(c.color for c in classes if c.color is not None)
    return LabelSpace(
        tuple(c.name for c in classes),
        tuple(c.id for c in classes),
        ignore_index=IGNORED if len(classes) < IGNORED else -1,
        things=tuple(i for i, c in enumerate(classes) if c.thing),
        palette=palette if len(palette) == len(classes) else (),
    )


def refuse_other_categories(
    found: Sequence[Category], wanted: Sequence[Category], path: Path, names: bool = True
) -> None:
    """Refuses annotations whose classes are not those of training.

    Args:
        found, wanted: classes.
        path: for messages.
        names: whether names must be the same, too; of well-known sets there are several spellings.

    Raises:
        DataError: naming the first that differs.
    """
    meant = {category.id: category for category in wanted}
    for category in found:
        other = meant.get(category.id)
        if other is None:
            problem = f"category {category.id} ({category.name!r}) is unknown"
            raise DataError(str(path), problem, "training must list it, too")
        if other.thing != category.thing or (names and other.name != category.name):
            here, there = (f"{c.name!r}, {'a thing' if c.thing else 'stuff'}" for c in (category, other))
            problem = f"category {category.id} is {here}; the classes say {there}"
            raise DataError(str(path), problem, "all splits must list the same categories")
