"""The one reader of annotations in COCO's format (https://cocodataset.org/#format-data), for all commands.

What is wrong is either handled as the official code handles it (DETR's `datasets/coco.py`, detectron2's
`data/datasets/coco.py`, pycocotools) and counted, or refused with the file's name and the reason:

| finding                                          | here                                                     |
|--------------------------------------------------|----------------------------------------------------------|
| box without area, also after clipping            | no target (DETR); stays truth in evaluation (pycocotools)|
| box that reaches outside                         | clipped for training (DETR); as it is in evaluation      |
| coordinates that are not finite, or beyond 1e9   | dropped (DETR's comparison drops NaN, too)               |
| annotation of an image that is not listed        | skipped (pycocotools, detectron2)                        |
| crowd                                            | no target (DETR); ignored region in evaluation           |
| area missing, null, negative or no number        | of the segmentation, else of the box (pycocotools)       |
| `iscrowd` missing, null, text, true or false     | 0 or 1; refused if it is neither                         |
| byte order mark                                  | skipped                                                  |
| unlisted category id                             | refused (detectron2)                                     |
| repeated id of an image, annotation, category    | refused (detectron2)                                     |
| id that is no integer of 64 bits                 | refused                                                  |
| `file_name` that is absolute or climbs with `..` | refused                                                  |
| width or height missing, infinite or no number   | refused (in evaluation alone they are not needed)        |
| run lengths that do not fill the image           | refused where they are needed                            |
| polygon with a coordinate that is no number      | refused where it is needed                               |
| no segmentation, where masks are trained         | no target (detectron2); refused where masks are measured |
| polygon of fewer than three points, or an odd    | left out (detectron2): of nothing else, as no            |
| number of coordinates                            | segmentation                                             |

`vistrain check` lists all that is refused, not the first alone, and mends ids and sizes in a copy (`repair`).
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from vistrain.data.base.storage import read_json
from vistrain.data.coco.segmentations import Segmentations
from vistrain.errors import DataError, nearest
from vistrain.metrics.coco_masks import encode_mask, has_mask, left_out_of
from vistrain.metrics.coco_values import MOST_PIXELS, crowd_flag, is_id, is_number, shown

FAR = 1e9  # pixels; no box is there
IDS, SIZES = ("id", "image_id", "category_id"), ("width", "height")
ALL = "`vistrain check` lists all"
REPAIR = "`vistrain check --repair FILE` writes a copy with mended ids and sizes"


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
NOT_FINITE = "coordinates not finite or beyond any picture, dropped"
NO_IMAGE = "annotation of an image that is not listed, skipped"
SHARED_FILE = "file listed more than once"
NO_MASK = "no mask, not trained where masks are"
PARTLY = "polygon without three points, left out of its mask"


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


def read_coco(path: str | Path, annotations: bool = True, files: bool = True) -> Listing:
    """Reads an annotation file and checks every entry.

    Args:
        path: the JSON file.
        annotations, files: see `checked`.

    Raises:
        DataError: the file is missing, not JSON (line and column are given), or as `checked` says.
    """
    return checked(read_content(Path(path)), Path(path), annotations, files)


def checked(content: Mapping[str, Any], path: Path, annotations: bool = True, files: bool = True) -> Listing:
    """Checks every entry of a dictionary in COCO's format.

    Args:
        content: `images`, `categories`, `annotations`.
        path: the file that it comes from, for messages.
        annotations: whether there must be annotations; image lists of test sets have none.
        files: whether images must have file names and sizes, which evaluation does without.

    Raises:
        DataError: it lacks a section or a needed key, or holds what the table at the top of this module calls refused.
    """
    listing, faults = examined(content, path, annotations, files)
    if faults:
        first = faults[0]
        more = f" (and {len(faults) - 1} more faults; {ALL})" if len(faults) > 1 else ""
        raise DataError(first.where, first.problem + more, first.remedy)
    return listing


def examined(
    content: Mapping[str, Any], path: Path, annotations: bool = True, files: bool = True
) -> tuple[Listing, list[DataError]]:
    """What a dictionary in COCO's format lists, and all that `checked` refuses of it; entries that are refused are left
    out."""
    faults: list[DataError] = []
    problems = Problems()
    for section in ("images", "categories", *(("annotations",) if annotations else ())):
        if not isinstance(content.get(section), list):
            found = ", ".join(sorted(map(str, content))[:8]) or "nothing"
            remedy = f"a COCO annotation file is needed; this one has {found}"
            faults.append(DataError(str(path), f"has no list {section!r}", remedy))
    if faults:
        return Listing(path, {}, [], {}, problems), faults
    categories = _categories(path, content["categories"], faults)
    images = _images(path, content["images"], problems, faults, files)
    listed = content.get("annotations")
    entries = listed if isinstance(listed, list) else []
    grouped = _annotations(path, entries, categories, images, problems, faults)
    ordered = [images[i] for i in sorted(images)]
    return Listing(path, categories, ordered, grouped, problems), faults


def read_content(path: Path) -> dict[str, Any]:
    """What a COCO file holds, unchecked.

    Raises:
        DataError: it is missing, cannot be read, or is no JSON file of an object.
    """
    content = read_json(path, what="annotation file")
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
        DataError: a class is not among them, or two are called alike.
    """
    number = {name: i for i, name in enumerate(classes, 1)}
    if len(number) < len(classes):
        raise DataError(str(path), "two classes have one name, by which boxes are given", "make them differ")
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
        raise DataError(where, f"is {shown(entry)}, not an object")
    for key in keys:
        if key not in entry:
            raise DataError(where, f"has no {key!r}", REPAIR if key in ("id", *SIZES) else "")
    for key in IDS:
        if key in keys and not is_id(entry[key]):
            raise DataError(where, f"{key!r} is {shown(entry[key])}, not an integer", REPAIR)
    return entry


