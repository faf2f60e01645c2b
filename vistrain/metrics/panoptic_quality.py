"""Panoptic quality: segments matched one to one, and how well they fit (Kirillov et al. 2019, arXiv 1801.00868).

Written from the paper's section 4, and the rules of github.com/cocodataset/panopticapi (`evaluation.py`, BSD) for$
void and crowds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vistrain.errors import DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing
from vistrain.metrics.mean_iou import SHOWN, confusion
from vistrain.structures import LabelSpace, left_out

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

    from vistrain.predictions import PanopticMap, Segmentation

NAME = "panoptic"
COUNTS = ("TP", "FP", "FN")
GROUPS = ("", "_things", "_stuff")


@dataclass(frozen=True)
class Matches:
    """What became of the segments of one image.

    Attributes:
        true: `[M, 2]`, pairs of positions: a segment of the truth and the one that was found for it.
        iou: `[M]` float64, of each pair, above 0.5.
        missed: positions of segments of the truth, those of crowds left out.
        wrong: positions of found ones.
    """

    true: np.ndarray
    iou: np.ndarray
    missed: np.ndarray
    wrong: np.ndarray


def match_segments(joint: np.ndarray, truth: np.ndarray, crowd: np.ndarray, found: np.ndarray) -> Matches:
    """Match the segments of an image; at most one can overlap another by more than half.

    What is found on void counts neither for nor against: it is left out of unions, and a segment that lies by more than
    half on void and its class's crowd is not wrong. Of several crowds of one class in an image only the last counts so,
    as in the official code.

    Args:
        joint: int64 `[N + 1, P + 1]`, pixels in each pair of segments; the first row is void, the first column
            unlabelled.
        truth, found: classes, `[N]` and `[P]`.
        crowd: `[N]` bool.
    """
    area, own = joint.sum(1)[1:], joint.sum(0)[1:]  # of the pixels, where the official code believes the JSON's area
    overlap, void = joint[1:, 1:], joint[0, 1:]
    union = area[:, None] + own - overlap - void
    fits = (truth[:, None] == found) & ~crowd[:, None] & (2 * overlap > union)
    true = np.argwhere(fits)
    excused = void.copy()
    last = {int(label): i for i, label in enumerate(truth) if crowd[i]}
    for position, label in enumerate(found.tolist()):
        if label in last:
            excused[position] += overlap[last[label], position]
    missed = ~fits.any(1) & ~crowd
    wrong = ~fits.any(0) & (2 * excused <= own)
    return Matches(true, overlap[fits] / union[fits], np.flatnonzero(missed), np.flatnonzero(wrong))


@dataclass(frozen=True)
class PanopticResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        per_class: a row for each class: `name`, `thing`, `PQ`, `SQ`, `RQ` (NaN where it occurs neither in the truth nor
            in what was found), `TP`, `FP`, `FN`.
        protocol: its name.
        images: how many were evaluated.
    """

    numbers: dict[str, float]
    per_class: list[dict[str, Any]]
    protocol: str
    images: int

    def tables(self) -> list[RenderableType]:
        """The numbers of all, things and stuff, and the classes that occur (of many the weakest), for Rich."""
        from rich.table import Table

        total = Table()
        for heading in ("", "PQ", "SQ", "RQ", "classes"):
            total.add_column(heading, justify="right" if heading else "left")
        counted = [row for row in self.per_class if not np.isnan(row["PQ"])]
        kinds: dict[str, list[bool]] = {"": [True, False], "_things": [True], "_stuff": [False]}
        for group in GROUPS:
            if f"{NAME}/PQ{group}" in self.numbers:
                values = (f"{100 * self.numbers[f'{NAME}/{q}{group}']:.2f}" for q in ("PQ", "SQ", "RQ"))
                classes = sum(row["thing"] in kinds[group] for row in counted)
                total.add_row(group.strip("_") or "all", *values, str(classes))
        rows, title = [row for row in self.per_class if any(row[key] for key in COUNTS)], "per class"
        absent = len(self.per_class) - len(rows)
        if len(rows) > SHOWN:
            rows = sorted(rows, key=lambda row: (np.isnan(row["PQ"]), row["PQ"]))[:SHOWN]
            title = f"the {SHOWN} weakest of {len(self.per_class) - absent} classes"
        classes_table = Table(title=title, title_justify="left")
        classes_table.add_column("class", overflow="fold")
        for heading in ("PQ", "SQ", "RQ", *COUNTS):
            classes_table.add_column(heading, justify="right")
        for row in rows:
            shares = ("-" if np.isnan(row[key]) else f"{100 * row[key]:.2f}" for key in ("PQ", "SQ", "RQ"))
            classes_table.add_row(row["name"], *shares, *(f"{row[key]:,}" for key in COUNTS))
        return [total, *([classes_table] if rows else []), *left_out(absent, "segments")]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield Text(f"{self.protocol}, {self.images} image{'s' * (self.images != 1)}")
        yield from self.tables()


