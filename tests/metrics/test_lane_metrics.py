"""Measures of lanes against definitions written out in loops."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
import torch

from vistrain.errors import DataError
from vistrain.metrics import protocol, unit
from vistrain.metrics.lane_metrics import curve, matched, on_rows, overlaps
from vistrain.predictions import LaneMaps

SIZE = (295, 820)


def found(*lanes: list[list[float]]) -> LaneMaps:
    nothing = torch.zeros(0)
    return LaneMaps(nothing, nothing, tuple(torch.tensor(lane).view(-1, 2) for lane in lanes))


def target(*lanes: list[list[float]], category: str = "", rows: tuple[int, ...] = ()) -> dict:
    tensors = tuple(torch.tensor(lane).view(-1, 2) for lane in lanes)
    return {"lanes": tensors, "image_size": SIZE, "category": category, "rows": rows}


def random_lanes(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    lanes = []
    for _ in range(count):
        y = np.arange(SIZE[0] - 1, rng.integers(60, 200), -20.0)
        bottom, slope, bend = rng.uniform(0, SIZE[1]), rng.uniform(-1, 1), rng.uniform(-2e-3, 2e-3)
        x = bottom + slope * (SIZE[0] - y) + bend * (SIZE[0] - y) ** 2 + rng.normal(0, 2, len(y))
        lanes.append(np.stack([x, y], 1))
    return lanes


def spline(points: np.ndarray) -> np.ndarray:
    """The natural cubic spline, second derivatives from the system of equations, point by point."""
    if len(points) == 2:
        return points
    h = np.array([math.dist(a, b) for a, b in itertools.pairwise(points)])
    n, out = len(points), []
    system, right = np.eye(n), np.zeros((n, 2))
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i] = 6 * ((points[i + 1] - points[i]) / h[i] - (points[i] - points[i - 1]) / h[i - 1])
    second = np.linalg.solve(system, right)
    for i in range(n - 1):
        for j in range(50):
            t = h[i] * j / 50
            slope = (points[i + 1] - points[i]) / h[i] - h[i] * (2 * second[i] + second[i + 1]) / 6
            cubic = (second[i + 1] - second[i]) * t**3 / (6 * h[i])
            out.append(points[i] + slope * t + second[i] * t**2 / 2 + cubic)
    return np.array([*out, points[-1]])


def drawn(lane: np.ndarray) -> np.ndarray:
    canvas = np.zeros(SIZE, np.uint8)
    for a, b in itertools.pairwise(spline(lane)):
        cv2.line(canvas, [round(v) for v in a], [round(v) for v in b], 1, 30)
    return canvas > 0


def test_overlaps_and_matching_by_definition():
    rng = np.random.default_rng(0)
    ours, theirs = random_lanes(rng, 3), random_lanes(rng, 4)
    ours[0] = theirs[1] + rng.normal(0, 4, theirs[1].shape)
    ours[1] = theirs[1][[0, -1]]  # two points are joined by a line
    np.testing.assert_allclose(curve(theirs[0]), spline(theirs[0]), atol=1e-8)
    iou = overlaps(ours, theirs, SIZE, 30)
    masks = [[drawn(lane) for lane in lanes] for lanes in (ours, theirs)]
    expected = [[(a & b).sum() / (a | b).sum() for b in masks[1]] for a in masks[0]]
    np.testing.assert_allclose(iou, expected, rtol=0, atol=1e-12)
    assert iou[0, 1] > 0.5
    for table in (iou, rng.random((3, 4)), rng.random((4, 2))):
        short, long = sorted(table.shape)
        upright = table if table.shape[0] <= table.shape[1] else table.T
        best = max(
            itertools.permutations(range(long), short), key=lambda p: sum(upright[i, j] for i, j in enumerate(p))
        )
        assert matched(table, 0.5) == sum(upright[i, j] > 0.5 for i, j in enumerate(best))
    assert overlaps([], theirs, SIZE, 30).shape == (0, 4)
    assert overlaps([ours[0][:1]], theirs, SIZE, 30).tolist() == [[0, 0, 0, 0]]


def test_f1_of_all_images_and_of_categories():
    left, right = [[200.0, 294.0], [300.0, 100.0]], [[600.0, 294.0], [500.0, 100.0]]
    metric = protocol("culane")
    records = metric.update(
        ["a", "b", "c"],
        [found(left, right), found([], left), found(right)],
        [target(left, right, category="normal"), target(right, category="night"), target(category="cross")],
    )
    assert [(r["tp"], r["fp"], r["fn"]) for r in records] == [(2, 0, 0), (0, 1, 1), (0, 1, 0)]
    numbers = metric.compute(records)
    assert numbers == pytest.approx({
        "culane/F1": 4 / 7, "culane/precision": 2 / 4, "culane/recall": 2 / 3,
        "culane/FP_cross": 1, "culane/F1_night": 0, "culane/F1_normal": 1,
    })  # fmt: skip
    assert unit("culane/FP_cross").lower_is_better
    assert unit("culane/F1_normal").percent
    assert protocol("culane", width=16).protocol == "custom(culane, width=16)"
    with pytest.raises(DataError, match="no image"):
        metric.compute([])


def bench(pred: list[list[float]], truth: list[list[float]], rows: list[int]) -> tuple[float, float, float]:
    """The challenge's rules, one after the other."""
    if len(pred) > len(truth) + 2:
        return 0.0, 0.0, 1.0
    accuracies, fn = [], 0
    for lane in truth:
        there = [(y, x) for y, x in zip(rows, lane, strict=True) if x >= 0]
        slope = np.polyfit(*zip(*there, strict=True), 1)[0] if len(there) > 1 else 0.0
        allowed = 20 / math.cos(math.atan(slope))
        best = 0.0
        for other in pred:
            hits = 0
            for a, b in zip(lane, other, strict=True):
                hits += abs((a if a >= 0 else -100) - (b if b >= 0 else -100)) < allowed
            best = max(best, hits / len(rows))
        accuracies.append(best)
        fn += best < 0.85
    fp = len(pred) - (len(truth) - fn)
    total = sum(accuracies)
    if len(truth) > 4:
        fn, total = max(fn - 1, 0), total - min(accuracies)
    count = max(min(len(truth), 4), 1)
    return total / count, fp / len(pred) if pred else 0.0, fn / count


