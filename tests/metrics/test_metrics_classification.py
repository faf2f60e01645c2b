"""Accuracy, calibration and average precision, against sums by hand and other implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol
from vistrain.metrics.accuracy import average_precision, calibration_error
from vistrain.predictions import ClassScores
from vistrain.structures import LabelSpace

LABELS = LabelSpace(tuple("abcdefg"), tuple(range(7)))


def evaluate(scores: np.ndarray, targets: list[tuple[int, ...]], name: str = "accuracy", **changes):
    truth = {"images": changes.pop("images", len(targets))}
    metric = protocol(name, ground_truth=truth, labels=LABELS, **changes)
    predictions = [ClassScores(torch.tensor(row, dtype=torch.float32)) for row in scores]
    records = metric.update(list(range(len(targets))), predictions, [{"labels": t} for t in targets])
    return metric, metric.compute(records), records


def random_scores(count: int = 200) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 7))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores, [(int(k),) for k in rng.integers(0, 6, count)]


def test_the_numbers_are_what_their_names_say():
    scores, targets = random_scores()
    truth = np.array([t[0] for t in targets])
    metric, numbers, _ = evaluate(scores, targets)
    order = np.argsort(-scores, 1)
    assert numbers["cls/top1"] == pytest.approx((order[:, 0] == truth).mean())
    assert numbers["cls/top5"] == pytest.approx((order[:, :5] == truth[:, None]).any(1).mean())
    recalls = [(order[truth == k, 0] == k).mean() for k in range(6)]
    assert numbers["cls/mean_class"] == pytest.approx(np.mean(recalls))
    assert numbers["cls/nll"] == pytest.approx(-np.log(scores[np.arange(200), truth]).mean(), rel=1e-5)
    confidence, right = scores.max(1).astype(np.float32), order[:, 0] == truth
    wanted = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert numbers["cls/ece"] == pytest.approx(wanted, abs=1e-6)
    assert metric.result.confusion.sum() == 200
    assert metric.result.confusion[truth[0]].sum() == (truth == truth[0]).sum()
    assert len(metric.result.per_class) == 6  # the seventh has no images


def test_order_and_repeats_of_records_change_nothing():
    scores, targets = random_scores(30)
    metric, numbers, records = evaluate(scores, targets)
    assert metric.compute([*reversed(records), records[3]]) == numbers


def test_ties_fall_to_the_lower_channel():
    _, numbers, records = evaluate(np.full((2, 7), 1 / 7), [(0,), (6,)])
    assert numbers["cls/top1"] == 0.5
    assert [r["rank"] for r in records] == [0, 6]


def test_what_differs_from_the_protocol_is_said():
    scores, targets = random_scores(10)
    assert evaluate(scores, targets)[0].result.protocol == "accuracy"
    assert evaluate(scores, targets, bins=10)[0].result.protocol == "custom(accuracy, bins=10)"
    assert evaluate(scores, targets, images=11)[0].result.protocol == "custom(accuracy, images=10 of 11)"
    with pytest.raises(DataError, match="no image was evaluated"):
        evaluate(scores[:0], [])
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        protocol("acuracy")


def test_the_tables_name_the_classes():
    scores, targets = random_scores(50)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluate(scores, targets)[0].result)
    text = console.export_text()
    assert "accuracy, 50 images" in text
    assert "top1" in text
    assert "precision" in text


def test_calibration_by_hand():
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_average_precision_by_hand():
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(4), truth) == pytest.approx(0.5)  # all tied
    assert np.isnan(average_precision(scores, np.zeros(4, bool)))


def test_average_precision_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(1)
    for _ in range(5):
        scores, truth = rng.integers(0, 12, 60) / 12, rng.random(60) < 0.3
        assert average_precision(scores, truth) == pytest.approx(metrics.average_precision_score(truth, scores))


def test_many_labels():
    rng = np.random.default_rng(2)
    scores = rng.random((40, 7)).astype(np.float32)
    truth = rng.random((40, 7)) < 0.3
    truth[:, 5] = False
    targets = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    metric, numbers, _ = evaluate(scores, targets, "multi_label")
    seen = [k for k in range(7) if truth[:, k].any()]
    assert numbers["cls/mAP"] == pytest.approx(np.mean([average_precision(scores[:, k], truth[:, k]) for k in seen]))
    found = scores >= 0.5
    assert numbers["cls/F1"] == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert [row["name"] for row in metric.result.per_class] == list("abcdeg")
    assert evaluate(scores, targets, "multi_label", threshold=0.3)[0].result.protocol.startswith("custom(multi_label")
