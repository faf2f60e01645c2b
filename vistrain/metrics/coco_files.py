"""COCO's ground truth and results as evaluation needs them: what is wrong ends in one line with its place."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vistrain.errors import DataError
from vistrain.metrics.coco_masks import encode_mask, has_mask, left_out_of, mask_area, mask_box
from vistrain.metrics.coco_values import MOST_PIXELS, crowd_flag, is_id, is_number, shown
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

SIDES = ("width", "height")


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


class FileNames:
    """Images by their file names, whatever folders stand before them.

    Args:
        ids: file name, with `/` -> id.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids
        self._by_base: dict[str, list[str]] = {}
        for name in ids:
            self._by_base.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, name: str) -> int | None:
        """The id of the one image that a name means: the same one, or one that ends as it does or that it ends as, from
        a `/` on; None if there is none, or more than one."""
        if name in self.ids:
            return self.ids[name]
        alike = [
            known
            for known in self._by_base.get(PurePosixPath(name).name, ())
            if known.endswith(f"/{name}") or name.endswith(f"/{known}")
        ]
        return self.ids[alike[0]] if len(alike) == 1 else None


def check_ground_truth(truth: Any, where: str = "ground truth", masks: bool = False) -> dict[str, list[dict[str, Any]]]:
    """COCO ground truth with what evaluation needs, nothing else, and every annotation complete.

    `area` defaults to the box's, or the mask's where masks are asked for, `iscrowd` to 0. Annotations are numbered anew
    from 1 in their order: COCO's tools mark "unmatched" with 0, so an object whose id is 0 could never be found, and of
    two with one id only one would exist. Where ids are unique and positive nothing changes.

    Args:
        truth: `images`, `annotations`, `categories`, as `data.coco.reader` reads them from a file, or a program has
            made them; not modified.
        where: the file, for errors.
        masks: whether every annotation must have a segmentation.

    Returns:
        `{"images": [{id}], with file_name, width and height where they are known, "categories": [{id, name}],
        "annotations": [{id, image_id, category_id, bbox, area, iscrowd}]}`; with masks `segmentation`, run lengths.

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
            if not isinstance(item, Mapping) or not is_id(item.get("id")):
                raise DataError(f"{where}: {key}[{i}]", "has no integer 'id'")
            if item["id"] in seen:
                raise DataError(f"{where}: {key}[{i}]", f"id {item['id']} is given twice", "ids must be unique")
            seen.add(item["id"])
    annotations = []
    listed = {image["id"]: _of_image(where, image, masks) for image in truth["images"]}
    for i, annotation in enumerate(truth["annotations"]):
        problem = _object_problem(annotation)
        if not problem and crowd_flag(annotation.get("iscrowd")) is None:
            problem = f"'iscrowd' is {shown(annotation['iscrowd'])}, neither 0 nor 1"
        if problem:
            raise DataError(f"{where}: annotations[{i}]", problem)
        bbox, area = [float(v) for v in annotation["bbox"]], annotation.get("area")
        row: dict[str, Any] = {
            "id": i + 1,
            "image_id": int(annotation["image_id"]),
            "category_id": int(annotation["category_id"]),
            "bbox": bbox,
            "area": float(area) if is_number(area) else bbox[2] * bbox[3],
            "iscrowd": crowd_flag(annotation.get("iscrowd")),
        }
        if masks:
            _refuse_nothing(f"{where}: annotations[{i}]", annotation.get("segmentation"))
            row["segmentation"] = _mask(f"{where}: annotations[{i}]", annotation, listed.get(row["image_id"]))
            row["area"] = row["area"] if is_number(area) else mask_area(row["segmentation"])
        annotations.append(row)
    return {
        "images": list(listed.values()),
        "categories": [{"id": int(c["id"]), "name": str(c.get("name", c["id"]))} for c in truth["categories"]],
        "annotations": annotations,
    }


def have_masks(content: Any) -> bool:
    """Whether results, see `check_results`, are masks; the first says it for all, as in COCO's tools."""
    if isinstance(content, Mapping) and isinstance(content.get("images"), list):
        of_images = (image.get("detections") for image in content["images"] if isinstance(image, Mapping))
        content = [d for found in of_images if isinstance(found, list) for d in found]
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, Mapping) and "segmentation" in first


