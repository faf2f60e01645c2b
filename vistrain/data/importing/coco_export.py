"""COCO's format as other tools export it: Roboflow, CVAT and Label Studio, with their folders and categories."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistrain.data.base.check import opened
from vistrain.data.base.storage import read_json
from vistrain.data.importing.export import (
    Export,
    Labelled,
    Notes,
    Options,
    Shape,
    distinct,
    number,
    numbers,
    split_of,
    whole_size,
)
from vistrain.data.importing.files import Pictures, walk
from vistrain.errors import DataError

SECTIONS = ("images", "annotations", "categories")


def read_coco_export(source: Path, options: Options) -> Export:
    """Reads one file, or all below a folder, whose folders or names say the split.

    Classes of several files are those of one name. A category without objects that has the name of another, or that is
    its supercategory, is the root of the tool's project and left out.

    Args:
        source: the file or folder.
        options: `images` counts.

    Raises:
        DataError: there is no such file, it is not in COCO's format, or there are no pictures.
    """
    files = [source]
    if source.is_dir():
        files = [path for path in walk(source) if path.suffix.lower() == ".json"]
    if not files:
        raise DataError(str(source), "holds no JSON files", "is it an export in COCO's format?")
    notes, found = Notes(), list[tuple[Path, dict[str, Any]]]()
    for path, result in opened(files, _content, "reading annotations"):
        if not isinstance(result, DataError):
            found.append((path, result))
        elif len(files) == 1:
            raise result
        else:
            notes.add(f"file left out: {result.problem}", path.name)
    if not found:
        raise DataError(str(source), "holds no file in COCO's format")
    pictures = Pictures(options.images or (source if source.is_dir() else source.parent))
    classes: list[str] = []
    kept: list[Labelled] = []
    for path, content in found:
        names = _classes(path, content, notes)
        classes += [name for name in names.values() if name not in classes]
        folders = path.relative_to(source).parts[:-1] if source.is_dir() else ()
        split = split_of(*reversed(folders), *re.split(r"[^A-Za-z]+", path.stem))
        kept += _pictures(path, content, names, pictures, split, notes)
    return Export(kept, classes, notes)


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in SECTIONS):
        raise DataError(str(path), f"has no lists {', '.join(SECTIONS)}")
    return content


def _classes(path: Path, content: dict[str, Any], notes: Notes) -> dict[int | None, str]:
    """Category id -> name, by id."""
    entries: dict[int, dict[str, Any]] = {}
    for entry in content["categories"]:
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        if key is None or key in entries:
            raise DataError(str(path), f"category {entry!r:.80} has no id of its own")
        entries[key] = entry
    used = Counter(_key(a.get("category_id")) for a in content["annotations"] if isinstance(a, dict))
    names = {key: str(entry.get("name") or "").strip() for key, entry in sorted(entries.items())}
    above = {str(entry.get("supercategory") or "") for entry in entries.values()}
    for key, name in list(names.items()):
        others = [other for k, other in names.items() if k != key]
        if not used[key] and others and (name in above or name in others):
            notes.add("category without objects that heads others or is called like one, left out", f"{name} ({key})")
            del names[key]
    return dict(zip(names, distinct(list(names.values()), notes), strict=True))


def _key(value: Any) -> int | None:
    """An id as a whole number, also where it is written as text."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and abs(found) < 2**53 else None


def _pictures(
    path: Path, content: dict[str, Any], names: Mapping[int | None, str], pictures: Pictures, split: str, notes: Notes
) -> list[Labelled]:
    images: dict[int | None, Labelled] = {}
    unknown = set[int | None]()
    for position, entry in enumerate(content["images"]):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        key = _key(entry.get("id")) if isinstance(entry, dict) else None
        if not isinstance(name, str) or key is None:
            notes.add("picture without a name or an id, left out", f"entry {position} of {path.name}")
            continue
        if key in images:
            notes.add("picture with the id of another one, left out", f"{name} (id {key} of {path.name})")
            continue
        try:
            found = pictures.find(name, path.parent)
        except DataError as error:
            notes.add(f"picture left out: {error.problem}", name)
            unknown.add(key)
            continue
        images[key] = Labelled(found, split, stated=whole_size(entry.get("height"), entry.get("width")))
    for position, entry in enumerate(content["annotations"]):
        where = f"annotation {position} of {path.name}"
        picture = images.get(_key(entry.get("image_id"))) if isinstance(entry, dict) else None
        if picture is None:
            if not isinstance(entry, dict) or _key(entry.get("image_id")) not in unknown:
                notes.add("annotation of a picture that is not listed, left out", where)
            continue
        name, box = names.get(_key(entry.get("category_id"))), numbers(entry.get("bbox"))
        if name is None:
            picture.damage.add("annotation of a category that is not listed", where)
        elif box is None or len(box) != 4:
            picture.damage.add("annotation whose bbox is not four numbers", where)
        else:
            corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
            ignored = bool(number(entry.get("iscrowd") or 0))
            picture.shapes.append(Shape(name, corners, _polygons(entry.get("segmentation")), ignored))
    return list(images.values())


def _polygons(written: Any) -> tuple[tuple[float, ...], ...]:
    """The polygons of a segmentation; none where it is run lengths."""
    found = [numbers(polygon) for polygon in written] if isinstance(written, list) else []
    return tuple(p for p in found if p is not None and len(p) >= 6 and len(p) % 2 == 0)
