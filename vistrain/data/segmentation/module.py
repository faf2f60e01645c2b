"""Data for semantic segmentation: what all sets of images with class maps share."""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vistrain.data.base.bands import Bands, MatchedBands
from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import image_size, read_image
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.samplers import ResumableSampler
from vistrain.data.segmentation.label_files import LabelRule
from vistrain.data.segmentation.mask_advice import half_read, nothing_told, one_class
from vistrain.data.segmentation.mask_pairs import MaskPair, Pairing
from vistrain.data.segmentation.rare_classes import RareClasses, class_pixels
from vistrain.data.segmentation.transforms import EvalBands, EvalScale, MaskAugment, refuse_large_sides
from vistrain.errors import DataError, refuse_below
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)


@dataclass
class MaskedImage:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[h, w, 3]`, RGB; of bands float32 `[h, w, C]`.
        label_map: `[h, w]` class channels while training; in evaluation `[H, W]`, of the original image.
        id: its name.
        original_size: H, W in pixels before any transform.
        instance_map: in evaluation, where the set has instances: int32 `[H, W]`, see `SegmentationData.instances`.
        annotations: in evaluation, where several people have drawn: their class channels `[A, H, W]`, the first one's
            being the label map.
    """

    image: np.ndarray
    label_map: np.ndarray
    id: str
    original_size: tuple[int, int]
    instance_map: np.ndarray | None = None
    annotations: np.ndarray | None = None


class MaskedImages(SampleSet):
    """Images with their class maps, read and transformed on demand.

    Args:
        pairs: the files.
        rule: from stored values to channels.
        transform: augmentation, or the evaluation resize.
        instances: see `SegmentationData.instances`; looked at in evaluation.
        rare: how often each image is drawn for each class `[N, K]`, and the pixels of the class that a crop should
            have; None: crops are drawn as they come.
        bands: of images of other channels than red, green and blue, for the network; None: of photographs.
    """

    def __init__(
        self,
        pairs: Sequence[MaskPair],
        rule: LabelRule,
        transform: MaskAugment | EvalScale,
        instances: Callable[[MaskPair], np.ndarray] | None = None,
        rare: tuple[np.ndarray, int] | None = None,
        bands: MatchedBands | None = None,
    ) -> None:
        self.pairs, self.rule, self.transform, self.instances, self.rare = pairs, rule, transform, instances, rare
        self.bands = bands

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, seed: int = 0) -> MaskedImage:
        """The transformed sample.

        Raises:
            DataError: see `read_pair`.
        """
        pair = self.pairs[index]
        image, label_map = read_pair(pair, self.rule, self.bands)
        size = image.shape[0], image.shape[1]
        if isinstance(self.transform, MaskAugment):
            wanted = self._wanted(index, seed)
            image, label_map = self.transform(image, label_map, self.rule.ignored, seed, wanted)
            return MaskedImage(image if self.bands is None else self.bands(image), label_map, pair.name, size)
        instances = None if self.instances is None else self.instances(pair)
        return MaskedImage(self.transform(image), label_map, pair.name, size, instances)

    def _wanted(self, index: int, seed: int) -> tuple[int, int] | None:
        """The class that the image was drawn for, and how many pixels of it are wanted."""
        if self.rare is None or not (shares := self.rare[0][index]).any():
            return None
        draw = np.random.default_rng((seed, 1))  # apart from the augmentation's
        return int(draw.choice(len(shares), p=shares / shares.sum())), self.rare[1]

    def where(self, index: int) -> str:
        """The image's file."""
        return str(self.pairs[index].image)


def read_pair(pair: MaskPair, rule: LabelRule, bands: Bands | None = None) -> tuple[np.ndarray, np.ndarray]:
    """An image and its class channels.

    A photograph is turned as its EXIF block says where only that gives it the size of its mask: masks are drawn on what
    people see.

    Returns:
        uint8 `[H, W, 3]`, or what `Bands.read` gives; and `[H, W]` of the rule's type.

    Raises:
        DataError: a file cannot be read, the mask has another size, or a value that is no class.
    """
    label_map = rule.read(pair.mask)
    return sized_image(pair, label_map.shape, bands), label_map


def sized_image(pair: MaskPair, size: tuple[int, ...], bands: Bands | None = None) -> np.ndarray:
    """The image of a pair whose mask has this height and width.

    Raises:
        DataError: it has another size, whichever way it is turned, or cannot be read.
    """
    image = read_image(pair.image, apply_exif=False) if bands is None else bands.read(pair.image)
    if bands is None and image.shape[:2] != size and image.shape[1::-1] == size:
        image = read_image(pair.image, apply_exif=True)
    if image.shape[:2] != size:
        problem = f"the mask is {size[1]}x{size[0]} pixels, its image {image.shape[1]}x{image.shape[0]}"
        remedy = "resize the mask without interpolation, or give the image its original size"
        raise DataError(str(pair.mask), problem, remedy)
    return image


class SegmentationData(DataModule):
    """Base of the sets of images with class maps: a subclass says which files, in `pairing`, and what their values are,
    in `rule`.

    Attributes:
        bands: which channels images have where they are no photographs.

    Args:
        batch_size: see `DataModule`.
        augment: training augmentation; ADE20K's in mmsegmentation if None.
        eval_scale: bounds of the long and the short side that evaluation makes images as large as; None leaves them as
            they are. Predictions are measured in the original size, either way.
        eval_multiple: evaluation rounds sides up to multiples of it, see `EvalScale`.
        unpaired: `refuse` images without a mask, or `skip` them.
        rare_classes: draw training images so that rare classes are seen often; None: each image once an epoch.
        regions: targets hold the pixels of each class as a mask, too, as networks that classify masks want them.
        base: see `DataModule`.

    Raises:
        ConfigError: a number is not positive.
    """

    bands: Bands | None = None

    def __init__(
        self,
        batch_size: int = 16,
        augment: MaskAugment | None = None,
        eval_scale: tuple[int, int] | None = None,
        eval_multiple: int = 1,
        unpaired: Literal["refuse", "skip"] = "refuse",
        regions: bool = False,
        rare_classes: RareClasses | None = None,
        **base: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **base)
        refuse_below(1, eval_multiple=eval_multiple, eval_scale=min(eval_scale or (1,)))
        refuse_large_sides("data.eval_scale", eval_scale or (1, 1))
        self.augment = MaskAugment() if augment is None else augment
        self.eval_scale, self.eval_multiple, self.unpaired = eval_scale, eval_multiple, unpaired
        self.regions, self.rare_classes = regions, rare_classes
        self._shares: np.ndarray | None = None
        self._told: set[SplitName] = set()

    @abstractmethod
    def pairing(self, split: SplitName) -> Pairing:
        """The files of a split; looked for the first time.

        Raises:
            DataError: something is missing.
        """

    def images_beside(self, split: SplitName) -> Sequence[Path]:
        """Further images that a split is trained with, which have no masks; none, if a set does not say so.

        Raises:
            DataError: they are missing.
        """
        return ()

    @property
    @abstractmethod
    def rule(self) -> LabelRule:
        """The classes, and what they are stored as; may read a class file the first time."""

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return self.rule.labels

    def pairs(self, split: SplitName) -> Sequence[MaskPair]:
        """The images of a split that have masks; of files without a partner, their number is told.

        Raises:
            DataError: see `pairing`; or images have no mask, and may not be skipped.
        """
        found = self.pairing(split)
        if self.unpaired == "refuse":
            found.refuse_bare()
        if split not in self._told and self.rank == 0:
            self._told.add(split)
            for files, what in ((found.bare, "images without a mask"), (found.lonely, "masks without an image")):
                if files:
                    log.warning("%s: %d %s left out, such as %s", split, len(files), what, files[0])
        return found.pairs

    def drawn(self, split: SplitName, pair: MaskPair) -> tuple[np.ndarray, np.ndarray]:
        """Image and class map of a pair as `check` draws them, see `read_pair`; of bands three are shown."""
        image, label_map = read_pair(pair, self.rule, self.bands)
        return image if self.bands is None else self.bands.picture(image), label_map

    def find(self, split: SplitName) -> None:
        """Finds the pairs of a split; masks of which one half is read are refused in training, elsewhere a warning, and
        so are, in training, masks of one class, in any split those of none.

        Raises:
            DataError: see `pairs`, `mask_advice.half_read` and `mask_advice.one_class`.
            ConfigError: nothing is known of the values of bands.
        """
        masks = [pair.mask for pair in self.pairs(split)]
        problem = half_read(masks, self.rule)
        if problem is None and split == "train":
            problem = one_class(masks, self.rule)
        if split != "train" and (empty := nothing_told(masks, self.rule, split)) is not None:
            raise empty
        if problem is not None and split == "train":
            raise problem
        if self.bands is not None:
            self.bands.refuse_unknown()
        if problem is not None and self.rank == 0:
            log.warning("%s", problem)

    def dataset(self, split: SplitName) -> MaskedImages:
        """The samples of a split: augmented for `train`, resized for evaluation otherwise."""
        if split == "train":
            rare = None
            if self.rare_classes is not None:
                least = round(self.rare_classes.least_pixels * self.rare_classes.crop_share)
                rare = self._drawn(self.rare_classes), least
            return MaskedImages(self.pairs(split), self.rule, self.augment, rare=rare, bands=self._matched)
        return MaskedImages(self.pairs(split), self.rule, self.eval_transform, self.instances, bands=self._matched)

    def training_sampler(self, length: int) -> ResumableSampler:
        """See `DataModule`; with `rare_classes` images are drawn by their classes."""
        sampler = super().training_sampler(length)
        if self.rare_classes is not None:
            sampler.weights = self._drawn(self.rare_classes).sum(1).tolist()
        return sampler

    def _drawn(self, rare: RareClasses) -> np.ndarray:
        """See `RareClasses.table`; the masks are read the first time."""
        if self._shares is None:
            self._shares = rare.table(class_pixels(self.pairs("train"), self.rule))
        return self._shares

    @property
    def instances(self) -> Callable[[MaskPair], np.ndarray] | None:
        """What reads the instances of an image, int32 `[H, W]`: (class channel + 1) * 1000 + number, below 1000 where
        there is none; None: the set has none. It is pickled for the loaders' processes."""
        return None

    @property
    def eval_transform(self) -> EvalScale:
        """The evaluation resize.

        Raises:
            ConfigError: see `Bands.matched`.
        """
        if (bands := self._matched) is not None:
            return EvalBands(self.eval_scale, self.eval_multiple, bands=bands)
        return EvalScale(self.eval_scale, self.eval_multiple)

    @property
    def _matched(self) -> MatchedBands | None:
        """The bands as the network's weights expect them."""
        return None if self.bands is None else self.bands.matched(self.preprocessing)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Upper bounds of the short and the long side of a split's images in a batch, in pixels."""
        if split == "train":
            bounds = self.augment.crop or self.augment.scale
            factor = 1.0 if self.augment.crop else self.augment.ratio[1]
        else:
            bounds, factor = self.eval_scale, 1.0
        if bounds is None:
            size_of = image_size if self.bands is None else self.bands.size
            sizes = [size_of(pair.image) for pair in self.pairs(split)]
            bounds = max(map(min, sizes)), max(map(max, sizes))
        return round(min(bounds) * factor), round(max(bounds) * factor)

    def ground_truth(self, split: SplitName) -> None:
        """Nothing beside what each batch holds: `label_map`, in the original size."""

    def image_path(self, split: SplitName, image_id: str) -> Path:
        """The file of an image.

        Raises:
            DataError: the split has no such image.
        """
        for pair in self.pairs(split):
            if pair.name == image_id:
                return pair.image
        raise DataError(str(self.root), f"no image called {image_id!r} in split {split!r}")

    @property
    def collate(self) -> Callable[[Sequence[MaskedImage]], Batch]:
        """See `collate_masks`."""
        ignored = self.rule.ignored if self.regions else None
        shown = () if self.bands is None else self.bands.places
        divisor = self.preprocessing.size_divisor
        return functools.partial(collate_masks, size_divisor=divisor, regions=ignored, shown=shown)

    def count_targets(self, target: Mapping[str, Any]) -> int:
        """The labelled pixels of an image; with `regions`, its masks."""
        if self.regions:
            return len(target["labels"])
        return int((target["label_map"] != self.rule.ignored).sum())

    def remedy_for_targets(self, missing: Sequence[str]) -> str:
        """See `DataModule`."""
        is_region = "masks" in missing and "boxes" not in missing and not self.regions
        return (
            "data.regions=true gives the pixels of each class as a mask"
            if is_region
            else super().remedy_for_targets(missing)
        )

    def check(self, output: str | Path) -> Findings:
        """See `segmentation.check.check_masks`."""
        from vistrain.data.segmentation.check import check_masks  # it draws, which training need not load

        return check_masks(self, output)


def collate_masks(
    samples: Sequence[MaskedImage], size_divisor: int = 1, regions: int | None = None, shown: Sequence[int] = ()
) -> Batch:
    """Pads images bottom and right with zeros to a common size and stacks them; class maps stay as they are.

    Args:
        samples: at least one.
        size_divisor: height and width of the batch are rounded up to multiples of it.
        regions: the ignored label, if the pixels of each other one are wanted as a mask.
        shown: which channels pictures show as red, green and blue, or which one in grey; empty: the first ones.

    Returns:
        `image` uint8 `[B, 3, H, W]` (of bands float32 `[B, C, H, W]`, and `shown`), `size` and `original_size` int64
        `[B, 2]`, `id` list of str, `target` list of dicts with `label_map`, see `MaskedImage`; and with `regions`,
        where that has the image's size, `labels` int64 `[N]` and `masks` bool `[N, h, w]`.
    """
    targets = [{"label_map": torch.from_numpy(sample.label_map)} for sample in samples]
    for target, sample in zip(targets, samples, strict=True):
        if sample.instance_map is not None:
            target["instance_map"] = torch.from_numpy(sample.instance_map)
        if sample.annotations is not None:
            target["annotations"] = torch.from_numpy(sample.annotations)
    for target, sample in zip(targets, samples, strict=True):
        if regions is not None and sample.label_map.shape == sample.image.shape[:2]:
            values = target["label_map"].unique()
            values = values[values != regions]
            target |= {"labels": values.long(), "masks": target["label_map"] == values[:, None, None]}
    sizes, ids = [sample.original_size for sample in samples], [sample.id for sample in samples]
    batch = batch_of([sample.image for sample in samples], sizes, ids, targets, size_divisor)
    return {**batch, "shown": tuple(shown)} if shown else batch
