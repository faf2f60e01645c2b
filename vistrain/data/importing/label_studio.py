"""Label Studio's JSON (https://labelstud.io/guide/export): tasks with their annotations, also as JSON-MIN.

Its other exports are read by the readers of their layouts: COCO, YOLO, Pascal VOC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vistrain.data.base.storage import read_json
from vistrain.data.importing.export import (
    Export,
    Labelled,
    Notes,
    Options,
    Shape,
    ellipse,
    flat,
    number,
    numbers,
    points_of,
    split_of,
    turned,
    whole_size,
)
from vistrain.data.importing.files import Pictures, is_picture, walk
from vistrain.errors import DataError

NUMBERS = {
    "polygon": ("points",),
    "ellipse": ("x", "y", "radiusX", "radiusY"),
    "rectangle": ("x", "y", "width", "height"),
}
"""What a result of each kind holds, in hundredths of the sides."""
Outline = tuple[tuple[float, float, float, float], tuple[tuple[float, ...], ...]]  # box, polygons
UNREADABLE = ("brush", "brushlabels", "magicwand", "bitmask", "bitmasklabels")  # areas that are not read
REMEDY = "export it as JSON, and give the pictures: --images FOLDER"


def read_label_studio(source: Path, options: Options) -> Export:
    """Reads the JSON of a project; coordinates in it are hundredths of the sides.

    Of a task that was annotated more than once the annotation that is marked as ground truth counts, else the last one.
    Tasks that nobody finished are left out; predictions are no annotations.

    Args:
        source: the file, or a folder with it.
        options: `images` counts: an export of JSON holds none.

    Raises:
        DataError: there is no such file, or no pictures.
    """
    file = source
    if source.is_dir():
        found = [path for path in walk(source) if path.suffix.lower() == ".json"]
        if len(found) != 1:
            raise DataError(str(source), f"holds {len(found)} JSON files, not one", "give the file itself")
        file = found[0]
    tasks = read_json(file)
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise DataError(str(file), "holds no list of tasks", REMEDY)
    notes, kept = Notes(), list[Labelled]()
    pictures = Pictures(options.images or file.parent)
    for count, task in enumerate(tasks):
        where = f"task {task.get('id', count)}"
        address = _address(task)
        results = _results(task, where, notes)
        if results is None:
            continue
        if address is None:
            notes.add("task without a picture, left out", where)
            continue
        try:
            path = pictures.find(address)
        except DataError as error:
            notes.add(f"task left out: {error.problem}", f"{where} ({address})")
            continue
        size = next((s for r in results if (s := whole_size(r.get("original_height"), r.get("original_width")))), None)
        if any(number(r.get("image_rotation") or 0) for r in results):
            notes.add("task left out: its picture was turned by hand in Label Studio", where)
            continue
        labelled = Labelled(path, split_of(path.parent.name), stated=size)
        labelled.shapes = _shapes(results, where, notes, labelled.damage)
        kept.append(labelled)
    return Export(kept, None, notes, shares=True)


def _address(task: Mapping[str, Any]) -> str | None:
    """Where the task's picture was: an upload, a local file (`?d=`), or an address of any storage."""
    data = task.get("data")
    values = [value for value in (data if isinstance(data, dict) else task).values() if isinstance(value, str)]
    cleaned = [unquote(value.rpartition("?d=")[2]).partition("?")[0] for value in values]
    return next((value for value in cleaned if is_picture(Path(value))), None)


def _results(task: Mapping[str, Any], where: str, notes: Notes) -> list[dict[str, Any]] | None:
    """The results that count; None for a task that nobody finished."""
    if "annotations" not in task and "data" not in task:  # JSON-MIN: results stand in the task, by name of their tags
        lists = [value for value in task.values() if isinstance(value, list)]
        return [item for values in lists for item in values if isinstance(item, dict)]
    annotations = task.get("annotations", task.get("completions")) or []
    if not isinstance(annotations, list):
        notes.add("task whose annotations are no list, left out", where)
        return None
    done = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    done = [a for a in done if isinstance(a.get("result"), list)]
    if not done:
        notes.add("task that nobody annotated, left out", where)
        return None
    if len(done) > 1:
        notes.add("task annotated more than once, one counts (ground truth, else the last)", where)
    chosen = next((a for a in done if a.get("ground_truth")), done[-1])
    return [item for item in chosen["result"] if isinstance(item, dict)]


