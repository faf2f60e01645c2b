"""Accuracy and calibration of classifiers (protocol `accuracy`), and mean average precision of many labels
(`multi_label`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from rich.table import Table

    from vistrain.predictions import ClassScores

BINS = 15  # of the calibration error, as Guo et al. 2017 (arXiv 1706.04599)
TOPS = (1, 5)
SHOWN = 20  # classes in the printed table


@dataclass(frozen=True)
class ClassificationResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        per_class: a row for each class that has images: `name`, `images`, and what the protocol measures.
        protocol: its name, or `custom(...)` saying what differs.
        images: how many images were evaluated.
        confusion: int64 `[K, K]`, truth in rows and first choices in columns; empty with many labels.
        names: class names, by channel.
    """

    numbers: dict[str, float]
    per_class: list[dict[str, Any]]
    protocol: str
    images: int
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    names: tuple[str, ...] = ()

    def tables(self) -> list[Table]:
        """The numbers, and the classes (of many the weakest), for a Rich console."""
        from rich.markup import escape
        from rich.table import Table

        total = Table(title=f"{self.protocol}, {self.images} image{'s' * (self.images != 1)}", title_justify="left")
        total.add_column("")
        total.add_column("value", justify="right")
        for name, value in self.numbers.items():
            total.add_row(name.partition("/")[2], f"{value:.4f}")
        rows = self.per_class
        measures = [key for key in (rows[0] if rows else {}) if key not in ("name", "images")]
        title = "per class"
        if len(rows) > SHOWN:
            rows = sorted(rows, key=lambda row: row[measures[0]])[:SHOWN]
            title = f"the {SHOWN} weakest of {len(self.per_class)} classes"
        classes = Table(title=title, title_justify="left")
        classes.add_column("class", overflow="fold")
        for heading in ("images", *measures):
            classes.add_column(heading, justify="right")
        for row in rows:
            values = ("-" if np.isnan(row[m]) else f"{row[m]:.4f}" for m in measures)
            classes.add_row(escape(row["name"]), str(row["images"]), *values)
        return [total, classes]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from self.tables()


