"""Looking at a detection set before a GPU is spent on it: every file is opened, every box counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table

from vistrain.data.base.check import (
    Findings,
    SplitFindings,
    opened,
    pixel_hash,
    shown,
    unreadable,
    write_report,
)
from vistrain.data.base.images import read_listed_image
from vistrain.data.base.module import SplitName
from vistrain.data.detection.coco import Annotations, Listing, Problems, targets
from vistrain.data.detection.module import BoxedImages, DetectionData
from vistrain.errors import DataError
from vistrain.pictures import bars, class_colours, draw_boxes, grid, histogram
from vistrain.writing import whole_file

SMALL, LARGE = 32**2, 96**2  # pixels; pycocotools' bounds between small, medium and large objects
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
SAMPLES = 12


@dataclass
class SplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images, empty_images: all listed images, and those without a trainable object.
        objects, crowds: annotations that are trained on, and crowd regions.
        classes: name -> objects, in the order of category ids; classes without any are there with 0.
        sizes: `small`, `medium`, `large` -> objects, by COCO's areas.
        box_side: quantile -> square root of the box area, pixels.
        objects_per_image: quantile -> count.
        image_sizes: `width x height` -> images, the ten most frequent.
        problems: what cleaning skipped or mended.
    """

    images: int
    empty_images: int
    objects: int
    crowds: int
    classes: dict[str, int]
    sizes: dict[str, int]
    box_side: dict[str, float]
    objects_per_image: dict[str, float]
    image_sizes: dict[str, int]
    problems: Problems = field(default_factory=Problems)


@dataclass
class Report(Findings):
    """The findings of `check_boxes`.

    Attributes:
        splits: by name.
    """

    splits: dict[str, SplitReport]

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        return Group(_summary(self.splits), _class_table(self.splits), *_findings(self))


def check_boxes(data: DetectionData, output: str | Path) -> Report:
    """Opens every file of a detection set, counts classes and sizes, and looks for what is wrong.

    Writes `report.json`, `samples-*.png` (images with their boxes), `classes-*.png` and `box-sizes-*.png`.

    Args:
        data: the data module; a test split that is the validation split is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: an annotation file is missing or refused (see `data.coco`), or the output cannot be written.
    """
    output = Path(output)
    names: list[SplitName] = ["train", "val"]
    if not data.tests_on_val():
        names.append("test")
    report = Report({})
    seen: dict[bytes, list[str]] = defaultdict(list)
    for name in names:
        coco = data.listing(name)
        found = targets(coco, keep_empty=True)
        split = _count(coco, found)
        report.splits[name] = split
        for file, digest in _open_all(data, name, found, split.bad_files):
            seen[digest].append(f"{name}: {file}")
        report.pictures += _draw(data, name, found, split, output)
    report.note_copies(seen)
    write_report(report.to_dict(), output)
    return report


def _count(coco: Listing, found: Annotations) -> SplitReport:
    entries = [a for group in coco.annotations.values() for a in group]
    areas = np.array([a["area"] for a in entries if not a["iscrowd"]], np.float64)
    per_class = Counter(found.categories.tolist())
    boxes = found.boxes.astype(np.float64)
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    per_image = np.diff(found.first)
    image_sizes = Counter(f"{w} x {h}" for h, w in found.sizes.tolist())
    return SplitReport(
        images=len(found),
        empty_images=int((per_image == 0).sum()),
        objects=len(boxes),
        crowds=sum(a["iscrowd"] for a in entries),
        classes={coco.categories[i]: per_class[i] for i in sorted(coco.categories)},
        sizes={
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < LARGE)).sum()),
            "large": int((areas >= LARGE).sum()),
        },
        box_side=_quantiles(sides),
        objects_per_image=_quantiles(per_image),
        image_sizes=dict(image_sizes.most_common(10)),
        problems=coco.problems,
    )


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, QUANTILES).round(1).tolist() if len(values) else []
    return dict(zip((f"{q:.0%}" for q in QUANTILES), found, strict=False))