@pytest.mark.parametrize("seed", range(8))
def test_accuracy_by_definition(seed):
    rng = np.random.default_rng(seed)
    rows = list(range(160, 720, 10))

    def lanes(count: int) -> list[list[float]]:
        made = []
        for _ in range(count):
            x = rng.uniform(200, 1000) + rng.uniform(-1.5, 1.5) * (np.array(rows) - 400)
            made.append([round(v) if y > 240 and 0 <= v < 1280 else -2 for y, v in zip(rows, x, strict=True)])
        return made

    truth = lanes(seed % 6)
    pred = [[x + rng.normal(0, 9) if x >= 0 else x for x in lane] for lane in truth[seed % 2 :]] + lanes(seed % 4)
    metric = protocol("tusimple")
    points = [[[[x, y] for x, y in zip(lane, rows, strict=True) if x >= 0] for lane in some] for some in (pred, truth)]
    (record,) = metric.update(["a"], [found(*points[0])], [target(*points[1], rows=tuple(rows))])
    expected = bench([lane for lane in pred if max(lane) >= 0], [lane for lane in truth if max(lane) >= 0], rows)
    assert (record["accuracy"], record["fp"], record["fn"]) == pytest.approx(expected, abs=1e-9)
    assert metric.compute([record])["tusimple/accuracy"] == pytest.approx(expected[0])


def test_lanes_on_rows():
    lane = np.array([[10.0, 30.0], [30.0, 10.0]])
    assert on_rows([lane], np.array([0, 10, 20, 30])).tolist() == [[-2, 30, -2, 10]]  # a gap stays one
    assert on_rows([lane], np.array([5, 15, 25])).tolist() == [[-2, 25, 15]]
    with pytest.raises(DataError, match="names no rows"):
        protocol("tusimple").update(["a"], [found()], [target()])
