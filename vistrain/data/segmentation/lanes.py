"""Sets of roads with lanes: CULane's and TuSimple's layouts."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.images import read_image
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.storage import file_names, refuse_missing
from vistrain.data.segmentation.label_files import read_label_file
from vistrain.data.segmentation.lane_files import LaneEntry, lane_mask, place_lanes, read_json_lines, read_list
from vistrain.data.segmentation.transforms import EvalStretch
from vistrain.errors import DataError, refuse_below
from vistrain.structures import LabelSpace

REMEDY = "correct data.root, or the list"
CATEGORIES = "list/test_split"  # files `test0_normal.txt` ... of CULane


@dataclass
class LaneImage:
    """One image on its way to a batch.

    Attributes:
        image: uint8 `[h, w, 3]`, RGB, of the size that networks see.
        label_map: uint8 `[h, w]`, 0 background and 1 to L the lanes; None in evaluation.
        exist: which lanes are there, `[L]`; all 0 in evaluation.
        lanes: the points of each lane `[N, 2]`, in pixels of the original image.
        rows: y at which they are measured.
        category: of the image.
        id: its name.
        original_size: H, W in pixels.
    """

    image: np.ndarray
    label_map: np.ndarray | None
    exist: np.ndarray
    lanes: tuple[np.ndarray, ...]
    rows: tuple[int, ...]
    category: str
    id: str
    original_size: tuple[int, int]


class LaneImages(SampleSet):
    """Images with their lanes, read on demand.

    Args:
        entries: the files.
        resize: to the network's size.
        num_lanes: L.
        thickness: of lanes that are drawn from points, pixels of the original image.
        train: masks are read; otherwise points.
    """

    def __init__(
        self, entries: Sequence[LaneEntry], resize: EvalStretch, num_lanes: int, thickness: int, train: bool
    ) -> None:
        self.entries, self.resize, self.num_lanes = entries, resize, num_lanes
        self.thickness, self.train = thickness, train

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, seed: int = 0) -> LaneImage:
        """The resized sample.

        Raises:
            DataError: a file cannot be read, or they do not fit together, see `lane_map`.
        """
        entry = self.entries[index]
        image = read_image(entry.image)
        size, labels = image.shape[:2], None
        lanes: tuple[np.ndarray, ...] = ()
        exist = np.zeros(self.num_lanes, np.float32)
        if self.train:
            stored = lane_map(entry, size, self.num_lanes, self.thickness)
            exist = lanes_there(entry, stored, self.num_lanes)
            labels = cv2.resize(stored, self.resize.size[::-1], interpolation=cv2.INTER_NEAREST)
        else:
            lanes = entry.points()
        facts = (lanes, entry.rows, entry.category, entry.name, (size[0], size[1]))
        return LaneImage(self.resize(image), labels, exist, *facts)

    def where(self, index: int) -> str:
        """The image's file."""
        return str(self.entries[index].image)


def lane_map(entry: LaneEntry, size: Sequence[int], num_lanes: int, thickness: int) -> np.ndarray:
    """The label map of an image, from its mask or drawn from its points.

    Args:
        entry: of the image.
        size: its (H, W), pixels.
        num_lanes: L.
        thickness: of drawn lanes, pixels.

    Returns:
        uint8 `[H, W]`: 0 background, 1 to L the lanes from left to right.

    Raises:
        DataError: a file cannot be read, the mask has another size, or holds more lanes.
    """
    if entry.mask is None:
        return lane_mask(place_lanes(entry.points(), size[1], size[0], num_lanes), size[0], size[1], thickness)
    stored = read_label_file(entry.mask)
    if stored.ndim != 2:
        raise DataError(str(entry.mask), "holds colours, not numbers of lanes", "save grey values, 0 to L")
    if stored.shape != tuple(size):
        problem = f"the mask is {stored.shape[1]}x{stored.shape[0]} pixels, its image {size[1]}x{size[0]}"
        raise DataError(str(entry.mask), problem, "resize the mask without interpolation")
    if stored.max(initial=0) > num_lanes:
        problem = f"holds the value {stored.max()}, lanes have 1 to {num_lanes}"
        raise DataError(str(entry.mask), problem, "set data.num_lanes (and model.num_lanes)")
    return stored.astype(np.uint8)


