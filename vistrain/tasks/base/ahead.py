"""What is refused before an epoch is spent on it: numbers that never come, schedules that never end."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from lightning.pytorch import Trainer

from vistrain.data.base.module import DataModule, SplitName
from vistrain.errors import ConfigError, DataError, VistrainError, nearest
from vistrain.internals.lightning import is_cut_short
from vistrain.metrics import PROTOCOLS, Metric, protocol
from vistrain.network import Network
from vistrain.optim import Schedule

log = logging.getLogger(__name__)


def metric_of(data: DataModule, split: str, name: str, **facts: Any) -> Metric:
    """The metric of a protocol; what is wrong with the truth is said with the place of its split.

    Args:
        data: of the run.
        split: `val` or `test`.
        name: of the protocol.
        facts: what the metric is told.

    Raises:
        ConfigError: no protocol has this name.
        DataError: the truth is refused.
    """
    try:
        found: Metric = protocol(name, **facts)
    except DataError as error:
        where = data.place(cast(SplitName, split))
        raise DataError(f"{where}: {error.where}" if where else error.where, error.problem, error.remedy) from error
    return found


def refuse_other_metrics(metrics: Sequence[str], protocols: Sequence[str], task: type) -> None:
    """Refuse metrics that are named twice, or that measure what another task's networks predict.

    Args:
        metrics: their names.
        protocols: those that are known to go with the task; empty: it does not say.
        task: its class.

    Raises:
        ConfigError: one is.
    """
    twice = [name for name in metrics if list(metrics).count(name) > 1]
    if twice:
        raise ConfigError("metrics", f"{twice[0]!r} is named {metrics.count(twice[0])} times", "name it once")
    for name in metrics:
        if protocols and name in PROTOCOLS and name not in protocols:
            problem = f"{name!r} does not measure what {task.__name__}'s networks predict"
            raise ConfigError("metrics", problem, f"there are: {', '.join(protocols)}")


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


def refuse_other_targets(model: Network, data: DataModule, batch: Mapping[str, Any]) -> None:
    """Refuse data whose targets are not those that a network learns from.

    Args:
        model, data: of the run.
        batch: of the data's training split.

    Raises:
        ConfigError: its targets lack a key.
    """
    targets = batch.get("target")
    first = targets[0] if isinstance(targets, list) and targets else None
    if not isinstance(first, Mapping):
        return
    missing = [key for key in model.learns_from if key not in first]
    if missing:
        problem = (
            f"targets of {type(data).__name__} hold {', '.join(first)}; {type(model).__name__} learns from "
            f"{', '.join(model.learns_from)}"
        )
        raise ConfigError("data.type", problem, data.remedy_for_targets(missing))


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
    """Refuse a schedule of which a part lies behind the run's end; only say so, if the run is cut short itself. Of what
    is left, say what is not evaluated.

    Raises:
        ConfigError: see `Schedule.refuse_longer`.
    """
    try:
        schedule.refuse_longer(total_steps, steps_per_epoch)
    except ConfigError as error:
        if not is_cut_short(trainer):
            raise
        log.warning("%s", error)
    if trainer.is_global_zero:
        say_what_is_not_evaluated(trainer, total_steps, steps_per_epoch)


def say_what_is_not_evaluated(trainer: Trainer, total_steps: float, steps_per_epoch: int) -> None:
    """A run may end before its first evaluation, or have a last epoch that nobody looks at.

    Args:
        trainer: of the run.
        total_steps: optimizer steps of the whole run; `inf` if it has no end.
        steps_per_epoch: of an epoch.
    """
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    first = first_evaluation(trainer, steps_per_epoch)
    if math.isinf(first):
        log.warning("nothing is evaluated, and there will be no best.ckpt: trainer.limit_val_batches=0")
    elif first > total_steps:
        keys = "trainer.val_check_interval" if every is None else f"trainer.check_val_every_n_epoch={every}"
        remedy = "train longer" if every == 1 else f"lower {keys}, or train longer"
        log.warning(
            "nothing is evaluated, and there will be no best.ckpt: the run ends after %g steps, its first evaluation "
            "would come after %g - %s", total_steps, first, remedy,
        )  # fmt: skip
    elif every and epochs is not None and epochs > 0 and trainer.max_steps == -1 and epochs % every:
        log.warning(
            "the last epoch is not evaluated: trainer.max_epochs=%d, trainer.check_val_every_n_epoch=%d", epochs, every
        )
    elif every and trainer.max_steps > 0 and total_steps % (every * steps_per_epoch):
        log.warning(
            "the last %d steps are not evaluated: trainer.max_steps=%d, an evaluation comes after every %d",
            total_steps % (every * steps_per_epoch), trainer.max_steps, every * steps_per_epoch,
        )  # fmt: skip


def together(error: VistrainError, schedule: Schedule, data: DataModule, trainer: Trainer) -> VistrainError:
    """What a small training set makes too large, said at once: batch, its share of a device, and the schedule.

    Args:
        error: the first of them that was met, or any other.
        schedule, data, trainer: of the run.

    Returns:
        An error with all of them and the overrides that mend them together; `error` itself, if it is another one.
    """
    try:
        samples = len(data.training_samples())  # type: ignore[arg-type]  # ours have a length
    except (VistrainError, TypeError):
        return error
    found, mended = _too_large(samples, schedule, data, trainer)
    if not any(error.where in (where, "data.train") for where, _ in found):
        return error
    if len(found) < 2:
        remedy = f"{error.remedy}: {mended[0]}" if error.remedy else mended[0]
        return type(error)(error.where, error.problem, remedy)
    problems = "; ".join(f"{where}: {problem}" for where, problem in found[1:])
    return ConfigError(found[0][0], f"{found[0][1]}; {problems}", f"these work together: {' '.join(mended)}")


def _too_large(
    samples: int, schedule: Schedule, data: DataModule, trainer: Trainer
) -> tuple[list[tuple[str, str]], list[str]]:
    """What is too large for so many samples, each as a dotted key and in words, once what comes before is mended; and
    the overrides that mend all."""
    found: list[tuple[str, str]] = []
    mended: list[str] = []
    world, batch = trainer.world_size, data.batch_size
    if samples < world:
        return [], []
    if samples < batch or batch % world:
        batch = max(min(batch, samples) // world, 1) * world
        what = f"{data.batch_size} images in a batch, of {samples} to train on, on {world} device(s)"
        found.append(("data.batch_size", what))
        mended.append(f"data.batch_size={batch}")
    share, own = batch // world, data.per_device
    if isinstance(own, int) and share % own:
        fitting = next(n for n in range(min(own, share), 0, -1) if share % n == 0)
        found.append(("data.per_device", f"{own} at once do not divide {share}"))
        mended.append(f"data.per_device={fitting}")
    if is_cut_short(trainer):
        return found, mended
    per_epoch, epochs, steps = samples // batch, trainer.max_epochs, trainer.max_steps
    total = math.inf if epochs is None or epochs < 0 else float(epochs * per_epoch)
    total = min(total, steps) if steps is not None and steps >= 0 else total
    try:
        schedule.refuse_longer(total, per_epoch)
    except ConfigError as error:
        found.append((error.where, error.problem))
        key = error.where.partition(".")[2]
        if key in ("warmup_steps", "warmup_epochs"):
            short: Any = {"warmup_steps": int(total) // 10, "warmup_epochs": round(total / per_epoch / 10, 3)}[key]
            schedule = replace(schedule, **{key: short})
            mended.append(f"{error.where}={short:g}")
        mended += _long_enough(schedule, total, per_epoch)
    return found, mended


def _long_enough(schedule: Schedule, total: float, per_epoch: int) -> list[str]:
    """The override that makes a run last as long as its schedule; none where it does."""
    epochs = math.ceil(total / per_epoch)
    for longer in (epochs, *(max(epochs, 1) * 2**n for n in range(1, 24))):
        try:
            schedule.refuse_longer(total if longer == epochs else longer * per_epoch, per_epoch)
        except ConfigError:
            continue
        return [] if longer == epochs else [f"trainer.max_epochs={longer}"]
    return []


def first_evaluation(trainer: Trainer, steps_per_epoch: int) -> float:
    """The optimizer step after which a run is first evaluated; `inf`: never."""
    if trainer.limit_val_batches == 0:
        return math.inf
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
    within = interval / trainer.accumulate_grad_batches if isinstance(interval, int) else interval * steps_per_epoch
    return within if every is None else (every - 1) * steps_per_epoch + min(within, steps_per_epoch)
