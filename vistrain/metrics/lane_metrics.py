"""Lanes as the sets measure them: CULane's F1 of lanes that are drawn wide, TuSimple's accuracy of points on rows.

Authors' codes: github.com/XingangPan/SCNN, commit 428d5e0, MIT (tools/lane_evaluation), and
github.com/TuSimple/tusimple-benchmark, Apache-2.0 (evaluate/lane.py): written from what they are described to count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vistrain.errors import DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import LaneMaps

SPLINE = 50  # points that a curve has between two of a lane's
CROSS = "cross"  # crossroads have no lanes: only what is found there wrongly is told
# The frozen arguments of each protocol; any other value prints as custom(...)
LANES: Mapping[str, Mapping[str, Any]] = {
    "culane": {"width": 30, "overlap": 0.5},
    "tusimple": {"pixels": 20.0, "share": 0.85},
}


@dataclass(frozen=True)
class LaneResult:
    """One evaluation.

    Attributes:
        numbers: see the metric's `compute`.
        protocol: its name, or `custom(...)` saying what differs.
        images: how many were evaluated.
    """

    numbers: dict[str, float]
    protocol: str
    images: int

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        yield Text(f"{self.protocol}, {self.images} image{'s' * (self.images != 1)}")
        table = Table()
        table.add_column("")
        table.add_column("", justify="right")
        for name, value in self.numbers.items():
            shown = f"{value:.0f}" if name.endswith(f"FP_{CROSS}") else f"{100 * value:.2f} %"
            table.add_row(name.partition("/")[2], shown)
        yield table


class CULaneF1(Metric):
    """F1 of lanes that are drawn as curves of 30 pixels (Pan et al. 2018, arXiv 1712.06080, section 4.1).

    Lanes found and true are paired so that the sum of their IoU is largest; a pair of more than the overlap is right.

    Args:
        width: of drawn lanes, pixels of the original image.
        overlap: IoU that a pair must exceed.
        ground_truth, labels: not looked at: each batch has its own.
    """

    families = ("culane",)

    def __init__(
        self, width: int | None = None, overlap: float | None = None, ground_truth: Any = None, labels: Any = None
    ) -> None:
        chosen, self.protocol = _chosen("culane", width=width, overlap=overlap)
        self.width, self.overlap = chosen["width"], chosen["overlap"]

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares; on crossroads a number of lanes, of which few are good."""
        if name.endswith(f"FP_{CROSS}"):
            return Unit(lower_is_better=True, digits=0)
        return Unit(percent=True)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[LaneMaps], targets: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, `category`, and how many lanes are right (`tp`), wrong (`fp`) and missed
        (`fn`).

        Args:
            ids: of the images.
            predictions: with `lanes`, of which those without points are not there.
            targets: dicts with `lanes`, each `[N, 2]`, `image_size` (H, W), pixels, and `category`, a name or empty.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            found, truth = (_there(lanes) for lanes in (prediction.lanes, target["lanes"]))
            right = matched(overlaps(found, truth, target["image_size"], self.width), self.overlap)
            counts = {"tp": right, "fp": len(found) - right, "fn": len(truth) - right}
            records.append({"id": key, "category": target["category"], **counts})
        return records

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`culane/F1`, `culane/precision`, `culane/recall` of all images; where images have categories, `culane/F1_*`
        of each, and `culane/FP_cross`, the number of lanes found on crossroads.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records)
        precision, recall, f1 = _scores(records)
        numbers = {"culane/F1": f1, "culane/precision": precision, "culane/recall": recall}
        for name in sorted({r["category"] for r in records} - {""}):
            part = [r for r in records if r["category"] == name]
            if name == CROSS:
                numbers[f"culane/FP_{CROSS}"] = float(sum(r["fp"] for r in part))
            else:
                numbers[f"culane/F1_{name}"] = _scores(part)[2]
        self.result = LaneResult(numbers, self.protocol, len(records))
        return numbers


