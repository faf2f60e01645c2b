"""LabelMe's layout (https://github.com/wkentaro/labelme): a JSON file beside each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    ellipse,
    flat,
    points_of,
    split_of,
    whole_size,
)
from vistrain.data.importing.files import Pictures, walk
from vistrain.errors import DataError

NO_AREA = ("point", "points", "line", "linestrip")


def read_labelme(source: Path, options: Options) -> Export:
    """Reads all JSON files below a folder; folders called train, val, test say the split.

    Shapes of one label and one group are parts of one object, as in LabelMe's own conversion. Points and lines are no
    objects.

    Args:
        source: the folder.
        options: `images` counts.

    Raises:
        DataError: there are no such files, or no pictures.
    """
    if not source.is_dir():
        raise DataError(str(source), "no such folder", "give the one that holds LabelMe's JSON files")
    files = [path for path in walk(source) if path.suffix.lower() == ".json"]
    if not files:
        raise DataError(str(source), "holds no JSON files", "is it a folder of LabelMe?")
    notes, kept = Notes(), list[Labelled]()
    pictures = Pictures(options.images or source)
    for path, result in opened(files, _annotation, "reading annotations"):
        if isinstance(result, DataError):
            notes.add(f"annotation file left out with its picture: {result.problem}", path.name)
            continue
        try:
            picture = _picture(pictures, path, str(result.get("imagePath") or ""))
        except DataError as error:
            embedded = " (it is in the JSON alone)" if result.get("imageData") else ""
            notes.add(f"annotation left out: {error.problem}{embedded}", path.name)
            continue
        size = whole_size(result.get("imageHeight"), result.get("imageWidth"))
        split = split_of(*path.relative_to(source).parts[:-1])
        labelled = Labelled(picture, split, stated=size)
        labelled.shapes = _shapes(result["shapes"], path, notes, labelled.damage)
        kept.append(labelled)
    stems = {path.stem for path in files}
    for extra in pictures.files:
        if extra.stem not in stems and not any(extra == picture.path for picture in kept):
            notes.add("picture without an annotation file, left out", extra.name)
    return Export(kept, None, notes)


def _annotation(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(str(path), "has no list `shapes`")
    return content


def _picture(pictures: Pictures, path: Path, stated: str) -> Path:
    try:
        return pictures.find(stated or path.stem, path.parent)
    except DataError:
        return pictures.find(path.stem, path.parent)


def _shapes(items: Sequence[Any], path: Path, notes: Notes, damage: Notes) -> list[Shape]:
    found: list[tuple[int, Shape]] = []
    groups: dict[tuple[str, str], list[Shape]] = {}
    last: dict[tuple[str, str], int] = {}  # where the last part of a group stands, which is drawn over what is before
    for count, item in enumerate(items):
        where = f"shape {count} of {path.name}"
        kind = str(item.get("shape_type") or "polygon") if isinstance(item, dict) else "thing"
        label = item.get("label") if isinstance(item, dict) else None
        if not isinstance(label, str):
            damage.add("shape without a label", where)
            continue
        if kind in NO_AREA:
            notes.add(f"{kind}, which has no area; left out", where)
            continue
        shape = _shape(label.strip(), kind, item.get("points"))
        if shape is None:
            damage.add(f"{kind} whose points cannot be read", where)
        elif item.get("group_id") is None:
            found.append((count, shape))
        else:
            key = (shape.name, str(item["group_id"]))
            groups.setdefault(key, []).append(shape)
            last[key] = count
    found += [(last[key], _together(parts)) for key, parts in groups.items()]
    return [shape for _, shape in sorted(found, key=lambda pair: pair[0])]


def _shape(name: str, kind: str, written: Any) -> Shape | None:
    points = points_of(written)
    if points is None:
        return None
    if kind == "circle" and len(points) == 2:  # its centre, and a point on it
        radius = math.dist(*points)
        return Shape.outlined(name, flat(ellipse(points[0], radius, radius)))
    if kind in ("rectangle", "mask") and len(points) >= 2:
        return Shape(name, Shape.outlined(name, flat(points)).box)
    is_polygon = kind not in ("circle", "rectangle", "mask") and len(points) >= 3
    return Shape.outlined(name, flat(points)) if is_polygon else None


def _together(parts: Sequence[Shape]) -> Shape:
    """The object that several shapes are parts of."""
    if len(parts) == 1:
        return parts[0]
    left, top, right, bottom = zip(*(part.box for part in parts), strict=True)
    # A part that is a plain box has no outline: then the object has none either, which would lack that part.
    polygons = tuple(p for part in parts for p in part.polygons) if all(part.polygons for part in parts) else ()
    return Shape(parts[0].name, (min(left), min(top), max(right), max(bottom)), polygons)