def _of_image(where: str, image: Mapping[str, Any], masks: bool) -> dict[str, Any]:
    """What evaluation uses of an image's entry; sides that are none are left out, where no mask needs them."""
    kept = {key: image[key] for key in ("id", "file_name") if key in image}
    for side in SIDES:
        value: Any = image.get(side)
        if is_number(value) and 1 <= value < MOST_PIXELS and value == int(value):
            kept[side] = int(value)
        elif masks and value is not None:
            problem = f"{side} is {shown(value)}, not a number of pixels"
            raise DataError(f"{where}: image {image['id']}", problem, "write the image's own width and height")
    return kept


def nothing_found(content: Any) -> bool:
    """Whether results, see `check_results`, are an empty list, or of images in each of which there is nothing."""
    if isinstance(content, Mapping) and isinstance(content.get("images"), list):
        return all(isinstance(image, Mapping) and image.get("detections") == [] for image in content["images"])
    return content == []


def annotations_have_masks(truth: Any, every: bool = False) -> bool:
    """Whether any annotation of COCO ground truth has one, or each of at least one."""
    listed = truth.get("annotations") if isinstance(truth, Mapping) else None
    if not isinstance(listed, list) or not listed:
        return False
    return (all if every else any)(isinstance(a, Mapping) and bool(a.get("segmentation")) for a in listed)