def _open_all(
    data: DetectionData, name: SplitName, found: Annotations, bad: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    """File names and pixel hashes of readable images; the others go to `bad`."""

    def open_one(item: tuple[str, list[int]]) -> bytes:
        file, (height, width) = item
        return pixel_hash(read_listed_image(data.folder(name) / file, height, width, data.exif))

    items = list(zip(found.files, found.sizes.tolist(), strict=True))
    for (file, _), result in opened(items, open_one, f"opening {name}"):
        if isinstance(result, DataError):
            bad[file] = result.problem
        else:
            yield file, result


def _draw(data: DetectionData, name: SplitName, found: Annotations, split: SplitReport, output: Path) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    classes, sizes = output / f"classes-{name}.png", output / f"box-sizes-{name}.png"
    written = [str(_samples(data, name, found, split, output / f"samples-{name}.png"))]
    if split.objects:
        most_first = dict(sorted(split.classes.items(), key=lambda item: -item[1]))
        written.append(str(bars(most_first, classes, f"{name}: objects per class", "objects")))
        boxes = found.boxes
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        axis = "square root of the box area, pixels"
        written.append(str(histogram(sides.tolist(), sizes, f"{name}: box sizes", axis)))
    return written


def _samples(data: DetectionData, name: SplitName, found: Annotations, split: SplitReport, path: Path) -> Path:
    labels = data.agreed_labels(name)
    dataset = BoxedImages(found, data.folder(name), labels, data.eval_transform, data.exif)
    good = [i for i, file in enumerate(found.files) if file not in split.bad_files]
    chosen = np.random.default_rng(0).permutation(good)[:SAMPLES].tolist()  # the same ones each time
    tiles, captions = [], []
    for index in sorted(chosen):
        sample = dataset.read(index)
        colours = class_colours(labels)
        tiles.append(draw_boxes(sample.image, sample.boxes, sample.labels, names=labels.name_of, colours=colours))
        captions.append(found.files[index])
    starts = range(0, len(tiles), 4)
    picture = grid([tiles[i : i + 4] for i in starts], [captions[i : i + 4] for i in starts])
    with whole_file(path) as partial:
        Image.fromarray(picture).save(partial, format="png")
    return path


def _summary(splits: dict[str, SplitReport]) -> Table:
    table = Table(title="data", title_justify="left")
    table.add_column("")
    for name in splits:
        table.add_column(name, justify="right")
    rows: dict[str, list[str]] = {
        "images": [f"{s.images:,}" for s in splits.values()],
        "of these without objects": [f"{s.empty_images:,}" for s in splits.values()],
        "unreadable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits.values()],
        "objects": [f"{s.objects:,}" for s in splits.values()],
        "small / medium / large": [" / ".join(f"{n:,}" for n in s.sizes.values()) for s in splits.values()],
        "crowd regions": [f"{s.crowds:,}" for s in splits.values()],
        "objects per image, median (most)": [_spread(s.objects_per_image) for s in splits.values()],
        "box side in pixels, median (largest)": [_spread(s.box_side) for s in splits.values()],
    }
    for title, cells in rows.items():
        table.add_row(title, *cells)
    return table


def _spread(quantiles: dict[str, float]) -> str:
    return f"{quantiles['50%']:g} ({quantiles['100%']:g})" if quantiles else "-"


def _class_table(splits: dict[str, SplitReport]) -> Table:
    table = Table(title="objects per class", title_justify="left")
    table.add_column("class")
    for name in splits:
        table.add_column(name, justify="right")
    names = list(dict.fromkeys(name for split in splits.values() for name in split.classes))
    for name in names:
        counts = [split.classes.get(name, 0) for split in splits.values()]
        table.add_row(name, *(f"{n:,}" if n else "[yellow]0[/]" for n in counts))
    return table


def _findings(report: Report) -> list[str]:
    lines = []
    for name, split in report.splits.items():
        lines += unreadable(name, split.bad_files)
        lines += [f"[yellow]{name}[/]: {line}" for line in str(split.problems).split("; ") if line]
        if split.repeated:
            count, first = len(split.repeated), " = ".join(split.repeated[0])
            lines.append(f"[yellow]{name}[/]: {count} images are there more than once, e.g. {first}")
    if report.leaks:
        lines.append(f"[yellow]{len(report.leaks)} images are in more than one split[/]: {shown(report.leaks)}")
    return lines
