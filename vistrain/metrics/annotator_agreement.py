"""Two classes of pixels against several people who drew them, and those people against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.metrics.binary_pixels import two_by_two
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation


def kappa(confusion: np.ndarray) -> float:
    """Cohen's: agreement beyond that of chance, -1..1; NaN where chance agrees always.

    Args:
        confusion: `[K, K]` counts.
    """
    shares = confusion / confusion.sum() if confusion.sum() else np.full(confusion.shape, np.nan)
    chance = float((shares.sum(0) * shares.sum(1)).sum())
    return (float(np.trace(shares)) - chance) / (1 - chance) if chance < 1 else float("nan")


@dataclass(frozen=True)
class AnnotatorResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        protocol: its name.
        images: how many were evaluated.
        annotators: how many people drew.
    """

    numbers: dict[str, float]
    protocol: str
    images: int
    annotators: int

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"{self.protocol}, {self.images} image{'s' * (self.images != 1)}", title_justify="left")
        table.add_column("")
        table.add_column("Dice, %", justify="right")
        for number in range(1, self.annotators + 1):
            table.add_row(f"network and annotator {number}", f"{100 * self.numbers[f'annotators/{number}/Dice']:.2f}")
        table.add_row("network and annotators, mean", f"{100 * self.numbers['annotators/Dice']:.2f}")
        table.add_row("annotators among themselves", f"{100 * self.numbers['annotators/agreement']:.2f}")
        yield table
        yield f"Cohen's kappa of the annotators: {self.numbers['annotators/kappa']:.4f}"


class AnnotatorAgreement(Metric):
    """Dice of the second class against each annotator, over all pixels of all images that neither leaves out; and, for
    comparison, Dice and Cohen's kappa of each pair of annotators, averaged over the pairs.

    Args:
        labels: of the network: two classes.
        ground_truth: not looked at: each batch has its own.

    Raises:
        ConfigError: there are more classes than two, or fewer.
    """

    families = ("annotators",)

    def __init__(self, labels: LabelSpace, ground_truth: Any = None) -> None:
        if labels.num_classes != 2:
            problem = f"annotators tells two classes apart, not {labels.num_classes}"
            raise ConfigError("metrics", problem, "use miou")
        self.protocol = "annotators"
        self.result: AnnotatorResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, but for kappa."""
        return Unit() if name.endswith("/kappa") else Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, `network` `[A][2][2]`, its confusion with each annotator (theirs in rows),
        and `pairs` `[A (A - 1) / 2][2][2]`, that of the annotators.

        Args:
            ids: of the images.
            predictions: with `semantic` `[*S]`.
            targets: dicts with `annotations` `[A, *S]`: 0, 1, anything else is left out.

        Raises:
            ConfigError: the data has one annotator alone.
            DataError: a prediction has another size than its truth.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            if "annotations" not in target:
                remedy = "name further annotators in the data, or use vessels"
                raise ConfigError("metrics", "annotators needs data with several of them", remedy)
            maps = target["annotations"].cpu().numpy()
            if prediction.semantic is None or tuple(prediction.semantic.shape) != maps.shape[1:]:
                shape = None if prediction.semantic is None else list(prediction.semantic.shape)
                raise DataError(str(key), f"the prediction has the size {shape}, its truth {list(maps.shape[1:])}")
            found = prediction.semantic.cpu().numpy()
            pairs = [confusion_of(a, b) for a, b in itertools.combinations(maps, 2)]
            records.append({"id": key, "network": [confusion_of(one, found) for one in maps], "pairs": pairs})
        return records

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Of all pixels together.

        Returns:
            `annotators/Dice`, the mean over the annotators of `annotators/<number>/Dice`, `annotators/agreement`, the
            mean Dice of their pairs, and `annotators/kappa`.

        Raises:
            DataError: there are no records, or images have different numbers of annotators.
        """
        refuse_nothing(records)
        if len({len(record["network"]) for record in records}) > 1:
            raise DataError("evaluation", "images have different numbers of annotators", "each draws in all of a split")
        network = np.sum([record["network"] for record in records], 0)
        pairs = np.sum([record["pairs"] for record in records], 0)
        single = [dice_of(confusion) for confusion in network]
        numbers = {
            "annotators/Dice": float(np.mean(single)),
            "annotators/agreement": float(np.mean([dice_of(confusion) for confusion in pairs])),
            "annotators/kappa": float(np.mean([kappa(confusion) for confusion in pairs])),
            **{f"annotators/{number}/Dice": value for number, value in enumerate(single, 1)},
        }
        self.result = AnnotatorResult(numbers, self.protocol, len(records), len(single))
        return numbers


def confusion_of(rows: np.ndarray, columns: np.ndarray) -> list[list[int]]:
    """`[2][2]` counts of the pixels that are 0 or 1 in both."""
    judged = (rows < 2) & (columns < 2)
    counts = np.bincount(2 * rows[judged].astype(np.int64) + columns[judged].astype(np.int64), minlength=4)
    return [[int(counts[0]), int(counts[1])], [int(counts[2]), int(counts[3])]]


def dice_of(confusion: np.ndarray) -> float:
    """Of the second class; NaN where neither has it."""
    (tn, fp), (fn, tp) = confusion.tolist()
    return two_by_two(tp, fp, fn, tn)["Dice"]
