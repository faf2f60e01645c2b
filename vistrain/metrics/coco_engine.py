"""COCO's matching and its precision-recall arrays, by pycocotools or by faster-coco-eval, equal to the last bit.

pycocotools decides what the numbers are (`COCOeval`; Lin et al. 2014, arXiv 1405.0312;
https://cocodataset.org/#detection-eval); faster-coco-eval does the same matching in C++. They differ in one place,
which `_as_pycocotools` mends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vistrain.errors import ConfigError
from vistrain.metrics.coco_masks import mask_area, mask_edge

log = logging.getLogger(__name__)

BACKENDS = ("auto", "pycocotools", "faster_coco_eval")
AREAS = ("all", "small", "medium", "large")  # in square pixels: everything, below 32^2, 32^2..96^2, above 96^2
AREA_RANGES = ((0.0, 1e5**2), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2))
# linspace and not literals: 0.9 comes out as 0.8999999999999999, as in pycocotools
IOU_THRESHOLDS: tuple[float, ...] = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
RECALL_THRESHOLDS: tuple[float, ...] = tuple(float(t) for t in np.linspace(0.0, 1.0, 101))
MAX_DETECTIONS = (1, 10, 100)
# pycocotools' precision of one detection that is right: it adds 2^-52 to the denominator
_FIRST_HIT = 1.0 / (1.0 + np.spacing(1.0))


@dataclass(frozen=True)
class CurveArrays:
    """What COCO's accumulation leaves; -1 marks a combination without objects.

    Attributes:
        precision: `[T, R, K, A, M]` float64 in 0..1: IoU thresholds, 101 recall thresholds, categories (ascending id),
            areas (`AREAS`), detections per image and category.
        recall: `[T, K, A, M]` float64 in 0..1, the largest recall reached.
        objects: `[K]` int64, objects of each category in the evaluated images, crowds left out.
    """

    precision: np.ndarray
    recall: np.ndarray
    objects: np.ndarray


def choose_backend(name: str) -> str:
    """The backend that `name` stands for: `auto` is faster-coco-eval where it is installed, else pycocotools.

    Raises:
        ConfigError: an unknown name, or a backend that is not installed.
    """
    if name not in BACKENDS:
        raise ConfigError("metrics.backend", f"unknown backend {name!r}", f"use one of {', '.join(BACKENDS)}")
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if name == "faster_coco_eval" and not installed:
        raise ConfigError("metrics.backend", "faster-coco-eval is not installed", "pip install 'vistrain[fast]'")
    if name == "auto":
        return "faster_coco_eval" if installed else "pycocotools"
    return name


def curve_arrays(
    truth: Mapping[str, Any],
    detections: Sequence[dict[str, Any]],
    image_ids: Sequence[int],
    *,
    iou_type: str = "bbox",
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    max_detections: Sequence[int] = MAX_DETECTIONS,
    backend: str = "pycocotools",
) -> CurveArrays:
    """Match detections with objects and accumulate, as COCO does.

    Args:
        truth: `images`, `categories` and complete `annotations` (positive unique ids, `area`, `iscrowd`); not modified.
        detections: COCO results in any order (within one image and category, ties keep their order); taken over: `id`,
            `area` and `iscrowd` are written into them.
        image_ids: the images to evaluate; those without objects count, their detections are false positives.
        iou_type: `bbox`; or, when both sides carry `segmentation`, `segm` or `boundary`, where the overlap of two masks
            is the lesser of theirs and their edges' (Cheng et al. 2021; of a crowd the mask's alone).
        iou_thresholds: ascending, in 0..1.
        max_detections: ascending; how many of the best per image **and category** count.
        backend: `pycocotools` or `faster_coco_eval`.

    Returns:
        The arrays; the two backends give the same bits.
    """
    annotations = [dict(a) for a in truth["annotations"]]  # both libraries write into them
    _complete(detections, iou_type)
    objects = _count_objects(truth, image_ids)
    if not image_ids:  # both libraries take an empty list for "all images"
        shape = (len(iou_thresholds), len(RECALL_THRESHOLDS), objects.shape[0], len(AREAS), len(max_detections))
        return CurveArrays(np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0), objects[:, 0])
    run = _run_faster if backend == "faster_coco_eval" else _run_pycocotools
    recall_thresholds = np.asarray(RECALL_THRESHOLDS)
    if backend == "faster_coco_eval":
        several = np.unique(objects[objects >= 2])
        recall_thresholds = np.union1d(recall_thresholds, 1.5 / several)
    settings = {
        "imgIds": list(image_ids),
        "iouThrs": np.asarray(iou_thresholds, dtype=np.float64),
        "recThrs": recall_thresholds,
        "maxDets": list(max_detections),
    }
    precision, recall = run({**truth, "annotations": annotations}, detections, iou_type, settings)
    if backend == "faster_coco_eval":
        precision = _as_pycocotools(precision, recall_thresholds, objects)
    return CurveArrays(precision, recall, objects[:, 0])


def mean_where_defined(values: np.ndarray) -> float:
    """Mean over the combinations that have objects, -1 when there is none (COCO's summary)."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0


def _complete(detections: Sequence[dict[str, Any]], iou_type: str) -> None:
    """Give results the fields that COCO's `loadRes` gives them, less its polygon per box, which doubles the memory."""
    for detection in detections:
        if iou_type == "bbox":
            detection["area"] = detection["bbox"][2] * detection["bbox"][3]
        else:
            detection["area"] = mask_area(detection["segmentation"])
    for i, detection in enumerate(detections, start=1):  # from 1: an id of 0 means "unmatched" to both libraries
        detection["id"], detection["iscrowd"] = i, 0


def _count_objects(truth: Mapping[str, Any], image_ids: Sequence[int]) -> np.ndarray:
    """Objects that count for each category and area, `[K, A]` int64: no crowds, only images that are evaluated."""
    row = {category: k for k, category in enumerate(sorted(c["id"] for c in truth["categories"]))}
    counts = np.zeros((len(row), len(AREA_RANGES)), dtype=np.int64)
    evaluated = set(image_ids)
    for annotation in truth["annotations"]:
        k = row.get(annotation["category_id"])
        if k is None or annotation["iscrowd"] or annotation["image_id"] not in evaluated:
            continue
        for a, (low, high) in enumerate(AREA_RANGES):
            counts[k, a] += low <= annotation["area"] <= high
    return counts


def _run_pycocotools(
    truth: Mapping[str, Any], detections: Sequence[dict[str, Any]], iou_type: str, settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def evaluator_of(annotations: Sequence[Any], found: Sequence[Any], kind: str, **changed: Any) -> COCOeval:
        ground, results = COCO(), COCO()
        ground.dataset, results.dataset = {**truth, "annotations": annotations}, {**truth, "annotations": found}
        ground.createIndex()
        results.createIndex()
        evaluator = COCOeval(ground, results, kind)
        for name, value in {**settings, **changed}.items():
            setattr(evaluator.params, name, value)
        return evaluator

    both = (truth["annotations"], list(detections))
    with contextlib.redirect_stdout(io.StringIO()) as chatter:
        evaluator = evaluator_of(*both, "bbox" if iou_type == "bbox" else "segm")
        if iou_type == "boundary":
            near = [[{**x, "segmentation": mask_edge(x["segmentation"])} for x in side] for side in both]
            edges = evaluator_of(near[0], near[1], "segm", areaRng=[])  # overlaps alone: it matches nothing
            edges.evaluate()
            crowds: dict[tuple[int, int], list[bool]] = {}
            for x in truth["annotations"]:
                crowds.setdefault((x["image_id"], x["category_id"]), []).append(bool(x["iscrowd"]))

            def overlaps(image: int, category: int) -> Any:
                of_masks = COCOeval.computeIoU(evaluator, image, category)
                of_edges = edges.ious[image, category]
                if not len(of_masks):
                    return of_masks
                return np.where(crowds[image, category], of_masks, np.minimum(of_masks, of_edges))

            evaluator.computeIoU = overlaps
        evaluator.evaluate()
        evaluator.accumulate()
    log.debug(chatter.getvalue())
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _run_faster(
    truth: Mapping[str, Any], detections: Sequence[dict[str, Any]], iou_type: str, settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    from faster_coco_eval import COCO, COCOeval_faster

    ground, results = COCO(dict(truth)), COCO({**truth, "annotations": list(detections)})
    evaluator = COCOeval_faster(ground, results, iou_type, print_function=log.debug)
    for name, value in settings.items():
        setattr(evaluator.params, name, value)
    evaluator.evaluate()
    evaluator.accumulate()
    return np.array(evaluator.eval["precision"]), np.array(evaluator.eval["recall"])


def _as_pycocotools(precision: np.ndarray, recall_thresholds: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Bring faster-coco-eval's precision to pycocotools' to the last bit and back to the 101 recall thresholds.

    pycocotools divides by `fp + tp + 2^-52`, faster-coco-eval by `fp + tp`. In float64 that matters for a count of one
    alone: where the best detection of a category is right and the second is wrong, or there is none, the precision is
    1 - 2^-52 and not 1. Whether the second is right shows at a recall between those of one and of two objects, which is
    why `1.5 / objects` is among the thresholds.

    Args:
        precision: `[T, R', K, A, M]` of faster-coco-eval.
        recall_thresholds: `[R']`, ascending; a superset of the 101.
        objects: `[K, A]`, objects that count.

    Returns:
        `[T, 101, K, A, M]`.
    """
    kept = precision[:, np.searchsorted(recall_thresholds, RECALL_THRESHOLDS)].copy()
    for k, a in np.argwhere(objects > 0):
        curve = kept[:, :, k, a]
        if objects[k, a] == 1:
            second_right = np.zeros_like(curve[:, :1], dtype=bool)
        else:
            at = np.searchsorted(recall_thresholds, 1.5 / objects[k, a])
            second_right = precision[:, at : at + 1, k, a] == 1.0
        curve[(curve == 1.0) & ~second_right] = _FIRST_HIT
    return kept
