"""Looking at images with instances before a GPU is spent on them: every file is opened, every mask decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from vistrain.data.base.check import MOST, Findings, SplitFindings, opened, pixel_hash, refusals, shown, write_report
from vistrain.data.base.images import has_several, read_listed_image
from vistrain.data.base.module import SplitName
from vistrain.data.base.storage import is_folder
from vistrain.data.coco.mask_check import check_masks
from vistrain.data.coco.reader import (
    Annotations,
    Listing,
    Problems,
    disagreements,
    examined,
    read_content,
    targets,
)
from vistrain.data.coco.trainable import refuse_untrainable, share_without_masks
from vistrain.data.segmentation.instances import InstanceFolders, InstanceImages
from vistrain.errors import DataError
from vistrain.pictures import bars, class_colours, draw_masks, grid, legend
from vistrain.structures import LabelSpace, left_out
from vistrain.writing import whole_file

SAMPLES = 6


@dataclass
class InstanceSplitReport(SplitFindings):
    """What a split holds.

    Attributes:
        images: that a run takes.
        objects, crowds: those with a mask that are trained on (in evaluation: found), and crowd regions.
        classes: name -> objects.
        problems: what reading skipped or mended, and masks that are odd.
        without_masks: how many objects are not trained for want of a mask, where that is most of them.
    """

    images: int = 0
    objects: int = 0
    crowds: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)
    without_masks: str = ""


@dataclass
class InstanceReport(Findings):
    """The findings of `check_instances`.

    Attributes:
        splits: by name.
    """

    splits: dict[str, InstanceSplitReport]

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        lines = []
        for name, split in self.splits.items():
            lines += refusals(name, split)
            lines += [f"[yellow]{name}[/]: {escape(line)}" for line in str(split.problems).split("; ") if line]
            lines += [f"[yellow]{name}[/]: {split.without_masks}"] if split.without_masks else []
        if self.leaks:
            lines.append(f"[yellow]in several splits[/]: {len(self.leaks)} images, such as {shown(self.leaks)}")
        return Group(*_summary(self), *lines)


def check_instances(data: InstanceFolders, output: str | Path) -> InstanceReport:
    """Opens every file of a set, and decodes every mask.

    Writes `report.json`, `classes-*.png` (objects of each class) and `samples-*.png` (images under their masks).

    Args:
        data: the data module; a test split that is the validation split is not looked at twice.
        output: folder for the files, made if absent.

    Raises:
        DataError: the output cannot be written.
    """
    output, report = Path(output), InstanceReport({})
    seen: dict[bytes, list[str]] = {}
    wanted = data.known()
    names: list[SplitName] = ["train", "val", "test"]
    for name in names:
        if name == "test" and data.splits["test"] == data.splits["val"]:
            continue
        found = report.splits[name] = InstanceSplitReport()
        where = data.splits[name]
        path, folder = data.root / where.annotations, data.root / where.images
        try:
            if not is_folder(folder):
                raise DataError(str(folder), "no such folder of images", data.remedy(name))
            listing, faults = examined(read_content(path), path)
        except DataError as error:
            found.problem = str(error)
            continue
        training = name == "train"
        objects = targets(listing, keep_empty=not training, masks=True)
        _count(found, listing, objects)
        found.without_masks = share_without_masks(listing.problems, objects) if training else ""
        found.refused += [str(fault) for fault in faults]
        if not faults:
            found.refused += _refused(data, name, listing, objects, wanted)
            wanted = wanted or listing.categories
        for digest, file in _open_all(objects, folder, name, found):
            seen.setdefault(digest, []).append(f"{name}: {file}")
        if not found.refused:
            report.pictures += _draw(data, objects, folder, listing, name, found, output)
    report.note_copies(seen)
    write_report(report.to_dict(), output)
    return report


def _count(found: InstanceSplitReport, listing: Listing, objects: Annotations) -> None:
    per_class = Counter(objects.categories.tolist())
    found.images, found.objects = len(objects), len(objects.boxes)
    found.crowds = sum(a["iscrowd"] for entries in listing.annotations.values() for a in entries)
    found.classes = {name: per_class[i] for i, name in listing.categories.items()}
    found.problems = listing.problems


def _refused(
    data: InstanceFolders, name: SplitName, listing: Listing, objects: Annotations, wanted: dict[int, str]
) -> list[str]:
    """What a run would refuse of a file in which every entry is right."""
    refused = [str(error) for error in disagreements(wanted or listing.categories, listing.path, listing.categories)]
    if name == "train":
        try:
            refuse_untrainable(listing.path, listing.problems, objects)
        except DataError as error:
            return [*refused, str(error)]
    elif len(objects) and not len(objects.boxes):
        problem = "has no object with a mask: every number of an evaluation would be -1"
        refused.append(str(DataError(str(listing.path), problem, "name annotations, or another split")))
    return refused + data.refusals(name, len(objects)) + check_masks(listing, measured=name != "train")


def _open_all(objects: Annotations, folder: Path, name: str, found: InstanceSplitReport) -> list[tuple[bytes, str]]:
    """Fill a split's report; returns hashes of the images with their files."""

    def look(item: tuple[str, list[int]]) -> tuple[bytes, bool]:
        file, (height, width) = item
        return pixel_hash(read_listed_image(folder / file, height, width)), has_several(folder / file)

    hashes = []
    for (file, _), seen in opened(
        list(zip(objects.files, objects.sizes.tolist(), strict=True)), look, f"opening {name}"
    ):
        if isinstance(seen, DataError):
            found.bad_files[str(folder / file)] = seen.problem
        else:
            hashes.append((seen[0], str(folder / file)))
            found.several += [str(folder / file)] if seen[1] else []
    return hashes