def lanes_there(entry: LaneEntry, stored: np.ndarray, num_lanes: int) -> np.ndarray:
    """Which lanes are there, float32 `[L]`: as the list says, else by the label map."""
    if entry.exist is not None:
        return np.array(entry.exist, np.float32)
    return np.isin(np.arange(1, num_lanes + 1), stored).astype(np.float32)


class LaneData(DataModule):
    """Base of the sets of roads with lanes: a subclass says which images, in `entries`.

    Args:
        batch_size: see `DataModule`.
        size: (height, width) that images are resized to, pixels.
        num_lanes: L, which networks tell apart by their place.
        thickness: of lanes that are drawn from points, where there are no masks, pixels of the original image.
        base: see `DataModule`.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        batch_size: int = 12,
        size: tuple[int, int] = (288, 800),
        num_lanes: int = 4,
        thickness: int = 16,
        **base: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **base)
        refuse_below(1, size=min(size), num_lanes=num_lanes, thickness=thickness)
        self.size, self.num_lanes, self.thickness = (size[0], size[1]), num_lanes, thickness
        self._entries: dict[SplitName, list[LaneEntry]] = {}

    @abstractmethod
    def read_entries(self, split: SplitName) -> list[LaneEntry]:
        """The images of a split.

        Raises:
            DataError: a list is missing or wrong, or images that it names are.
        """

    def entries(self, split: SplitName) -> list[LaneEntry]:
        """The images of a split, listed the first time.

        Raises:
            DataError: a list is missing or wrong, or images that it names are.
        """
        if split not in self._entries:
            self._entries[split] = self.read_entries(split)
        return self._entries[split]

    @property
    def labels(self) -> LabelSpace:
        """The lanes from left to right."""
        ids = tuple(range(1, self.num_lanes + 1))
        return LabelSpace(tuple(f"lane {i}" for i in ids), ids)

    def find(self, split: SplitName) -> None:
        """Finds the images of a split."""
        self.entries(split)

    def dataset(self, split: SplitName) -> LaneImages:
        """The samples of a split: with masks for `train`, with points otherwise."""
        return LaneImages(self.entries(split), self.eval_transform, self.num_lanes, self.thickness, split == "train")

    @property
    def eval_transform(self) -> EvalStretch:
        """The resize, the same while training."""
        return EvalStretch(self.size)

    def largest(self, split: SplitName) -> tuple[int, int]:
        """Height and width of a batch, in pixels."""
        return self.size

    def ground_truth(self, split: SplitName) -> None:
        """Nothing beside what each batch holds: `lanes`, `rows`, `category` and `image_size`."""

    def image_path(self, split: SplitName, image_id: str) -> Path:
        """The file of an image.

        Raises:
            DataError: the split has no such image.
        """
        for entry in self.entries(split):
            if entry.name == image_id:
                return entry.image
        raise DataError(str(self.root), f"no image called {image_id!r} in split {split!r}")

    @property
    def collate(self) -> Callable[[Sequence[LaneImage]], Batch]:
        """See `collate_lanes`."""
        return functools.partial(collate_lanes, size_divisor=self.preprocessing.size_divisor)

    def count_targets(self, target: Mapping[str, Any]) -> None:
        """Losses are means over pixels and lanes."""

    def check(self, output: str | Path) -> Findings:
        """See `segmentation.lane_check.check_lanes`."""
        from vistrain.data.segmentation.lane_check import check_lanes  # it draws, which training need not load

        return check_lanes(self, output)


def collate_lanes(samples: Sequence[LaneImage], size_divisor: int = 1) -> Batch:
    """Stacks images of one size.

    Args:
        samples: at least one.
        size_divisor: height and width of the batch are rounded up to multiples of it.

    Returns:
        `image` uint8 `[B, 3, H, W]`, `size` and `original_size` int64 `[B, 2]`, `id` list of str, `target` list of
        dicts: `exist` `[L]`, `lanes`, `rows`, `category` and `image_size`; while training also `label_map` `[H, W]`.
    """
    targets = []
    for sample in samples:
        lanes = tuple(torch.from_numpy(lane) for lane in sample.lanes)
        target: dict[str, Any] = {"exist": torch.from_numpy(sample.exist), "lanes": lanes, "rows": sample.rows}
        target |= {"category": sample.category, "image_size": sample.original_size}
        targets.append(
            target if sample.label_map is None else {**target, "label_map": torch.from_numpy(sample.label_map)}
        )
    sizes, ids = [sample.original_size for sample in samples], [sample.id for sample in samples]
    return batch_of([sample.image for sample in samples], sizes, ids, targets, size_divisor)


class CULane(LaneData):
    """CULane (Pan et al. 2018, arXiv 1712.06080): 88,880 + 9,675 + 34,680 images of 1640 x 590, four lanes.

    Lists name images, masks of lanes and which are there; a file `NAME.lines.txt` beside each image has its points. The
    test images have nine categories, by `list/test_split/test0_normal.txt` ... `test8_night.txt`, where that is there.

    Args:
        train, val, test: the lists, relative to the root.
        base: see `LaneData`.
    """

    def __init__(
        self,
        train: str = "list/train_gt.txt",
        val: str = "list/val_gt.txt",
        test: str = "list/test.txt",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.lists: dict[SplitName, str] = {"train": train, "val": val, "test": test}

    def read_entries(self, split: SplitName) -> list[LaneEntry]:
        """See `LaneData`.

        Raises:
            DataError: a list is missing or wrong, or images that it names are; or one for training has no mask.
        """
        path = self.root / self.lists[split]
        found = read_list(path, self.root, self.num_lanes, points=split != "train")
        refuse_missing([entry.name for entry in found], self.root, path, REMEDY)
        bare = next((entry for entry in found if entry.mask is None), None) if split == "train" else None
        if bare is not None:
            problem = f"{bare.name} has no mask behind it, which training needs"
            raise DataError(str(path), problem, "use the list that ends in _gt.txt")
        categories = self._categories() if split == "test" else {}
        return [replace(entry, category=categories.get(entry.name, "")) for entry in found]

    def _categories(self) -> dict[str, str]:
        """Image -> category, by the lists of categories."""
        folder, found = self.root / CATEGORIES, {}
        for file in sorted(file_names(folder)):
            name = Path(file).stem.partition("_")[2]
            if file.endswith(".txt") and name:
                for entry in read_list(folder / file, self.root, self.num_lanes, points=False):
                    found[entry.name] = name
        return found


class TuSimple(LaneData):
    """TuSimple's lane detection challenge: 3,268 + 358 + 2,782 images of 1280 x 720.

    JSON files with the points of lanes on rows; the paths in them are below their folders. Masks are drawn of the
    points: a lane's place is counted from the middle.

    Args:
        train, val, test: files, relative to the root.
        thickness: see `LaneData`.
        base: see `LaneData`.
    """

    def __init__(
        self,
        train: tuple[str, ...] = ("label_data_0313.json", "label_data_0601.json"),
        val: tuple[str, ...] = ("label_data_0531.json",),
        test: tuple[str, ...] = ("test_label.json",),
        thickness: int = 30,
        **base: Any,
    ) -> None:
        super().__init__(thickness=thickness, **base)
        self.files: dict[SplitName, tuple[str, ...]] = {"train": train, "val": val, "test": test}

    def read_entries(self, split: SplitName) -> list[LaneEntry]:
        """See `LaneData`."""
        found = []
        for path in (self.root / name for name in self.files[split]):
            entries = read_json_lines(path)
            refuse_missing([entry.name for entry in entries], path.parent, path, REMEDY)
            found += entries
        return found
