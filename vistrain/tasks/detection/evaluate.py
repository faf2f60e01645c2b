"""Files of detections, of whatever program, evaluated against files of annotations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vistrain.data.base.storage import read_json
from vistrain.data.coco.kinds import refuse_other_kind
from vistrain.data.coco.reader import read_coco
from vistrain.errors import DataError
from vistrain.metrics.coco import CocoBoundary, CocoBox, CocoMask, CocoResult, evaluate_records, records_of
from vistrain.metrics.coco_files import annotations_have_masks

log = logging.getLogger(__name__)


def read_records(
    predictions: str | Path, annotations: str | Path, truth: Any = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and the records of all its images from files.

    Args:
        predictions: results in COCO's format, or the `predictions.json` of `vistrain predict` (or the folder with it),
            see `metrics.coco_files.check_results`.
        annotations: ground truth in COCO's format, read as training reads it.
        truth: the content of `annotations`, where it is known already; that is then no more than a name for messages.

    Returns:
        Checked ground truth, and one record for each of its images.

    Raises:
        DataError: a file is missing or malformed, or results are for images that the annotations do not list.
    """
    predictions, remedy = Path(predictions), "give COCO results, or what `vistrain predict` wrote with a detector"
    if predictions.is_dir():
        if not (predictions / "predictions.json").is_file():
            refuse_other_kind(predictions, "objects", remedy)
            raise DataError(str(predictions), "holds no predictions.json", remedy)
        predictions = predictions / "predictions.json"
    elif predictions.suffix != ".json":
        refuse_other_kind(predictions, "objects", remedy)
    if truth is None:
        truth = read_coco(annotations, files=False).ground_truth()
    content = read_json(predictions, remedy)
    if isinstance(content, dict) and not _has_detections(content):
        refuse_other_kind(predictions, "objects", remedy)
    threshold = content.get("threshold") if isinstance(content, dict) else None
    if isinstance(threshold, int | float) and threshold > 0:
        remedy = "`vistrain predict --threshold 0` keeps all, as `vistrain test` does"
        log.warning("%s: detections of score >= %g alone, and AP is of those: %s", predictions, threshold, remedy)
    checked, records = records_of(content, truth, str(predictions), str(annotations))
    if annotations_have_masks(truth) and not any("masks" in record for record in records):
        log.info("%s: no result has a mask (`segmentation`), so boxes alone are measured", predictions)
    return checked, records


def _has_detections(content: dict[str, Any]) -> bool:
    """Whether it is a `predictions.json` of objects, or of nothing."""
    images = content.get("images")
    if "annotations" in content:
        return False
    return isinstance(images, list) and all(isinstance(image, dict) and "detections" in image for image in images)


def evaluations(truth: dict[str, Any], records: list[dict[str, Any]], boundary: bool = False) -> list[CocoResult]:
    """Of boxes, and of masks where there are any, with `boundary` of their contours, too; of what `read_records`
    gives."""
    metrics: list[type[CocoBox]] = [CocoBox]
    if any("masks" in record for record in records):
        metrics += [CocoMask, CocoBoundary] if boundary else [CocoMask]
    return [evaluate_records(truth, records, metric=metric) for metric in metrics]


def evaluate_file(
    predictions: str | Path, annotations: str | Path, backend: str = "auto", metric: type[CocoBox] = CocoBox
) -> CocoResult:
    """Evaluate a file of detections against annotations, over all images that the annotations list.

    Args:
        predictions, annotations: see `read_records`.
        backend: see `metrics.CocoBox`.
        metric: `metrics.CocoBox`, or `CocoMask` where both have masks.

    Returns:
        The evaluation; a Rich console prints it as tables.

    Raises:
        DataError: see `read_records`.
    """
    return evaluate_records(*read_records(predictions, annotations), backend, metric)