def _shapes(results: Sequence[Mapping[str, Any]], where: str, notes: Notes, damage: Notes) -> list[Shape]:
    """The objects of a task.

    A region may be written as several results of one id: its shape, its label, choices and texts, with or without the
    shape. They are one object where their shapes are one; an id alone makes nothing one, as scripts write it twice.
    """
    regions: dict[tuple[str, Outline], list[str]] = {}  # -> labels
    loose: dict[str, list[str]] = {}  # id -> labels, of results that are labels alone
    bare: dict[str, str] = {}  # id -> what is wrong with it, if no other result holds its shape
    for count, item in enumerate(results):
        value = item["value"] if isinstance(item.get("value"), dict) else item
        own = str(item["id"]) if item.get("id") is not None else f"#{count}"
        written, names, kind = str(item.get("type", "result")), _labels(value), _kind(item, value)
        if kind is not None:
            shape = _shape(kind, value, item)
            if isinstance(shape, Shape):
                regions.setdefault((own, (shape.box, shape.polygons)), []).extend(names)
            elif any(key in value for key in NUMBERS[kind]):
                damage.add(shape, f"{own} of {where}")
            else:
                bare[own] = shape
                loose.setdefault(own, []).extend(names)
        elif written in UNREADABLE:
            damage.add(f"{written}: a mask that is not read (export COCO with masks)", f"{own} of {where}")
        elif written not in ("labels", "choices", "textarea", "rating", "relation", "taxonomy", "number"):
            notes.add(f"{written}, which is no box, polygon or ellipse; left out", where)
        else:
            loose.setdefault(own, []).extend(names)
    found = []
    for (own, (box, polygons)), labels in regions.items():
        names = list(dict.fromkeys(labels or loose.get(own, [])))
        if len(names) > 1:
            notes.add("object with several labels, the first counts", f"{own} of {where}: {', '.join(names)}")
        if names:
            found.append(Shape(names[0], box, polygons))
        else:
            damage.add("object without a label", f"{own} of {where}")
    counts = Counter(own for own, _ in regions)
    for own in sorted(bare.keys() - counts.keys()):
        damage.add(bare[own], f"{own} of {where}")
    for own, count in counts.items():
        if count > 1:
            notes.add("id of several objects, all of which are taken", f"{own} of {where} ({count} objects)")
    return found


def _kind(item: Mapping[str, Any], value: Mapping[str, Any]) -> str | None:
    """What a result says that it is, whether or not all of its numbers are there; else what its numbers are of."""
    said = [str(item.get("type", "")), *value]
    kind = next((kind for kind in NUMBERS if kind in said or f"{kind}labels" in said), None)
    return kind or next((kind for kind, keys in NUMBERS.items() if all(key in value for key in keys)), None)


def _labels(value: Mapping[str, Any]) -> list[str]:
    """The labels: `rectanglelabels`, `polygonlabels`, ..., or `labels`."""
    lists = [v for key, v in value.items() if key.endswith("labels") and isinstance(v, list)]
    return [label.strip() for found in lists for label in found if isinstance(label, str) and label.strip()]


def _shape(kind: str, value: Mapping[str, Any], item: Mapping[str, Any]) -> Shape | str:
    """In shares of the sides, still without a name; or what is wrong with it."""
    missing = [f"`{key}`" for key in NUMBERS[kind] if value.get(key) is None]
    if missing:
        return f"{kind} without {', '.join(missing)}"
    if kind == "polygon":
        points = points_of(value["points"])
        if points is None or len(points) < 3:
            return "polygon whose points cannot be read"
        return Shape.outlined("", tuple(v / 100 for v in flat(points)))
    values, degrees = numbers([value[key] for key in NUMBERS[kind]]), number(value.get("rotation") or 0)
    if values is None or degrees is None:
        return f"{kind} whose numbers cannot be read"
    x, y, across, down = (v / 100 for v in values)
    corners = [(x, y), (x + across, y), (x + across, y + down), (x, y + down)]
    outline = corners if kind == "rectangle" else ellipse((x, y), across, down)
    if degrees % 360 == 0:
        return Shape("", Shape.outlined("", flat(outline)).box, () if kind == "rectangle" else (flat(outline),))
    # Turned about its first corner, in pixels: shares of unequal sides are no place to turn anything in
    size = whole_size(item.get("original_height"), item.get("original_width"))
    if size is None:
        return f"turned {kind} without `original_width` and `original_height`"
    ratio = size[1] / size[0]
    in_heights = turned([(px * ratio, py) for px, py in outline], (x * ratio, y), degrees)
    return Shape.outlined("", flat([(px / ratio, py) for px, py in in_heights]))
