"""From an export to files in COCO's format, or to label files: every picture is opened, every box looked at, and
what is skipped is said."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vistrain.data.base.check import opened
from vistrain.data.base.images import image_orientation, image_size
from vistrain.data.importing.coco_export import read_coco_export
from vistrain.data.importing.cvat import read_cvat
from vistrain.data.importing.export import Export, Labelled, Options, Placed, Shape, Size, printable
from vistrain.data.importing.label_studio import read_label_studio
from vistrain.data.importing.labelme import read_labelme
from vistrain.data.importing.outlines import CLASS_FILE, MASKS, USUAL, Overlap, refuse_surrogates, write_masks
from vistrain.data.importing.voc import read_voc
from vistrain.data.importing.yolo import read_yolo
from vistrain.errors import DataError
from vistrain.metrics.coco_masks import plain_runs
from vistrain.writing import whole_file

READERS: Mapping[str, Callable[[Path, Options], Export]] = {
    "coco": read_coco_export,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "labelstudio": read_label_studio,
    "voc": read_voc,
    "yolo": read_yolo,
}
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
DIGITS = 3  # of coordinates, pixels
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".7z", ".rar")
SKIPPED = "skipped.txt"


def import_export(
    layout: str,
    source: Path,
    output: Path,
    options: Options,
    splits: Sequence[str] = (),
    share: float = 0.2,
    masks: Overlap | Literal["usual"] | None = None,
) -> list[str]:
    """Read an export and write `<output>/<split>.json` for each of its splits, in COCO's format; or label files.

    Pictures stay where they are. Ids do not depend on the order of reading: categories are numbered from 1, images
    from 1 in the order of their names over all splits, annotations from 1 within each split. What was skipped is
    counted, and listed item by item in `<output>/skipped.txt`.

    Args:
        layout: a key of `READERS`.
        source: the file or folder.
        output: folder for the files, made if absent.
        options: what the user says of the export.
        splits: the ones to write; all if empty.
        share: of the pictures that become `val` where the export has no splits, or `train` alone, and none are chosen;
            0 keeps it whole.
        masks: write label files instead, see `write_masks`, and which of several objects has a pixel: the `last` or the
            `smallest`; `usual`: the last, as tools draw them, but the smallest of YOLO, COCO and VOC, where an order
            means nothing.

    Returns:
        What to print, line by line.

    Raises:
        DataError: there is no such export, nothing of it can be used, or the output cannot be written.
    """
    if source.name.lower().endswith(ARCHIVES) and source.is_file():
        raise DataError(str(source), "is an archive", "unpack it, and give the folder")
    export = READERS[layout](source, options)
    _choose(export, source, splits)
    if not export.pictures:
        raise DataError(str(source), "no picture of it can be used", "; ".join(export.notes.lines(1)[:4]))
    folder = Path(os.path.abspath(options.images)) if options.images else _common(export.pictures)
    placed = _placed(export, folder)
    found = [shape.name for pictures in placed.values() for picture in pictures for shape in picture.shapes]
    if not found:
        problem = f"not one object in {sum(map(len, placed.values()))} pictures"
        raise DataError(str(source), problem, "; ".join(export.notes.lines(1)[:4]))
    classes = export.classes or sorted(set(found))
    for name in classes:
        refuse_surrogates(name, source, "the class")
    placed, divided = _divided(placed, 0 if splits else share)
    if masks is None:
        lines = _write(placed, classes, output)
    else:
        rule = USUAL.get(layout, "smallest") if masks == "usual" else masks
        lines = write_masks(placed, classes, output, rule, export.notes)
    lines += [divided] * bool(divided) + _remarks(classes, Counter(found))
    skipped = output / SKIPPED
    if export.notes.items:
        with whole_file(skipped) as partial:
            partial.write_text("".join(f"{printable(f'{k}: {i}')}\n" for k, i in export.notes.items), encoding="utf-8")
        lines += ["", f"skipped, or read in another way than it is written (all in {skipped}):"]
        lines += [f"  {line}" for line in export.notes.lines()]
    else:
        skipped.unlink(missing_ok=True)  # of an earlier attempt
    use = _config_lines(folder, output, placed) if masks is None else _mask_lines(folder, output, list(placed))
    return [*lines, "", "use it with", use]


def _choose(export: Export, source: Path, splits: Sequence[str]) -> None:
    there = {picture.split for picture in export.pictures}
    missing = [name for name in splits if name not in there]
    if missing:
        known = ", ".join(sorted(there - {""})) or "none"
        raise DataError(str(source), f"has no split {missing[0]!r}", f"there are: {known}")
    if not splits and there and there <= {"val", "test"}:  # a name that is misspelt, a folder that was not copied
        why = "; ".join(line for line in export.notes.lines(1) if "split" in line or "file" in line)
        problem = f"has {' and '.join(sorted(there))}, but nothing is there of train" + (f" ({why})" if why else "")
        raise DataError(str(source), problem, f"correct it, or write --splits {' '.join(sorted(there))}")
    export.pictures = [p for p in export.pictures if not splits or p.split in splits]
    if there - {""} and "" in there:  # some in subsets, some in none
        for picture in export.pictures:
            picture.split = picture.split or "train"


def _common(pictures: Sequence[Labelled]) -> Path:
    """The folder around all pictures."""
    return Path(os.path.commonpath([os.path.abspath(picture.path.parent) for picture in pictures]))


def _placed(export: Export, folder: Path) -> dict[str, list[Placed]]:
    """Split -> pictures, each opened."""
    paths = list(dict.fromkeys(picture.path for picture in export.pictures))
    sizes = dict(opened(paths, _sizes, "opening pictures"))
    placed: dict[str, list[Placed]] = {}
    seen: set[tuple[str, str]] = set()
    told: set[Path] = set()  # a picture may be in several splits, and what is wrong with it is said once
    for picture in export.pictures:
        name = os.path.relpath(picture.path, folder).replace(os.sep, "/")
        if name.startswith("../"):
            raise DataError(str(picture.path), f"not below the image folder {folder}", "correct --images")
        size = sizes[picture.path]
        if isinstance(size, DataError):
            export.notes.add(f"picture left out: {size.problem}", name)
        elif (picture.split, name) in seen:
            export.notes.add("picture that is there twice, the first counts", name)
        else:
            frame = _frame(picture, *size, export)
            if frame is None:
                continue
            seen.add((picture.split, name))
            shapes = [] if picture.damage.items else _inside(picture, name, frame, export)
            if not picture.damage.items:
                placed.setdefault(picture.split, []).append(Placed(name, frame, shapes))
            elif picture.path not in told:
                told.add(picture.path)
                export.notes.items += picture.damage.items
                export.notes.add("picture left out: not all of its objects can be read", name)
    return placed


def _sizes(path: Path) -> tuple[Size, Size]:
    """As stored, and upright, as viewers show it."""
    height, width = image_size(path)
    stored = (width, height) if image_orientation(path) in QUARTER_TURNS else (height, width)
    return stored, (height, width)


def _frame(picture: Labelled, stored: Size, upright: Size, export: Export) -> Size | None:
    """The size that annotations belong to; None, with a note, where they were drawn on another picture."""
    stated = picture.stated
    if export.turned or stated == upright:
        return upright
    if stated in (None, stored):
        return stored
    assert stated is not None
    item = f"{picture.path.name} ({stated[1]}x{stated[0]} stated, {stored[1]}x{stored[0]} there)"
    # On a picture of another size, pixels mean another place, even if they happen to lie in it; where it was merely
    # resized, shares stay what they are.
    is_resized = abs(stated[0] * stored[1] - stated[1] * stored[0]) < 0.01 * stated[1] * stored[0]
    if is_resized and export.shares:
        export.notes.add("size that is stated is not the picture's, which counts", item)
        return stored
    export.notes.add("picture left out: it has another size than when it was annotated", item)
    return None


def _inside(picture: Labelled, name: str, size: Size, export: Export) -> list[Shape]:
    """Objects in pixels, cut at the picture's sides; what cannot be understood is added to the picture's damage."""
    height, width = size
    scale = (width, height) if export.shares else (1, 1)
    found: dict[Shape, None] = {}
    for shape in picture.shapes:
        where = f"{shape.name or '?'} in {name}"
        raw = tuple(v * scale[i % 2] for i, v in enumerate(shape.box))
        box = tuple(round(min(max(v, 0), (width, height)[i % 2]), DIGITS) for i, v in enumerate(raw))
        if not shape.name:
            picture.damage.add("object without a class name", name)
        elif raw[2] < raw[0] or raw[3] < raw[1]:
            picture.damage.add("object that ends before it begins", where)
        elif box[2] <= box[0] or box[3] <= box[1]:
            export.notes.add("object without area in its picture, left out", where)
        elif shape.mask is not None and raw != box:
            picture.damage.add("mask that reaches outside its picture", where)
        elif shape.mask is not None and not any(shape.mask.runs[1::2]):
            export.notes.add("object without area in its picture, left out", where)
        else:
            if max(abs(a - b) for a, b in zip(raw, box, strict=True)) > 1:
                export.notes.add("object that reaches outside its picture, cut", where)
            polygons = tuple(
                tuple(round(min(max(v * scale[i % 2], 0), (width, height)[i % 2]), DIGITS) for i, v in enumerate(p))
                for p in shape.polygons
            )
            made = Shape(shape.name, (box[0], box[1], box[2], box[3]), polygons, shape.ignored, shape.mask)
            if made in found:
                export.notes.add("object that is there twice, taken once", where)
            found[made] = None
    return list(found)


def _divided(placed: dict[str, list[Placed]], share: float) -> tuple[dict[str, list[Placed]], str]:
    """A set of one split, divided by a hash of names: the same pictures each time; and what was done."""
    if len(placed) > 1:
        return placed, ""
    ((name, pictures),) = placed.items()
    count = min(max(1, round(share * len(pictures))), len(pictures) - 1) if share > 0 else 0
    if not count or name not in ("", "train"):
        return {name or "train": pictures}, ""
    drawn = sorted(pictures, key=lambda p: hashlib.blake2b(os.fsencode(p.name)).digest())
    line = (
        f"the export has {'one split' if name else 'no splits'}: {count} of {len(pictures)} pictures, drawn by their "
        "names, are val (--val 0 keeps all together; pictures of one scene belong into one split)"
    )
    return {"train": drawn[count:], "val": drawn[:count]}, line


def _write(placed: Mapping[str, Sequence[Placed]], classes: Sequence[str], output: Path) -> list[str]:
    number = {name: i for i, name in enumerate(classes, 1)}
    names = sorted({picture.name for pictures in placed.values() for picture in pictures})
    image_number = {name: i for i, name in enumerate(names, 1)}
    lines = []
    for split, pictures in placed.items():
        ordered = sorted(pictures, key=lambda p: p.name)
        annotations: list[dict[str, Any]] = []
        for picture in ordered:
            for shape in picture.shapes:
                entry = _entry(shape, picture.size, image_number[picture.name], number[shape.name])
                annotations.append({"id": len(annotations) + 1, **entry})
        images = [
            {"id": image_number[p.name], "file_name": p.name, "width": p.size[1], "height": p.size[0]} for p in ordered
        ]
        categories = [{"id": i, "name": name} for name, i in number.items()]
        with whole_file(output / f"{split}.json") as partial:
            content = {"images": images, "annotations": annotations, "categories": categories}
            partial.write_text(json.dumps(content), encoding="utf-8")
        counts, ignored = Counter(a["category_id"] for a in annotations), sum(a["iscrowd"] for a in annotations)
        per_class = ", ".join(f"{name} {counts[i]}" for name, i in number.items())
        note = f" ({ignored} to be ignored)" if ignored else ""
        line = f"{output / split}.json: {len(images)} images, {len(annotations)} objects{note}: {per_class}"
        lines.append(printable(line))
    return lines


def _entry(shape: Shape, size: Size, image: int, category: int) -> dict[str, Any]:
    left, top, right, bottom = shape.box
    bbox = [left, top, round(right - left, DIGITS), round(bottom - top, DIGITS)]
    area = sum(map(_area, shape.polygons)) or bbox[2] * bbox[3]
    segmentation: Any = [list(polygon) for polygon in shape.polygons]
    if shape.mask is not None:
        x, y, _, _ = shape.mask.box
        area = float(sum(shape.mask.runs[1::2]))
        segmentation = {"size": list(size), "counts": plain_runs(shape.mask.pixels(), y, x, size)}
    return {
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": round(area, DIGITS),
        "iscrowd": int(shape.ignored),
        "segmentation": segmentation,
    }


def _area(polygon: Sequence[float]) -> float:
    """Of x1, y1, x2, y2, ..., by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def _remarks(classes: Sequence[str], counts: Counter[str]) -> list[str]:
    folded = Counter(name.casefold() for name in classes)
    alike = [name for name in classes if folded[name.casefold()] > 1]
    empty = [name for name in classes if not counts[name]]
    lines = [f"classes without objects: {', '.join(empty)}"] * bool(empty)
    return [printable(line) for line in [*lines, *[f"classes of nearly one name: {', '.join(alike)}"] * bool(alike)]]


