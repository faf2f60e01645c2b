"""Reading and cleaning annotations in COCO's format (https://cocodataset.org/#format-data).

What is wrong is either handled as the official code handles it (DETR's `datasets/coco.py`, detectron2's
`data/datasets/coco.py`, pycocotools) and counted, or refused with the file's name and the reason:

| finding                                          | here                                                     |
|--------------------------------------------------|----------------------------------------------------------|
| box without area, also after clipping            | no target (DETR); stays truth in evaluation (pycocotools)|
| box that reaches outside                         | clipped for training (DETR); as it is in evaluation      |
| coordinates that are not finite                  | dropped (DETR's comparison drops NaN, too)               |
| annotation of an image that is not listed        | skipped (pycocotools, detectron2)                        |
| crowd                                            | no target (DETR); ignored region in evaluation           |
| area missing                                     | of the segmentation, else of the box (pycocotools)       |
| unlisted category id                             | refused (detectron2)                                     |
| repeated id of an image, annotation, category    | refused (detectron2)                                     |
| `file_name` that is absolute or climbs with `..` | refused                                                  |
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from vistrain.data.base.storage import read_text
from vistrain.errors import DataError, nearest


@dataclass
class Problems:
    """What was skipped or mended, counted, with the first few items of each kind.

    Attributes:
        counts: kind -> how often.
        examples: kind -> up to five items, in words.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, item: str) -> None:
        """Counts one finding."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < 5:
            examples.append(item)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return "; ".join(f"{n} x {kind} (e.g. {', '.join(self.examples[kind][:3])})" for kind, n in self.counts.items())


NO_AREA = "box without area, dropped"
OUTSIDE = "box wholly outside the image, dropped"
CLIPPED = "box more than a pixel outside the image, clipped"
NOT_FINITE = "coordinates not finite, dropped"
NO_IMAGE = "annotation of an image that is not listed, skipped"
SHARED_FILE = "file listed more than once"


@dataclass
class Listing:
    """What a split lists: its images, and what is annotated in them, checked, in COCO's terms.

    Attributes:
        path: the file that it comes from.
        categories: category id -> name, in the file's order.
        images: the image entries, sorted by id as the official code does.
        annotations: image id -> its annotation entries, with `iscrowd` and `area` filled in.
        problems: what was skipped while reading.
    """

    path: Path
    categories: dict[int, str]
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    problems: Problems

    def ground_truth(self) -> dict[str, Any]:
        """The plain COCO dictionary that the COCO tools evaluate against: empty images and crowds included."""
        return {
            "images": self.images,
            "annotations": [a for image in self.images for a in self.annotations.get(image["id"], ())],
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
        }


def read_coco(path: str | Path, annotations: bool = True) -> Listing:
    """Reads an annotation file and checks every entry.

    Args:
        path: the JSON file.
        annotations: whether the file must have annotations; image lists of test sets have none.

    Raises:
        DataError: the file is missing, not JSON (line and column are given), or as `checked` says.
    """
    return checked(read_content(Path(path)), Path(path), annotations)


def checked(content: dict[str, Any], path: Path, annotations: bool = True) -> Listing:
    """Checks every entry of a dictionary in COCO's format.

    Args:
        content: `images`, `categories`, `annotations`.
        path: the file that it comes from, for messages.
        annotations: whether there must be annotations.

    Raises:
        DataError: it lacks a section or a needed key, or holds what the table at the top of this module calls refused.
    """
    for section in ("images", "categories", *(("annotations",) if annotations else ())):
        if not isinstance(content.get(section), list):
            found = ", ".join(sorted(map(str, content))[:8]) or "nothing"
            raise DataError(
                str(path), f"has no list {section!r}", f"a COCO annotation file is needed; this one has {found}"
            )
    problems = Problems()
    categories = _categories(path, content["categories"])
    images = _images(path, content["images"], problems)
    grouped = _annotations(path, content.get("annotations") or [], categories, images, problems)
    ordered = [images[i] for i in sorted(images)]
    return Listing(path, categories, ordered, grouped, problems)


def read_content(path: Path) -> dict[str, Any]:
    """What a COCO file holds, unchecked.

    Raises:
        DataError: it is missing, cannot be read, or is no JSON file of an object.
    """
    text = read_text(path, what="annotation file")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}", f"not valid JSON: {error.msg} at {place}", "cut off while copying?") from error
    except RecursionError as error:
        raise DataError(str(path), "not an annotation file: nested too deeply") from error
    if not isinstance(content, dict):
        kind = "a list (of results?)" if isinstance(content, list) else f"one {type(content).__name__}"
        raise DataError(str(path), f"holds {kind}, not an object with images, annotations and categories")
    return content


@dataclass
class BoxedImage:
    """An image with its objects, as a reader of some other format finds them.

    Attributes:
        file: relative to the image folder, with `/`.
        size: height, width in pixels.
        boxes: x1, y1, x2, y2 of each object, pixels of the image.
        classes: class name of each object.
    """

    file: str
    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def as_content(images: Iterable[BoxedImage], classes: Sequence[str], path: Path) -> dict[str, Any]:
    """Images with boxes as a dictionary in COCO's format.

    Images and boxes are numbered from 1 in their order, classes from 1 in theirs.

    Args:
        images: of the split.
        classes: all class names, the same in every split.
        path: the file that they come from, for messages.

    Raises:
        DataError: a class is not among them.
    """
    number = {name: i for i, name in enumerate(classes, 1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for key, image in enumerate(images, 1):
        entries.append({"id": key, "file_name": image.file, "height": image.size[0], "width": image.size[1]})
        for (x1, y1, x2, y2), name in zip(image.boxes, image.classes, strict=True):
            if name not in number:
                raise DataError(f"{path}: {image.file}", f"unknown class {name!r}", nearest(name, classes))
            box = [x1, y1, x2 - x1, y2 - y1]
            category = number[name]
            annotations.append({"id": len(annotations) + 1, "image_id": key, "category_id": category, "bbox": box})
    categories = [{"id": i, "name": name} for name, i in number.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _entry(path: Path, section: str, position: int, entry: Any, keys: Iterable[str]) -> dict[str, Any]:
    where = f"{path}: {section}[{position}]"
    if not isinstance(entry, dict):
        raise DataError(where, f"is {entry!r}, not an object")
    for key in keys:
        if key not in entry:
            raise DataError(where, f"has no {key!r}")
    for key in ("id", "image_id", "category_id"):
        if key in keys and (isinstance(entry[key], bool) or not isinstance(entry[key], int)):
            raise DataError(where, f"{key!r} is {entry[key]!r}, not an integer")
    return entry


def _unique(path: Path, what: str, key: Hashable, seen: Any) -> None:
    if key in seen:
        raise DataError(
            str(path), f"{what} id {key} is used twice", f"number the {what}s anew; merged files often clash"
        )


def _categories(path: Path, entries: list[Any]) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, raw in enumerate(entries):
        entry = _entry(path, "categories", position, raw, ("id", "name"))
        _unique(path, "category", entry["id"], names)
        names[entry["id"]] = str(entry["name"])
    if not names:
        raise DataError(str(path), "lists no categories")
    return names


def _images(path: Path, entries: list[Any], problems: Problems) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    files: set[str] = set()
    for position, raw in enumerate(entries):
        entry = _entry(path, "images", position, raw, ("id", "file_name", "width", "height"))
        _unique(path, "image", entry["id"], images)
        name = entry["file_name"]
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: image {entry['id']}", f"file_name is {name!r}, not a name")
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise DataError(
                f"{path}: image {entry['id']}",
                f"file_name {name!r} points outside the image folder",
                "names must be relative to it, without '..'",
            )
        for side in ("width", "height"):
            if isinstance(entry[side], bool) or not isinstance(entry[side], int | float) or not entry[side] >= 1:
                raise DataError(f"{path}: image {entry['id']}", f"{side} is {entry[side]!r}, not a number of pixels")
        if name in files:
            problems.add(SHARED_FILE, name)
        files.add(name)
        images[entry["id"]] = entry
    return images


def _annotations(
    path: Path, entries: list[Any], categories: dict[int, str], images: dict[int, dict[str, Any]], problems: Problems
) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()
    for position, raw in enumerate(entries):
        entry = _entry(path, "annotations", position, raw, ("id", "image_id", "category_id", "bbox"))
        _unique(path, "annotation", entry["id"], seen)
        seen.add(entry["id"])
        where = f"{path}: annotation {entry['id']}"
        if entry["category_id"] not in categories:
            raise DataError(
                where,
                f"category_id {entry['category_id']} is not listed under categories",
                f"listed are {_some(categories)}",
            )
        if not _numbers(entry["bbox"]):
            raise DataError(where, f"bbox is {entry['bbox']!r}", "four numbers are needed: x, y, width, height")
        if entry["image_id"] not in images:
            problems.add(NO_IMAGE, f"annotation {entry['id']}, image {entry['image_id']}")
        elif not all(math.isfinite(v) for v in entry["bbox"]):
            problems.add(NOT_FINITE, f"annotation {entry['id']}")
        else:
            entry["iscrowd"] = int(bool(entry.get("iscrowd", 0)))
            _fill_area(where, entry, images[entry["image_id"]])
            grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _numbers(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    )


def _some(categories: dict[int, str]) -> str:
    names = [f"{i} ({name})" for i, name in sorted(categories.items())]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _fill_area(where: str, entry: dict[str, Any], image: dict[str, Any]) -> None:
    area = entry.get("area")
    if isinstance(area, int | float) and math.isfinite(area):
        return
    if entry.get("segmentation"):
        mask = encode_mask(where, entry["segmentation"], image["height"], image["width"])
        entry["area"] = float(mask_tools.area(mask))
    else:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]


def encode_mask(where: str, segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation (polygons, or run lengths plain or compressed) as pycocotools' compressed run lengths.

    Polygons of fewer than three points or an odd number of coordinates are left out, as detectron2 does.

    Args:
        where: named in errors.
        segmentation: the entry's value.
        height, width: of the image, pixels.

    Raises:
        DataError: it is none of these, or its run lengths do not fill the image (pycocotools would not notice).
    """
    size = [int(height), int(width)]
    if isinstance(segmentation, list) and all(isinstance(p, list) for p in segmentation):
        polygons = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0 and _finite(p)]
        if not polygons:  # pycocotools cannot draw none
            return mask_tools.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
        return mask_tools.merge(mask_tools.frPyObjects(polygons, *size))
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, str | bytes | list) or not isinstance(segmentation.get("size"), list):
        raise DataError(where, "unreadable segmentation", "polygons or run lengths (size and counts) are needed")
    if segmentation["size"] != size:
        raise DataError(where, f"run lengths are for size {segmentation['size']}, the image has {size}")
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
            raise DataError(where, f"run lengths do not add up to {size[0]} x {size[1]} pixels")
        return mask_tools.frPyObjects(segmentation, *size)
    return {"size": size, "counts": counts}


