"""What frozen features are worth while a network is pre-trained: the accuracy of probes on them (`probes`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vistrain.metrics.base import Metric, Unit, refuse_nothing

if TYPE_CHECKING:
    from vistrain.predictions import ClassScores


class ProbeAccuracy(Metric):
    """Top-1 accuracy of each probe.

    Args:
        ground_truth, labels: nothing is taken from them.
    """

    families: ClassVar[tuple[str, ...]] = ("probe",)
    protocol = "probes"

    def __init__(self, ground_truth: Any = None, labels: Any = None) -> None:
        self.result: str | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """A share."""
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Mapping[str, ClassScores]], targets: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """A record for each image: `id`, and `right`: which probes name its class."""
        return [
            {"id": i, "right": {name: int(p.scores.argmax()) == target["labels"][0] for name, p in found.items()}}
            for i, found, target in zip(ids, predictions, targets, strict=True)
        ]

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`probe/neighbours`, `probe/linear`, in 0..1.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records)
        names = records[0]["right"]
        numbers = {f"probe/{name}": sum(r["right"][name] for r in records) / len(records) for name in names}
        told = ", ".join(f"{name.partition('/')[2]} {100 * value:.2f} %" for name, value in numbers.items())
        self.result = f"{self.protocol}: {told} of {len(records)} image{'s' * (len(records) != 1)} right"
        return numbers
