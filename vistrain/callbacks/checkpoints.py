"""Which checkpoints a run folder holds: the last, the best, and nothing half-written."""

from __future__ import annotations

import logging
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from vistrain.checkpoints import load_file, save_durably
from vistrain.errors import ConfigError, WeightsError
from vistrain.internals import lightning as internals
from vistrain.tasks.base.task import Task, as_task

log = logging.getLogger(__name__)

UNFINISHED = (".*.tmp", ".*.partial")  # names of files on their way to a run folder


class DurableIO(CheckpointIO):
    """Writes to a temporary name, flushes, renames; reads without executing anything.

    A write that fails is reported and remembered, not raised: only rank 0 writes, and the other processes would wait
    for it in vain.

    Attributes:
        failure: why the latest write failed, or None.
    """

    def __init__(self) -> None:
        self.failure: WeightsError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one file, whole or not at all."""
        self.failure = None
        try:
            save_durably(checkpoint, path)
        except WeightsError as error:
            self.failure = error
            log.error("%s", error)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one file onto the CPU.

        Raises:
            WeightsError: it is missing, damaged or needs code execution.
        """
        return load_file(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove one file, if it is there."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """Keeps `last.ckpt`, `best.ckpt` and the `keep_best` best as `step_00001234.ckpt` in the run folder.

    A state is written once, under its own name; the other names are hard links to it (copies where the file system has
    none). An older file goes only after the newer one is on the disk. A monitored value that is missing or not finite
    never becomes best.

    When the disk is full, the files that were there stay valid, the failure is logged, and training goes on: someone
    may make room. If the last save of the run fails too, the run ends with `WeightsError`, as its result is nowhere.

    `last.ckpt` is renewed before each evaluation, too, and a run that is resumed from there begins with the evaluation:
    whatever happens to a long one, it costs no step, and no evaluation is left out.

    It must come after the other callbacks (but for `Preemption`), so that it saves what they have done to the step. As
    gradients are not stored, an evaluation inside an accumulation group may give a best file, but no `last.ckpt` to
    resume from.

    Args:
        monitor: what to rank by (`val/coco/AP`); None: the first number of the evaluation.
        mode: whether high or low values are good; None asks the metric that the value is of (low losses are good).
        keep_best: how many of the best to keep.
        every_n_steps: also renew `last.ckpt` after this many optimizer steps; 0 only at evaluations and epochs.
        folder: where; the trainer's `default_root_dir` if None.

    Raises:
        ConfigError: a count is negative.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        keep_best: int = 1,
        every_n_steps: int = 1000,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("keep_best", keep_best), ("every_n_steps", every_n_steps)):
            if value < 0:
                raise ConfigError(f"callbacks.checkpoints.{name}", f"{value} is negative")
        self.monitor, self.mode, self.keep_best, self.every_n_steps = monitor, mode, keep_best, every_n_steps
        self.folder: Path | None = Path(folder) if folder else None
        self.best: list[tuple[float, int]] = []  # (value, optimizer step), best first
        self._io = DurableIO()
        self._saved_step = self._seen_step = -1
        self._unsaved = self._warned = self._before_evaluation = self._low_is_good = False
        self._evaluated = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make Lightning write durably; remove what a killed run left half-written."""
        self.folder = self.folder or Path(trainer.default_root_dir)
        trainer.strategy.checkpoint_io = self._io
        if stage == "fit" and trainer.is_global_zero:
            for pattern in UNFINISHED:
                for path in self.folder.glob(pattern):
                    with suppress(OSError):  # what is no file is none of ours
                        path.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not save again the very state that was loaded."""
        self._saved_step = self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Renew `last.ckpt` between evaluations; only where an optimizer step ended, as gradients are not stored."""
        step, before, self._seen_step = trainer.global_step, self._seen_step, trainer.global_step
        due = self.every_n_steps and step != before and step % self.every_n_steps == 0
        if due and not internals.evaluation_follows(trainer):
            self._save(trainer, None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is about to be evaluated."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._before_evaluation = True
            self.save_last(trainer)
            self._before_evaluation = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was just evaluated."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._evaluated = True
            self._save(trainer, self._value(trainer, as_task(pl_module)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save an epoch that ended without an evaluation."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try once more what could not be saved; say that there is no best one, if nothing was evaluated.

        Raises:
            WeightsError: it still cannot.
        """
        if self._unsaved:
            self._save(trainer, None)
        if self._unsaved:
            reason = self._io.failure or WeightsError(str(self.folder), "the final state could not be saved")
            raise reason
        if trainer.is_global_zero and not self._evaluated and not self.best and not internals.is_trial(trainer):
            log.warning("nothing was evaluated, so there is no best.ckpt: last.ckpt is the end of the run")

    def save_last(self, trainer: Trainer) -> None:
        """Renew `last.ckpt`, unless this step's state is saved already."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before an evaluation, let a run that resumes from here begin with it."""
        if self._before_evaluation:
            internals.resume_with_evaluation(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """The ranking so far."""
        return {"best": [list(entry) for entry in self.best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the ranking up again; what is not in this folder (a run continued elsewhere) does not count."""
        self.best = [(value, step) for value, step in state_dict["best"] if self._path(step).exists()]

    # ---------------------------------------------------------------- how

    def _path(self, step: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step_{step:08d}.ckpt"

    def _value(self, trainer: Trainer, task: Task) -> float | None:
        name = self.monitor or next(iter(task.numbers), None)
        value = trainer.callback_metrics.get(name) if name else None
        if value is None or not math.isfinite(float(value)):
            if not self._warned:
                found = "is not finite" if value is not None else f"is not among {sorted(trainer.callback_metrics)}"
                if name is None:
                    log.warning("no best checkpoint (best.ckpt): the config names no metrics, so nothing is ranked")
                else:
                    log.warning("no best checkpoint: the monitored value %r %s", name, found)
                self._warned = True
            return None
        self._low_is_good = task.unit(str(name)).lower_is_better if self.mode is None else self.mode == "min"
        return float(value)

    def _save(self, trainer: Trainer, value: float | None) -> None:
        """Write the state; as a named file if its value is among the best."""
        if internals.is_trial(trainer):
            return
        assert self.folder is not None
        step, before = trainer.global_step, self.best
        inside_group = internals.is_inside_group(trainer)
        if value is not None:
            ranked = [entry for entry in before if entry[1] != step] + [(value, step)]
            ranked.sort(key=lambda entry: entry[0], reverse=not self._low_is_good)  # stable: of equals, the older
            self.best = ranked[: self.keep_best]  # before saving, so that the file knows of itself
        named = value is not None and step in (entry[1] for entry in self.best)
        if inside_group and not trainer.strategy.broadcast(named):
            return
        target: Path = trainer.strategy.broadcast(self._path(step) if named else self.folder / "last.ckpt")
        trainer.save_checkpoint(target, weights_only=False)
        done = self._io.failure is None
        if trainer.is_global_zero and done and named:
            done = self._rename(target, step, before, renew_last=not inside_group)
        self._unsaved = not trainer.strategy.broadcast(done)
        if self._unsaved:
            self.best = before
        else:
            self._saved_step = step

    def _rename(self, target: Path, step: int, before: list[tuple[float, int]], renew_last: bool) -> bool:
        """Give a named state its other names, then let go of what fell out of the ranking."""
        assert self.folder is not None
        try:
            if self.best[0][1] == step:
                _link(target, self.folder / "best.ckpt")
            if renew_last:
                _link(target, self.folder / "last.ckpt")
        except OSError as error:
            self._io.failure = WeightsError(str(target), f"saved, but not as best or last ({error.strerror})")
            log.error("%s", self._io.failure)
            return False
        for entry in before:
            if entry not in self.best and entry[1] != step:
                self._path(entry[1]).unlink(missing_ok=True)
        return True


def _link(source: Path, name: Path) -> None:
    """Point `name` at the content of `source`, atomically: a second name of one file where possible, else a copy."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)
