"""Looking at a classification set before a GPU is spent on it: every image is opened, every class counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from vistrain.data.base.check import (
    Findings,
    SplitFindings,
    opened,
    pixel_hash,
    refusals,
    shown,
    write_report,
)
from vistrain.data.base.images import has_several
from vistrain.data.base.module import SplitName
from vistrain.data.classification.class_folders import ImageFolder
from vistrain.data.classification.module import ClassificationData
from vistrain.data.classification.sources import Arrays, Split, unread_files
from vistrain.errors import DataError
from vistrain.pictures import bars, grid, save_picture
from vistrain.structures import distinct_names

SAMPLES = 16
SHOWN_CLASSES = 40  # rows of the table on a terminal; report.json has all


@dataclass
class ClassSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images: how many are listed.
        classes: name -> images, in the order of the channels; classes without any are there with 0.
        unlabelled: images of no class (multi-label sets).
        image_sizes: `width x height` -> images, the ten most frequent.
        smallest_side: of all images, pixels; 0 if none can be read.
    """

    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    image_sizes: dict[str, int] = field(default_factory=dict)
    smallest_side: int = 0


@dataclass
class ClassReport(Findings):
    """The findings of `check_classes`.

    Attributes:
        splits: by name.
    """

    splits: dict[str, ClassSplitReport]

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        labelled = any(split.classes for split in self.splits.values())
        tables = [_summary(self.splits, labelled), *([_class_table(self.splits)] if labelled else [])]
        return Group(*tables, *_findings(self))


def check_classes(data: ClassificationData, output: str | Path) -> ClassReport:
    """Opens every image of a classification set, counts classes and sizes, and looks for what is wrong.

    Writes `report.json`, `classes-*.png` and `samples-*.png` (images with their classes).

    Args:
        data: the data module; a test split that lists the validation images is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: the output cannot be written.
    """
    data.prepare_data()  # a generated set is written on first use
    output = Path(output)
    report = ClassReport({})
    seen: dict[bytes, list[str]] = defaultdict(list)
    looked_at: set[tuple[str, ...]] = set()
    names: tuple[SplitName, ...] = ("train", "val", "test")
    for name in names:
        try:
            split, labels = data.split(name), distinct_names(data.labels.names, data.labels.ids)
        except DataError as error:
            before = report.splits.get("val")
            if name != "test" or before is None or before.problem != str(error):  # else said already
                report.splits[name] = ClassSplitReport(problem=str(error))
            continue
        files = _file_names(split)
        if tuple(files) in looked_at:
            continue
        looked_at.add(tuple(files))
        found = _count(split, labels)
        found.refused += data.refusals(name, len(split))
        if isinstance(data, ImageFolder) and (lost := unread_files(data.folder(name))):
            problem = f"{len(lost)} pictures are of formats that are not read (first: {lost[0]})"
            found.refused.append(str(DataError(str(data.folder(name)), problem, "save them as JPEG or PNG")))
        report.splits[name] = found
        for file, digest in _open_all(split, files, name, found):
            seen[digest].append(f"{name}: {file}")
        report.pictures += _draw(split, files, labels, name, found, output)
    report.note_copies(seen)
    write_report(report.to_dict(), output)
    return report


def _file_names(split: Split) -> list[str]:
    """A name for each image; those of one file (CIFAR, MNIST) are numbered."""
    paths = [str(split.source.path(i)) for i in range(len(split))]
    several = isinstance(split.source, Arrays) or len(set(paths)) < len(paths)
    return [f"{path}[{i}]" for i, path in enumerate(paths)] if several else paths


def _count(split: Split, labels: Sequence[str]) -> ClassSplitReport:
    counts = Counter(split.labels.tolist())
    return ClassSplitReport(
        images=len(split),
        classes={name: counts[i] for i, name in enumerate(labels)},
        unlabelled=int((np.diff(split.first) == 0).sum()),
    )


