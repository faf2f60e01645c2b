"""The files of lane sets: lists of images, masks and points of lanes (CULane), JSON lines (TuSimple)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vistrain.data.base.storage import read_text
from vistrain.errors import DataError

LINES = ".lines.txt"  # what CULane's files of points end in, in place of the image's suffix


@dataclass(frozen=True)
class LaneEntry:
    """An image with where its lanes are said.

    Attributes:
        name: path of the image below the root, without a slash at its beginning.
        image: the file.
        mask: label file, 0 for background and 1 to L for the lanes from left to right; None where there is none.
        exist: which of the L lanes are there, 0 or 1; None where only the mask says it.
        lines: file of the points, see `read_lines`; None where there is none.
        lanes: the points themselves, where no file of its own has them, each `[N, 2]`.
        rows: y at which lanes are measured, pixels; none where all are.
        category: of the image (`night`), or empty.
    """

    name: str
    image: Path
    mask: Path | None = None
    exist: tuple[int, ...] | None = None
    lines: Path | None = None
    lanes: tuple[np.ndarray, ...] | None = None
    rows: tuple[int, ...] = ()
    category: str = ""

    def points(self) -> tuple[np.ndarray, ...]:
        """The lanes, each float32 `[N, 2]`, (x, y) in pixels of the image; none where no file says them.

        Raises:
            DataError: see `read_lines`.
        """
        if self.lanes is not None:
            return self.lanes
        return read_lines(self.lines) if self.lines is not None else ()


def read_list(path: Path, root: Path, num_lanes: int, points: bool) -> list[LaneEntry]:
    """A list of CULane's: a line for each image, with its mask and, for each lane, 0 or 1 behind it, or without them.

    Args:
        path: the list.
        root: paths in it are below this folder, with or without a slash at their beginning.
        num_lanes: L.
        points: whether each image has a file of points beside it.

    Raises:
        DataError: the list is missing or empty, or a line has another number of lanes.
    """
    entries = []
    for number, line in enumerate(read_text(path, "correct data.root", "list of images").splitlines(), 1):
        image, *rest = line.split() or [""]
        if not image:
            continue
        mask, *flags = rest or [""]
        if flags and (len(flags) != num_lanes or set(flags) - {"0", "1"}):
            problem = f"line {number} says of {len(flags)} lanes whether they are there: {' '.join(flags)[:40]}"
            raise DataError(str(path), problem, f"write 0 or 1 for each of {num_lanes}, or set data.num_lanes")
        name = image.lstrip("/")
        entries.append(
            LaneEntry(
                name,
                root / name,
                root / mask.lstrip("/") if mask else None,
                tuple(map(int, flags)) or None,
                (root / name).with_suffix(LINES) if points else None,
            )
        )
    if not entries:
        raise DataError(str(path), "lists no image", "write a line for each")
    return entries


def read_lines(path: Path) -> tuple[np.ndarray, ...]:
    """CULane's points of lanes: a line for each lane, `x y x y ...` in pixels.

    Returns:
        each lane float32 `[N, 2]`; lanes without points are left out.

    Raises:
        DataError: the file is missing, or a line is no list of pairs of finite numbers.
    """
    lanes = []
    for number, line in enumerate(read_text(path, what="file of lanes").splitlines(), 1):
        try:
            values = _pixels([float(word) for word in line.split()])
        except ValueError as error:
            raise DataError(str(path), f"line {number} is not made of numbers: {line[:40]!r}") from error
        if len(values) % 2 or not np.isfinite(values).all():
            raise DataError(str(path), f"line {number} has {len(values)} numbers, no pairs of x and y")
        if len(values):
            lanes.append(values.reshape(-1, 2))
    return tuple(lanes)


def _pixels(written: Any) -> np.ndarray:
    """float32; what it cannot hold is infinite."""
    with np.errstate(over="ignore"):
        return np.array(written, np.float32)


def lines_text(lanes: Iterable[np.ndarray]) -> str:
    """The inverse of `read_lines`; whole numbers without a point."""
    return "".join(" ".join(f"{v:g}" for v in np.round(lane, 3).reshape(-1).tolist()) + "\n" for lane in lanes)


def read_json_lines(path: Path) -> list[LaneEntry]:
    """TuSimple's labels: a JSON object in each line, with `raw_file`, `h_samples` (y of the rows) and `lanes` (x of
    each lane on each row, negative where it has none).

    Args:
        path: the file; images are below its folder.

    Raises:
        DataError: it is missing or empty, or a line is no such object.
    """
    entries = []
    for number, line in enumerate(read_text(path, "correct data.root", "file of labels").splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row: Any = json.loads(line)
            name, rows = str(row["raw_file"]), _pixels(row["h_samples"])
            lanes = [_pixels(x) for x in row["lanes"]]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            problem = f"{where} is no JSON object with raw_file, h_samples and lanes ({type(error).__name__}: {error})"
            raise DataError(str(path), problem[:200]) from error
        if rows.ndim != 1 or any(x.shape != rows.shape for x in lanes):
            raise DataError(str(path), f"{where}: each lane needs an x for each of its {rows.size} h_samples")
        if not all(np.isfinite(x).all() for x in (rows, *lanes)):
            raise DataError(str(path), f"{where} has a number that is infinite or NaN", "write pixels; -2 for no lane")
        points = (np.stack([x, rows], 1)[x >= 0] for x in lanes)
        there = tuple(lane for lane in points if len(lane))
        entries.append(LaneEntry(name, path.parent / name, lanes=there, rows=tuple(map(int, rows.tolist()))))
    if not entries:
        raise DataError(str(path), "labels no image")
    return entries


def json_line_of(name: str, lanes: Iterable[np.ndarray], rows: Sequence[int]) -> str:
    """A line that `read_json_lines` reads, with a running time of 0, which the benchmark asks for.

    Args:
        name: of the image.
        lanes: each `[N, 2]`, whose points lie on the rows.
        rows: y, pixels.
    """
    found = []
    for lane in lanes:
        at = {round(y): round(x) for x, y in lane.tolist()}
        found.append([at.get(y, -2) for y in rows])
    return json.dumps({"raw_file": name, "lanes": found, "h_samples": list(rows), "run_time": 0}) + "\n"


def place_lanes(lanes: Sequence[np.ndarray], width: int, height: int, num_lanes: int) -> list[np.ndarray | None]:
    """Which of L lanes each one is, by where its lowest part leads to at the image's lower end: half of them count from
    the middle to the left, half to the right; what is farther out has no place.

    Args:
        lanes: each `[N, 2]`.
        width, height: of the image, pixels.
        num_lanes: L.

    Returns:
        L places from left to right.
    """
    ends = sorted(((_end(lane, height), i) for i, lane in enumerate(lanes) if len(lane) > 1), key=lambda e: e[0])
    middle, places = num_lanes // 2, [None] * num_lanes
    found: list[np.ndarray | None] = list(places)
    left = [i for x, i in ends if x < width / 2][::-1]
    right = [i for x, i in ends if x >= width / 2]
    for k, i in enumerate(left[:middle]):
        found[middle - 1 - k] = lanes[i]
    for k, i in enumerate(right[: num_lanes - middle]):
        found[middle + k] = lanes[i]
    return found


def lane_mask(lanes: Sequence[np.ndarray | None], height: int, width: int, thickness: int) -> np.ndarray:
    """Label map of L lanes in their places, uint8 `[H, W]`: 0, and 1 to L.

    Args:
        lanes: see `place_lanes`.
        height, width: of the map, pixels.
        thickness: of the lines, pixels.
    """
    canvas = np.zeros((height, width), np.uint8)
    for value, lane in enumerate(lanes, 1):
        if lane is not None:
            cv2.polylines(canvas, [np.rint(lane).astype(np.int32)], False, value, thickness)
    return canvas


def _end(lane: np.ndarray, height: int) -> float:
    """x at which the line through a lane's lowest points meets the image's lower end."""
    low = lane[np.argsort(-lane[:, 1], kind="stable")[:10]].astype(np.float64)
    y = low[:, 1] - low[:, 1].mean()
    slope = (y * (low[:, 0] - low[:, 0].mean())).sum() / max((y * y).sum(), 1e-9)
    return float(low[0, 0] + slope * (height - 1 - low[0, 1]))
