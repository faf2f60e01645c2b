"""An exponential moving average of the weights."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from vistrain.errors import ConfigError
from vistrain.internals.lightning import average_of, latest_update, note_update
from vistrain.internals.torch import copy_all, move_towards


class EMA(WeightAveraging):
    """Averages the weights after each optimizer step; evaluation and the checkpoints' `state_dict` use the average.

    `averaged = d_t averaged + (1 - d_t) current` with `d_t = min(decay, (1 + t) / (10 + t))`, t = 0 at the first step:
    the average soon forgets the first, random weights (the ramp of TensorFlow's ExponentialMovingAverage and of timm).

    Built on the same base as Lightning's `EMAWeightAveraging`, so swapping, layout of checkpoints (`state_dict` is the
    average, `current_model_state` the trained weights) and exact resume are Lightning's. That class fixes a constant
    decay, and its update asks the device for a counter at each step, which makes the processor wait for the step to
    end; here nothing is read back.

    Args:
        decay: the highest decay, in 0..1.
        buffers: `copy` gives the average the current buffers (batch statistics as trained), `average` averages floating
            ones as the weights. Whole-number buffers are always copied.
        ramp: whether the decay rises as above, or is constant.

    Raises:
        ConfigError: the decay is not in 0..1.
    """

    def __init__(self, decay: float = 0.9997, buffers: Literal["copy", "average"] = "copy", ramp: bool = True) -> None:
        if not 0 <= decay <= 1:
            raise ConfigError("callbacks.ema.decay", f"{decay} is not in 0..1")
        super().__init__(use_buffers=buffers == "average")
        self.decay, self.buffers, self.ramp = decay, buffers, ramp
        self._pairs: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def decay_at(self, updates: int) -> float:
        """The decay after `updates` updates."""
        return min(self.decay, (1 + updates) / (10 + updates)) if self.ramp else self.decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network. Sharded networks are refused before; Lightning would warn of them wherever it might be."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that")
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pair up the tensors once all are on their device."""
        ours, theirs = average_of(self), pl_module
        pairs: list[tuple[Tensor, Tensor]] = list(zip(ours.parameters(), theirs.parameters(), strict=True))
        copied: list[tuple[Tensor, Tensor]] = list(zip(ours.buffers(), theirs.buffers(), strict=True))
        if self.buffers == "average":
            pairs += [(a, b) for a, b in copied if a.is_floating_point()]
            copied = [(a, b) for a, b in copied if not a.is_floating_point()]
        self._pairs = {
            name: ([a.detach() for a, _ in group], [b.detach() for _, b in group])
            for name, group in (("average", pairs), ("copy", copied))
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update, if this batch ended an optimizer step."""
        step = trainer.global_step
        if step <= latest_update(self):
            return
        move_towards(*self._pairs["average"], 1 - self.decay_at(step - 1))
        copy_all(*self._pairs["copy"])
        note_update(self, step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the base class would offer an update for each epoch, too."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network."""
        super().on_train_end(trainer, pl_module)
        self._pairs = {}
