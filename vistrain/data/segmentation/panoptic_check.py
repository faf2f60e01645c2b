"""Looking at images with segments before a GPU is spent on them: every file is opened, and what the PNGs and the JSON
say of each other is compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape

from vistrain.data.base.check import (
    MOST,
    Findings,
    SplitFindings,
    opened,
    pixel_hash,
    refusals,
    shown,
    write_report,
)
from vistrain.data.base.module import SplitName
from vistrain.data.base.report import shuffled, split_table, write_samples
from vistrain.data.base.storage import read_json
from vistrain.data.segmentation.mask_pairs import MaskPair
from vistrain.data.segmentation.module import sized_image
from vistrain.data.segmentation.panoptic import PanopticFolders, labels_of, refuse_other_categories
from vistrain.data.segmentation.panoptic_files import Segments, examined, read_numbers, segment_map
from vistrain.errors import DataError
from vistrain.pictures import bars, class_colours, legend, overlaid
from vistrain.structures import LabelSpace, left_out

SAMPLES = 6


@dataclass
class PanopticSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images: with an annotation.
        segments, crowds: how many of either.
        most: segments of the image that has most.
        class_segments: class -> segments.
        pixels: class -> pixels.
        void: share of the pixels that belong to no segment, 0..1.
        hidden: image -> numbers of segments that its PNG lacks.
        strangers: image -> how many pixels have numbers that the JSON lacks.
        unlisted: images of which the JSON lists no segment at all, while the PNG has some.
        skipped: what the annotations list in vain -> how often.
    """

    images: int = 0
    segments: int = 0
    crowds: int = 0
    most: int = 0
    class_segments: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, int] = field(default_factory=dict)
    void: float = 0.0
    hidden: dict[str, list[int]] = field(default_factory=dict)
    strangers: dict[str, int] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass
class PanopticReport(Findings):
    """The findings of `check_panoptic`.

    Attributes:
        splits: by name.
        classes: names, in the order of their channels.
        things: which of them are counted one by one.
    """

    splits: dict[str, PanopticSplitReport]
    classes: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether a run can go through and learns what is annotated: also, PNGs and JSON agree."""
        return super().ok and not any(
            split.hidden or split.strangers or split.unlisted for split in self.splits.values()
        )

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        lines = []
        for name, split in self.splits.items():
            lines += refusals(name, split)
            for found, text in (
                (split.hidden, "have segments that their PNG lacks: they can only be missed"),
                (split.strangers, "have pixels whose number the JSON lacks: they are void"),
                (split.unlisted, "have segments in their PNG, of which the JSON lists none: segments_info is empty"),
            ):
                if found:
                    first = escape(", ".join(list(found)[:3]))
                    remedy = "write PNG and JSON by one program, R + 256 G + 65536 B is the segment's id"
                    lines.append(f"[red]{name}[/]: {len(found)} images {text} ({first})\n    -> {remedy}")
            lines += [f"[yellow]{name}[/]: {count} x {what}" for what, count in split.skipped.items()]
            absent = [c for c in self.classes if c not in split.class_segments]
            if absent and split.images:
                lines.append(f"[yellow]{name}[/]: {len(absent)} classes never occur: {escape(', '.join(absent[:8]))}")
        if self.leaks:
            lines.append(f"[yellow]in several splits[/]: {len(self.leaks)} images, such as {shown(self.leaks)}")
        return Group(*_summary(self), *lines)


@dataclass
class _Seen:
    """What one image holds: pixels of each segment and of void, of numbers that are not listed, and a hash."""

    areas: np.ndarray
    strangers: int
    digest: bytes


def check_panoptic(data: PanopticFolders, output: str | Path) -> PanopticReport:
    """Opens every file of a set, and compares the PNGs with the JSON files.

    Writes `report.json`, `classes-*.png` (segments of each class) and `samples-*.png` (images, and their segments).

    Args:
        data: the data module; a test split that is the validation split is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: the classes cannot be read, or the output cannot be written.
    """
    data.prepare_data()  # a generated set is written on first use
    output, report = Path(output), PanopticReport(splits={})
    seen: dict[bytes, list[str]] = {}
    names: list[SplitName] = ["train", "val", "test"]
    wanted, sound = data.known(), True
    for name in names:
        if name == "test" and data.splits["test"] == data.splits["val"]:
            continue
        found = report.splits[name] = PanopticSplitReport()
        where = data.splits[name]
        path = data.root / where.annotations
        try:
            listed, faults = examined(read_json(path, data.remedy(name), "panoptic annotation file"), path)
        except DataError as error:
            found.problem = str(error)
            continue
        found.refused += [str(fault) for fault in faults]
        found.skipped = {what: count for what, (_, count) in listed.skipped.items()}
        sound = sound and not faults
        wanted = wanted or listed.categories  # of training
        if not report.classes:
            report.classes, report.things = [c.name for c in wanted], [c.name for c in wanted if c.thing]
        try:
            refuse_other_categories(listed.categories, wanted, path, names=not data.known())
        except DataError as error:
            if sound:  # else the file of training, which may lack a category, is to blame
                found.refused.append(str(error))
            sound = False
        if name == "train" and not found.refused:
            try:
                data.refuse_untrainable(listed)
            except DataError as error:
                found.refused.append(str(error))
        found.refused += data.refusals(name, len(listed))
        pairs = [
            MaskPair(str(key), data.image_file(name, key, image), data.root / where.masks / mask)
            for key, image, mask in zip(listed.ids, listed.images, listed.masks, strict=True)
        ]
        for digest, image in _open_all(pairs, listed, name, found):
            seen.setdefault(digest, []).append(f"{name}: {image}")
        labels = labels_of(wanted) if sound else None
        report.pictures += _draw(pairs, listed, labels, name, found, output)
    report.note_copies(seen)
    write_report(report.to_dict(), output)
    return report


def _open_all(
    pairs: list[MaskPair], listed: Segments, name: str, found: PanopticSplitReport
) -> list[tuple[bytes, str]]:
    """Fill a split's report; returns hashes of the images with their files."""
    meant = {c.id: c.name for c in listed.categories}
    segments, pixels, hashes, void = Counter[str](), Counter[str](), list[tuple[bytes, str]](), 0

    def look(index: int) -> _Seen:
        return _look(pairs[index], listed, index)

    found.images, found.crowds = len(pairs), int(listed.crowds.sum())
    for index, seen in opened(range(len(pairs)), look, f"opening {name}"):
        if isinstance(seen, DataError):
            found.refuse_file(seen)
            continue
        numbers, classes, _ = listed.of(index)
        hidden = numbers[seen.areas[1:] == 0].tolist()
        if hidden:
            found.hidden[str(pairs[index].mask)] = hidden
        if seen.strangers and not len(numbers):
            found.unlisted.append(str(pairs[index].mask))
        elif seen.strangers:
            found.strangers[str(pairs[index].mask)] = seen.strangers
        void += int(seen.areas[0])
        found.most = max(found.most, len(numbers))
        for category, area in zip(classes.tolist(), seen.areas[1:].tolist(), strict=True):
            segments[meant[category]] += 1
            pixels[meant[category]] += area
        hashes.append((seen.digest, str(pairs[index].image)))
    found.segments, found.class_segments, found.pixels = sum(segments.values()), dict(segments), dict(pixels)
    found.void = void / max(void + sum(pixels.values()), 1)
    return hashes


