"""What a run leaves behind for people: its config, its surroundings, its curves and its pictures."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from vistrain import pictures
from vistrain.callbacks.loggers import CSVMetrics
from vistrain.data.base.module import refuse_below
from vistrain.errors import DataError
from vistrain.surroundings import environment
from vistrain.tasks.base.task import Cells, Task, as_task

log = logging.getLogger(__name__)


class RunFolder(Callback):
    """Fills the run folder; only rank 0 writes.

    `config.yaml` and `environment.json` at the start, `first_batch.png` (the first training batch as the network gets
    it), and after each evaluation `curves.png`, `eval/epoch_003.png` and the predictions: what the task shows of a
    sample and writes of its predictions (`draw_sample`, `write_predictions`). `metrics.csv` is the logger's
    (`CSVMetrics`), which a resumed run continues. What cannot be written is reported, and the run goes on.

    Args:
        images: how many images the pictures show, spread over the set.
        side: long side of each image in the pictures, pixels.
        threshold: lowest score of a drawn prediction.
        folder: where; the trainer's `default_root_dir` if None.

    Raises:
        ConfigError: a number is too small.
    """

    def __init__(self, images: int = 6, side: int = 480, threshold: float = 0.3, folder: str | None = None) -> None:
        refuse_below(0, images=images, threshold=threshold)
        refuse_below(16, side=side)
        self.images, self.side, self.threshold = images, side, threshold
        self.folder: Path | None = Path(folder) if folder else None
        self._rows: list[Cells] = []
        self._batches = 0  # of the evaluation so far

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        self.folder = self.folder or Path(trainer.default_root_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known before training, now that nothing can refuse it any more; let `metrics.csv` continue
        where the checkpoint was written."""
        for logger in trainer.loggers:
            if isinstance(logger, CSVMetrics):
                logger.resume_at(trainer.global_step)
        if not trainer.is_global_zero:
            return
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        config = as_task(pl_module).checkpoint_facts.get("config")
        if config is not None:
            self._write("config.yaml", lambda path: path.write_text(OmegaConf.to_yaml(OmegaConf.create(config))))
        self._write("environment.json", lambda path: path.write_text(json.dumps(environment(), indent=2) + "\n"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of a new run."""
        if batch_idx == 0 and trainer.global_step == 0 and trainer.current_epoch == 0 and trainer.is_global_zero:
            task, count = as_task(pl_module), min(len(batch["id"]), self.images)
            rows = [task.draw_sample(batch, i, None, self.side, self.threshold) for i in range(count)]
            self._draw(rows, 3, "first_batch.png")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start collecting."""
        self._rows, self._batches = [], 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep images from all over the set: class folders would show one class alone."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        self._batches += 1
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        due = math.ceil(self.images * self._batches / max(sum(batches), self._batches)) - len(self._rows)
        predictions = outputs["predictions"]
        wanted = min(due, len(predictions))
        for i in (len(predictions) * k // wanted for k in range(wanted)):
            cells = as_task(pl_module).draw_sample(batch, i, predictions[i], self.side, self.threshold)
            self._rows.append(cells)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what an evaluation during training left."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            task = as_task(pl_module)
            self._after_evaluation(task, f"eval/epoch_{trainer.current_epoch + 1:03d}.png")
            assert self.folder is not None
            numbers, low = self.folder / "metrics.csv", [n for n, u in task.units.items() if u.lower_is_better]
            if numbers.exists():
                self._write("curves.png", lambda path: pictures.curves(numbers, path, low))

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a test left."""
        if trainer.is_global_zero:
            self._after_evaluation(as_task(pl_module), "eval/test.png")

    def _after_evaluation(self, task: Task, name: str) -> None:
        rows, self._rows = self._rows, []
        self._draw(rows, 4, name)
        self._write("predictions.json", task.write_predictions)

    def _draw(self, rows: list[Cells], width: int, name: str) -> None:
        """Draw cells by samples; several samples share a line of `width` cells where they fit whole."""
        if not rows:
            return
        per_line = max(width // max(map(len, rows)), 1)
        lines = [list(chain(*rows[i : i + per_line])) for i in range(0, len(rows), per_line)]
        captions = [[caption for caption, _ in line] for line in lines]
        picture = pictures.grid([[image for _, image in line] for line in lines], captions)
        self._write(name, lambda path: pictures.save_picture(picture, path))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write one file; without it the run is poorer, not broken."""
        assert self.folder is not None
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OSError, DataError) as error:
            log.warning("%s could not be written: %s", path, error)
