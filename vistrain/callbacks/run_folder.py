"""What a run leaves behind for people: its config, its surroundings, its curves and its pictures."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from vistrain import pictures
from vistrain.callbacks.extremes import Extremes
from vistrain.callbacks.loggers import CSVMetrics
from vistrain.data.base.module import SplitName
from vistrain.devices import peak_memory
from vistrain.errors import DataError, VistrainError, refuse_below
from vistrain.surroundings import commit, environment, hardware
from vistrain.tasks.base.task import Cells, Task, as_task
from vistrain.writing import json_line

log = logging.getLogger(__name__)


class RunFolder(Callback):
    """Fills the run folder; only rank 0 writes.

    `config.yaml` and `environment.json` at the start, `first_batch.png` (the first training batch as the network gets
    it), and after each evaluation `curves.png`, `eval/epoch_003.png` and the predictions: what the task shows of a
    sample and writes of its predictions (`draw_sample`, `write_predictions`). After the last one, and after a test,
    `eval/worst.png` and `eval/best.png` show the samples that it did worst and best on. `summary.json` says how long it
    took, how much memory, and what was skipped. `metrics.csv` is the logger's (`CSVMetrics`), which a resumed run
    continues. What cannot be written is reported, and the run goes on.

    Args:
        images: how many images the pictures show, spread over the set.
        side: long side of each image in the pictures, pixels.
        threshold: lowest score of a drawn prediction.
        folder: where; the trainer's `default_root_dir` if None.
        extremes: whether the last evaluation looks for the samples that it does worst and best on.

    Raises:
        ConfigError: a number is too small.
    """

    def __init__(
        self, images: int = 6, side: int = 480, threshold: float = 0.3, folder: str | None = None, extremes: bool = True
    ) -> None:
        refuse_below(0, images=images, threshold=threshold)
        refuse_below(16, side=side)
        self.images, self.side, self.threshold, self.extremes = images, side, threshold, extremes
        self.folder: Path | None = Path(folder) if folder else None
        self._rows: list[Cells] = []
        self._batches = 0  # of the evaluation so far
        self._extremes: Extremes | None = None  # of an evaluation after which none comes
        self._began, self._before = 0.0, 0.0  # when this process began to train, and seconds of processes before it

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
        self._began = time.monotonic()
        self._before = self._seconds_before() if trainer.global_step else 0.0
        facts = {**environment(), "commit": commit(), "hardware": hardware()}
        if trainer.global_step:  # a run that goes on was started by another command
            before = _read_json(self.folder / "environment.json")
            facts["started"] = before.get("started") or before.get("command") or facts["command"]
        if "weights" in as_task(pl_module).checkpoint_facts:
            facts["weights"] = as_task(pl_module).checkpoint_facts["weights"]
        self._write("environment.json", lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take back what was written of a run whose data were refused before its first step: it leaves no folder."""
        begun = trainer.global_step or trainer.ckpt_path or self.folder is None or not trainer.is_global_zero
        if isinstance(exception, VistrainError) and not begun:
            for name in ("config.yaml", "environment.json"):
                Path(self.folder or "", name).unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of a new run."""
        if batch_idx == 0 and trainer.global_step == 0 and trainer.current_epoch == 0 and trainer.is_global_zero:
            task, count = as_task(pl_module), min(len(batch["id"]), self.images)
            rows = [task.draw_sample(batch, i, None, self.side, self.threshold) for i in range(count)]
            self._draw(rows, 3, "first_batch.png")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start collecting."""
        self._rows, self._batches, self._extremes = [], 0, None
        task = as_task(pl_module)
        split: SplitName = "test" if trainer.testing else "val"
        is_last = self.extremes and (trainer.testing or _is_last(trainer))
        if trainer.is_global_zero and task.evaluators[split] and is_last:
            total = -(-len(task.datamodule.watched[split]) // trainer.world_size)
            self._extremes = Extremes(self.side, self.threshold, total)

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
        task = as_task(pl_module)
        for i in (len(predictions) * k // wanted for k in range(wanted)):
            self._rows.append(task.draw_sample(batch, i, predictions[i], self.side, self.threshold))
        if self._extremes is not None:
            name, metric = next(iter(task.evaluators["test" if trainer.testing else "val"].items()))
            if name in outputs["records"]:
                self._extremes.look(task, metric, batch, predictions, outputs["records"][name])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what an evaluation during training left."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            task = as_task(pl_module)
            self._after_evaluation(task, f"eval/epoch_{trainer.current_epoch + 1:03d}.png")
            assert self.folder is not None
            numbers, low = self.folder / "metrics.csv", [n for n, u in task.units.items() if u.lower_is_better]
            if numbers.exists():
                self._write("curves.png", lambda path: pictures.curves(numbers, path, low))
            self._summarise(trainer, task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it took."""
        if trainer.is_global_zero:
            self._summarise(trainer, as_task(pl_module))

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
        extremes, self._extremes = self._extremes, None
        if extremes is not None:
            for kind, found in extremes.rows().items():
                self._draw(found, 4, f"eval/{kind}.png")
            self._update_summary({"extremes": {"number": extremes.number, "of": extremes.looked_at}})

    def _summarise(self, trainer: Trainer, task: Task) -> None:
        data = task.datamodule
        seconds = self._before + time.monotonic() - self._began
        self._update_summary(
            {
                "seconds": round(seconds, 1),
                "memory_bytes": peak_memory(task.device),
                "steps": trainer.global_step,
                "processes": trainer.world_size,
                "samples": {split: len(found) for split, found in data.watched.items()},
                "unreadable": [watched.name(i) for watched in data.watched.values() for i in watched.unreadable],
            }
        )

    def _update_summary(self, facts: dict[str, Any]) -> None:
        assert self.folder is not None
        known = _read_json(self.folder / "summary.json")
        text = json_line({**known, **facts}) + "\n"
        self._write("summary.json", lambda path: path.write_text(text, encoding="utf-8"))

    def _seconds_before(self) -> float:
        assert self.folder is not None
        seconds = _read_json(self.folder / "summary.json").get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else 0.0

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


def _is_last(trainer: Trainer) -> bool:
    """Whether the run ends with the evaluation that begins, as far as its length says it."""
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    by_epochs = epochs is not None and epochs > 0 and trainer.current_epoch + (every or 1) >= epochs
    return by_epochs or 0 < trainer.max_steps <= trainer.global_step


def _read_json(path: Path) -> dict[str, Any]:
    """What a file of this run holds; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