def _mask(where: str, item: Mapping[str, Any], image: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run lengths of an annotation or a result of an image."""
    if item.get("segmentation") is None:
        raise DataError(where, "has no segmentation", "complete it, or measure boxes alone (`coco_box`)")
    if image is None or not all(side in image for side in SIDES):
        raise DataError(where, "is of an image whose width and height are not known", "complete the list of images")
    return encode_mask(where, item["segmentation"], image["height"], image["width"])


def _refuse_nothing(where: str, segmentation: Any) -> None:
    """Refuse a true object without a mask that can be drawn: it could only be missed."""
    if isinstance(segmentation, list) and not has_mask(segmentation):
        problem = left_out_of(segmentation) or "has an empty segmentation"
        raise DataError(where, problem, "complete it, or measure boxes alone (`coco_box`)")


def check_results(content: Any, truth: Mapping[str, Any], where: str, masks: bool = False) -> list[dict[str, Any]]:
    """COCO results, every entry complete and for an image of the truth. An empty list is fine: a detector may find
    nothing.

    Args:
        content: the decoded file: a list of `{image_id, category_id, bbox: [x, y, width, height], score}`, in the box's
            place or beside it a `segmentation`; or the `predictions.json` that `vistrain predict` writes. `image_id` is
            an id of the truth, or the file name of an image, which `FileNames` pairs.
        truth: of `check_ground_truth`.
        where: the file, for errors.
        masks: whether masks are asked for, of every result.

    Returns:
        The results, with ids of the truth; with masks `segmentation` is run lengths.

    Raises:
        DataError: not such a list; there are results for images that the truth does not list (COCO's tools refuse these
            too), or that have another size there; or categories are called otherwise.
    """
    if isinstance(content, Mapping) and isinstance(content.get("images"), list):
        content = _flat(content, truth, where)
    if not isinstance(content, list):
        raise DataError(
            where, f"is not a list of COCO results but {_kind(content)}", 'expected [{"image_id": ..., ...}, ...]'
        )
    listed = {image["id"]: image for image in truth["images"]}
    names = FileNames({str(image["file_name"]): image["id"] for image in truth["images"] if "file_name" in image})
    found, strangers, turned = [], [], []
    by_name: dict[str, int | None] = {}
    for i, result in enumerate(content):
        name = result.get("image_id") if isinstance(result, Mapping) else None
        if isinstance(name, str):
            if name not in by_name:
                by_name[name] = names.find(name)
            result = {**result, "image_id": by_name[name]}
            if by_name[name] is None:
                strangers.append(name)
                continue
        problem = _object_problem(result, without_box=True)
        if not problem and not is_number(result.get("score")):
            problem = f"'score' is {shown(result.get('score', 'missing'))}, not a finite number"
        if problem:
            raise DataError(f"{where}: result {i}", problem)
        image = listed.get(result["image_id"])
        if image is None:
            strangers.append(result["image_id"])
        elif any(is_number(result.get(side)) and image.get(side, result[side]) != result[side] for side in SIDES):
            turned.append(image)
        found.append(result)
    if strangers:
        raise DataError(
            where,
            f"{len(strangers)} results are for images that the ground truth does not list (first: "
            f"{shown(strangers[0])})",
            "evaluate against the annotations that the predictions were made for",
        )
    if turned:
        image = turned[0]
        raise DataError(
            where,
            f"{len(turned)} results are for pictures of another size than the ground truth lists (first: "
            f"{image.get('file_name', image['id'])}, {image.get('width')}x{image.get('height')} there)",
            "were they turned by EXIF, or resized? `vistrain predict --annotations FILE` reads them as annotated",
        )
    if inverted := sum(min(result["bbox"][2:]) < 0 for result in found if "bbox" in result):
        remedy = "boxes are x, y, width, height"
        log.warning("%s: %d results have a side below 0 and match nothing - %s", where, inverted, remedy)
    if undrawn := sum(bool(left_out_of(result.get("segmentation"))) for result in found):
        remedy = "three points or more, of two coordinates each, are drawn"
        log.warning("%s: %d results have polygons that are left out - %s", where, undrawn, remedy)
    if by_name:
        log.info("%s: image ids are file names; the images of the annotations are found by them", where)
    for i, result in enumerate(found):
        if masks or "bbox" not in result:
            mask = _mask(f"{where}: result {i}", result, listed[result["image_id"]])
            found[i] = {"bbox": mask_box(mask), **result, "segmentation": mask}
    return found


def _flat(content: Mapping[str, Any], truth: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The results in a `predictions.json`, one for each object."""
    known = {category["id"]: category["name"] for category in truth["categories"]}
    listed = content.get("categories")
    for category in listed if isinstance(listed, list) else ():
        number, name = (category.get("id"), category.get("name")) if isinstance(category, Mapping) else (None, None)
        if is_id(number) and known.get(number, name) != name:
            problem = f"category {number} is {shown(name)} here and {shown(known[number])} in the ground truth"
            raise DataError(where, problem, "evaluate against the annotations that the predictions were made for")
    results: list[dict[str, Any]] = []
    seen = set()
    for i, image in enumerate(content["images"]):
        found = image.get("detections") if isinstance(image, Mapping) else None
        if not isinstance(found, list) or not all(isinstance(d, Mapping) for d in found):
            raise DataError(f"{where}: images[{i}]", "has no list 'detections'", "is it of a detector?")
        if str(image.get("id")) in seen:
            problem = f"{shown(image.get('id'))} is listed twice: its detections would count twice"
            raise DataError(f"{where}: images[{i}]", problem, "keep one of them")
        seen.add(str(image.get("id")))
        of_image = {"image_id": image.get("id"), **{side: image.get(side) for side in SIDES}}
        results += [{**of_image, "bbox": d.get("box_xywh"), **d} for d in found]
    return results


def _object_problem(item: Any, without_box: bool = False) -> str:
    """What is wrong with an annotation or a result, which may have a mask alone; empty when nothing is."""
    if not isinstance(item, Mapping):
        return f"is not an object but {_kind(item)}"
    for key in ("image_id", "category_id"):
        if not is_id(item.get(key)):
            return f"{key!r} is {shown(item.get(key, 'missing'))}, not an integer"
    bbox = item.get("bbox")
    if without_box and "bbox" not in item and "segmentation" in item:
        return ""
    if not isinstance(bbox, Sequence) or len(bbox) != 4 or not all(is_number(v) for v in bbox):
        return f"'bbox' is {shown(item.get('bbox', 'missing'))}, not four finite numbers"
    return ""


def _kind(value: Any) -> str:
    kinds = {Mapping: "an object", list: "a list", bool: "a truth value", str: "a text", type(None): "null"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "a number")
