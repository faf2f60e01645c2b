"""The loss of self-supervised pre-training on images that are not trained on, under fixed masks (`reconstruction`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vistrain.metrics.base import Metric, Unit, refuse_nothing

if TYPE_CHECKING:
    from vistrain.predictions import Reconstruction


class ReconstructionLoss(Metric):
    """Means over images of what training minimises; each image has the same mask in every evaluation.

    Args:
        ground_truth, labels: nothing is taken from them.
    """

    families: ClassVar[tuple[str, ...]] = ("pretrain",)
    protocol = "reconstruction"

    def __init__(self, ground_truth: Any = None, labels: Any = None) -> None:
        self.result: str | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """A loss."""
        return Unit(lower_is_better=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Reconstruction], targets: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """A record for each image: `id`, and `loss`, by the names of the losses."""
        return [{"id": i, "loss": dict(found.loss)} for i, found in zip(ids, predictions, strict=True)]

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`pretrain/loss`, the sum of all, and each, where there are several.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records)
        names = list(records[0]["loss"])
        means = {name: sum(record["loss"][name] for record in records) / len(records) for name in names}
        numbers = {"pretrain/loss": sum(means.values())}
        if len(means) > 1:
            numbers |= {f"pretrain/{name}": value for name, value in means.items()}
        told = ", ".join(f"{name.partition('/')[2]} {value:.4f}" for name, value in numbers.items())
        self.result = f"{self.protocol}: {told} on {len(records)} image{'s' * (len(records) != 1)}"
        return numbers