def _unique(path: Path, what: str, key: Hashable, seen: Any) -> None:
    if key in seen:
        raise DataError(
            str(path), f"{what} id {key} is used twice", f"number the {what}s anew; merged files often clash"
        )


def disagreements(known: Mapping[int, str], path: Path, categories: Mapping[int, str]) -> list[DataError]:
    """What a split's categories mean otherwise than those of training, which every split must list alike."""
    faults = []
    for category, name in categories.items():
        if known.get(category) != name:
            meant = f"{known[category]!r}" if category in known else "unknown"
            problem = f"category {category} is {name!r} here and {meant} in the label space"
            faults.append(DataError(str(path), problem, "all splits must list the same categories"))
    return faults


def printable(name: Any) -> str:
    """A name of a file as text that any file and terminal takes: half characters become question marks."""
    return str(name).encode("utf-8", "replace").decode("utf-8")


def _categories(path: Path, entries: list[Any], faults: list[DataError]) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, raw in enumerate(entries):
        try:
            entry = _entry(path, "categories", position, raw, ("id", "name"))
            _unique(path, "category", entry["id"], names)
        except DataError as fault:
            faults.append(fault)
            continue
        names[entry["id"]] = printable(entry["name"])
    if not entries:
        faults.append(DataError(str(path), "lists no categories"))
    return names


def _images(
    path: Path, entries: list[Any], problems: Problems, faults: list[DataError], files: bool
) -> dict[int, dict[str, Any]]:
    images: dict[int, dict[str, Any]] = {}
    seen: set[str] = set()
    keys = ("id", "file_name", *SIZES) if files else ("id",)
    for position, raw in enumerate(entries):
        try:
            entry = _entry(path, "images", position, raw, keys)
            _unique(path, "image", entry["id"], images)
            if files:
                _refuse_image(f"{path}: image {entry['id']}", entry)
        except DataError as fault:
            faults.append(fault)
            continue
        if files:
            name = entry["file_name"]
            if name in seen:
                problems.add(SHARED_FILE, name)
            seen.add(name)
        images[entry["id"]] = entry
    return images


def _refuse_image(where: str, entry: dict[str, Any]) -> None:
    """Raises:
    DataError: the entry has no file name below the image folder, or no size that an image can have.
    """
    name = entry["file_name"]
    if not isinstance(name, str) or not name.strip():
        raise DataError(where, f"file_name is {shown(name)}, not a name")
    try:
        is_name = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise DataError(where, f"file_name {shown(name)} holds characters that no file name has")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise DataError(
            where,
            f"file_name {shown(name)} points outside the image folder",
            "names must be relative to it, without '..'",
        )
    refuse_size(where, entry, SIZES, REPAIR)


def refuse_size(where: str, entry: Mapping[str, Any], sides: Sequence[str], remedy: str = "") -> None:
    """Refuse the width and height that an image entry lists, if no image has them.

    Args:
        where: for messages.
        entry: of the image.
        sides: which of the two are looked at.
        remedy: for messages; empty: correct them.

    Raises:
        DataError: naming the first that is none.
    """
    remedy = remedy or "write the image's own width and height, or leave both out"
    for side in sides:
        if not is_number(entry[side]) or not 1 <= entry[side] < MOST_PIXELS or entry[side] != int(entry[side]):
            raise DataError(where, f"{side} is {shown(entry[side])}, not a number of pixels", remedy)
    if len(sides) == 2 and entry["width"] * entry["height"] >= MOST_PIXELS:
        size = f"{entry['width']}x{entry['height']}"
        raise DataError(where, f"its size is {size} pixels, more than any image that is read", remedy)


