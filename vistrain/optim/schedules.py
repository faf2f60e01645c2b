"""Learning-rate schedules as plain arithmetic: a factor on the base learning rate for each optimizer step.

They are frozen dataclasses without a state, so a resumed run continues exactly, and a longer one re-scales by itself.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vistrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What all schedules share: a linear warm-up that multiplies the decay, as detectron2 and mmcv do.

    Args:
        warmup_steps: optimizer steps of the warm-up.
        warmup_epochs: the same in epochs; only one of the two may be given.
        warmup_factor: factor at step 0, in 0..1; it rises linearly and is 1 at the end of the warm-up.

    Raises:
        ConfigError: a value is out of its range.
    """

    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup_epochs:
            raise ConfigError("schedule", "both warmup_steps and warmup_epochs are given", "keep one of them")
        if self.warmup_steps < 0 or self.warmup_epochs < 0:
            raise ConfigError("schedule", "the warm-up has a negative length", "0 turns it off")
        if not 0 <= self.warmup_factor <= 1:
            raise ConfigError("schedule.warmup_factor", f"{self.warmup_factor} is not in 0..1")

    def factor(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        """The factor on the base learning rate.

        Args:
            step: optimizer steps done before this one, from 0.
            total_steps: optimizer steps of the whole run; `inf` if the run has no end.
            steps_per_epoch: optimizer steps of one epoch.

        Returns:
            A number of 0 or more, 1 where neither warm-up nor decay acts.

        Raises:
            ConfigError: the decay needs an end that the run does not have.
        """
        length = self._warmup_length(steps_per_epoch)
        warmup = self.warmup_factor + (1 - self.warmup_factor) * step / length if step < length else 1.0
        return warmup * self._decay(step, total_steps, steps_per_epoch)

    def _warmup_length(self, steps_per_epoch: int) -> int:
        return self.warmup_steps or round(self.warmup_epochs * steps_per_epoch)

    def _decay(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The base learning rate throughout, after the warm-up."""

    def _decay(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        return 1.0


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by `gamma` at each milestone.

    Args:
        milestones: where the learning rate drops, ascending, in `unit`.
        gamma: factor of each drop.
        unit: `epoch` or `step`.

    Raises:
        ConfigError: milestones are not ascending.
    """

    milestones: Sequence[float]
    gamma: float = 0.1
    unit: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError("schedule.milestones", f"{list(self.milestones)} is not ascending")
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def _decay(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        position = step if self.unit == "step" else step / steps_per_epoch
        return self.gamma ** bisect_right(self.milestones, position)


@dataclass(frozen=True)
class _Falling(Schedule):
    """From 1 at the start to `final_factor` at the end of the run, in a shape that the subclass gives.

    Args:
        final_factor: the factor at the end of the run, in 0..1.
        unit: `step` lets the factor fall at each step, `epoch` only at the start of each epoch.
        decay_after_warmup: whether the fall starts where the warm-up ends (timm's `warmup_prefix`) or at step 0.
        cooldown_epochs: at the run's end, in which the factor stays at `final_factor` (timm's).
    """

    final_factor: float = 0.0
    unit: Literal["epoch", "step"] = "step"
    decay_after_warmup: bool = False
    cooldown_epochs: float = 0.0

    def _decay(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        if math.isinf(total_steps):
            raise ConfigError(
                "schedule", f"{type(self).__name__} needs a run with an end", "set trainer.max_epochs or max_steps"
            )
        start = self._warmup_length(steps_per_epoch) if self.decay_after_warmup else 0
        if self.unit == "epoch":
            step = step // steps_per_epoch * steps_per_epoch
        end = total_steps - round(self.cooldown_epochs * steps_per_epoch)
        progress = min(max(step - start, 0) / max(end - start, 1), 1.0)
        return self.final_factor + (1 - self.final_factor) * self._shape(progress)

    def _shape(self, progress: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Cosine(_Falling):
    """Half a cosine, from 1 to `final_factor` (Loshchilov and Hutter, SGDR, 2017, equation 5, without restarts).

    Args:
        final_factor: the factor at the end of the run, in 0..1.
        unit: `step` lets the factor fall at each step, `epoch` only at the start of each epoch.
        decay_after_warmup: whether the fall starts where the warm-up ends (timm's `warmup_prefix`) or at step 0.
        cooldown_epochs: at the run's end, in which the factor stays at `final_factor` (timm's).
    """

    def _shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Poly(_Falling):
    """(1 - progress) ** power, as DeepLab introduced it.

    Args:
        final_factor: the factor at the end of the run, in 0..1.
        unit: `step` lets the factor fall at each step, `epoch` only at the start of each epoch.
        decay_after_warmup: whether the fall starts where the warm-up ends or at step 0.
        power: exponent; 1 falls linearly.
    """

    power: float = 0.9

    def _shape(self, progress: float) -> float:
        return (1 - progress) ** self.power
