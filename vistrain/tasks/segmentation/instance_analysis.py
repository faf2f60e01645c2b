"""What a network that finds instances gets wrong: errors by kind and what each costs, by the overlaps of masks."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from vistrain import pictures
from vistrain.metrics import Record
from vistrain.metrics.detection_errors import analyse
from vistrain.tasks.base.task import Task
from vistrain.tasks.base.worst import WORST, draw_worst
from vistrain.writing import whole_file

log = logging.getLogger(__name__)


def analyse_instances(task: Task, records: Sequence[Record], folder: Path) -> None:
    """Write `analysis.json`, `confusion.png`, `errors.png` (AP that mending each kind of error would gain) and
    `worst.png`, the images with the most confident false instances and missed objects, truth beside prediction; and
    print the errors by kind.

    Args:
        task: its network looks at the worst images once more.
        records: of `metrics.CocoMask.update`, of the test split.
        folder: made if needed.

    Raises:
        DataError: a file cannot be written. Images that cannot be read are left out, with a warning.
    """
    found = analyse(task.datamodule.ground_truth("test"), records, masks=True)
    with whole_file(folder / "analysis.json") as path:
        path.write_text(json.dumps(found.to_dict(WORST), allow_nan=False) + "\n", encoding="utf-8")
    at = f"IoU {found.iou_threshold:g} of masks, score >= {found.score_threshold:g}"
    classes = [*found.flat.names, "background"]
    pictures.confusion(found.confusion, classes, folder / "confusion.png", f"objects at {at}")
    if np.isfinite(found.errors.ap):  # not so without objects
        title = f"mask AP at IoU {found.iou_threshold:g}: {100 * found.errors.ap:.1f}; mending one kind of error adds"
        pictures.bars(found.errors.gains(), folder / "errors.png", title, "AP, in points of 100")
    draw_worst(task, [str(image.image_id) for image in found.worst(WORST)], folder / "worst.png")
    Console().print(found)
    log.info("analysis: %s", folder)