class PanopticQuality(Metric):
    """Panoptic, segmentation and recognition quality by the panoptic API's rules.

    Per class PQ is the sum of the matched pairs' IoU, divided by TP + FP / 2 + FN / 2; SQ is the mean IoU of the pairs,
    and RQ = PQ / SQ. The means are over classes that occur in the truth or in what was found.

    Args:
        labels: of the network; `things` says which classes are counted one by one (None: all).
        ground_truth: not looked at: each batch has its own.
    """

    families = (NAME,)

    def __init__(self, labels: LabelSpace, ground_truth: Any = None) -> None:
        self.labels, self.protocol = labels, NAME
        things = range(len(labels.ids)) if labels.things is None else labels.things
        self.things = {labels.channel_of[labels.ids[i]] for i in things}
        self.result: PanopticResult | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, all of them."""
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, and lists of the classes that occur, `classes`, with the `IoU` (sum of the
        matched pairs), `TP`, `FP` and `FN` of each.

        Args:
            ids: of the images.
            predictions: with `panoptic`.
            targets: dicts with `segment_map` `[*S]`, in which i + 1 is the i-th segment and 0 void; `segment_labels`
                `[N]` int64, their channels; and `segment_crowd` `[N]` bool.

        Raises:
            DataError: a prediction has another size than its truth, or its segments and its map do not agree.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            found, truth = prediction.panoptic, target["segment_map"]
            if found is None or found.ids.shape != truth.shape:
                sizes = f"{None if found is None else list(found.ids.shape)}, its truth {list(truth.shape)}"
                raise DataError(str(key), f"the panoptic prediction has the size {sizes}")
            labels, crowd = (target[name].cpu().numpy() for name in ("segment_labels", "segment_crowd"))
            joint = joint_areas(truth.cpu().numpy(), len(labels), positions(found, str(key)), len(found.segments))
            absent = np.flatnonzero(joint.sum(0)[1:] == 0)
            if len(absent):
                raise DataError(str(key), f"the segment {found.segments[absent[0]].id} of its prediction has no pixel")
            own = np.array([segment.label for segment in found.segments], np.int64)
            records.append({"id": key, **self._counted(match_segments(joint, labels, crowd, own), labels, own)})
        return records

    def _counted(self, matches: Matches, truth: np.ndarray, found: np.ndarray) -> dict[str, list[Any]]:
        size = self.labels.num_classes
        of_pairs = truth[matches.true[:, 0]]
        iou = np.bincount(of_pairs, matches.iou, size)
        counts = [np.bincount(x, minlength=size) for x in (of_pairs, found[matches.wrong], truth[matches.missed])]
        classes = np.flatnonzero(np.sum(counts, 0))
        columns = {name: values[classes].tolist() for name, values in zip(COUNTS, counts, strict=True)}
        return {"classes": classes.tolist(), "IoU": iou[classes].tolist(), **columns}

    def total(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """float64 `[4, K]`: of each class the sum of IoU, and TP, FP, FN."""
        table = np.zeros((1 + len(COUNTS), self.labels.num_classes))
        for record in records:
            for row, name in enumerate(("IoU", *COUNTS)):
                table[row, record["classes"]] += record[name]
        return table

    def measure(self, table: np.ndarray) -> np.ndarray:
        """float64 `[3, K]`: PQ, SQ and RQ of each class from `total`; NaN where a class occurs nowhere."""
        iou, true, wrong, missed = table
        weight = true + wrong / 2 + missed / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            quality, recognition = iou / weight, true / weight
            fit = np.where(true > 0, iou / true, np.where(weight > 0, 0.0, np.nan))
        return np.stack([quality, fit, recognition])

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over classes, in 0..1.

        Returns:
            `panoptic/PQ`, `/SQ`, `/RQ`, and with `_things` and `_stuff` those of either, where there are such classes.

        Raises:
            DataError: there are no records, or neither truth nor predictions have a segment.
        """
        refuse_nothing(records)
        table = self.total(records)
        values = self.measure(table)
        names = self.labels.name_of
        occurs = [c for c in names if not np.isnan(values[0, c])]
        if not occurs:
            raise DataError("evaluation", "neither truth nor predictions have a segment", "look with `vistrain check`")
        groups = {
            "": occurs,
            "_things": [c for c in occurs if c in self.things],
            "_stuff": [c for c in occurs if c not in self.things],
        }
        numbers = {
            f"{NAME}/{quality}{group}": float(values[row, classes].mean())
            for group, classes in groups.items()
            for row, quality in enumerate(("PQ", "SQ", "RQ"))
            if classes
        }
        rows = [
            {
                "name": names[c],
                "thing": c in self.things,
                **{quality: float(values[row, c]) for row, quality in enumerate(("PQ", "SQ", "RQ"))},
                **{count: int(table[1 + row, c]) for row, count in enumerate(COUNTS)},
            }
            for c in names
        ]
        self.result = PanopticResult(numbers, rows, self.protocol, len(records))
        return numbers