def _draw(
    data: InstanceFolders,
    objects: Annotations,
    folder: Path,
    listing: Listing,
    name: str,
    found: InstanceSplitReport,
    output: Path,
) -> list[str]:
    """Writes a split's pictures; returns their paths."""
    written = []
    if found.objects:
        ordered = dict(sorted(found.classes.items(), key=lambda item: -item[1])[:40])
        path = output / f"classes-{name}.png"
        written.append(str(bars({n: float(c) for n, c in ordered.items()}, path, f"{name}: objects of each class")))
    labels = LabelSpace(tuple(listing.categories.values()), tuple(listing.categories))
    colours = class_colours(labels)
    samples = InstanceImages(objects, folder, labels.channel_of, data.eval_transform)
    rows: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    for index in np.random.default_rng(0).permutation(len(objects)).tolist():  # the same ones each time
        if len(rows) == SAMPLES or str(folder / objects.files[index]) in found.bad_files:
            continue
        sample = samples.sample(index)
        drawn = draw_masks(sample.image, sample.masks.packed(), sample.labels.tolist(), colours)
        shown = sorted(set(sample.labels.tolist()))
        line = legend(labels.name_of, colours, shown, drawn.shape[1], "nothing annotated")
        rows.append([sample.image, np.concatenate([drawn, line])])
        captions.append([objects.files[index], f"{len(sample.labels)} objects"])
    if rows:
        with whole_file(output / f"samples-{name}.png") as partial:
            Image.fromarray(grid(rows, captions)).save(partial, format="png")
        written.append(str(output / f"samples-{name}.png"))
    return written


def _summary(report: InstanceReport) -> list[RenderableType]:
    table = Table(title="instances", title_justify="left")
    table.add_column("")
    for name in report.splits:
        table.add_column(name, justify="right")
    splits = report.splits.values()
    rows = {
        "images": [f"{s.images:,}" for s in splits],
        "unusable": [f"[red]{len(s.bad_files):,}[/]" if s.bad_files else "0" for s in splits],
        "objects": [f"{s.objects:,}" for s in splits],
        "crowd regions": [f"{s.crowds:,}" for s in splits],
    }
    for title, cells in rows.items():
        table.add_row(title, *cells)
    table.add_section()
    names = list(dict.fromkeys(name for split in splits for name in split.classes))
    classes = [name for name in names if any(split.classes.get(name) for split in splits)]
    for name in classes[: 2 * MOST]:
        counts = [split.classes.get(name, 0) for split in splits]
        table.add_row(f"  {escape(name)}", *(f"{n:,}" if n else "[yellow]0[/]" for n in counts))
    if len(classes) > 2 * MOST:
        table.add_row(f"  and {len(classes) - 2 * MOST} more, see report.json", *[""] * len(report.splits))
    return [table, *left_out(len(names) - len(classes))]
