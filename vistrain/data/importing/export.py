"""What the readers of exports find, before any picture is opened."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Point = tuple[float, float]
Size = tuple[int, int]  # height, width

CORNERS = 24  # of the polygon that stands for an ellipse
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What folders and lists are called -> the split that they hold."""


@dataclass(frozen=True)
class Options:
    """What a user may say of an export.

    Attributes:
        images: where the pictures are, if not where the export has them.
        names: class names in the order of their numbers, for labels that have numbers alone.
        pixels: labels that should be shares of the sides are pixels.
        count_from: 1: the first pixel is 1 and boxes include their last pixel, as VOC defines it; 0: coordinates are
            edges counted from 0; None: what the coordinates look like.
        difficult: `ignore`, `keep` or `drop` objects that are marked as difficult.
    """

    images: Path | None = None
    names: tuple[str, ...] = ()
    pixels: bool = False
    count_from: int | None = None
    difficult: str = "ignore"


@dataclass
class Notes:
    """What was skipped, or understood in another way than it is written.

    Attributes:
        items: (kind, item) of each finding, in the order of reading.
    """

    items: list[tuple[str, str]] = field(default_factory=list)

    def add(self, kind: str, item: str) -> None:
        """One finding; of a kind there may be thousands."""
        self.items.append((kind, item))

    def lines(self, most: int = 3) -> list[str]:
        """A line for each kind: how often, and the first few items."""
        counts = Counter(kind for kind, _ in self.items)
        found = {kind: [item for k, item in self.items if k == kind][:most] for kind in counts}
        return [
            printable(f"{count} x {kind}: {', '.join(found[kind])}{' ...' if count > most else ''}")
            for kind, count in counts.items()
        ]


@dataclass(frozen=True)
class Mask:
    """The pixels of an object, in a box.

    Attributes:
        box: x, y, width, height, whole pixels.
        runs: how many pixels are outside the object, inside, outside ..., row by row of the box; as many as it has.
    """

    box: tuple[int, int, int, int]
    runs: tuple[int, ...]

    def pixels(self) -> np.ndarray:
        """The box as bool `[height, width]`, True inside the object."""
        inside = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(inside, self.runs).reshape(self.box[3], self.box[2])


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        name: class name.
        box: x1, y1, x2, y2, pixels or shares of the sides (`Export.shares`).
        polygons: x1, y1, x2, y2, ... of each part of its outline, in the same unit; empty for a plain box.
        ignored: evaluation and training look away from it, as from a crowd.
        mask: its pixels, in place of an outline.
    """

    name: str
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()
    ignored: bool = False
    mask: Mask | None = None

    @property
    def is_outlined(self) -> bool:
        """Whether more is known of it than its box."""
        return bool(self.polygons) or self.mask is not None

    @classmethod
    def outlined(cls, name: str, *polygons: tuple[float, ...]) -> Shape:
        """An object of one or more polygons (x1, y1, x2, y2, ...)."""
        xs, ys = [x for p in polygons for x in p[::2]], [y for p in polygons for y in p[1::2]]
        return cls(name, (min(xs), min(ys), max(xs), max(ys)), polygons)


@dataclass
class Labelled:
    """A picture with its objects.

    Attributes:
        path: the picture's file.
        split: the split that it belongs to; empty where the export has none.
        shapes: its objects.
        stated: height and width that the export states, or None.
        damage: its objects that cannot be read. A picture that has any is left out as a whole: what is not marked in
            a picture teaches the network that there is nothing.
    """

    path: Path
    split: str
    shapes: list[Shape] = field(default_factory=list)
    stated: tuple[int, int] | None = None
    damage: Notes = field(default_factory=Notes)


@dataclass
class Placed:
    """A picture with its objects in its own pixels.

    Attributes:
        name: of its file, relative to the image folder, with `/`.
        size: height and width that its annotations belong to.
        shapes: inside the picture, all with area.
    """

    name: str
    size: Size
    shapes: list[Shape]


@dataclass
class Export:
    """All that a reader found.

    Attributes:
        pictures: with their objects.
        classes: names in the order of their numbers; None where the export has names alone.
        notes: what was skipped so far.
        shares: coordinates are shares of the sides, not pixels.
        turned: pictures were annotated as viewers show them, by their EXIF orientation, whatever size is stated.
    """

    pictures: list[Labelled]
    classes: list[str] | None
    notes: Notes
    shares: bool = False
    turned: bool = False


def ellipse(centre: Point, across: float, down: float) -> list[Point]:
    """Corners of the polygon that stands for an ellipse with these half axes."""
    turns = (2 * math.pi * i / CORNERS for i in range(CORNERS))
    return [(centre[0] + across * math.cos(t), centre[1] + down * math.sin(t)) for t in turns]


def turned(points: Sequence[Point], centre: Point, degrees: float) -> list[Point]:
    """Points turned clockwise about a centre, as the vertical axis points down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    shifted = [(x - centre[0], y - centre[1]) for x, y in points]
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in shifted]


def flat(points: Sequence[Point]) -> tuple[float, ...]:
    """x1, y1, x2, y2, ... of points."""
    return tuple(value for point in points for value in point)


def points_of(written: Any) -> list[Point] | None:
    """Points from a list of pairs of numbers; None where it is none."""
    found = [numbers(pair) for pair in written] if isinstance(written, list) else []
    pairs = [(pair[0], pair[1]) for pair in found if pair is not None and len(pair) == 2]
    return pairs if pairs and len(pairs) == len(found) else None


def printable(text: str) -> str:
    """A text without what no stream takes: names of files may hold bytes of any encoding."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def number(value: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def numbers(values: Any) -> tuple[float, ...] | None:
    """A tuple of finite numbers; None where one of the values is not, or where there is no list of values."""
    if not isinstance(values, list | tuple):
        return None
    found = [number(value) for value in values]
    return None if None in found else tuple(v for v in found if v is not None)


def whole_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width that are stated; None unless both are numbers from 1 on (many tools write 0 for unknown)."""
    found = numbers([height, width])
    return (int(found[0]), int(found[1])) if found is not None and min(found) >= 1 and max(found) < 1e9 else None


def distinct(names: Sequence[str], notes: Notes) -> list[str]:
    """Class names by number, made different where two classes have one name, and filled in where one has none."""
    found: list[str] = []
    for i, name in enumerate(map(str.strip, names)):
        if not name or name in found:
            made = f"{name} ({i})" if name else f"class_{i}"
            notes.add("class without a name" if not name else "name of two classes", f"class {i}, now {made!r}")
            name = made
        found.append(name)
    return found


def split_of(*words: str) -> str:
    """The split that the first of these words (folders, a subset) names; empty if none does."""
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), "")