class TuSimpleAccuracy(Metric):
    """Accuracy of points on rows, and shares of lanes wrong and missed (TuSimple's lane detection challenge of 2017).

    Its limit on running times is not kept.

    Args:
        pixels: horizontal distance within which a point of a vertical lane is right; of a slanting one it is that
            across the lane.
        share: of the rows that must be right for a lane to be found.
        ground_truth, labels: not looked at: each batch has its own.
    """

    families = ("tusimple",)
    counted = 4  # lanes of an image; of more the worst is forgiven

    def __init__(
        self, pixels: float | None = None, share: float | None = None, ground_truth: Any = None, labels: Any = None
    ) -> None:
        chosen, self.protocol = _chosen("tusimple", pixels=pixels, share=share)
        self.pixels, self.share = chosen["pixels"], chosen["share"]

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares; of lanes that are wrong or missed, few are good."""
        return Unit(percent=True, lower_is_better=name.endswith(("/FP", "/FN")))

    def update(
        self, ids: Sequence[Any], predictions: Sequence[LaneMaps], targets: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, `accuracy`, and the shares `fp` and `fn`.

        Args:
            ids: of the images.
                predictions: with `lanes`.
            targets: dicts with `lanes`, each `[N, 2]`, and `rows`, the y that are looked at.

        Raises:
            DataError: a target has no rows.
        """
        records = []
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            if not len(target["rows"]):
                raise DataError(str(key), "its truth names no rows to measure lanes on", "use the protocol culane")
            rows = np.asarray(target["rows"], np.float64)
            found, truth = (on_rows(_there(lanes), rows) for lanes in (prediction.lanes, target["lanes"]))
            records.append({"id": key, **self.measure(found, truth, rows)})
        return records

    def measure(self, found: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        """Accuracy, `fp` and `fn` of an image, 0..1.

        Args:
            found, truth: x `[N, R]` and `[M, R]` of lanes on the rows, negative where there is none.
            rows: y `[R]`.
        """
        if len(truth) + 2 < len(found):
            return {"accuracy": 0.0, "fp": 0.0, "fn": 1.0}
        if not len(truth):
            return {"accuracy": 0.0, "fp": 1.0 if len(found) else 0.0, "fn": 0.0}
        allowed = np.array([self.pixels / np.cos(_angle(x, rows)) for x in truth])
        best = np.zeros(len(truth))
        if len(found):
            # Outside the image both are at -100: a row on which neither has a point is right.
            theirs, ours = (np.where(x >= 0, x, -100.0) for x in (truth, found))
            hits = np.abs(theirs[:, None] - ours[None]) < allowed[:, None, None]
            best = hits.mean(2).max(1)
        missed = int((best < self.share).sum())
        wrong = len(found) - (len(truth) - missed)
        total = best.sum()
        if len(truth) > self.counted:
            missed, total = max(missed - 1, 0), total - best.min()
        count = min(len(truth), self.counted)
        fp = wrong / len(found) if len(found) else 0.0
        return {"accuracy": float(total / count), "fp": fp, "fn": missed / count}

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`tusimple/accuracy`, `tusimple/FP` and `tusimple/FN`, means over images.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records)
        names = {"accuracy": "accuracy", "fp": "FP", "fn": "FN"}
        numbers = {f"tusimple/{n}": float(np.mean([r[k] for r in records])) for k, n in names.items()}
        self.result = LaneResult(numbers, self.protocol, len(records))
        return numbers


def overlaps(found: Sequence[np.ndarray], truth: Sequence[np.ndarray], size: Sequence[int], width: int) -> np.ndarray:
    """IoU of lanes that are drawn as curves.

    Args:
        found, truth: F and T lanes, each `[N, 2]` (x, y) in pixels; a lane of fewer than two points overlaps nothing.
        size: (H, W) of the image.
        width: of the curves, pixels.

    Returns:
        float64 `[F, T]`.
    """
    ours, theirs = (
        np.stack([_drawn(lane, size, width) for lane in lanes]) if lanes else None for lanes in (found, truth)
    )
    if ours is None or theirs is None:
        return np.zeros((len(found), len(truth)))
    both = np.bitwise_count(ours[:, None] & theirs[None]).sum(2, dtype=np.int64)
    either = np.bitwise_count(ours[:, None] | theirs[None]).sum(2, dtype=np.int64)
    return both / np.maximum(either, 1)


