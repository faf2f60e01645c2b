"""Looking at a detection set before a GPU is spent on it: every file is opened, every box counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
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
from vistrain.data.base.images import has_several, image_orientation, read_listed_image
from vistrain.data.base.module import SplitName
from vistrain.data.coco.mask_check import check_masks
from vistrain.data.coco.reader import (
    Annotations,
    Listing,
    Problems,
    disagreements,
    examined,
    targets,
)
from vistrain.data.coco.trainable import refuse_untrainable, share_without_masks
from vistrain.data.detection.module import BoxedImages, DetectionData
from vistrain.errors import DataError
from vistrain.pictures import bars, class_colours, draw_boxes, draw_masks, grid, histogram, save_picture
from vistrain.structures import LabelSpace, distinct_names, left_out

SMALL, LARGE = 32**2, 96**2  # pixels; pycocotools' bounds between small, medium and large objects
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
SAMPLES = 12


@dataclass
class SplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images, empty_images: all listed images, and those without a trainable object.
        objects, crowds: annotations that are trained on, and crowd regions.
        classes: name -> objects, in the order of category ids; classes without any are there with 0. Of classes of one
            name all but one have their id in theirs, see `distinct_names`.
        category_ids: name -> category id.
        sizes: `small`, `medium`, `large` -> objects, by COCO's areas.
        box_side: quantile -> square root of the box area, pixels.
        objects_per_image: quantile -> count.
        image_sizes: `width x height` -> images, the ten most frequent.
        problems: what cleaning skipped or mended.
        turned: photographs with objects that EXIF turns and whose listed size does not tell how they were annotated.
        without_masks: how many objects are not trained for want of a mask, where that is most of them.
    """

    images: int = 0
    empty_images: int = 0
    objects: int = 0
    crowds: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    category_ids: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: {"small": 0, "medium": 0, "large": 0})
    box_side: dict[str, float] = field(default_factory=dict)
    objects_per_image: dict[str, float] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)
    turned: list[str] = field(default_factory=list)
    without_masks: str = ""


@dataclass
class Report(Findings):
    """The findings of `check_boxes`.

    Attributes:
        splits: by name.
    """

    splits: dict[str, SplitReport]

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        return Group(_summary(self.splits), *_class_table(self.splits), *_findings(self))


def check_boxes(data: DetectionData, output: str | Path) -> Report:
    """Opens every file of a detection set, counts classes and sizes, and looks for what is wrong.

    Writes `report.json`, `samples-*.png` (images with their boxes, and masks where they are read), `classes-*.png`,
    `box-sizes-*.png` and
    `turned-*.png` (both readings of photographs whose annotations do not tell whether EXIF turns them).

    Args:
        data: the data module; a test split that is the validation split is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: the output cannot be written.
    """
    output = Path(output)
    names: list[SplitName] = ["train", "val"]
    if not data.tests_on_val():
        names.append("test")
    report = Report({})
    classes: dict[int, str] = {}
    seen: dict[bytes, list[str]] = defaultdict(list)
    known: dict[int, str] | None = None  # the classes of training
    for name in names:
        try:
            data.require(name)
            listing, faults = examined(data.read(name), data.annotation_file(name), annotations=name != "test")
            listing = data.chosen(listing)
        except DataError as error:
            report.splits[name] = SplitReport(problem=str(error))
            continue
        found = targets(listing, keep_empty=True, masks=data.masks)
        classes = classes or _distinct(listing, found)  # those of the training split
        named = {i: classes.get(i, listing.categories[i]) for i in sorted(listing.categories)}
        split = _count(listing, found, named)
        report.splits[name] = split
        split.refused = [str(fault) for fault in faults] or _refused(data, name, listing, found, split)
        if name == "train":
            split.without_masks = share_without_masks(listing.problems, found)
        if data.masks and not faults:
            split.refused += check_masks(listing, measured=name != "train")
        if name == "train" and not faults:
            known = listing.categories
        elif known is not None and not faults:
            split.refused += [str(error) for error in disagreements(known, listing.path, listing.categories)]
        for file, digest in _open_all(data, name, found, split):
            seen[digest].append(f"{name}: {file}")
        report.pictures += _draw(data, name, found, listing, split, output)
    report.note_copies(seen)
    write_report(report.to_dict(), output)
    return report


