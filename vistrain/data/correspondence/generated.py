"""Generated pairs: a coloured texture, and the same one as a smooth known field moves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vistrain.data.base.generated import whole_folder
from vistrain.data.base.module import data_root
from vistrain.data.correspondence.displacement_files import AXES, Finds, write_displacement
from vistrain.data.correspondence.module import MatchingFolders
from vistrain.data.correspondence.pair_files import PairSplit
from vistrain.errors import refuse_below

VERSION = 1  # of the generator: part of the folder's name, so that a change never mixes with older files
FOLDERS = ("first", "second", "truth")


class GeneratedMatches(MatchingFolders):
    """The generated set; written on first use to `<root>/matches-...`, one folder per choice of arguments.

    The first image is the second one, read where the field says: what is known is exact, but for interpolation. Fields
    are smooth and turn nothing over, so nothing is hidden in either image; what would lie outside is not known.

    Args:
        root: parent of the folder; `VISTRAIN_DATA` or `data/` if None.
        finds: `disparity` (0 to `largest_shift`) or `flow` (up to it in each direction).
        train_images, val_images: how many pairs.
        height, width: of the images, pixels.
        largest_shift: pixels; at most an eighth of the shorter side, so that fields stay smooth.
        matches_seed: of the generator; the training order has `seed`.
        base: see `MatchingFolders`.

    Raises:
        ConfigError: a number is out of its range.
    """

    sets_itself = ("train", "val", "test")

    def __init__(
        self,
        root: str | None = None,
        finds: Finds = "disparity",
        train_images: int = 200,
        val_images: int = 20,
        height: int = 96,
        width: int = 128,
        largest_shift: float = 4.0,
        matches_seed: int = 0,
        **base: Any,
    ) -> None:
        refuse_below(1, train_images=train_images, val_images=val_images)
        refuse_below(16, height=height, width=width)
        refuse_below(0, matches_seed=matches_seed)
        refuse_below(0.5, largest_shift=largest_shift)
        shift = min(largest_shift, min(height, width) / 8)
        name = f"matches-v{VERSION}-{finds}-{train_images}-{val_images}-{height}x{width}-{shift:g}-seed{matches_seed}"
        train, val = (PairSplit(*(f"{split}/{part}" for part in FOLDERS)) for split in ("train", "val"))
        super().__init__(finds, train, val, root=str(data_root(root) / name), **base)
        self.counts, self.matches_seed = {"train": train_images, "val": val_images}, matches_seed
        self.size, self.shift = (height, width), shift

    @property
    def unwritten(self) -> bool:
        """Whether it is not there yet."""
        return not self.root.is_dir()

    def prepare_data(self) -> None:
        """Writes the set unless it is there. Safe with several processes: the first to finish wins, whole."""
        if self.unwritten:
            write_matches(self.root, self.counts, self.matches_seed, self.finds, self.size, self.shift)

    def find(self, split: Any) -> None:
        """Generate the set first if it is not there."""
        self.prepare_data()
        super().find(split)

    def remedy(self, split: Any) -> str:
        """How to have the set made again."""
        return f"delete {self.root} to have it generated again"


def write_matches(
    folder: Path, counts: dict[str, int], seed: int, finds: Finds, size: tuple[int, int], shift: float
) -> None:
    """Writes the set: built beside its place, then renamed into it, so that it is there whole or not at all.

    Args:
        folder: to be made.
        counts: split -> number of pairs.
        seed: of the generator.
        finds, size, shift: see `GeneratedMatches`.

    Raises:
        DataError: the folder cannot be written.
    """
    suffix = ".pfm" if finds == "disparity" else ".flo"
    with whole_folder(folder, sum(counts.values()), "pairs") as draft:
        for part, (split, count) in enumerate(counts.items()):
            for name in FOLDERS:
                (draft / split / name).mkdir(parents=True)
            for number in range(count):
                first, second, field = match(np.random.default_rng((seed, part, number)), AXES[finds], size, shift)
                for name, image in (("first", first), ("second", second)):
                    Image.fromarray(image).save(draft / split / name / f"{number:04d}.png")
                write_displacement(draft / split / "truth" / f"{number:04d}{suffix}", field)


def match(
    draw: np.random.Generator, axes: int, size: tuple[int, int], shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair, uint8 `[H, W, 3]` twice, and its displacements float32 `[axes, H, W]`.

    Args:
        draw: random numbers.
        axes: 1 for disparity, 2 for flow.
        size: height and width, pixels.
        shift: the largest displacement, pixels.
    """
    second = texture_of(draw, size)
    field = np.stack([smooth(draw, size) * shift for _ in range(axes)])
    if axes == 1:
        field = (field + shift) / 2  # to the left, 0 to `shift`
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    across, down = (x - field[0], y) if axes == 1 else (x + field[0], y + field[1])
    first = cv2.remap(second, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    inside = (across >= 0) & (across <= size[1] - 1) & (down >= 0) & (down <= size[0] - 1)
    return first, second, np.where(inside, field, np.float32(np.nan)).astype(np.float32)


def smooth(draw: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A field float32 `[H, W]` in -1..1, of a grid of 3 x 3 random numbers."""
    corners = draw.uniform(-1, 1, (3, 3)).astype(np.float32)
    return np.clip(cv2.resize(corners, size[::-1], interpolation=cv2.INTER_CUBIC), -1, 1)


def texture_of(draw: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A coloured texture with detail of 4 to 16 pixels, uint8 `[H, W, 3]`."""
    total = np.zeros((*size, 3), np.float32)
    for cell in (4, 8, 16):
        grid = draw.normal(size=(size[0] // cell + 2, size[1] // cell + 2, 3)).astype(np.float32)
        total += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC) * cell**0.5
    total = (total - total.mean()) / total.std() * 50 + 128
    return total.clip(0, 255).round().astype(np.uint8)