def matched(iou: np.ndarray, overlap: float) -> int:
    """How many pairs of the matching with the largest sum of IoU exceed an overlap.

    Args:
        iou: `[F, T]`.
        overlap: 0..1.
    """
    from scipy.optimize import linear_sum_assignment

    return int((iou[linear_sum_assignment(iou, maximize=True)] > overlap).sum())


def curve(lane: np.ndarray) -> np.ndarray:
    """A natural cubic spline through points, in the length of the lines between them, `SPLINE` points for each.

    Args:
        lane: `[N, 2]`, N at least 2; two are joined by a line.

    Returns:
        `[M, 2]`.
    """
    lane = lane[np.append(True, (np.diff(lane, axis=0) != 0).any(1))]
    if len(lane) <= 2:
        return lane
    from scipy.interpolate import CubicSpline

    place = np.append(0.0, np.cumsum(np.hypot(*np.diff(lane, axis=0).T)))
    fine = np.concatenate([np.linspace(a, b, SPLINE, endpoint=False) for a, b in itertools.pairwise(place)])
    return CubicSpline(place, lane, bc_type="natural")(np.append(fine, place[-1]))


def on_rows(lanes: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """x of lanes on rows `[R]`, -2 where there is no point. A lane whose points lie beside the rows is joined by
    straight lines.

    Args:
        lanes: L of them, each `[N, 2]` (x, y).
        rows: y.

    Returns:
        float64 `[L, R]`.
    """
    found = np.full((len(lanes), len(rows)), -2.0)
    for x, lane in zip(found, lanes, strict=True):
        lane = lane[np.argsort(lane[:, 1], kind="stable")]
        between = np.interp(rows, lane[:, 1], lane[:, 0], left=-2, right=-2)
        has_point = np.isin(rows, lane[:, 1]) | ~np.isin(lane[:, 1], rows).all()
        x[has_point] = between[has_point]
    return found


def _drawn(lane: np.ndarray, size: Sequence[int], width: int) -> np.ndarray:
    """The pixels of a lane, as bits."""
    canvas = np.zeros((size[0], size[1]), np.uint8)
    if len(lane) > 1:
        points = np.rint(curve(lane)).clip(-(2**15), 2**15).astype(np.int32)
        points = points[np.append(True, (np.diff(points, axis=0) != 0).any(1))]
        cv2.polylines(canvas, [points], False, 1, width)
    bits = np.packbits(canvas)
    return np.pad(bits, (0, -len(bits) % 8)).view(np.uint64)


def _scores(records: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of all lanes."""
    tp, fp, fn = (sum(r[key] for r in records) for key in ("tp", "fp", "fn"))
    precision, recall = tp / max(tp + fp, 1), tp / max(tp + fn, 1)
    return precision, recall, 2 * precision * recall / (precision + recall) if tp else 0.0


def _there(lanes: Sequence[Tensor]) -> list[np.ndarray]:
    return [lane.cpu().double().numpy() for lane in lanes if len(lane)]


def _angle(x: np.ndarray, rows: np.ndarray) -> float:
    """Of the line that fits a lane's points best, from the vertical."""
    there = x >= 0
    if there.sum() < 2:
        return 0.0
    y = rows[there] - rows[there].mean()
    return float(np.arctan((y * (x[there] - x[there].mean())).sum() / (y * y).sum()))


def _chosen(name: str, **given: Any) -> tuple[dict[str, Any], str]:
    """A protocol's arguments with those that are given, and what it is then called."""
    changed = {k: v for k, v in given.items() if v is not None and v != LANES[name][k]}
    told = ", ".join(f"{k}={v}" for k, v in changed.items())
    return {**LANES[name], **changed}, f"custom({name}, {told})" if changed else name
