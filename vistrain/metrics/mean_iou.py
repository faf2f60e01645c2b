"""Mean intersection over union of class maps, under the protocols of those whose numbers are compared with.

One confusion matrix over all pixels of all images decides; the protocols differ in which of its rows and columns count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.structures import LabelSpace, left_out

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from vistrain.predictions import Segmentation

Absent = Literal["zero", "left_out"]

# The frozen arguments of each protocol; any other value prints as custom(...)
IOU: Mapping[str, Mapping[str, Any]] = {
    # mmsegmentation 0.11: a class that is predicted, but not in the truth, has an IoU of 0
    "miou": {"absent": "zero", "void": None},
    # detectron2's SemSegEvaluator: such a class is left out
    "miou_present": {"absent": "left_out", "void": None},
    # ESPNet's on CamVid: `void` is a class like any other, but for its place in the means: what is predicted on its
    # pixels is a false positive
    "miou_void": {"absent": "zero", "void": "void"},
    # cityscapesScripts', see `cityscapes_iou`
    "cityscapes": {"absent": "zero", "void": None},
    # see `boundary_iou`
    "boundary_iou": {"absent": "zero", "void": None},
}

SHOWN = 40  # classes in the printed table
EXACT = 1 << 24  # counts of OpenCV's histogram, float32, are exact up to it


def confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """How many pixels of each true class were given each class.

    OpenCV's joint histogram, twice as fast as NumPy's `bincount` of combined labels, in parts whose counts its float32
    holds exactly.

    Args:
        truth: integers `[*S]`; what is below 0 or not below `num_classes` is ignored.
        prediction: integers `[*S]` in 0..K-1.
        num_classes: K.

    Returns:
        int64 `[K + 1, K]`, truth in rows; the last row counts ignored pixels.

    Raises:
        ValueError: a prediction is no class.
    """
    truth, prediction = truth.reshape(-1), prediction.reshape(-1)
    if prediction.size and not (prediction.min() >= 0 and prediction.max() < num_classes):
        raise ValueError(f"a prediction is none of the {num_classes} classes")
    if num_classes < 256 and truth.dtype == np.uint8:
        total = np.zeros((256, 256), np.int64)
        found = prediction.astype(np.uint8)
        for start in range(0, truth.size, EXACT):
            part = [x[start : start + EXACT] for x in (truth, found)]
            total += cv2.calcHist(part, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
        ignored = total[num_classes:, :num_classes].sum(0)
        return np.concatenate([total[:num_classes, :num_classes], ignored[None]])
    rows = truth.astype(np.int64)
    rows[(rows < 0) | (rows > num_classes)] = num_classes
    counts = np.bincount(rows * num_classes + prediction, minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)


@dataclass(frozen=True)
class IoUResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        per_class: a row for each class that counts: `name`, `IoU`, `Acc` (NaN where the protocol leaves it out) and
            `pixels` of it in the truth.
        protocol: its name, or `custom(...)` saying what differs.
        images: how many were evaluated.
        ignored: share of all pixels that the truth leaves out.
        confusion: int64 `[K, K]`, truth in rows.
        names: class names, by channel.
    """

    numbers: dict[str, float]
    per_class: list[dict[str, Any]]
    protocol: str
    images: int
    ignored: float = 0.0
    confusion: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    names: tuple[str, ...] = ()

    def tables(self) -> list[RenderableType]:
        """The numbers, and the classes that truth or prediction have (of many the weakest), for a Rich console."""
        from rich.table import Table

        total = Table()
        total.add_column("")
        total.add_column("%", justify="right")
        for name, value in self.numbers.items():
            total.add_row(name.partition("/")[2], f"{100 * value:.2f}")
        predicted = dict(zip(self.names, self.confusion.sum(0), strict=True))
        title, rows = "per class", []
        for row in self.per_class:
            if row["pixels"] or not np.isnan(row["IoU"]) or predicted.get(row["name"], 0):
                rows.append(row)
        absent = len(self.per_class) - len(rows)
        if len(rows) > SHOWN:
            rows = sorted(rows, key=lambda row: (np.isnan(row["IoU"]), row["IoU"]))[:SHOWN]
            title = f"the {SHOWN} weakest of {len(self.per_class) - absent} classes"
        classes = Table(title=title, title_justify="left")
        classes.add_column("class", overflow="fold")
        for heading in ("IoU", "Acc", "pixels"):
            classes.add_column(heading, justify="right")
        for row in rows:
            values = ("-" if np.isnan(row[key]) else f"{100 * row[key]:.2f}" for key in ("IoU", "Acc"))
            classes.add_row(row["name"], *values, f"{row['pixels']:,}")
        return [total, classes, *left_out(absent, "pixels")]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        ignored = f"{100 * self.ignored:.1f} % of the pixels ignored"
        counted = f"{self.images} image{'s' * (self.images != 1)}"
        yield Text(f"{self.protocol}, {counted}, {ignored}")  # a title would be as narrow as its table
        yield from self.tables()


