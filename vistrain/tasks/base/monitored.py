"""Which numbers callbacks may wait for."""

from __future__ import annotations

from collections.abc import Mapping

from vistrain.errors import ConfigError, nearest
from vistrain.metrics import Metric


def refuse_missing_numbers(
    monitored: Mapping[str, str], evaluators: Mapping[str, Mapping[str, Metric]], task: type
) -> None:
    """Refuse a callback that waits for a number which never comes, before an epoch is spent on it.

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
