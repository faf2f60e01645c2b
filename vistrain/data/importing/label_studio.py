"""Label Studio's JSON (https://labelstud.io/guide/export): tasks with their annotations, also as JSON-MIN.

Its other exports are read by the readers of their layouts: COCO, YOLO, Pascal VOC.
"""

from __future__ import annotations

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
        kept.append(Labelled(path, split_of(path.parent.name), _shapes(results, where, notes), size))
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
    annotations = task.get("annotations", task.get("completions"))
    done = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")] if annotations else []
    done = [a for a in done if isinstance(a.get("result"), list)]
    if not done:
        notes.add("task that nobody annotated, left out", where)
        return None
    if len(done) > 1:
        notes.add("task annotated more than once, one counts (ground truth, else the last)", where)
    chosen = next((a for a in done if a.get("ground_truth")), done[-1])
    return [item for item in chosen["result"] if isinstance(item, dict)]


def _shapes(results: Sequence[Mapping[str, Any]], where: str, notes: Notes) -> list[Shape]:
    found = []
    labels: dict[Any, str] = {}  # where shapes and labels are results of their own, they share an id
    for item in results:
        label = _label(item)
        if label and item.get("id") is not None:
            labels[str(item["id"])] = label
    done = set[str]()
    for item in results:
        value = item["value"] if isinstance(item.get("value"), dict) else item
        kind = _kind(value)
        if kind is None:
            written = str(item.get("type", "result"))
            if written not in ("labels", "choices", "textarea", "rating", "relation", "taxonomy", "number"):
                notes.add(f"{written}, which is no box, polygon or ellipse; left out", where)
            continue
        own = str(item.get("id", id(item)))
        if own in done:
            continue
        label = _label(item) or labels.get(own)
        shape = _shape(label or "", kind, value, item)
        if not label:
            notes.add("object without a label, left out", where)
        elif shape is None:
            notes.add(f"{kind} whose numbers cannot be read, left out", where)
        else:
            done.add(own)
            found.append(shape)
    return found


def _kind(value: Mapping[str, Any]) -> str | None:
    if "points" in value:
        return "polygon"
    if "radiusX" in value:
        return "ellipse"
    return "rectangle" if "width" in value and "height" in value and "x" in value else None


def _label(item: Mapping[str, Any]) -> str | None:
    """The first label: `rectanglelabels`, `polygonlabels`, ..., or `labels`."""
    value = item["value"] if isinstance(item.get("value"), dict) else item
    lists = [v for key, v in value.items() if key.endswith("labels") and isinstance(v, list)]
    return next((v[0].strip() for v in lists if v and isinstance(v[0], str) and v[0].strip()), None)


def _shape(label: str, kind: str, value: Mapping[str, Any], item: Mapping[str, Any]) -> Shape | None:
    """In shares of the sides."""
    if kind == "polygon":
        points = points_of(value["points"])
        if points is None or len(points) < 3:
            return None
        return Shape.outlined(label, tuple(v / 100 for v in flat(points)))
    keys = ("x", "y", "width", "height") if kind == "rectangle" else ("x", "y", "radiusX", "radiusY")
    values, degrees = numbers([value.get(key) for key in keys]), number(value.get("rotation") or 0)
    if values is None or degrees is None:
        return None
    x, y, across, down = (v / 100 for v in values)
    corners = [(x, y), (x + across, y), (x + across, y + down), (x, y + down)]
    outline = corners if kind == "rectangle" else ellipse((x, y), across, down)
    if degrees % 360 == 0:
        return Shape(label, Shape.outlined(label, flat(outline)).box, () if kind == "rectangle" else (flat(outline),))
    # Turned about its first corner, in pixels: shares of unequal sides are no place to turn anything in
    size = whole_size(item.get("original_height"), item.get("original_width"))
    if size is None:
        return None
    ratio = size[1] / size[0]
    in_heights = turned([(px * ratio, py) for px, py in outline], (x * ratio, y), degrees)
    return Shape.outlined(label, flat([(px / ratio, py) for px, py in in_heights]))
