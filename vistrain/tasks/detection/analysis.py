"""What a detector gets wrong, as a folder to look at: from what an evaluation recorded, or a file of results."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from vistrain import pictures
from vistrain.data.base.images import read_listed_image
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.detection.module import DetectionData
from vistrain.errors import DataError, VistrainError
from vistrain.metrics import Record
from vistrain.metrics.detection_errors import KINDS, DetectionAnalysis, ImageErrors, analyse
from vistrain.tasks.base.task import Task, as_task
from vistrain.tasks.detection.pictures import judged_boxes, precision_recall
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

SIDE = 480  # long side of an image in the picture of the worst, pixels


def write_analysis(
    analysis: DetectionAnalysis,
    folder: str | Path,
    read_image: Callable[[int], np.ndarray] | None = None,
    worst: int = 8,
) -> Path:
    """Write an analysis into a folder.

    `analysis.json` holds all numbers; `confusion.png`, `precision_recall.png`, `errors.png` (AP that mending each kind
    of error would gain) and, where images can be read, `worst.png`: the images with the most confident false detections
    and missed objects, truth beside prediction.

    Args:
        analysis: of `metrics.detection_errors.analyse`.
        folder: made if needed.
        read_image: image id -> uint8 `[H, W, 3]` as annotated; None draws no images.
        worst: how many images.

    Returns:
        The folder.

    Raises:
        DataError: a file cannot be written. Images that cannot be read are left out, with a warning.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(str(folder), f"cannot be made: {error.strerror or error}") from error
    with whole_file(folder / "analysis.json") as path:
        path.write_text(json.dumps(analysis.to_dict(worst), allow_nan=False) + "\n", encoding="utf-8")
    names = analysis.flat.names
    at = f"IoU {analysis.iou_threshold:g}, score >= {analysis.score_threshold:g}"
    classes = [*names, "background"]
    pictures.confusion(analysis.confusion, classes, folder / "confusion.png", f"objects at {at}")
    curves = analysis.curves
    png = folder / "precision_recall.png"
    precision_recall(curves.precision, curves.iou_thresholds, names, png, analysis.iou_threshold)
    if np.isfinite(analysis.errors.ap):  # not so without objects
        _draw_costs(analysis, folder / "errors.png")
    if read_image is not None and worst > 0:
        _draw_worst(analysis.worst(worst), names, read_image, folder / "worst.png")
    return folder


def analyse_records(
    truth: Mapping[str, Any],
    records: Sequence[Record],
    folder: str | Path,
    read_image: Callable[[int], np.ndarray] | None = None,
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
    worst: int = 8,
    masks: bool = False,
) -> DetectionAnalysis:
    """Analyse what an evaluation recorded, and write it.

    Args:
        truth: COCO ground truth.
        records: of `metrics.CocoBox.update`.
        folder, read_image, worst: see `write_analysis`.
        score_threshold: least score of detections in the confusion matrix and the pictures.
        iou_threshold: from which on a box is in the right place.
        masks: whether masks overlap, instead of boxes; records are then those of `metrics.CocoMask.update`.

    Returns:
        The analysis; a Rich console prints it.

    Raises:
        DataError: a file cannot be written.
    """
    analysis = analyse(truth, records, iou_threshold=iou_threshold, score_threshold=score_threshold, masks=masks)
    write_analysis(analysis, folder, read_image, worst)
    return analysis


def analyse_task(task: Task, folder: Path, **options: Any) -> None:
    """Analyse and print what a task recorded in its latest evaluation of the test split; where it measured masks, by
    these as well, in the folder `masks` of it.

    Args:
        task: its records are on rank 0.
        folder: see `write_analysis`.
        options: thresholds and `worst` of `analyse_records`.

    Raises:
        DataError: a file cannot be written.
    """
    records: list[Record] = next(iter(task.records.values()), [])
    if not records or "boxes" not in records[0]:
        log.warning("no detections were recorded, so there is nothing to analyse: set `metrics: [coco_box]`")
        return
    data = task.datamodule
    truth = data.ground_truth("test")
    reader = set_reader(truth, data, "test")
    Console().print(analyse_records(truth, records, folder, reader, **options))
    if found := next((of_one for of_one in task.records.values() if of_one and "masks" in of_one[0]), None):
        Console().print(analyse_records(truth, found, folder / "masks", reader, masks=True, **options))
    log.info("analysis: %s", folder)