def joint_areas(truth: np.ndarray, segments: int, found: np.ndarray, others: int) -> np.ndarray:
    """Pixels in each pair of segments, int64 `[N + 1, P + 1]`, by a joint histogram.

    Args:
        truth: `[*S]`, 0..N.
        segments: N.
        found: `[*S]`, 0..P.
        others: P.
    """
    size = max(segments, others) + 1
    counts = confusion(truth.astype(np.uint8) if size < 256 else truth, found, size)
    return counts[: segments + 1, : others + 1]


def positions(found: PanopticMap, name: str) -> np.ndarray:
    """A panoptic map in which i + 1 is the i-th of its segments.

    Args:
        found: ids of any size.
        name: of the image, for messages.

    Raises:
        DataError: a pixel belongs to no segment that is listed, or two segments have one id.
    """
    ids = found.ids.cpu().numpy()
    listed = np.array([0, *(segment.id for segment in found.segments)], np.int64)
    return compact(ids, listed, lambda value: DataError(name, f"pixels of the segment {value}, which is not listed"))


def compact(ids: np.ndarray, listed: np.ndarray, stranger: Any) -> np.ndarray:
    """Positions of ids in a list.

    Args:
        ids: integers `[*S]`.
        listed: `[N]` int64, no two the same.
        stranger: makes the error of an id that is not listed.

    Returns:
        int64 `[*S]`.
    """
    order = np.argsort(listed, kind="stable")
    place = order[np.searchsorted(listed[order], ids).clip(max=len(listed) - 1)]
    wrong = listed[place] != ids
    if wrong.any():
        raise stranger(int(ids[wrong][0]))
    return place
