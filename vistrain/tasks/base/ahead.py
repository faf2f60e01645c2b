"""What is refused before an epoch is spent on it: numbers that never come, schedules that never end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from lightning.pytorch import Trainer

from vistrain.errors import ConfigError, nearest
from vistrain.internals.lightning import is_cut_short
from vistrain.metrics import Metric
from vistrain.optim import Schedule

log = logging.getLogger(__name__)


def refuse_missing_numbers(
    monitored: Mapping[str, str], evaluators: Mapping[str, Mapping[str, Metric]], task: type
) -> None:
    """Refuse a callback that waits for a number which never comes.

    Args:
        monitored: dotted key of a callback -> its number (`val/coco/AP`).
        evaluators: split -> the metrics of an evaluation.
        task: of the run; one of another package may log any number by itself.

    Raises:
        ConfigError: at the dotted key, with the nearest number.
    """
    if not task.__module__.startswith("vistrain."):
        return
    metrics = [(split, metric) for split, found in evaluators.items() for metric in found.values()]
    names = ["train/loss", *(f"{split}/{name}" for split, metric in metrics for name in metric.offers)]
    families = tuple(f"{s}/{family}/" for s, metric in metrics if not metric.offers for family in metric.families)
    for where, name in monitored.items():
        if name not in names and not (families and name.startswith(families)):
            raise ConfigError(where, f"nothing gives {name!r}", nearest(name, [*names, *families]))


def refuse_other_samples(then: int | None, now: int | None) -> None:
    """Refuse to go on within an epoch of other data.

    Args:
        then: samples of the training set, if the run stands within an epoch and said so.
        now: likewise; None where nobody counts.

    Raises:
        ConfigError: they differ.
    """
    if then is not None and now is not None and then != now:
        raise ConfigError(
            "data",
            f"{now} training samples, but the run stands within an epoch of {then}",
            "continue it with the same data, or start another run from its weights: run.weights",
        )


def refuse_longer_schedule(schedule: Schedule, trainer: Trainer, total_steps: float, steps_per_epoch: int) -> None:
    """Refuse a schedule of which a part lies behind the run's end; only say so, if the run is cut short itself.

    Raises:
        ConfigError: see `Schedule.refuse_longer`.
    """
    try:
        schedule.refuse_longer(total_steps, steps_per_epoch)
    except ConfigError as error:
        if not is_cut_short(trainer):
            raise
        log.warning("%s", error)
