"""Every file of a set of lanes opened, and held against the lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from vistrain.data.base.check import Findings, SplitFindings, opened, pixel_hash, refusals, shown, write_report
from vistrain.data.base.images import read_image
from vistrain.data.base.module import SplitName
from vistrain.data.base.report import shuffled, write_samples
from vistrain.data.segmentation.lane_files import LaneEntry, place_lanes
from vistrain.data.segmentation.lanes import LaneData, lane_map, lanes_there
from vistrain.errors import DataError
from vistrain.pictures import draw_lanes

SAMPLES = 6


@dataclass
class LaneSplitReport(SplitFindings):
    """What was found in a split.

    Attributes:
        images: how many.
        sizes: `width x height` -> images.
        lanes: number of lanes -> images with so many.
        places: how many images have a lane in each place, from left to right, where that is said.
        categories: category -> images.
    """

    images: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)


@dataclass
class LaneReport(Findings):
    """The findings of `check_lanes`.

    Attributes:
        splits: by name.
    """

    splits: dict[str, LaneSplitReport]

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        lines = [line for name, split in self.splits.items() for line in refusals(name, split)]
        if self.leaks:
            lines.append(f"[yellow]in several splits[/]: {len(self.leaks)} images, such as {shown(self.leaks)}")
        table = Table(title="lanes", title_justify="left")
        table.add_column("")
        for name in self.splits:
            table.add_column(name, justify="right")
        splits = self.splits.values()
        rows = {
            "images": [f"{s.images:,}" for s in splits],
            "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits],
            "most frequent size": [next(iter(s.sizes), "-") for s in splits],
            "lanes in an image": [", ".join(f"{n}: {c:,}" for n, c in sorted(s.lanes.items())) or "-" for s in splits],
            "in each place": [" ".join(f"{n:,}" for n in s.places) or "-" for s in splits],
            "categories": [", ".join(f"{n} {c:,}" for n, c in s.categories.items()) or "-" for s in splits],
        }
        for title, cells in rows.items():
            table.add_row(title, *cells)
        return Group(table, *lines)


@dataclass
class _Seen:
    size: tuple[int, int]
    lanes: int
    places: np.ndarray | None
    digest: bytes


def check_lanes(data: LaneData, output: str | Path) -> LaneReport:
    """Opens every file of a set: images, masks and points.

    Writes `report.json` and `samples-*.png`, images with their lanes.

    Args:
        data: the data module; a test split with the images of the validation split is not compared with it.
        output: folder for the files, made if absent.

    Raises:
        DataError: the output cannot be written.
    """
    data.prepare_data()  # a generated set is written on first use
    output = Path(output)
    report, seen = LaneReport(splits={}), dict[bytes, list[str]]()
    names: list[SplitName] = ["train", "val", "test"]
    for name in names:
        found = report.splits[name] = LaneSplitReport()
        try:
            entries = data.entries(name)
        except DataError as error:
            found.problem = str(error)
            continue
        found.images = len(entries)
        found.refused += data.refusals(name, found.images)
        same = name == "test" and {e.name for e in entries} == {e.name for e in data.entries("val")}
        for digest, path in _open_all(entries, data, name, found):
            if not same:
                seen.setdefault(digest, []).append(f"{name}: {path}")
        report.pictures += _draw(entries, data, name, found, output)
    report.note_copies(seen)
    write_report(report.to_dict(), output)
    return report


def _open_all(entries: list[LaneEntry], data: LaneData, name: str, found: LaneSplitReport) -> list[tuple[bytes, str]]:
    """Fill a split's report; returns hashes of the images with their files."""
    sizes, lanes, hashes = Counter[str](), Counter[int](), []
    places = np.zeros(data.num_lanes, np.int64)
    training = name == "train"
    for entry, seen in opened(entries, lambda entry: _look(entry, data, training), f"opening {name}"):
        if isinstance(seen, DataError):
            found.refuse_file(seen)
            continue
        sizes[f"{seen.size[1]} x {seen.size[0]}"] += 1
        lanes[seen.lanes] += 1
        if seen.places is not None:
            places += seen.places.astype(np.int64)
        hashes.append((seen.digest, str(entry.image)))
    found.sizes, found.lanes = dict(sizes.most_common(10)), dict(lanes)
    found.places = places.tolist() if training else []
    found.categories = dict(Counter(e.category for e in entries if e.category).most_common())
    return hashes


def _look(entry: LaneEntry, data: LaneData, training: bool) -> _Seen:
    """Open one image's files, as a run would.

    Raises:
        DataError: one cannot be read, or they do not fit together.
    """
    image = read_image(entry.image)
    size, digest = (image.shape[0], image.shape[1]), pixel_hash(image)
    if not training:
        return _Seen(size, len(entry.points()), None, digest)
    stored = lane_map(entry, size, data.num_lanes, data.thickness)
    there = lanes_there(entry, stored, data.num_lanes)
    drawn = np.isin(np.arange(1, data.num_lanes + 1), stored)
    if entry.exist is not None and (drawn & (there == 0)).any():
        wrong = [i for i, (a, b) in enumerate(zip(drawn, there, strict=True), 1) if a and not b]
        problem = f"shows lane {wrong[0]}, and the list says that it is not there"
        raise DataError(str(entry.mask), problem, "correct the list or the mask")
    return _Seen(size, int(there.sum()), there, digest)


def _draw(entries: list[LaneEntry], data: LaneData, name: str, found: LaneSplitReport, output: Path) -> list[str]:
    """Writes a split's picture; returns its path."""
    rows, captions = list[list[np.ndarray]](), list[list[str]]()
    for index in shuffled(len(entries)):
        entry = entries[index]
        if len(rows) == SAMPLES or {str(p) for p in (entry.image, entry.mask, entry.lines)} & set(found.bad_files):
            continue
        image = read_image(entry.image)
        if entry.mask is not None and name == "train":
            stored = lane_map(entry, image.shape[:2], data.num_lanes, data.thickness)
            lanes = [np.argwhere(stored == value)[:, ::-1] for value in range(1, data.num_lanes + 1)]
            rows.append([draw_lanes(image, lanes, dots=True)])
        else:
            places = place_lanes(entry.points(), image.shape[1], image.shape[0], data.num_lanes)
            rows.append([draw_lanes(image, [lane if lane is not None else np.zeros((0, 2)) for lane in places])])
        captions.append([f"{entry.name} {entry.category}".strip()])
    return write_samples(rows, captions, output, name)
