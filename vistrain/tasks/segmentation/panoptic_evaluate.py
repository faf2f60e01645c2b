"""Panoptic results in COCO's format, of whatever program, measured against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from vistrain.data.base.module import DataModule
from vistrain.data.base.storage import read_json
from vistrain.data.coco.kinds import refuse_other_kind
from vistrain.data.segmentation.panoptic import PanopticFolders
from vistrain.data.segmentation.panoptic_files import Segments, examined, read_numbers, segment_map
from vistrain.errors import DataError
from vistrain.metrics import CocoMask, protocol
from vistrain.metrics.coco import CocoResult, evaluate_records, records_of
from vistrain.metrics.panoptic_quality import PanopticResult
from vistrain.predictions import PanopticMap, Segment, Segmentation
from vistrain.tasks.segmentation.panoptic_predictor import PanopticPredictor


def evaluate_panoptic(predictions: Path, data: PanopticFolders) -> PanopticResult:
    """Measure panoptic results against a data module's test split.

    Args:
        predictions: a JSON file, whose PNGs lie in a folder of the same name beside it; such a folder; or what
            `vistrain predict` wrote.
        data: of images with segments.

    Raises:
        DataError: a file is missing or damaged, an image has no prediction or one of another size, or a segment of the
            PNG is not in the JSON, or the reverse.
    """
    data.prepare_data()
    labels, truth = data.labels, data.listed("test")
    found, folder = _predicted(predictions, data)
    place, metric, records = _places(found), protocol("panoptic", labels=labels), []
    for index, pair in enumerate(data.pairs("test")):
        names = (truth.images[index], pair.name, PurePosixPath(truth.images[index]).stem)
        position = next((place[name] for name in names if name in place), None)
        if position is None:
            remedy = "predict all images; `image_id` is that of the annotations, or the image's file name"
            raise DataError(str(pair.image), f"has no prediction in {predictions}", remedy)
        numbers, classes, crowd = truth.of(index)
        own, _ = segment_map(read_numbers(pair.mask), numbers)
        target = {
            "segment_map": torch.from_numpy(own),
            "segment_labels": torch.tensor([labels.channel_of[c] for c in classes.tolist()], dtype=torch.int64),
            "segment_crowd": torch.from_numpy(crowd),
        }
        ids, kinds, _ = found.of(position)
        png = folder / found.masks[position]
        segments = tuple(
            Segment(int(i), labels.channel_of[c], True, 1.0) for i, c in zip(ids.tolist(), kinds.tolist(), strict=True)
        )
        one = Segmentation(panoptic=PanopticMap(torch.from_numpy(read_numbers(png)), segments))
        records += metric.update([str(png)], [one], [target])
    metric.compute(records)
    result: PanopticResult = metric.result
    return result


def evaluate_instances(predictions: Path, data: DataModule, metric: type[CocoMask] = CocoMask) -> CocoResult:
    """Mask AP of instances against a data module's test split.

    Args:
        predictions: a file in COCO's results format with run lengths; or what `vistrain predict` wrote, with
            `--threshold 0` for the numbers of `vistrain test`.
        data: its ground truth is in COCO's terms.
        metric: `metrics.CocoMask`, or `CocoBoundary`.

    Raises:
        DataError: the file is missing or damaged, or names images that are not in the split.
    """
    data.prepare_data()
    remedy = "give COCO results with masks, or the output of `vistrain predict`"
    file = predictions / "coco_results.json" if predictions.is_dir() else predictions
    if not file.is_file():
        refuse_other_kind(predictions, "instances", remedy)
        raise DataError(
            str(predictions), "holds no coco_results.json" if predictions.is_dir() else "no such file", remedy
        )
    content: Any = read_json(file, remedy, "results") if file.suffix == ".json" else None
    if not isinstance(content, list) and not _has_detections(content):
        refuse_other_kind(file, "instances", remedy)
        content = read_json(file, remedy, "results")
    truth, records = records_of(content, data.ground_truth("test"), str(file), "the test split")
    return evaluate_records(truth, records, metric=metric)


def _has_detections(content: Any) -> bool:
    """Whether it is a `predictions.json` of objects."""
    images = content.get("images") if isinstance(content, Mapping) else None
    return isinstance(images, list) and any(isinstance(image, Mapping) and "detections" in image for image in images)


def _predicted(predictions: Path, data: PanopticFolders) -> tuple[Segments, Path]:
    """What a file of results lists, with the truth's categories where it names none, and the folder of its PNGs."""
    inside = predictions / PanopticPredictor.pictures / f"{PanopticPredictor.segments}.json"
    remedy = "give a panoptic JSON file, or what `vistrain predict` wrote with a network for segments"
    if predictions.is_dir():
        beside = predictions.with_name(f"{predictions.name}.json")
        if not inside.is_file() and not beside.is_file():
            refuse_other_kind(predictions, "segments", f"{remedy}; instances are evaluated with --protocol coco_mask")
            raise DataError(str(predictions), "holds no segments, and no JSON file of its name is beside it", remedy)
        predictions = inside if inside.is_file() else beside
    content: Any = read_json(predictions, remedy, "results") if predictions.suffix == ".json" else None
    if not isinstance(content, Mapping) or not _has_segments(content):
        refuse_other_kind(predictions, "segments", f"{remedy}; instances are evaluated with --protocol coco_mask")
        content = read_json(predictions, remedy, "results")
    if isinstance(content, Mapping) and "categories" not in content:
        categories = [{"id": c.id, "name": c.name, "isthing": int(c.thing)} for c in data.listed("test").categories]
        content = {**content, "categories": categories}
    found, faults = examined(content, predictions, truth=False)
    if faults:
        raise faults[0]
    unknown = sorted(set(found.classes.tolist()) - set(data.labels.ids))
    if unknown:
        raise DataError(str(predictions), f"category {unknown[0]} is none of the data's", "are they of this set?")
    return found, predictions.with_suffix("")


def _has_segments(content: Mapping[str, Any]) -> bool:
    """Whether annotations are those of segments, as far as the first one says it."""
    annotated = content.get("annotations")
    first = annotated[0] if isinstance(annotated, list) and annotated else None
    return not isinstance(first, Mapping) or "segments_info" in first


def _places(found: Segments) -> dict[str, int]:
    """Positions of images by id and by name, with and without suffixes."""
    places: dict[str, int] = {}
    for index, key in enumerate(found.ids):
        for name in (str(key), PurePosixPath(str(key)).stem, PurePosixPath(found.masks[index]).stem):
            places.setdefault(name, index)
    return places
