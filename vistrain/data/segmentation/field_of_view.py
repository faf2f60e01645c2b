"""Pictures of which only a field of view counts, such as photographs of the retina: cropped to it, stretched to one
size; pixels outside carry no truth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from vistrain.data.base.check import Findings, write_report
from vistrain.data.base.images import image_size
from vistrain.data.base.module import SplitName
from vistrain.data.segmentation.annotators import Annotator, TrainedOn, combined, masks_of, refuse_rule
from vistrain.data.segmentation.label_files import SUFFIXES, LabelRule, read_label_file
from vistrain.data.segmentation.mask_folders import MaskFolders
from vistrain.data.segmentation.mask_pairs import MaskPair, MaskSplit, Pairing, named_files
from vistrain.data.segmentation.module import MaskedImage, MaskedImages, read_pair
from vistrain.data.segmentation.transforms import EvalStretch, MaskAugment
from vistrain.errors import ConfigError, DataError, refuse_below

Outside = Literal["ignored", "background"]


@dataclass(frozen=True)
class AffineAugment(MaskAugment):
    """One of a zoom, a shift to the side and a turn; then colours and flips, as W-Net was trained.

    Classes are resampled to the nearest; what comes in from beyond the picture is black, and of the first class.

    Args:
        zoom: least and greatest factor.
        shift: at most, as a share of the width.
        rotation: at most, degrees, either way.
        jitter: of brightness, contrast and saturation, as a share, either way.
        hue: of the colour circle, as a share, either way.
        others: see `MaskAugment`.

    Raises:
        ConfigError: a value is out of its range.
    """

    crop: tuple[int, int] | None = None
    scale: tuple[int, int] | None = None
    ratio: tuple[float, float] = (1.0, 1.0)
    vertical_flip: float = 0.5
    color: bool = False
    zoom: tuple[float, float] = (0.95, 1.2)
    shift: float = 0.05
    rotation: float = 45.0
    jitter: float = 0.25
    hue: float = 0.01

    def __post_init__(self) -> None:
        """Check."""
        super().__post_init__()
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ConfigError("data.augment.zoom", f"{list(self.zoom)}", "two factors, the smaller one first")
        for name, value, most in (("shift", self.shift, 1), ("jitter", self.jitter, 1), ("hue", self.hue, 0.5)):
            if not 0 <= value <= most:
                raise ConfigError(f"data.augment.{name}", f"{value} is not in 0..{most}")

    def __call__(
        self,
        image: np.ndarray,
        label_map: np.ndarray,
        ignored: int,
        seed: int,
        wanted: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `MaskAugment`."""
        draw = np.random.default_rng((seed, 1))
        height, width = label_map.shape
        matrix = self._matrix(height, width, draw)
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
        label_map = cv2.warpAffine(label_map, matrix, (width, height), flags=cv2.INTER_NEAREST)
        return super().__call__(self._coloured(image, draw), label_map, ignored, seed, wanted)

    def _matrix(self, height: int, width: int, draw: np.random.Generator) -> np.ndarray:
        """`[2, 3]`, from the picture to the new one, about the centre of its pixels."""
        factor, shift, turn = 1.0, 0.0, 0.0
        match int(draw.integers(3)):
            case 0:
                factor = draw.uniform(*self.zoom)
            case 1:
                shift = draw.uniform(-self.shift, self.shift) * width
            case _:
                turn = draw.uniform(-self.rotation, self.rotation)
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, factor)
        matrix[0, 2] += shift
        return matrix

    def _coloured(self, image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Brightness, contrast about the grey mean, saturation about each pixel's grey, and hue."""
        bright, contrast, saturation = draw.uniform(max(0.0, 1 - self.jitter), 1 + self.jitter, 3)
        values = image.astype(np.float32) * np.float32(bright)
        mean = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY).mean()
        values = mean + (values - mean) * np.float32(contrast)
        grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
        image = np.clip(grey + (values - grey) * np.float32(saturation) + 0.5, 0, 255).astype(np.uint8)
        turn = round(draw.uniform(-self.hue, self.hue) * 180)
        if turn:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + turn) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return image