def _annotations(
    path: Path,
    entries: list[Any],
    categories: dict[int, str],
    images: dict[int, dict[str, Any]],
    problems: Problems,
    faults: list[DataError],
) -> dict[int, list[dict[str, Any]]]:
    grouped: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()
    refused = bool(faults)  # of images or categories: not said again for each of their annotations
    for position, raw in enumerate(entries):
        try:
            entry = _entry(path, "annotations", position, raw, ("id", "image_id", "category_id", "bbox"))
            _unique(path, "annotation", entry["id"], seen)
            seen.add(entry["id"])
            where = f"{path}: annotation {entry['id']}"
            if entry["category_id"] not in categories:
                if refused:
                    continue
                raise DataError(
                    where,
                    f"category_id {entry['category_id']} is not listed under categories",
                    f"listed are {_some(categories)}",
                )
            if not _numbers(entry["bbox"]):
                problem = f"bbox is {shown(entry['bbox'])}"
                raise DataError(where, problem, "four numbers are needed: x, y, width, height")
            crowd = crowd_flag(entry.get("iscrowd"))
            if crowd is None:
                raise DataError(where, f"iscrowd is {shown(entry['iscrowd'])}, neither 0 nor 1")
            if entry["image_id"] not in images:
                problems.add(NO_IMAGE, f"annotation {entry['id']}, image {entry['image_id']}")
            elif not all(is_number(v) and abs(v) <= FAR for v in entry["bbox"]):
                problems.add(NOT_FINITE, f"annotation {entry['id']}")
            else:
                entry["iscrowd"] = crowd
                _fill_area(where, entry, images[entry["image_id"]])
                grouped.setdefault(entry["image_id"], []).append(entry)
        except DataError as fault:
            faults.append(fault)
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
    if area is not None and is_number(area) and area >= 0:
        return
    if entry.get("segmentation") and all(is_number(image.get(side)) for side in SIZES):
        mask = encode_mask(where, entry["segmentation"], image["height"], image["width"])
        entry["area"] = float(mask_tools.area(mask))
    else:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]


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
        numbers: `[A]` ids of the annotations, int64.
        source: the file that they stand in.
        segmentations: one for each target, or None where masks were not asked for.
    """

    ids: np.ndarray
    files: list[str]
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    numbers: np.ndarray
    source: Path
    segmentations: Segmentations | None = None

    def __len__(self) -> int:
        return len(self.ids)


def targets(coco: Listing, keep_empty: bool, masks: bool = False) -> Annotations:
    """Collects what a network is trained on: clipped boxes with area, without crowds (DETR's `ConvertCocoPolysToMask`).

    Args:
        coco: a split; what is dropped is added to its `problems`.
        keep_empty: keep images of crowds alone or without any annotation; detectron2 drops them in training.
        masks: keep the segmentations, and of the objects only those that have one.
    """
    entries = coco.annotations
    kept = [i for i in coco.images if keep_empty or any(not a["iscrowd"] for a in entries.get(i["id"], ()))]
    rows: list[list[float]] = []
    taken: list[dict[str, Any]] = []
    first = [0]
    for image in kept:
        for entry in entries.get(image["id"], ()):
            box = None if entry["iscrowd"] else _clip(entry, image, coco.problems)
            if box is not None and masks and not has_mask(entry.get("segmentation")):
                coco.problems.add(NO_MASK, f"annotation {entry['id']} of {image['file_name']}")
            elif box is not None:
                rows.append(box)
                taken.append(entry)
                if masks and left_out_of(entry["segmentation"]):
                    coco.problems.add(PARTLY, f"annotation {entry['id']} of {image['file_name']}")
        first.append(len(rows))
    return Annotations(
        ids=np.array([i["id"] for i in kept], dtype=np.int64),
        files=[i["file_name"] for i in kept],
        sizes=np.array([[i["height"], i["width"]] for i in kept], dtype=np.int64).reshape(-1, 2),
        first=np.array(first, dtype=np.int64),
        boxes=np.array(rows, dtype=np.float32).reshape(-1, 4),
        categories=np.array([e["category_id"] for e in taken], dtype=np.int64),
        numbers=np.array([e["id"] for e in taken], dtype=np.int64),
        source=coco.path,
        segmentations=Segmentations(e["segmentation"] for e in taken) if masks else None,
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