def _look(pair: MaskPair, listed: Segments, index: int) -> _Seen:
    """Open a pair.

    Raises:
        DataError: a file cannot be read, or their sizes differ.
    """
    numbers = listed.of(index)[0]
    segments, strangers = segment_map(read_numbers(pair.mask), numbers)
    pixels = sized_image(pair, segments.shape)
    listed.refuse_other_size(index, pair.mask, segments.shape)
    return _Seen(np.bincount(segments.reshape(-1), minlength=len(numbers) + 1), strangers, pixel_hash(pixels))


def _draw(
    pairs: list[MaskPair],
    listed: Segments,
    labels: LabelSpace | None,
    name: str,
    found: PanopticSplitReport,
    output: Path,
) -> list[str]:
    """Writes a split's pictures, of images where the classes are known; returns their paths."""
    written = []
    if found.class_segments:
        ordered = dict(sorted(found.class_segments.items(), key=lambda item: -item[1])[:40])
        path = output / f"classes-{name}.png"
        written.append(str(bars({n: float(c) for n, c in ordered.items()}, path, f"{name}: segments of each class")))
    if labels is None or not pairs:
        return written
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    colours, names = class_colours(labels), labels.name_of
    for index in shuffled(len(pairs)):
        pair = pairs[index]
        if len(rows) == SAMPLES or str(pair.mask) in found.bad_files or str(pair.image) in found.bad_files:
            continue
        numbers, classes, _ = listed.of(index)
        segments, _ = segment_map(read_numbers(pair.mask), numbers)
        image = sized_image(pair, segments.shape)
        channels = np.array([-1, *(labels.channel_of[c] for c in classes.tolist())])
        edge = np.zeros(segments.shape, bool)
        edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
        edge[1:] |= segments[1:] != segments[:-1]
        drawn = overlaid(image, channels[segments], colours)
        drawn[edge] = 255
        occurring = set(channels[1:].tolist())
        line = legend(names, colours, [c for c in names if c in occurring], image.shape[1])
        rows.append([image, np.concatenate([drawn, line])])
        captions.append([listed.images[index], f"{len(numbers)} segments"])
    return written + write_samples(rows, captions, output, name)


def _summary(report: PanopticReport) -> list[RenderableType]:
    things = len(report.things)
    title = f"{len(report.classes)} classes: {things} things, {len(report.classes) - things} stuff"
    splits = report.splits.values()
    rows: dict[str, list[str]] = {
        "images": [f"{s.images:,}" for s in splits],
        "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits],
        "segments": [f"{s.segments:,}" for s in splits],
        "of crowds": [f"{s.crowds:,}" for s in splits],
        "most in an image": [f"{s.most:,}" for s in splits],
        "void pixels, %": [f"{100 * s.void:.1f}" for s in splits],
    }
    table = split_table(title, report.splits, rows)
    classes = [name for name in report.classes if any(s.class_segments.get(name) for s in splits)]
    for name in classes[: 2 * MOST]:
        cells = [f"{s.class_segments.get(name, 0):,}" if name in s.class_segments else "[yellow]-[/]" for s in splits]
        table.add_row(f"  {escape(name)}", *cells)
    if len(classes) > 2 * MOST:
        table.add_row(f"  and {len(classes) - 2 * MOST} more, see report.json", *[""] * len(report.splits))
    return [table, *left_out(len(report.classes) - len(classes), "segments")]