def _distinct(coco: Listing, found: Annotations) -> dict[int, str]:
    """Category id -> a name that no other has, by id."""
    ids, counts = sorted(coco.categories), Counter(found.categories.tolist())
    names = distinct_names([coco.categories[i] for i in ids], ids, [counts[i] for i in ids])
    return dict(zip(ids, names, strict=True))


def _count(coco: Listing, found: Annotations, classes: dict[int, str]) -> SplitReport:
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
        classes={name: per_class[i] for i, name in classes.items()},
        category_ids={name: i for i, name in classes.items()},
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


def _refused(
    data: DetectionData, name: SplitName, listing: Listing, found: Annotations, split: SplitReport
) -> list[str]:
    """What a run would refuse of a file in which every entry is right."""
    with_objects = split.images - split.empty_images
    if name == "train":
        try:
            refuse_untrainable(listing.path, listing.problems, found)
        except DataError as error:
            return [str(error)]
    refused = data.refusals(name, with_objects if name == "train" and not data.keep_empty else split.images)
    if name == "val" and split.images and not split.objects:
        problem = "has no object: every number of an evaluation would be -1"
        refused.append(str(DataError(str(listing.path), problem, "name annotations, or another split")))
    return refused


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, QUANTILES).round(1).tolist() if len(values) else []
    return dict(zip((f"{q:.0%}" for q in QUANTILES), found, strict=False))


def _open_all(
    data: DetectionData, name: SplitName, found: Annotations, split: SplitReport
) -> Iterator[tuple[str, bytes]]:
    """File names and pixel hashes of readable images; the others, and what is odd, go to `split`."""

    def open_one(item: tuple[str, list[int], int]) -> tuple[bytes, bool, bool]:
        file, (height, width), objects = item
        path = data.folder(name) / file
        pixels = read_listed_image(path, height, width, data.exif)
        orientation = image_orientation(path) if data.exif == "auto" and objects else 1
        # Half turns and mirrors keep the size, a square all turns
        turned = orientation in (2, 3, 4) or (orientation > 4 and height == width)
        return pixel_hash(pixels), turned, has_several(path)

    items = list(zip(found.files, found.sizes.tolist(), np.diff(found.first).tolist(), strict=True))
    for (file, _, _), result in opened(items, open_one, f"opening {name}"):
        if isinstance(result, DataError):
            split.bad_files[file] = result.problem
        else:
            split.turned += [file] if result[1] else []
            split.several += [file] if result[2] else []
            yield file, result[0]


def _draw(
    data: DetectionData, name: SplitName, found: Annotations, listing: Listing, split: SplitReport, output: Path
) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    classes, sizes = output / f"classes-{name}.png", output / f"box-sizes-{name}.png"
    written = []
    if len(split.bad_files) < split.images and listing.categories:
        ids = sorted(listing.categories)
        labels = LabelSpace(tuple(listing.categories[i] for i in ids), tuple(ids))
        written.append(str(_samples(data, name, found, split, labels, output / f"samples-{name}.png")))
        if split.turned:
            written.append(str(_both_readings(data, name, found, split, labels, output / f"turned-{name}.png")))
    if split.objects:
        most_first = dict(sorted(split.classes.items(), key=lambda item: -item[1]))
        written.append(str(bars(most_first, classes, f"{name}: objects per class", "objects")))
        boxes = found.boxes
        sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        axis = "square root of the box area, pixels"
        written.append(str(histogram(sides.tolist(), sizes, f"{name}: box sizes", axis)))
    return written