def _open_all(split: Split, files: list[str], name: str, found: ClassSplitReport) -> list[tuple[str, bytes]]:
    """File names and pixel hashes of readable images; the others and the sizes go to `found`."""

    def open_one(index: int) -> tuple[bytes, tuple[int, int], bool]:
        pixels = split.source.open(index).decode()
        several = not isinstance(split.source, Arrays) and has_several(split.source.path(index))
        return pixel_hash(pixels), (pixels.shape[0], pixels.shape[1]), several

    sizes: Counter[tuple[int, int]] = Counter()
    good = []
    for index, result in opened(range(len(split)), open_one, f"opening {name}"):
        if isinstance(result, DataError):
            found.bad_files[files[index]] = result.problem
        else:
            good.append((files[index], result[0]))
            sizes[result[1]] += 1
            found.several += [files[index]] if result[2] else []
    found.image_sizes = {f"{w} x {h}": n for (h, w), n in sizes.most_common(10)}
    found.smallest_side = min((min(size) for size in sizes), default=0)
    return good


def _draw(
    split: Split, files: list[str], labels: tuple[str, ...], name: str, found: ClassSplitReport, output: Path
) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    most_first = dict(sorted(found.classes.items(), key=lambda item: -item[1]))
    written = []
    if most_first:
        written.append(str(bars(most_first, output / f"classes-{name}.png", f"{name}: images per class", "images")))
    good = [i for i, file in enumerate(files) if file not in found.bad_files]
    chosen = sorted(np.random.default_rng(0).permutation(good)[:SAMPLES].tolist())  # the same ones each time
    tiles = [split.source.open(i).decode() for i in chosen]
    captions = [", ".join(labels[k] for k in split.of(i)) or "(none)" for i in chosen]
    starts = range(0, len(tiles), 4)
    picture = grid([tiles[i : i + 4] for i in starts], [captions[i : i + 4] for i in starts])
    save_picture(picture, output / f"samples-{name}.png")
    return [*written, str(output / f"samples-{name}.png")]


def _summary(splits: dict[str, ClassSplitReport], labelled: bool) -> Table:
    """A row for each fact; those of classes only where there are any."""
    table = Table(title="data", title_justify="left")
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")
    rows: dict[str, list[str]] = {
        "images": [f"{s.images:,}" for s in splits.values()],
        "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits.values()],
        "most frequent size": [next(iter(s.image_sizes), "-") for s in splits.values()],
        "smallest side, pixels": [str(s.smallest_side or "-") for s in splits.values()],
    }
    if labelled:
        rows["classes, of these empty"] = [f"{len(s.classes):,}, {_empty(s):,}" for s in splits.values()]
        rows["images of the largest / smallest class"] = [_spread(s) for s in splits.values()]
    if labelled and any(s.unlabelled for s in splits.values()):
        rows["images of no class"] = [f"{s.unlabelled:,}" for s in splits.values()]
    for title, cells in rows.items():
        table.add_row(title, *cells)
    return table


def _empty(split: ClassSplitReport) -> int:
    return sum(n == 0 for n in split.classes.values())


def _spread(split: ClassSplitReport) -> str:
    counts = split.classes.values()
    return f"{max(counts):,} / {min(counts):,}" if counts else "-"


def _class_table(splits: dict[str, ClassSplitReport]) -> Table:
    """The classes of most images, and all that are empty somewhere."""
    names = list(dict.fromkeys(name for split in splits.values() for name in split.classes))
    if len(names) > SHOWN_CLASSES:
        totals = {n: sum(s.classes.get(n, 0) for s in splits.values()) for n in names}
        ranked = sorted(names, key=lambda n: -totals[n])
        half = SHOWN_CLASSES // 2
        kept = {*ranked[:half], *ranked[-half:]}
        title = f"images per class: the {half} largest and the {half} smallest of {len(names)}"
        names = [n for n in ranked if n in kept]
    else:
        title = "images per class"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in splits:
        table.add_column(name, justify="right")
    for name in names:
        counts = [split.classes.get(name, 0) for split in splits.values()]
        table.add_row(escape(name), *(f"{n:,}" if n else "[yellow]0[/]" for n in counts))
    return table


def _findings(report: ClassReport) -> list[str]:
    lines = []
    for name, split in report.splits.items():
        lines += refusals(name, split)
        missing = [n for n, count in split.classes.items() if not count]
        if missing:
            first = escape(", ".join(missing[:5]))
            lines.append(f"[yellow]{name}[/]: {len(missing)} classes have no images: {first}")
        if split.repeated:
            count = len(split.repeated)
            lines.append(
                f"[yellow]{name}[/]: {count} images are there more than once, e.g. {shown(split.repeated[:1])}"
            )
    if report.leaks:
        lines.append(f"[yellow]{len(report.leaks)} images are in more than one split[/]: {shown(report.leaks)}")
    return lines
