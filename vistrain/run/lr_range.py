"""A learning-rate range test: the loss while the rate rises.

Smith 2015, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, section 3.3; here the rate rises
geometrically, and the suggestion is the rate of the steepest descent of the smoothed loss.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from vistrain.config import without_pretrained
from vistrain.errors import ConfigError
from vistrain.optim import Schedule
from vistrain.pictures.charts import draw_over_rates
from vistrain.run import refusals
from vistrain.run.networks import load_named
from vistrain.run.parts import build_parts, build_trainer
from vistrain.tasks.base.task import as_task

SMOOTHING = 0.9  # weight of the past in the smoothed loss
DIVERGED = 4.0  # times the least smoothed loss: it ends there
FEWEST = 10  # steps of which something can be said


@dataclass(frozen=True, kw_only=True)
class Rising(Schedule):
    """From `first` to `last` times the base rate, by the same factor at each of `steps`."""

    first: float
    last: float
    steps: int

    def _decay(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        return self.first * (self.last / self.first) ** (min(step, self.steps - 1) / (self.steps - 1))


@dataclass(frozen=True)
class RateRange:
    """What a range test saw.

    Attributes:
        rates: of each step.
        losses: at it, before the step.
        suggestion: a rate; None where the loss does not fall.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None


class _Recorder(Callback):
    """The loss of each optimizer step, the mean over its micro-batches; ends a run that diverges."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._parts: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._parts.append(sum(float(value) for value in as_task(pl_module).losses.values()))
        if trainer.global_step > len(self.losses):
            mean = torch.tensor(sum(self._parts) / len(self._parts), device=pl_module.device)
            loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))
            self.losses.append(loss)
            self._parts = []
            line = smoothed(self.losses)
            trainer.should_stop |= not math.isfinite(loss) or bool(line[-1] > DIVERGED * line.min() > 0)


def lr_range(
    config: dict[str, Any],
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 1.0,
    *,
    png: Path | None = None,
    allow: Collection[str] = (),
) -> RateRange:
    """Train for some steps while the learning rate rises, and say where the loss fell fastest.

    The run is the config's, weights and augmentation included, without its schedule, callbacks, loggers and
    evaluations; it ends early where the loss diverges, and nothing of it is kept.

    Args:
        config: composed; of stages, the first one's is what stands outside `stages`.
        steps: optimizer steps, 10 or more.
        lowest, highest: learning rates of the first and the last step.
        png: where to draw it; None: nowhere.
        allow: see `run.fit`.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    if steps < FEWEST:
        raise ConfigError("--steps", f"{steps} are too few", f"use {FEWEST} or more")
    if not 0 < lowest < highest < math.inf:
        raise ConfigError("--lowest", f"{lowest:g} and {highest:g} are no range", "such as 1e-7 and 1")
    ours = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0}
    config = {**config, "callbacks": {}, "trainer": {**(config.get("trainer") or {}), **ours}}
    for key in ("schedule", "stages"):
        config.pop(key, None)
    weights = (config.get("run") or {}).get("weights")
    seed_everything(config.get("seed", 0), workers=True, verbose=False)
    parts = build_parts(without_pretrained(config) if weights else config, allow, stage="fit")
    if weights:
        load_named(parts.model, weights)
    parts.task.groups.prepare(parts.model)
    base = parts.task.optimizer.arguments.get("lr")
    if not isinstance(base, int | float) or base <= 0:
        raise ConfigError("optimizer.lr", "is missing or not above 0", "groups of parameters are relative to it")
    parts.task.schedule = Rising(first=lowest / base, last=highest / base, steps=steps)
    recorder = _Recorder()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, parts, Path(folder), allow, evaluate_only=True)
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]  # Lightning hides the list
        with refusals.of_run(parts.task, parts.data, None):
            trainer.fit(parts.task, datamodule=parts.data)
    finite = [loss for loss in recorder.losses if math.isfinite(loss)]
    rates = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(len(finite))]
    found = RateRange(tuple(rates), tuple(finite), suggestion(rates, finite))
    if png is not None and trainer.is_global_zero:
        draw_over_rates(found.rates, found.losses, smoothed(finite), found.suggestion, png)
    return found


def smoothed(losses: Collection[float]) -> np.ndarray:
    """An exponential moving average `[N]` float64, corrected for its beginning."""
    line, average = [], 0.0
    for step, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        line.append(average / (1 - SMOOTHING**step))
    return np.array(line, dtype=np.float64)


def suggestion(rates: Collection[float], losses: Collection[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest over the logarithm of the rate, before its least value; None:
    it does not fall there, or there are too few.

    Args:
        rates: ascending, above 0.
        losses: one for each.
    """
    if len(losses) < FEWEST:
        return None
    line = smoothed(losses)
    end = int(line.argmin()) + 1
    if end < 3:
        return None
    slope = np.gradient(line[:end], np.log(np.array(list(rates))[:end]))
    steepest = int(slope.argmin())
    return float(list(rates)[steepest]) if slope[steepest] < 0 else None
