"""COCO files in and out: ground truth and results, checked so that what is wrong ends in one line with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from vistrain.errors import DataError
from vistrain.writing import whole_file


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing, unreadable or not JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"is not JSON ({error})", "is the file complete?") from error


def write_results(results: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Write COCO results, one a line; the file appears whole or not at all, and its folder is made.

    Numbers are written in full: reading them gives the same floats.

    Raises:
        DataError: the file cannot be written.
    """
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        separator = "[\n"
        for result in results:
            file.write(separator + json.dumps(result))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
    return Path(path)


def check_ground_truth(truth: Any, where: str = "ground truth") -> dict[str, list[dict[str, Any]]]:
    """COCO ground truth with what evaluation needs, nothing else, and every annotation complete.

    `area` defaults to the box's, `iscrowd` to 0. Annotations are numbered anew from 1 in their order: COCO's tools mark
    "unmatched" with 0, so an object whose id is 0 could never be found, and of two with one id only one would exist.
    Where ids are unique and positive nothing changes.

    Args:
        truth: `images`, `annotations`, `categories`; not modified.
        where: the file, for errors.

    Returns:
        `{"images": [{id}], "categories": [{id, name}],
        "annotations": [{id, image_id, category_id, bbox, area, iscrowd}]}`.

    Raises:
        DataError: a list or a field is missing or wrong, or an id repeats.
    """
    if not isinstance(truth, Mapping) or not all(
        isinstance(truth.get(k), list) for k in ("images", "annotations", "categories")
    ):
        raise DataError(
            where, "is not COCO ground truth", "an object with lists 'images', 'annotations', 'categories' is expected"
        )
    for key in ("images", "categories"):
        seen: set[int] = set()
        for i, item in enumerate(truth[key]):
            if not isinstance(item, Mapping) or not _is_id(item.get("id")):
                raise DataError(f"{where}: {key}[{i}]", "has no integer 'id'")
            if item["id"] in seen:
                raise DataError(f"{where}: {key}[{i}]", f"id {item['id']} is given twice", "ids must be unique")
            seen.add(item["id"])
    annotations = []
    for i, annotation in enumerate(truth["annotations"]):
        problem = _object_problem(annotation)
        if not problem and not _is_number(annotation.get("area", 0)):
            problem = f"'area' is {annotation['area']!r}, not a finite number"
        if not problem and annotation.get("iscrowd", 0) not in (0, 1):
            problem = f"'iscrowd' is {annotation['iscrowd']!r}, neither 0 nor 1"
        if problem:
            raise DataError(f"{where}: annotations[{i}]", problem)
        bbox = [float(v) for v in annotation["bbox"]]
        row = {
            "id": i + 1,
            "image_id": int(annotation["image_id"]),
            "category_id": int(annotation["category_id"]),
            "bbox": bbox,
            "area": float(annotation.get("area", bbox[2] * bbox[3])),
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        annotations.append(row)
    return {
        "images": [{"id": int(image["id"])} for image in truth["images"]],
        "categories": [{"id": int(c["id"]), "name": str(c.get("name", c["id"]))} for c in truth["categories"]],
        "annotations": annotations,
    }


def check_results(results: Any, image_ids: Sequence[int], where: str) -> list[dict[str, Any]]:
    """COCO box results, every entry complete. An empty list is fine: a detector may find nothing.

    Args:
        results: the decoded file: a list of `{image_id, category_id, bbox: [x, y, width, height], score}`.
        image_ids: images that the ground truth knows.
        where: the file, for errors.

    Raises:
        DataError: not such a list, or there are results for images that the ground truth does not list (COCO's tools
            refuse these too).
    """
    if not isinstance(results, list):
        raise DataError(
            where, f"is not a list of COCO results but {_kind(results)}", 'expected [{"image_id": ..., ...}, ...]'
        )
    known = set(image_ids)
    strangers = []
    for i, result in enumerate(results):
        problem = _object_problem(result)
        if not problem and not _is_number(result.get("score")):
            problem = f"'score' is {result.get('score', 'missing')!r}, not a finite number"
        if problem:
            raise DataError(f"{where}: result {i}", problem)
        if result["image_id"] not in known:
            strangers.append(result["image_id"])
    if strangers:
        raise DataError(
            where,
            f"{len(strangers)} results are for images that the ground truth does not list (first: {strangers[0]})",
            "evaluate against the annotations that the predictions were made for",
        )
    return results


def _object_problem(item: Any) -> str:
    """What is wrong with an annotation or a result; empty when nothing is."""
    if not isinstance(item, Mapping):
        return f"is not an object but {_kind(item)}"
    for key in ("image_id", "category_id"):
        if not _is_id(item.get(key)):
            return f"{key!r} is {item.get(key, 'missing')!r}, not an integer"
    bbox = item.get("bbox")
    if not isinstance(bbox, Sequence) or len(bbox) != 4 or not all(_is_number(v) for v in bbox):
        return f"'bbox' is {str(item.get('bbox', 'missing'))[:60]}, not four finite numbers"
    return ""


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    return "null" if value is None else f"a JSON {'object' if isinstance(value, Mapping) else type(value).__name__}"