def _samples(
    data: DetectionData, name: SplitName, found: Annotations, split: SplitReport, labels: LabelSpace, path: Path
) -> Path:
    dataset = BoxedImages(found, data.folder(name), labels, data.eval_transform, data.exif)
    good = [i for i, file in enumerate(found.files) if file not in split.bad_files]
    chosen = np.random.default_rng(0).permutation(good)[:SAMPLES].tolist()  # the same ones each time
    tiles, captions = [], []
    for index in sorted(chosen):
        try:
            sample = dataset.read(index)
        except DataError:  # a damaged mask, which is said elsewhere
            continue
        colours, image = class_colours(labels), sample.image
        if sample.masks is not None:
            image = draw_masks(image, sample.masks.packed(), sample.labels.tolist(), colours)
        tiles.append(draw_boxes(image, sample.boxes, sample.labels, names=labels.name_of, colours=colours))
        captions.append(found.files[index])
    starts = range(0, len(tiles), 4)
    picture = grid([tiles[i : i + 4] for i in starts], [captions[i : i + 4] for i in starts])
    save_picture(picture, path)
    return path


def _both_readings(
    data: DetectionData, name: SplitName, found: Annotations, split: SplitReport, labels: LabelSpace, path: Path
) -> Path:
    """Photographs that EXIF turns, with their boxes: as stored, which is how a run reads them, and as turned."""
    rows: list[list[np.ndarray]] = []
    captions = []
    for index in [i for i, file in enumerate(found.files) if file in set(split.turned)][: SAMPLES // 2]:
        rows.append([])
        for exif in ("ignore", "apply"):
            sample = BoxedImages(found, data.folder(name), labels, data.eval_transform, exif).read(index)
            colours = class_colours(labels)
            drawn = draw_boxes(sample.image, sample.boxes, sample.labels, names=labels.name_of, colours=colours)
            rows[-1].append(drawn)
        captions.append([f"{found.files[index]}: as stored", "turned: data.exif=apply"])
    save_picture(grid(rows, captions), path)
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


def _class_table(splits: dict[str, SplitReport]) -> list[RenderableType]:
    """Objects of the classes that have any in a split, and how many have none."""
    table = Table(title="objects per class", title_justify="left")
    table.add_column("class")
    for name in splits:
        table.add_column(name, justify="right")
    names = list(dict.fromkeys(name for split in splits.values() for name in split.classes))
    there = [name for name in names if any(split.classes.get(name) for split in splits.values())]
    for name in there:
        counts = [split.classes.get(name, 0) for split in splits.values()]
        table.add_row(escape(name), *(f"{n:,}" if n else "[yellow]0[/]" for n in counts))
    return [*([table] if there else []), *left_out(len(names) - len(there))]


def _findings(report: Report) -> list[str]:
    lines = []
    for name, split in report.splits.items():
        lines += refusals(name, split)
        lines += _about_classes(name, split) if name == "train" else []
        lines += [f"[yellow]{name}[/]: {escape(line)}" for line in str(split.problems).split("; ") if line]
        lines += [f"[yellow]{name}[/]: {split.without_masks}"] if split.without_masks else []
        if split.turned:
            count, first = len(split.turned), escape(", ".join(split.turned[:3]))
            lines.append(
                f"[yellow]{name}[/]: {count} photographs are turned by EXIF, and their size does not tell whether "
                f"their boxes are, too ({first}) - compare turned-{name}.png; data.exif=apply reads them upright"
            )
        if split.repeated:
            count, first = len(split.repeated), " = ".join(split.repeated[0])
            lines.append(f"[yellow]{name}[/]: {count} images are there more than once, e.g. {escape(first)}")
    if report.leaks:
        lines.append(f"[yellow]{len(report.leaks)} images are in more than one split[/]: {shown(report.leaks)}")
    return lines


def _about_classes(name: str, split: SplitReport) -> list[str]:
    """Lines about classes that nothing can be learned of, and classes of one name."""
    lines, ids = [], split.category_ids
    shared = [f"{n.removesuffix(f' (id {i})')!r} ({i})" for n, i in ids.items() if n.endswith(f" (id {i})")]
    if shared:
        said = escape(", ".join(shared[:10]))
        lines.append(f"[yellow]{name}[/]: categories that share their name with another one: {said}")
    empty = [n for n, count in split.classes.items() if not count]
    if empty and len(empty) < len(ids):
        names, some = escape(", ".join(empty[:10])), ",".join(str(ids[n]) for n in empty[:10])
        remedy = f"data.leave_out=[{some}{',...' if len(empty) > 10 else ''}] reads without them"
        lines.append(f"[yellow]{name}[/]: classes without objects: {names} - {escape(remedy)}")
    return lines
