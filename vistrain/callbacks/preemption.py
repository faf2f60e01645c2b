"""Leaving in good order: a signal to any process saves the run on all of them, at the end of a step."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed

from vistrain import processes
from vistrain.callbacks.checkpoints import Checkpoints
from vistrain.errors import VistrainError
from vistrain.internals import lightning as internals

log = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between two agreements of all processes
MOST_STEPS = 1000  # between two agreements, however short the steps
CHILDREN_SECONDS = 10.0  # that processes which Lightning started are given to end by themselves
SHOW_CURSOR = b"\x1b[?25h"


class Preemption(Callback):
    """Turns SIGTERM, SIGUSR1, SIGHUP and Ctrl-C, sent to any process, into a saved run and a telling exit code.

    A handler only takes note. At the end of an optimizer step all processes agree (one number, maximum over all, over
    a gloo group of their own; about once a second, so it costs nothing), `last.ckpt` is saved, and all leave: with code
    75 after SIGTERM and SIGUSR1 ("requeue me"), with 130 after Ctrl-C. A run whose last step is done ends as usual,
    with 0. A second Ctrl-C ends the process at once.

    An evaluation is left after its current batch. `last.ckpt` was saved before it began (see `Checkpoints`), and a
    resumed run begins with that evaluation. While the numbers of an evaluation are computed, nobody leaves.

    Lightning's own handlers are switched off: they call collectives inside a handler, where a run of several processes
    hangs, and let a single process end with code 0 without saving. So is its broadcast before each batch that goes with
    them; it made the processor wait for the device.

    It must come last among the callbacks, after the checkpoints.

    Attributes:
        wanted: exit code that this process was told to leave with; 0 while nobody told it.
    """

    def __init__(self) -> None:
        self.wanted = 0
        self._agreed = 0  # exit code that all processes leave with
        self._group: Any = None
        self._before: dict[int, processes.Handler] = {}
        self._step = self._next = 0  # optimizer steps, or batches of an evaluation
        self._last, self._last_time = 0, 0.0  # where and when all agreed last
        self._batches = self._common = 0  # of an evaluation: done here, and what every process has

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning's handlers from being set."""
        internals.keep_from_signals(trainer)

    # ---------------------------------------------------------------- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the handlers.

        Raises:
            VistrainError: the processes do not start from the same step.
        """
        self._agreed = self._batches = 0
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")
        self._before = processes.install(dict.fromkeys((*processes.PREEMPTIONS, signal.SIGINT), self._note))
        step = trainer.global_step
        least, most = self._most([-step, step])
        if -least != most:
            raise VistrainError(
                "run.folder", f"processes start from steps {-least} to {most}", "all machines must share the run folder"
            )
        self._step = step
        self._start_counting(step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree, where a step ended; save, unless an evaluation or the end of the epoch does it presently."""
        step = trainer.global_step
        if step == self._step:  # inside an accumulation group
            return
        self._step = step
        self._agree(step)
        if self._agreed and not (internals.epoch_ends(trainer) or internals.evaluation_follows(trainer)):
            for callback in internals.callbacks_of(trainer):
                if isinstance(callback, Checkpoints):
                    callback.save_last(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave; not already at the end of the last batch, where the task has not logged it yet."""
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave, unless this was the last epoch."""
        loop = trainer.fit_loop
        if self._agreed and not (loop.epoch_loop.global_step == loop.max_steps or self._is_last_epoch(trainer)):
            self._leave(trainer)

    @staticmethod
    def _is_last_epoch(trainer: Trainer) -> bool:
        limit = trainer.max_epochs
        return limit is not None and 0 <= limit <= trainer.current_epoch + 1

    # ---------------------------------------------------------------- evaluation while training

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave, if it is time to; the checkpoints have saved what stands before the evaluation."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._batches = 0
        self._start_counting(0)
        self._agreed, shortest = self._most([self.wanted, -int(sum(trainer.num_val_batches))])
        self._common = -shortest
        self._leave(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave, if it is time to."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._batches += 1
        if self._batches <= self._common:  # processes may have a batch more or less: agree where all have one
            self._agree(self._batches)
            self._leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps again."""
        self._start_counting(self._step)

    # ---------------------------------------------------------------- the end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is saved."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the processes along that Lightning started: they would wait for this one."""
        self._restore()
        children = internals.launched_processes(trainer)
        patience = time.monotonic() + (CHILDREN_SECONDS if self._agreed else 0)
        while any(child.poll() is None for child in children) and time.monotonic() < patience:
            time.sleep(0.05)
        for child in children:
            if child.poll() is None:
                child.kill()

    # ---------------------------------------------------------------- how

    def _note(self, number: int, frame: Any) -> None:
        """The handler: no locks, no collectives, no output but what the operating system does in one call."""
        self.wanted = max(self.wanted, processes.exit_code(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # works even where Python is stuck in a call
            if os.environ.get("LOCAL_RANK", "0") == "0":
                cursor = SHOW_CURSOR if sys.stderr.isatty() else b""  # a live line has hidden it
                with suppress(OSError):  # nobody may listen
                    os.write(2, cursor + b"\nvistrain: saving after this step; Ctrl-C again ends at once\n")

    def _restore(self) -> None:
        processes.install(self._before)
        self._before = {}

    def _start_counting(self, place: int) -> None:
        self._last, self._last_time = place, time.monotonic()
        self._next = place + 1

    def _agree(self, place: int) -> None:
        """Take the highest exit code of all processes, if it is time to ask; then decide when to ask again."""
        if self._group is None:
            self._agreed = self.wanted
            return
        if place < self._next:
            return
        now = time.monotonic()
        passed = max(now - self._last_time, 1e-6)
        pace = int((place - self._last) / passed * PERIOD)
        # The fastest process's pace holds for all, so that all ask at the same place.
        self._agreed, interval = self._most([self.wanted, min(max(pace, 1), MOST_STEPS)])
        self._last, self._last_time, self._next = place, now, place + interval

    def _most(self, numbers: list[int]) -> list[int]:
        """The maximum over all processes, of each number."""
        if self._group is None:
            return numbers
        tensor = torch.tensor(numbers)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._group)
        return [int(n) for n in tensor.tolist()]

    def _leave(self, trainer: Trainer) -> None:
        if not self._agreed:
            return
        if trainer.is_global_zero:
            folder = trainer.default_root_dir
            why = "interrupted" if self._agreed == processes.INTERRUPTED else "told to stop"
            log.warning("%s at step %d - continue with: vistrain fit --resume %s", why, trainer.global_step, folder)
        raise SystemExit(self._agreed)