def _finite(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


@dataclass(frozen=True)
class Annotations:
    """The targets of a split in a few arrays: shared by forked workers without being copied page by page.

    Attributes:
        ids: `[I]` image ids, int64.
        files: file names relative to the image folder.
        sizes: `[I, 2]` height, width in pixels, int64.
        first: `[I + 1]`: the targets of image i are `first[i]:first[i + 1]`.
        boxes: `[A, 4]` float32 xyxy pixels, clipped to the image, all with area, crowds left out.
        categories: `[A]` category ids, int64.
        segmentations: one per target, or None where masks were not asked for.
    """

    ids: np.ndarray
    files: list[str]
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    segmentations: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def targets(coco: Listing, keep_empty: bool, masks: bool = False) -> Annotations:
    """Collects what a network is trained on: clipped boxes with area, without crowds (DETR's `ConvertCocoPolysToMask`).

    Args:
        coco: a split; what is dropped is added to its `problems`.
        keep_empty: keep images that have nothing but crowds or no annotation at all; detectron2 drops them in training.
        masks: keep the segmentations; a target without one gets an empty list.
    """
    kept = [
        image
        for image in coco.images
        if keep_empty or any(not a["iscrowd"] for a in coco.annotations.get(image["id"], ()))
    ]
    rows: list[list[float]] = []
    categories: list[int] = []
    segmentations: list[Any] = []
    first = [0]
    for image in kept:
        for entry in coco.annotations.get(image["id"], ()):
            box = None if entry["iscrowd"] else _clip(entry, image, coco.problems)
            if box is not None:
                rows.append(box)
                categories.append(entry["category_id"])
                if masks:
                    segmentations.append(entry.get("segmentation") or [])
        first.append(len(rows))
    return Annotations(
        ids=np.array([i["id"] for i in kept], dtype=np.int64),
        files=[i["file_name"] for i in kept],
        sizes=np.array([[i["height"], i["width"]] for i in kept], dtype=np.int64).reshape(-1, 2),
        first=np.array(first, dtype=np.int64),
        boxes=np.array(rows, dtype=np.float32).reshape(-1, 4),
        categories=np.array(categories, dtype=np.int64),
        segmentations=segmentations if masks else None,
    )


def _clip(entry: dict[str, Any], image: dict[str, Any], problems: Problems) -> list[float] | None:
    x, y, w, h = entry["bbox"]
    width, height = image["width"], image["height"]
    item = f"annotation {entry['id']} of {image['file_name']}"
    if w <= 0 or h <= 0:
        problems.add(NO_AREA, item)
        return None
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x2 <= x1 or y2 <= y1:
        problems.add(OUTSIDE, item)
        return None
    if max(-x, -y, x + w - width, y + h - height) > 1:  # COCO itself has thousands that are off by a rounding
        problems.add(CLIPPED, item)
    return [x1, y1, x2, y2]
