"""The records of a test on disk, for numbers of several tests together."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from vistrain.tasks.base.task import as_task
from vistrain.writing import whole_file


class KeepRecords(Callback):
    """Writes the records of each metric of a test, JSON, by protocol.

    Args:
        file: where to; written whole or not at all.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them, on the process that has them."""
        if trainer.is_global_zero:
            with whole_file(self.file) as partial:
                partial.write_text(json.dumps(as_task(pl_module).records), encoding="utf-8")
