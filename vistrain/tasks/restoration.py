"""Restoration: degraded images in, decibels out."""

from __future__ import annotations

from vistrain.errors import ConfigError
from vistrain.metrics import protocol
from vistrain.tasks.base import Metric, Task


class RestorationTask(Task):
    """Trains and evaluates a restoration network against the targets in the batches.

    Args: see `Task`.
    """

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """One metric for each protocol name.

        Raises:
            ConfigError: a name is no protocol, or the network enlarges by another factor than the data.
        """
        scale, found = getattr(self.model, "scale", 1), getattr(self.trainer.datamodule, "scale", None)  # type: ignore[attr-defined]
        if found is not None and found != scale:
            raise ConfigError(
                "data.scale",
                f"the data is degraded {found} times, the network enlarges {scale} times",
                "make them equal",
            )
        return {name: protocol(name, scale=scale) for name in self.metrics}
