"""The samples that an evaluation did worst and best on."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vistrain.callbacks.extremes import LOOKED_AT, SHOWN, Extremes
from vistrain.errors import DataError
from vistrain.metrics import Record, Unit


class Value:
    """A metric that gives a record's own value."""

    def __init__(self, lower_is_better: bool) -> None:
        self.lower_is_better = lower_is_better

    def compute(self, records: Sequence[Record]) -> dict[str, float]:
        (record,) = records
        if record["value"] is None:
            raise DataError("evaluation", "nothing to measure")
        return {"own/value": record["value"]}

    def unit(self, name: str) -> Unit:
        return Unit(lower_is_better=self.lower_is_better, percent=True, digits=2)


def draw_sample(batch: Any, index: int, prediction: Any, side: int, threshold: float) -> list[tuple[str, np.ndarray]]:
    return [(batch["id"][index], np.zeros((2, 2, 3), np.uint8)), (prediction, np.zeros((2, 2, 3), np.uint8))]


def look(values: Sequence[float | None], lower_is_better: bool = False) -> Extremes:
    found = Extremes(side=32, threshold=0.3, total=len(values))
    task: Any = SimpleNamespace(draw_sample=draw_sample)
    metric: Any = Value(lower_is_better)
    for i in range(0, len(values), 4):
        records = [{"id": j, "value": values[j]} for j in range(i, min(i + 4, len(values)))]
        ids = [f"image {record['id']}" for record in records]
        found.look(task, metric, {"id": ids}, [f"found in {name}" for name in ids], records)
    return found


def captions(cells: list[list[tuple[str, np.ndarray]]]) -> list[str]:
    return [sample[0][0] for sample in cells]


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_worst_and_best_are_ordered(lower_is_better: bool) -> None:
    values = [0.01 * ((7 * i) % 40) for i in range(40)]
    rows = look(values, lower_is_better).rows()
    ascending = [f"{0.01 * i:.2f}" for i in range(40)]
    low, high = ("best", "worst") if lower_is_better else ("worst", "best")
    assert [text.split()[0] for text in captions(rows[low])] == ascending[:SHOWN]
    assert [text.split()[0] for text in captions(rows[high])] == ascending[: -SHOWN - 1 : -1]
    where = values.index(pytest.approx(0.39))
    assert captions(rows[high])[0] == f"0.39  image {where}"
    assert rows[high][0][1][0] == f"found in image {where}"


def test_none_is_both_and_what_says_nothing_is_left_out() -> None:
    found = look([0.5, None, -1, 0.1, float("nan"), 0.9, 0.7])
    rows = found.rows()
    assert found.looked_at == 4
    assert captions(rows["worst"]) == ["0.10  image 3", "0.50  image 0"]
    assert captions(rows["best"]) == ["0.90  image 5", "0.70  image 6"]


def test_of_many_samples_some_are_looked_at() -> None:
    found = look([0.5] * (3 * LOOKED_AT))
    assert found.looked_at == LOOKED_AT


def test_of_equal_samples_none_is_both() -> None:
    rows = look([0.0] * 12).rows()
    worst, best = captions(rows["worst"]), captions(rows["best"])
    assert len(worst) == len(best) == 6
    assert not set(worst) & set(best)
