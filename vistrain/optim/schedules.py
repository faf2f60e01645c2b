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
            remedy = "keep one: schedule.warmup_epochs=0 or schedule.warmup_steps=0"
            raise ConfigError("schedule", "both warmup_steps and warmup_epochs are given", remedy)
        for name, value in (("warmup_steps", self.warmup_steps), ("warmup_epochs", self.warmup_epochs)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"schedule.{name}", f"{value} is no length", "0 turns the warm-up off")
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

    def refuse_longer(self, total_steps: float, steps_per_epoch: int) -> None:
        """Refuse a run that ends before the schedule does.

        Args:
            total_steps, steps_per_epoch: see `factor`.

        Raises:
            ConfigError: the warm-up is longer than the run, or another part lies at or behind its end.
        """
        length = self._warmup_length(steps_per_epoch)
        if length > total_steps:
            key = "warmup_steps" if self.warmup_steps else "warmup_epochs"
            raise ConfigError(
                f"schedule.{key}",
                f"a warm-up of {length} steps, but the run has {total_steps:g}",
                "shorten it, such as to a tenth of the run, or train longer",
            )

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
        if not all(0 <= milestone < math.inf for milestone in self.milestones):
            raise ConfigError("schedule.milestones", f"{list(self.milestones)} are not all numbers of 0 or more")
        if not 0 <= self.gamma < math.inf:
            raise ConfigError("schedule.gamma", f"{self.gamma} is not a number of 0 or more", "0.1 is usual")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError("schedule.milestones", f"{list(self.milestones)} is not ascending")
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def refuse_longer(self, total_steps: float, steps_per_epoch: int) -> None:
        """Also where the last milestone is never reached."""
        super().refuse_longer(total_steps, steps_per_epoch)
        last = max(self.milestones, default=0) * (1 if self.unit == "step" else steps_per_epoch)
        if last >= total_steps:
            end = total_steps if self.unit == "step" else total_steps / steps_per_epoch
            raise ConfigError(
                "schedule.milestones",
                f"{self.milestones[-1]:g} is never reached: the run ends at {self.unit} {end:g}",
                "move the milestones, or train longer",
            )

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final_factor <= 1:
            raise ConfigError("schedule.final_factor", f"{self.final_factor} is not in 0..1")
        if not 0 <= self.cooldown_epochs < math.inf:
            raise ConfigError("schedule.cooldown_epochs", f"{self.cooldown_epochs} is no length", "0 turns it off")

    def refuse_longer(self, total_steps: float, steps_per_epoch: int) -> None:
        """Also where nothing is left between warm-up and cool-down."""
        super().refuse_longer(total_steps, steps_per_epoch)
        cooldown = round(self.cooldown_epochs * steps_per_epoch)
        if cooldown and self._warmup_length(steps_per_epoch) + cooldown >= total_steps:
            problem = f"warm-up and cool-down fill the run of {total_steps:g} steps"
            raise ConfigError("schedule.cooldown_epochs", problem, "shorten them, or train longer")

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.power < math.inf:
            raise ConfigError("schedule.power", f"{self.power} is not above 0")

    def _shape(self, progress: float) -> float:
        return (1 - progress) ** self.power


@dataclass(frozen=True)
class CosineWave(Schedule):
    """A cosine from 1 to 0 and back, on and on, without restarts: W-Net's (Galdran et al. 2022).

    Args:
        half_wave_epochs: from 1 to 0.

    Raises:
        ConfigError: it is not above 0.
    """

    half_wave_epochs: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.half_wave_epochs < math.inf:
            raise ConfigError("schedule.half_wave_epochs", f"{self.half_wave_epochs} is not above 0")

    def _decay(self, step: int, total_steps: float, steps_per_epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / (self.half_wave_epochs * steps_per_epoch)))