def _config_lines(images: Path, output: Path, placed: Mapping[str, Sequence[Placed]]) -> str:
    """The config that uses the set: of masks where every object has an outline, of boxes elsewhere."""
    chosen = _chosen(list(placed))
    pictures = [picture for split in placed.values() for picture in split]
    outlined = [shape.is_outlined for picture in pictures for shape in picture.shapes]
    base, other = ("custom_instances", "custom_coco") if all(outlined) else ("custom_coco", "custom_instances")
    lines = [f"base: vistrain:det/{base}", "data:", "  type: data.CocoDetection", f"  root: {_quoted(str(output))}"]
    if all(outlined):
        lines.insert(1, f"# every object has an outline: masks are trained; for boxes alone vistrain:det/{other}")
    elif any(outlined):
        share = f"{sum(outlined)} of {len(outlined)} objects"
        lines.insert(1, f"# {share} have an outline; vistrain:det/{other}, for masks, needs all")
    lines += [f"  {key}: {{images: {_quoted(str(images))}, annotations: {n}.json}}" for key, n in chosen.items()]
    train, val = ({picture.name for picture in placed[chosen[key]]} for key in ("train", "val"))
    if train == val:
        lines.append("  # train and val are the same pictures here: numbers of val say nothing about others")
    elif common := len(train & val):
        lines.append(f"  # {common} pictures of val are in train, too: numbers of val say little about others")
    return printable_lines(lines)


