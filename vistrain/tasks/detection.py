"""Detection: boxes in, COCO's numbers out."""

from __future__ import annotations

from pathlib import Path

from vistrain.metrics import protocol
from vistrain.metrics.coco import write_predictions
from vistrain.tasks.base import Metric, Task


class DetectionTask(Task):
    """Trains and evaluates a detector; the data module's `ground_truth(split)` is what it is measured against.

    Args: see `Task`.
    """

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """One metric for each protocol name, on the split's ground truth.

        Raises:
            ConfigError: a name is no protocol.
        """
        if not self.metrics:
            return {}
        truth = self.trainer.datamodule.ground_truth(split)  # type: ignore[attr-defined]
        return {name: protocol(name, ground_truth=truth, labels=self.model.labels) for name in self.metrics}

    def write_predictions(self, path: Path) -> None:
        """Write the detections of the latest evaluation in COCO's results format; on rank 0, which has the records."""
        for records in list(self.records.values())[:1]:  # every box metric records the same detections
            write_predictions(records, path)