class Accuracy(Metric):
    """Top-1 and top-5 accuracy, the mean of the classes' accuracies, log loss and expected calibration error.

    Of equal scores the lower class channel wins, and the truth is among the top k if fewer than k classes come before
    it.

    Args:
        ground_truth: `images`: how many the split has.
        labels: of the network.
        bins: of the calibration error; another number prints as `custom(...)`.
    """

    name = "accuracy"
    families = ("cls",)
    offers = ("cls/top1", "cls/top5", "cls/mean_class", "cls/nll", "cls/ece")

    def __init__(self, ground_truth: Mapping[str, Any], labels: LabelSpace, *, bins: int = BINS) -> None:
        self.labels, self.bins, self.expected = labels, bins, int(ground_truth["images"])
        self.protocol = self.name
        self.result: ClassificationResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, but for the log loss; low is good of that and of the calibration error."""
        number = name.rpartition("/")[2]
        return Unit(percent=number != "nll", lower_is_better=number in ("nll", "ece"))

    def update(
        self, ids: Sequence[Any], predictions: Sequence[ClassScores], targets: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """A record for each image: `id`, `target`, its `rank` (0 is first) and `probability`, the five best `top` and
        their `scores`."""
        import torch

        if not predictions:
            return []
        truth = [int(target["labels"][0]) for target in targets]
        scores = torch.stack([p.scores for p in predictions]).detach().float()
        best = scores.sort(dim=1, descending=True, stable=True)
        order = best.indices
        ranks = (order == torch.tensor(truth, device=order.device)[:, None]).int().argmax(1).tolist()
        top, values = order[:, : max(TOPS)].tolist(), best.values[:, : max(TOPS)].tolist()
        own = scores[torch.arange(len(truth)), truth].tolist()
        columns = zip(ids, truth, ranks, own, top, values, strict=True)
        keys = ("id", "target", "rank", "probability", "top", "scores")
        return [dict(zip(keys, row, strict=True)) for row in columns]

    def compute(self, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """All numbers, in 0..1 (papers print 100 times that) but for the log loss.

        Returns:
            `cls/top1`, `cls/top5` (where there are more than five classes), `cls/mean_class`, `cls/nll`, `cls/ece`.

        Raises:
            DataError: there are no records.
        """
        rows = {row["id"]: row for row in records}
        refuse_nothing(rows)
        ordered = [rows[key] for key in sorted(rows)]
        truth, rank = (np.array([row[key] for row in ordered], np.int64) for key in ("target", "rank"))
        choice = np.array([row["top"][0] for row in ordered], np.int64)
        confidence = np.array([row["scores"][0] for row in ordered], np.float64)
        own = np.array([row["probability"] for row in ordered], np.float64)
        count = self.labels.num_classes
        confusion = np.bincount(truth * count + choice, minlength=count * count).reshape(count, count)
        support = confusion.sum(1)
        recall = np.diag(confusion) / np.maximum(support, 1)
        numbers = {f"cls/top{k}": float((rank < k).mean()) for k in TOPS if k == 1 or k < count}
        numbers["cls/mean_class"] = float(recall[support > 0].mean())
        numbers["cls/nll"] = float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())
        numbers["cls/ece"] = calibration_error(confidence, choice == truth, self.bins)
        changed = [f"bins={self.bins}"] if self.bins != BINS else []
        changed += [f"images={len(ordered)} of {self.expected}"] if len(ordered) != self.expected else []
        self.protocol = f"custom({self.name}, {', '.join(changed)})" if changed else self.name
        names = _names(self.labels)
        self.result = ClassificationResult(
            numbers, _class_rows(confusion, names), self.protocol, len(ordered), confusion, names
        )
        return numbers


class MultiLabel(Metric):
    """Mean average precision over classes (PASCAL VOC's since 2010: all points), and F1 at a threshold.

    Classes without a positive image are left out of the mean.

    Args:
        ground_truth: `images`: how many the split has.
        labels: of the network.
        threshold: score from which on a class counts as found; another prints as `custom(...)`.
    """

    name = "multi_label"
    offers = ("cls/mAP", "cls/F1", "cls/mean_F1")
    families = ("cls",)

    def __init__(self, ground_truth: Mapping[str, Any], labels: LabelSpace, *, threshold: float = 0.5) -> None:
        self.labels, self.threshold, self.expected = labels, threshold, int(ground_truth["images"])
        self.protocol = self.name
        self.result: ClassificationResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, all of them."""
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[ClassScores], targets: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """A record for each image: `id`, `target` (its classes) and `scores` `[K]` float32."""
        return [
            {"id": i, "target": list(t["labels"]), "scores": p.scores.detach().float().cpu().numpy()}
            for i, p, t in zip(ids, predictions, targets, strict=True)
        ]

    def compute(self, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """All numbers, in 0..1.

        Returns:
            `cls/mAP`, `cls/F1` (over all decisions) and `cls/mean_F1` (over classes).

        Raises:
            DataError: there are no records.
        """
        rows = {row["id"]: row for row in records}
        refuse_nothing(rows)
        ordered = [rows[key] for key in sorted(rows)]
        scores = np.stack([row["scores"] for row in ordered]).astype(np.float64)
        truth = np.zeros(scores.shape, bool)
        for line, row in zip(truth, ordered, strict=True):
            line[row["target"]] = True
        found = scores >= self.threshold
        hits, wanted, given = (found & truth).sum(0), truth.sum(0), found.sum(0)
        precision = np.array([average_precision(scores[:, k], truth[:, k]) for k in range(scores.shape[1])])
        f1 = 2 * hits / np.maximum(wanted + given, 1)
        seen = wanted > 0
        numbers = {
            "cls/mAP": float(precision[seen].mean()) if seen.any() else 0.0,
            "cls/F1": float(2 * hits.sum() / max(wanted.sum() + given.sum(), 1)),
            "cls/mean_F1": float(f1[seen].mean()) if seen.any() else 0.0,
        }
        changed = [f"threshold={self.threshold:g}"] if self.threshold != 0.5 else []
        changed += [f"images={len(ordered)} of {self.expected}"] if len(ordered) != self.expected else []
        self.protocol = f"custom({self.name}, {', '.join(changed)})" if changed else self.name
        names = _names(self.labels)
        per_class = [
            {"name": names[k], "images": int(wanted[k]), "AP": float(precision[k]), "F1": float(f1[k])}
            for k in np.flatnonzero(seen).tolist()
        ]
        self.result = ClassificationResult(numbers, per_class, self.protocol, len(ordered), names=names)
        return numbers


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - mean confidence| over bins of equal width, weighted by their images
    (Guo et al. 2017, equation 3).

    Args:
        confidence: `[N]`, probability of the first choice.
        correct: `[N]` bool, whether it is right.
        bins: how many; each holds its upper bound, and the first one 0, too.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    right = np.bincount(place, weights=correct.astype(np.float64), minlength=bins)
    sure = np.bincount(place, weights=confidence, minlength=bins)
    return float(np.abs(right - sure).sum() / max(len(confidence), 1))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under precision over recall, every positive a point; equal scores count together. NaN without positives.

    Args:
        scores: `[N]`.
        positive: `[N]` bool.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # ends of runs of equal scores
    recall, precision = hits[last] / hits[-1], hits[last] / (last + 1)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _class_rows(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    support, chosen, right = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    rows = []
    for k in np.flatnonzero(support).tolist():
        recall = right[k] / support[k]
        precision = right[k] / chosen[k] if chosen[k] else float("nan")
        f1 = 2 * right[k] / (support[k] + chosen[k])
        rows.append({
            "name": names[k], "images": int(support[k]),
            "recall": float(recall), "precision": float(precision), "F1": float(f1),
        })  # fmt: skip
    return rows


def _names(labels: LabelSpace) -> tuple[str, ...]:
    return tuple(labels.name_of.get(k, str(k)) for k in range(labels.num_classes))
