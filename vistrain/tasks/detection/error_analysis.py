"""A folder about a detector's errors, after `vistrain test`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from vistrain.metrics.detection_errors import analyse
from vistrain.tasks.detection.analysis import image_reader, write_analysis

log = logging.getLogger(__name__)


class ErrorAnalysis(Callback):
    """Writes a confusion matrix, precision-recall curves, errors by kind and the worst images after a test.

    Works from the records that a detection task has collected, on rank 0; `vistrain test --analysis FOLDER` adds it.

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
        self.score_threshold, self.iou_threshold, self.worst = score_threshold, iou_threshold, worst

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse, write, print the table."""
        if not trainer.is_global_zero:
            return
        collected: dict[str, Any] = getattr(pl_module, "records", {})
        records: list[Any] = next(iter(collected.values()), [])
        if not records or "boxes" not in records[0]:
            log.warning("no detections were recorded, so there is nothing to analyse: set `metrics: [coco_box]`")
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        truth = data.ground_truth("test")
        analysis = analyse(truth, records, iou_threshold=self.iou_threshold, score_threshold=self.score_threshold)
        folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "analysis"
        reader = image_reader(truth, data.folder("test"), data.exif) if hasattr(data, "folder") else None
        write_analysis(analysis, folder, reader, self.worst)
        Console().print(analysis)
        log.info("analysis: %s", folder)
