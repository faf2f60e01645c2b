"""How far the run is, and how fast: a live line on a terminal, one plain line every N steps elsewhere."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

from vistrain.attention.base import paths_of
from vistrain.devices import peak_memory
from vistrain.errors import refuse_below
from vistrain.internals import lightning as internals
from vistrain.processes import load_average, resident_memory
from vistrain.tasks.base.task import Task, as_task

REFRESH_SECONDS = 0.5  # of the live line
SHOWN_NUMBERS = 3  # of an evaluation, or one of each protocol; the rest is in metrics.csv
EVALUATION_SECONDS = 30.0  # between plain lines of an evaluation
CROWDED = 1.5  # threads per core above which other programs must be running: a run has about one, and its loaders


class Progress(Callback):
    """Shows loss, learning rate, images per second, share of time spent waiting for data, memory and time left.

    A step costs a few microseconds: the loss is summed on the device and read only where something is shown. The
    shares and speeds also go to the loggers (`perf/images_per_s`, `perf/data_share`) at the trainer's
    `log_every_n_steps`. A run on the processor says once if it has to share it with other programs.

    Args:
        every_n_steps: optimizer steps between plain lines; the trainer's `log_every_n_steps` if None.

    Raises:
        ConfigError: it is less than 1.

    Attributes:
        console: where to show it: standard output, unless set otherwise. Whether it is a terminal decides the kind.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__()
        refuse_below(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.console = Console(soft_wrap=True)
        self._enabled = True
        self._live: RichProgress | None = None
        self._task: Any = None
        self._clock = _Clock()
        self._loss: Tensor | None = None  # the sum of the latest `_losses` micro-batches' losses
        self._losses = 0
        self._shown_step, self._shown_at = 0, 0.0
        self._evaluated, self._evaluation_start = 0, 0.0
        self._said_crowded = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Only rank 0 shows anything."""
        self._enabled = trainer.is_global_zero

    # ---------------------------------------------------------------- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and the live line on a terminal."""
        self._clock.start(self._batches_done(trainer))
        self._shown_step = trainer.global_step
        if self._enabled and trainer.global_step:
            self._line(f"goes on after step {trainer.global_step}")
        for path in paths_of(pl_module, pl_module.device) if self._enabled else ():
            self._line(f"attention {path}")
        if self._enabled and self.console.is_terminal:
            self._live = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                refresh_per_second=1 / REFRESH_SECONDS,
                transient=True,
            )
            self._live.start()
            self._task = self._live.add_task("starting", text="", total=None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The data is here."""
        self._clock.batch_started()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and show what is due."""
        self._clock.batch_ended(len(batch["id"]) * trainer.world_size)
        if not self._enabled:
            return
        loss = outputs["loss"]
        self._loss = loss if self._loss is None else self._loss + loss
        self._losses += 1
        step = trainer.global_step
        every = self.every_n_steps or internals.log_every_n_steps(trainer)
        line_due = step != self._shown_step and step % max(every, 1) == 0
        if line_due or (self._live is not None and time.perf_counter() - self._shown_at > REFRESH_SECONDS):
            self._show(trainer, pl_module, step, line_due)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Time spent saving is not time spent waiting for data."""
        self._clock.pause()

    def _show(self, trainer: Trainer, pl_module: LightningModule, step: int, line_due: bool) -> None:
        clock = self._clock
        assert self._loss is not None
        # Reading the loss waits for the device, so the time is taken after it. Lightning has divided each micro-batch's
        # loss by their number in an optimizer step.
        loss = self._loss.item() / self._losses * trainer.accumulate_grad_batches
        images, share = clock.rates()
        self._shown_at = time.perf_counter()
        total = _total_batches(trainer)
        done = self._batches_done(trainer)
        text = (
            f"step {step}  loss {loss:.4g}  lr {_learning_rate(trainer):.3g}  {images:.4g} img/s  "
            f"data {share:.0%}  mem {memory(pl_module.device)}  left {duration(clock.time_left(done, total))}"
        )
        title = f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if _ends(trainer.max_epochs) else "")
        if self._live is not None:
            self._live.update(
                self._task, description=title, text=text, completed=done, total=None if math.isinf(total) else total
            )
        elif line_due:
            self._line(f"{title}  {text}")
        if line_due:
            self._say_if_crowded(pl_module.device)
            as_task(pl_module).write_numbers({"perf/images_per_s": images, "perf/data_share": share}, step)
            self._loss, self._losses, self._shown_step = None, 0, step
            clock.restart()
        clock.resume()

    def _say_if_crowded(self, device: torch.device) -> None:
        # The load is the whole machine's, so it is compared with all cores, not with those that this process may use.
        load, cores = load_average(), os.cpu_count() or 1
        if self._said_crowded or device.type != "cpu" or load is None or load <= CROWDED * cores:
            return
        self._said_crowded = True
        fewer = max(cores - 1, 1)
        room = f", or leave them room: OMP_NUM_THREADS={fewer}" if torch.get_num_threads() > fewer else ""
        self._line(
            f"other programs share the processor: {load:.1f} threads want its {cores} core{'s' * (cores > 1)}, and "
            f"training can be several times slower - end them{room}"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the live line."""
        self._stop()
        if self._enabled:
            took = duration(self._clock.elapsed())
            self._line(f"trained to step {trainer.global_step} in {took}: {trainer.default_root_dir}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal usable."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---------------------------------------------------------------- evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._evaluated, self._evaluation_start = 0, time.perf_counter()
        self._shown_at = self._evaluation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show now and then how far the evaluation is."""
        self._evaluated += 1
        now = time.perf_counter()
        if not self._enabled or now - self._shown_at < (EVALUATION_SECONDS if self._live is None else REFRESH_SECONDS):
            return
        self._shown_at = now
        total = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        text = f"evaluating: batch {self._evaluated} of {total}"
        if self._live is not None:
            self._live.update(self._task, text=text)
        else:
            self._line(text)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line with the numbers."""
        self._clock.pause()
        if not self._enabled or trainer.sanity_checking:
            return
        task = as_task(pl_module)
        numbers = "  ".join(f"{name} {task.numbers[name]:.4f}" for name in main_numbers(task))
        took = duration(time.perf_counter() - self._evaluation_start)
        self._line(f"step {trainer.global_step}  evaluated in {took}  {numbers}")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The task prints its own table."""
        if self._enabled:
            task = as_task(pl_module)
            took, place = duration(time.perf_counter() - self._evaluation_start), task.datamodule.place("test")
            records = next(iter(task.records.values()), None)  # of all processes
            count = "" if records is None else f" on {len(records)} image{'s' * (len(records) != 1)}"
            self._line(f"tested{count}{place and f' of {place}'} in {took}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    @staticmethod
    def _batches_done(trainer: Trainer) -> int:
        return internals.batches_in_all(trainer)


class _Clock:
    """Where the time goes: between the end of one batch and the start of the next the loop waits for data."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, batches: int) -> None:
        self.started, self.first_batch = time.perf_counter(), batches
        self.restart()
        self._ended: float | None = None  # None: what lies before the next batch is no waiting for data

    def restart(self) -> None:
        """Begin a new interval."""
        self._images, self._waiting, self._working = 0, 0.0, 0.0
        self._mark = time.perf_counter()

    def batch_started(self) -> None:
        now = time.perf_counter()
        if self._ended is not None:
            self._waiting += now - self._ended
        self._mark = now

    def batch_ended(self, images: int) -> None:
        now = time.perf_counter()
        self._working += now - self._mark
        self._images += images
        self._ended = self._mark = now

    def pause(self) -> None:
        self._ended = None

    def resume(self) -> None:
        """What lies before now was no waiting for data."""
        self._ended = time.perf_counter()

    def rates(self) -> tuple[float, float]:
        """Images per second and the share of time spent waiting, in the current interval, pauses left out."""
        self._working += time.perf_counter() - self._mark  # reading the loss waited for the device
        self._mark = time.perf_counter()
        total = max(self._waiting + self._working, 1e-9)
        return self._images / total, self._waiting / total

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def time_left(self, batches: int, total: float) -> float:
        """Seconds, evaluations and saving so far included; `inf` where the run has no end."""
        done = max(batches - self.first_batch, 1)
        return self.elapsed() / done * max(total - batches, 0)


def main_numbers(task: Task) -> list[str]:
    """Names of the numbers of the latest evaluation that a line has room for: what a callback waits for, the first one
    of each protocol, and what comes first of the rest."""
    monitored = [name for name in task.monitored.values() if name in task.numbers]
    families: dict[str, str] = {}
    for name in task.numbers:
        families.setdefault(name.split("/")[1], name)
    first = list(dict.fromkeys([*monitored, *families.values()]))
    return list(dict.fromkeys([*first, *task.numbers]))[: max(SHOWN_NUMBERS, len(first))]


def _ends(limit: int | None) -> bool:
    return limit is not None and limit > 0


def _total_batches(trainer: Trainer) -> float:
    """Micro-batches of the whole run."""
    by_epochs = trainer.num_training_batches * trainer.max_epochs if _ends(trainer.max_epochs) else math.inf  # type: ignore[operator]
    by_steps = trainer.max_steps * trainer.accumulate_grad_batches if _ends(trainer.max_steps) else math.inf
    return min(by_epochs, by_steps)


def _learning_rate(trainer: Trainer) -> float:
    return max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)


def duration(seconds: float) -> str:
    """`1:02:03`, or `?` where it is unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def memory(device: torch.device) -> str:
    """What the run holds: the most that the accelerator gave out so far, else the resident memory of this process."""
    resident = None if device.type == "cuda" else resident_memory()
    used = peak_memory(device) if resident is None else resident
    return f"{used / 2**30:.2f} GiB"