class MeanIoU(Metric):
    """Intersection over union, accuracy of the classes, and of all pixels, of one confusion matrix over all images.

    Args:
        name: a protocol of `IOU`, which gives the arguments that are None.
        labels: of the network.
        absent: what the IoU of a class is that is predicted, but not in the truth: `zero`, or the class is `left_out`
            of the mean, as one that is in neither always is.
        void: name of a class that does not enter the means, although its pixels count as others' false positives.
        ground_truth: not looked at: each batch has its own.

    Raises:
        ConfigError: no class is called as `void` says.
    """

    families = tuple(IOU)

    def __init__(
        self,
        name: str,
        labels: LabelSpace,
        absent: Absent | None = None,
        void: str | None = None,
        ground_truth: Any = None,
    ) -> None:
        given = {"absent": absent, "void": void}
        changed = {k: v for k, v in given.items() if v is not None and v != IOU[name][k]}
        chosen = {**IOU[name], **changed}
        self.name, self.labels, self.absent, self.void = name, labels, chosen["absent"], chosen["void"]
        if self.void is not None and self.void not in labels.names:
            problem = f"{name} counts the pixels of a class called {self.void!r}, and there is none"
            raise ConfigError("metrics", problem, "use miou, or data that has this class")
        self.protocol = f"custom({name}, {', '.join(f'{k}={v}' for k, v in changed.items())})" if changed else name
        self.result: IoUResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, all of them."""
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, and the entries of its confusion matrix that are not 0, as lists `truth`
        (K where it is ignored), `predicted` and `pixels`.

        Args:
            ids: of the images.
            predictions: with `semantic` `[*S]`.
            targets: dicts with `label_map` `[*S]`, the truth in the original image's size.

        Raises:
            DataError: a prediction has another size than its truth.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            found, truth = prediction.semantic, target["label_map"]
            if found is None or found.shape != truth.shape:
                sizes = f"{None if found is None else list(found.shape)}, its truth {list(truth.shape)}"
                raise DataError(str(key), f"the prediction has the size {sizes}")
            matrix = confusion(truth.cpu().numpy(), self._bytes(found), self.labels.num_classes)
            entries = np.nonzero(matrix)
            columns = {"truth": entries[0], "predicted": entries[1], "pixels": matrix[entries]}
            records.append({"id": key, **{name: column.tolist() for name, column in columns.items()}})
        return records

    def _bytes(self, found: Tensor) -> np.ndarray:
        """On the CPU; where bytes are enough, an eighth of the traffic."""
        import torch

        return (found.to(torch.uint8) if self.labels.num_classes <= 256 else found).cpu().numpy()

    def total(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The confusion matrix of records, int64 `[K + 1, K]`, see `confusion`."""
        matrix = np.zeros((self.labels.num_classes + 1, self.labels.num_classes), np.int64)
        for record in records:
            np.add.at(matrix, (record["truth"], record["predicted"]), record["pixels"])
        return matrix

    def measure(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IoU and accuracy, float64 `[K]` each, of a matrix as `total` gives it; NaN where a class does not count."""
        counted = matrix[: len(matrix) - 1].astype(np.float64)
        right, area = np.diag(counted), counted.sum(1)
        union = area + counted.sum(0) - right
        with np.errstate(invalid="ignore", divide="ignore"):
            iou, accuracy = right / union, right / area
        if self.absent == "left_out":
            iou[area == 0] = np.nan
        if self.void is not None:
            iou[self._void], accuracy[self._void] = np.nan, np.nan
        return iou, accuracy

    @property
    def _void(self) -> int:
        return next(channel for channel, name in self.labels.name_of.items() if name == self.void)

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over classes, and of all pixels, in 0..1.

        Returns:
            `<protocol>/mIoU`, `<protocol>/mAcc` (means over the classes that count) and `<protocol>/aAcc` (of all
            labelled pixels).

        Raises:
            DataError: there are no records, or no labelled pixels.
        """
        refuse_nothing(records)
        matrix = self.total(records)
        iou, accuracy = self.measure(matrix)
        area = matrix[:-1].sum(1)
        counts = [c for c in self.labels.name_of if self.void is None or c != self._void]
        if not area[counts].sum():
            raise DataError("evaluation", "all pixels of the truth are ignored", "look at it with `vistrain check`")
        numbers = {
            f"{self.name}/mIoU": float(np.nanmean(iou[counts])),
            f"{self.name}/mAcc": float(np.nanmean(accuracy[counts])),
            f"{self.name}/aAcc": float(np.diag(matrix)[counts].sum() / area[counts].sum()),
        }
        names = self.labels.name_of
        rows = [
            {"name": names[c], "IoU": float(iou[c]), "Acc": float(accuracy[c]), "pixels": int(area[c])} for c in counts
        ]
        self.result = IoUResult(
            numbers,
            rows,
            self.protocol,
            len(records),
            float(matrix[-1].sum() / max(matrix.sum(), 1)),
            matrix[:-1],
            tuple(names.get(c, str(c)) for c in range(self.labels.num_classes)),
        )
        return numbers
