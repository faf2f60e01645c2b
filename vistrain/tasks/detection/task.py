"""Detection: boxes in, COCO's numbers out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from vistrain.detection import TestTimeAugmentation
from vistrain.metrics import protocol
from vistrain.metrics.coco import write_predictions
from vistrain.optim import ParameterGroups, Schedule
from vistrain.structures import Detections, Factory
from vistrain.tasks.base.task import Batch, Metric, Task

log = logging.getLogger(__name__)


class DetectionTask(Task):
    """Trains and evaluates a detector; the data module's `ground_truth(split)` is what it is measured against.

    Args:
        model, optimizer, groups, schedule, metrics, compile, seed, channels_last: see `Task`.
        tta: test-time augmentation in `vistrain test`; evaluations while training do without.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Factory[Optimizer],
        groups: ParameterGroups | None = None,
        schedule: Schedule | None = None,
        metrics: Sequence[str] = (),
        compile: bool = False,
        seed: int = 0,
        tta: TestTimeAugmentation | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(model, optimizer, groups, schedule, metrics, compile, seed, channels_last)
        self.tta = tta

    def predictions(self, batch: Batch, split: str) -> list[Detections]:
        """What the network finds; in a test with test-time augmentation, if there is any."""
        if split == "test" and self.tta is not None:
            return self.tta(self.model, batch)
        found: list[Detections] = super().predictions(batch, split)
        return found

    def on_test_epoch_start(self) -> None:
        """Start collecting records, and say how images are looked at."""
        super().on_test_epoch_start()
        if self.tta is not None:
            log.info("%r", self.tta)

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