def _mask_lines(images: Path, output: Path, splits: Sequence[str]) -> str:
    """The config that uses label files."""
    chosen = _chosen(splits)
    lines = ["base: vistrain:seg/custom_masks", "data:", f"  root: {_quoted(str(output.absolute()))}"]
    for key, name in chosen.items():
        lines.append(f"  {key}: {{images: {_quoted(str(images))}, masks: {MASKS}, names: {name}.txt}}")
    lines += [f"  classes: {CLASS_FILE}", "  # what belongs to no object is the class 0, background; if that is only"]
    lines.append("  # what nobody labelled: take it out of the class file, and add ignore: [0, 255]")
    return printable_lines(lines)


def _chosen(splits: Sequence[str]) -> dict[str, str]:
    """Key of the config -> the split that it names."""
    chosen = {key: key for key in ("train", "val", "test") if key in splits}
    if "train" not in chosen or "val" not in chosen:
        chosen = {"train": chosen.get("train", splits[0]), "val": chosen.get("val", splits[-1]), **chosen}
    return chosen


def printable_lines(lines: Sequence[str]) -> str:
    """Lines without what no stream takes, their indents kept."""
    return "\n".join(line.encode("utf-8", "backslashreplace").decode() for line in lines)


def _quoted(path: str) -> str:
    """A path as a YAML value."""
    return path if re.fullmatch(r"[\w./~+@-]+", path) else json.dumps(path, ensure_ascii=False)