@dataclass(frozen=True)
class ViewSplit(MaskSplit):
    """Where a split's pictures, masks and fields of view are; the three have one name, but for suffixes.

    Args:
        views: folder of the fields of view, relative to the root: images that are black outside. None: all counts.
        view_suffix: what their names end in before the dot.
        subset: names of the pictures to take; none takes all.
        annotators: further people that have drawn in all pictures of the split.
        others: see `MaskSplit`.
    """

    views: str | None = None
    view_suffix: str = ""
    subset: tuple[str, ...] = ()
    annotators: tuple[Annotator, ...] = ()


class ViewedImages(MaskedImages):
    """Pictures and class maps, cropped to their field of view.

    Args:
        views: the field of view's file of each picture by name, or None.
        size: to which pictures are stretched.
        outside: what the truth is there, see `FieldOfViewFolders`.
        stretch_truth: the truth is stretched, too.
        others: masks of further annotators of each picture by name; in evaluation samples have all maps.
        trained_on: see `annotators.combined`; for training.
        pairs, rule, transform: see `MaskedImages`; an augmentation acts after stretching.
    """

    def __init__(
        self,
        pairs: Sequence[MaskPair],
        rule: LabelRule,
        transform: Any,
        views: dict[str, Path] | None,
        size: tuple[int, int],
        outside: Outside,
        stretch_truth: bool,
        others: dict[str, tuple[Path, ...]] | None = None,
        trained_on: TrainedOn = "first",
    ) -> None:
        super().__init__(pairs, rule, transform)
        self.views, self.size, self.outside, self.stretch_truth = views, size, outside, stretch_truth
        self.others, self.trained_on = others or {}, trained_on

    def sample(self, index: int, seed: int = 0) -> MaskedImage:
        """The transformed sample; its original size is that of the field of view's box, or the stretched one.

        Raises:
            DataError: see `read_pair` and `cropped`.
        """
        pair = self.pairs[index]
        image, first = read_pair(pair, self.rule)
        maps = [first, *(read_other(mask, self.rule, first.shape) for mask in self.others.get(pair.name, ()))]
        augment = self.transform if isinstance(self.transform, MaskAugment) else None
        if augment is not None:
            maps = [combined(np.stack(maps), self.trained_on, self.rule.ignored, seed)]
        if self.views is not None:
            image, maps = cropped(image, maps, self.views[pair.name], self._outside)
        if augment is not None or self.stretch_truth:
            maps = [np.array(Image.fromarray(one).resize(self.size[::-1], Image.Resampling.NEAREST), self.rule.dtype)
                    for one in maps]  # fmt: skip
        image, label_map = EvalStretch(self.size, antialias=True)(image), maps[0]
        if augment is not None:
            image, label_map = augment(image, label_map, self.rule.ignored, seed)
        height, width = label_map.shape
        drawn = np.stack(maps) if augment is None and self.others else None
        return MaskedImage(np.ascontiguousarray(image), label_map, pair.name, (height, width), annotations=drawn)

    @property
    def _outside(self) -> int:
        return self.rule.ignored if self.outside == "ignored" else 0


def read_view(path: Path, size: tuple[int, int]) -> np.ndarray:
    """What is inside a field of view, bool `[H, W]`.

    Args:
        path: an image that is black outside.
        size: (H, W) of its picture.

    Raises:
        DataError: the file cannot be read, has another size, or nothing is inside.
    """
    inside = read_label_file(path, colours=True).any(2)
    if inside.shape != size:
        problem = f"is {inside.shape[1]}x{inside.shape[0]} pixels, its picture {size[1]}x{size[0]}"
        raise DataError(str(path), problem, "give each picture a field of view of its own size")
    if not inside.any():
        raise DataError(str(path), "nothing is inside this field of view", "pixels that count are not 0")
    return inside


