"""How much numbers depend on the samples: halves, and the intervals that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vistrain.errors import DataError
from vistrain.metrics import Metric, Record, Unit
from vistrain.metrics.halves import HALVES, differences, digest, half, interval, numbers_of_halves


class Mean(Metric):
    """The mean of the records' values, and of those of even ids."""

    families = ("mean",)
    protocol = "mean"

    def update(self, ids: Sequence[Any], predictions: Sequence[Any], targets: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"id": i, "value": value} for i, value in zip(ids, predictions, strict=True)]

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        if all(record["value"] is None for record in records):
            raise DataError("evaluation", "nothing to measure")
        rare = [record["value"] for record in records if record.get("rare")]
        mean = float(np.mean([record["value"] for record in records]))
        return {"mean/all": mean, "mean/rare": float(np.mean(rare)) if rare else -1.0}

    @classmethod
    def unit(cls, name: str) -> Unit:
        return Unit(percent=True)


def records(values: Sequence[float | None], rare: int = 0) -> list[dict[str, Any]]:
    return [{"id": i, "value": value, "rare": i < rare} for i, value in enumerate(values)]


def test_a_half_follows_from_the_ids_alone() -> None:
    ours = records(np.arange(21).tolist())
    theirs = [dict(record, value=0.0) for record in reversed(ours)]
    for number in range(3):
        chosen = {record["id"] for record in half(ours, number)}
        assert len(chosen) == 10
        assert chosen == {record["id"] for record in half(theirs, number)}
    assert {r["id"] for r in half(ours, 0)} != {r["id"] for r in half(ours, 1)}


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.1, 400)
    halves = numbers_of_halves(Mean(), records(values.tolist()), seconds=60)["mean/all"]
    ends = interval(float(values.mean()), halves)
    assert ends is not None
    expected = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert len(halves) == HALVES
    assert (ends[1] - ends[0]) / 2 == pytest.approx(expected, rel=0.3)  # of 40 halves
    assert (ends[1] + ends[0]) / 2 == pytest.approx(values.mean())


def test_differences_are_paired() -> None:
    """Two runs that err on the same samples differ by less than each depends on the samples."""
    easy = np.random.default_rng(1).normal(0.5, 0.2, 200)
    better = easy + 0.02
    first, second = (numbers_of_halves(Mean(), records(v.tolist()), 60)["mean/all"] for v in (easy, better))
    ends = interval(0.02, differences(second, first))
    assert ends == pytest.approx((0.02, 0.02))


def test_a_sample_that_two_processes_saw_counts_once() -> None:
    found = records([0.1 * i for i in range(10)])
    assert numbers_of_halves(Mean(), found + found[:3], 60) == numbers_of_halves(Mean(), found, 60)
    assert digest(found + found[:3]) == digest(list(reversed(found))) != digest(found[:9])


def test_what_a_half_cannot_measure_is_left_out() -> None:
    halves = numbers_of_halves(Mean(), records([0.5] * 10, rare=1), 60)["mean/rare"]
    assert set(halves) == {None, 0.5}
    assert interval(0.5, [None] * 30 + [0.5] * 7) is None
    nothing = numbers_of_halves(Mean(), [*records([None] * 20)], 60)
    assert nothing == {}


def test_few_samples_and_little_time_say_nothing() -> None:
    assert numbers_of_halves(Mean(), records([0.5] * 7), 60) == {}
    assert numbers_of_halves(Mean(), records([0.5] * 100), -1) == {}