class ErrorAnalysis(Callback):
    """Writes a confusion matrix, precision-recall curves, errors by kind and the worst images after a test.

    Works from the records that a detection task has collected, on rank 0. With the defaults it does what `vistrain test
    --analysis FOLDER` does.

    Args:
        folder: where; `analysis` in the run's folder if None.
        score_threshold: least score of detections in the confusion matrix and the pictures.
        iou_threshold: from which on a box is in the right place.
        worst: how many images are drawn.
    """

    def __init__(
        self,
        folder: str | None = None,
        score_threshold: float = 0.3,
        iou_threshold: float = 0.5,
        worst: int = 8,
    ) -> None:
        self.folder = folder
        self.options = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "worst": worst}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse, write, print the table."""
        if trainer.is_global_zero:
            folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "analysis"
            analyse_task(as_task(pl_module), folder, **self.options)


def set_reader(truth: Mapping[str, Any], data: DataModule, split: SplitName) -> Callable[[int], np.ndarray]:
    """As `image_reader`, for the images of a data module's split."""
    if isinstance(data, DetectionData):
        return image_reader(truth, data.folder(split), data.exif)
    listed = {image["id"]: image for image in truth["images"]}

    def read(image_id: int) -> np.ndarray:
        path, entry = data.image_path(split, image_id), listed[image_id]
        return read_listed_image(path, int(entry["height"]), int(entry["width"]))

    return read


def image_reader(truth: Mapping[str, Any], images: Path, exif: str = "auto") -> Callable[[int], np.ndarray]:
    """What reads images of a ground truth by their id, in the orientation that they were annotated in.

    Args:
        truth: COCO ground truth.
        images: folder that its `file_name`s are relative to.
        exif: see `data.images.read_listed_image`.
    """
    listed = {image["id"]: image for image in truth["images"]}

    def read(image_id: int) -> np.ndarray:
        entry = listed[image_id]
        try:
            path, height, width = images / entry["file_name"], int(entry["height"]), int(entry["width"])
        except KeyError as error:
            raise DataError(f"image {image_id} of the annotations", f"has no {error.args[0]!r}") from error
        return read_listed_image(path, height, width, exif)

    return read


def _draw_costs(analysis: DetectionAnalysis, png: Path) -> None:
    errors = analysis.errors
    title = f"AP at IoU {analysis.iou_threshold:g}: {100 * errors.ap:.1f}; mending one kind of error alone adds"
    pictures.bars(errors.gains(), png, title, "AP, in points of 100")


def _draw_worst(
    errors: list[ImageErrors], names: tuple[str, ...], read_image: Callable[[int], np.ndarray], png: Path
) -> None:
    cells: list[np.ndarray] = []
    captions: list[str] = []
    for e in errors:
        try:
            image = read_image(e.image_id)
        except VistrainError as error:  # a data module may know of no files, too
            log.warning("not drawn: %s", error)
            continue
        shown, scale = pictures.fitted(image, SIDE)
        there = [names[k] for k in e.object_categories]
        fates = ["right" if found else "missed" for found in e.found]
        said = [names[k] for k in e.categories]
        kinds = ["right" if k == 0 else "ignored" if k < 0 else KINDS[k - 1] for k in e.kinds]
        cells.append(judged_boxes(shown, _corners(e.object_boxes) * scale, there, fates))
        cells.append(judged_boxes(shown, _corners(e.boxes) * scale, said, kinds, e.scores))
        captions.append(f"{e.image_id}: {len(fates)} objects, {fates.count('missed')} missed")
        captions.append(f"{len(kinds)} detections, {sum(k not in ('right', 'ignored') for k in kinds)} false")
    if cells:  # two images side by side, each as truth | prediction
        starts = range(0, len(cells), 4)
        picture = pictures.grid([cells[i : i + 4] for i in starts], [captions[i : i + 4] for i in starts])
        pictures.save_picture(picture, png)


def _corners(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