def cropped(
    image: np.ndarray, maps: Sequence[np.ndarray], view: Path, outside: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture and its class maps in the bounding box of a field of view; outside it the truth is `outside`.

    Raises:
        DataError: the file has another size, or nothing is inside.
    """
    inside = read_view(view, (image.shape[0], image.shape[1]))
    box = tuple(slice(int(x.min()), int(x.max()) + 1) for x in np.nonzero(inside))
    return image[box], [np.where(inside, one, np.asarray(outside, one.dtype))[box] for one in maps]


def read_other(path: Path, rule: LabelRule, size: tuple[int, ...]) -> np.ndarray:
    """The class map of a further annotator.

    Raises:
        DataError: see `LabelRule.read`; or it has another size than the first one's.
    """
    found = rule.read(path)
    if found.shape != size:
        problem = f"is {found.shape[1]}x{found.shape[0]} pixels, the first annotator's {size[1]}x{size[0]}"
        raise DataError(str(path), problem, "all draw in the same picture")
    return found


class FieldOfViewFolders(MaskFolders):
    """Folders of pictures, of masks, and of fields of view, with the same names.

    Pictures are cropped to the box of their field of view and stretched to one size; predictions are measured in the
    box's own size, inside the field of view.

    Args:
        train, val, test: where the files are; see `ViewSplit`.
        size: height and width to which pictures are stretched.
        outside: what evaluation sees outside the field of view: `ignored`, or `background`: the first class.
            Training sees background, always.
        stretch_truth: measure in the stretched size.
        augment: W-Net's if None.
        trained_on: of several annotators: the `first`, the `union` or `intersection` of what they drew, the `vote` of
            most, or a `random` one each time that a picture is drawn. Evaluation has the first one's map as truth, and
            those of all for the protocol `annotators`.
        base: see `MaskFolders`.
    """

    def __init__(
        self,
        train: ViewSplit,
        val: ViewSplit,
        test: ViewSplit | None = None,
        size: tuple[int, int] = (512, 512),
        outside: Outside = "ignored",
        stretch_truth: bool = False,
        augment: AffineAugment | None = None,
        trained_on: TrainedOn = "first",
        **base: Any,
    ) -> None:
        # By colour: GIF files number black and white as they please.
        super().__init__(train=train, val=val, test=test, augment=augment or AffineAugment(), **base)
        refuse_below(1, size=min(size))
        self.size, self.outside, self.stretch_truth, self.trained_on = size, outside, stretch_truth, trained_on
        self.view_splits: dict[SplitName, ViewSplit] = {"train": train, "val": val, "test": test or val}

    def pairing(self, split: SplitName) -> Pairing:
        """See `MaskFolders`; of a subset, these names alone.

        Raises:
            DataError: see `find_pairs`; or a name of the subset has no picture.
        """
        where = self.view_splits[split]
        if where in self._found or not where.subset:
            return super().pairing(split)
        found, wanted = super().pairing(split), set(where.subset)
        bare = {path: path.stem.removesuffix(where.image_suffix) for path in found.bare}
        names = {pair.name for pair in found.pairs} | set(bare.values())
        if missing := sorted(wanted - names):
            raise DataError(str(self.root / where.images), f"has no picture {missing[0]!r}", "correct the subset")
        self._found[where] = replace(
            found,
            pairs=tuple(pair for pair in found.pairs if pair.name in wanted),
            bare=tuple(path for path, name in bare.items() if name in wanted),
            lonely=(),
        )
        return self._found[where]

    def views(self, split: SplitName) -> dict[str, Path] | None:
        """The field of view's file of each picture of a split; None where all counts.

        Raises:
            DataError: a picture has none.
        """
        where = self.view_splits[split]
        if where.views is None:
            return None
        found = named_files(self.root / where.views, SUFFIXES, where.view_suffix, "fields of view")
        for pair in self.pairs(split):
            if pair.name not in found:
                problem, remedy = f"{pair.image.name} has no field of view", "add it, or correct view_suffix"
                raise DataError(str(self.root / where.views), problem, remedy)
        return found

    def others(self, split: SplitName) -> dict[str, tuple[Path, ...]]:
        """The masks of further annotators of each picture of a split; empty where there are none.

        Raises:
            DataError: see `masks_of`.
            ConfigError: see `refuse_rule`.
        """
        annotators = self.view_splits[split].annotators
        if not annotators:
            return {}
        refuse_rule(self.trained_on, self.rule)
        return masks_of(self.root, annotators, [pair.name for pair in self.pairs(split)])

    def check(self, output: str | Path) -> Findings:
        """See `SegmentationData`; fields of view and the masks of further annotators are opened, too."""
        report = super().check(output)
        for split in self.view_splits:
            found = report.splits.get(split)
            if found is None or found.problem:
                continue
            try:
                views, others = self.views(split), self.others(split)
            except DataError as error:
                found.refused.append(str(error))
                continue
            for pair in self.pairing(split).pairs:
                try:
                    size = image_size(pair.image)
                    if views is not None:
                        read_view(views[pair.name], size)
                    for mask in others.get(pair.name, ()):
                        read_other(mask, self.rule, size)
                except DataError as error:
                    found.refuse_file(error)
        write_report(report.to_dict(), Path(output))
        return report

    def drawn(self, split: SplitName, pair: MaskPair) -> tuple[np.ndarray, np.ndarray]:
        """See `SegmentationData`; outside the field of view nothing is painted."""
        image, label_map = read_pair(pair, self.rule)
        with suppress(DataError):  # what is wrong with a field of view is said elsewhere
            view = (self.views(split) or {}).get(pair.name)
            if view is not None:
                inside = read_view(view, (image.shape[0], image.shape[1]))
                label_map = np.where(inside, label_map, np.asarray(self.rule.ignored, label_map.dtype))
        return image, label_map

    def dataset(self, split: SplitName) -> MaskedImages:
        """See `SegmentationData`."""
        training = split == "train"
        outside: Outside = "background" if training else self.outside
        transform = self.augment if training else self.eval_transform
        return ViewedImages(
            self.pairs(split), self.rule, transform, views=self.views(split), size=self.size, outside=outside,
            stretch_truth=self.stretch_truth, others=self.others(split), trained_on=self.trained_on,
        )  # fmt: skip

    @property
    def eval_transform(self) -> Any:
        """The stretching."""
        return EvalStretch(self.size, antialias=True)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """See `SegmentationData`."""
        return min(self.size), max(self.size)


class DRIVE(FieldOfViewFolders):
    """DRIVE (Staal et al. 2004): 40 photographs of the retina, vessels drawn by hand.

    `training/` (21 to 40) and `test/` (1 to 20) as given out, with `images`, `1st_manual` (255 is vessel) and `mask`,
    the field of view.

    Args:
        observer: whose drawing is the truth of the test images; the training images have one alone.
        other_observer: the other one is a further annotator of the test images, for the protocol `annotators`.
        test_on: `val` evaluates the validation images in `vistrain test`, too.
        val_images: numbers of the training images that are held out for validation, the first and the last; W-Net's.
        base: see `FieldOfViewFolders`.
    """

    sets_itself = ("train", "val", "test", "classes", "values", "first_value", "ignore", "colors", "palette")

    def __init__(
        self,
        observer: Literal[1, 2] = 1,
        val_images: tuple[int, int] = (37, 40),
        test_on: Literal["test", "val"] = "test",
        other_observer: bool = False,
        **base: Any,
    ) -> None:
        first, last = val_images
        if not 21 <= first <= last <= 40:
            raise ConfigError("data.val_images", f"{list(val_images)}", "two numbers in 21..40, the smaller one first")
        held, ordinal = range(first, last + 1), {1: "1st", 2: "2nd"}
        other = Annotator(f"test/{ordinal[3 - observer]}_manual", f"_manual{3 - observer}")
        train = ViewSplit(
            "training/images", "training/1st_manual", "_training", "_manual1",
            views="training/mask", view_suffix="_training_mask",
            subset=tuple(str(n) for n in range(21, 41) if n not in held),
        )  # fmt: skip
        test = ViewSplit(
            "test/images", f"test/{ordinal[observer]}_manual", "_test", f"_manual{observer}",
            views="test/mask", view_suffix="_test_mask", annotators=(other,) if other_observer else (),
        )  # fmt: skip
        val = replace(train, subset=tuple(map(str, held)))
        super().__init__(
            train=train,
            val=val,
            test=val if test_on == "val" else test,
            classes=("background", "vessel"),
            palette=((0, 0, 0), (255, 255, 255)),
            colors=True,
            **base,
        )
