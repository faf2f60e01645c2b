"""Two classes of pixels told apart by a probability: the area under the ROC curve, and what a threshold makes of it.

All pixels of all images are one sample, as papers on vessels of the retina count them (protocol `vessels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation

LEVELS = 255 * 257  # steps of a probability that are told apart; those of 8 bits are among them


def area_under_curve(negatives: np.ndarray, positives: np.ndarray) -> float:
    """The share of pairs of a negative and a positive of which the positive has the higher level, ties by half: the
    area under the ROC curve, and the normalised rank sum of Mann and Whitney.

    Args:
        negatives, positives: int64 `[L]`, how many have each level.

    Returns:
        0..1; NaN without one of the two.
    """
    pairs = int(negatives.sum()) * int(positives.sum())
    if not pairs:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives.astype(np.float64) * (below + 0.5 * negatives)).sum() / pairs)


def two_by_two(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """Measures of a confusion matrix of two classes, in 0..1 (`MCC`: -1..1); NaN where a denominator is 0.

    Returns:
        `Dice`, `MCC` (Matthews' correlation coefficient), `accuracy`, `sensitivity`, `specificity`.
    """
    spread = float(np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn))
    shares = {
        "Dice": (2 * tp, 2 * tp + fp + fn),
        "MCC": (tp * tn - fp * fn, spread),
        "accuracy": (tp + tn, tp + fp + fn + tn),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
    }
    return {name: part / whole if whole else float("nan") for name, (part, whole) in shares.items()}


@dataclass(frozen=True)
class BinaryResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        protocol: its name.
        images: how many were evaluated.
        best_threshold: of the probability, a multiple of 1/255: the one with the highest Dice on these images; chosen
            on them, it flatters their numbers.
        best_dice: there.
    """

    numbers: dict[str, float]
    protocol: str
    images: int
    best_threshold: float
    best_dice: float

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"{self.protocol}, {self.images} image{'s' * (self.images != 1)}", title_justify="left")
        table.add_column("")
        table.add_column("%", justify="right")
        for name, value in self.numbers.items():
            table.add_row(name.partition("/")[2], f"{100 * value:.2f}")
        yield table
        level = round(255 * self.best_threshold)
        yield f"highest Dice on these images: {100 * self.best_dice:.2f}, above a probability of {level}/255"


class BinaryPixels(Metric):
    """Area under the ROC curve of the second class's probability, and measures of the chosen class, over all pixels of
    all images that the truth does not leave out.

    Probabilities are counted in steps of 1 / 65535, so that the area of 8-bit ones is exact, and of others right to
    about 1e-5.

    Args:
        labels: of the network: two classes.
        ground_truth: not looked at: each batch has its own.

    Raises:
        ConfigError: there are more classes than two, or fewer.
    """

    families = ("vessels",)

    def __init__(self, labels: LabelSpace, ground_truth: Any = None) -> None:
        if labels.num_classes != 2:
            problem = f"vessels tells two classes apart, not {labels.num_classes}"
            raise ConfigError("metrics", problem, "use miou")
        self.protocol = "vessels"
        self.result: BinaryResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, all of them."""
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, `confusion` `[2][2]` (truth in rows), and for both truths, `negatives` and
        `positives`, the `levels` that occur and the pixels (`counts`) of each.

        Args:
            ids: of the images.
            predictions: with `semantic` `[*S]` and `probabilities` `[2, *S]`.
            targets: dicts with `label_map` `[*S]`: 0, 1, anything else is left out.

        Raises:
            DataError: a prediction has another size than its truth.
            ConfigError: the network gives no probabilities.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            if prediction.probabilities is None or prediction.semantic is None:
                problem = "vessels needs probabilities, which this network does not give"
                raise ConfigError("metrics", problem, "use miou")
            truth = target["label_map"].cpu().numpy()
            if tuple(prediction.semantic.shape) != truth.shape:
                sizes = f"{list(prediction.semantic.shape)}, its truth {list(truth.shape)}"
                raise DataError(str(key), f"the prediction has the size {sizes}")
            levels = (prediction.probabilities[1].double() * LEVELS).round().long().cpu().numpy()
            chosen = prediction.semantic.cpu().numpy()
            record: dict[str, Any] = {"id": key, "confusion": []}
            for value, name in enumerate(("negatives", "positives")):
                at = truth == value
                record["confusion"].append(np.bincount(chosen[at], minlength=2).tolist())
                found, counts = np.unique(levels[at], return_counts=True)
                record[name] = {"levels": found.tolist(), "counts": counts.tolist()}
            records.append(record)
        return records

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Shares of all pixels together.

        Returns:
            `vessels/AUC`, `vessels/Dice`, `vessels/MCC`, `vessels/accuracy`, `vessels/sensitivity`,
            `vessels/specificity`, see `area_under_curve` and `two_by_two`.

        Raises:
            DataError: there are no records, or no pixels of one of the classes.
        """
        refuse_nothing(records)
        counts = np.zeros((2, LEVELS + 1), np.int64)
        for record in records:
            for row, name in zip(counts, ("negatives", "positives"), strict=True):
                np.add.at(row, record[name]["levels"], record[name]["counts"])
        if not counts.sum(1).all():
            raise DataError("evaluation", "the truth has pixels of one class alone", "look at it with `vistrain check`")
        (tn, fp), (fn, tp) = np.sum([record["confusion"] for record in records], 0).tolist()
        measures = {"AUC": area_under_curve(*counts), **two_by_two(tp, fp, fn, tn)}
        numbers = {f"vessels/{name}": value for name, value in measures.items()}
        above = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels of this level or a higher one
        steps = np.arange(255) * (LEVELS // 255)
        false, true = above[:, steps + 1]  # strictly above each multiple of 1/255
        dice = 2 * true / (true + false + counts[1].sum())
        best = int(dice.argmax())
        self.result = BinaryResult(numbers, self.protocol, len(records), best / 255, float(dice[best]))
        return numbers
