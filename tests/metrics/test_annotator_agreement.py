"""Several annotators: by hand, and against definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol, unit
from vistrain.metrics.annotator_agreement import kappa
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

LABELS = LabelSpace(("background", "vessel"), (0, 255), ignore_index=255)


def evaluated(*images: tuple[list[list[int]], list[int]]) -> tuple[Any, dict[str, float]]:
    metric = protocol("annotators", labels=LABELS)
    targets = [{"annotations": torch.tensor(maps)[:, None], "label_map": torch.tensor(maps[:1])} for maps, _ in images]
    found = [Segmentation(torch.tensor(row)[None]) for _, row in images]
    return metric, metric.compute(metric.update(list("abcdef")[: len(images)], found, targets))


def test_numbers_of_two_pictures() -> None:
    """Pixels of all pictures together; what one leaves out counts against the others alone."""
    metric, numbers = evaluated(
        ([[1, 1, 0, 0, 0], [1, 0, 0, 0, 255], [1, 1, 1, 0, 0]], [1, 1, 0, 0, 1]),
        ([[0, 1, 1], [0, 1, 1], [0, 0, 0]], [0, 1, 0]),
    )
    single = [2 * 3 / (4 + 4), 2 * 2 / (3 + 3), 2 * 2 / (3 + 4)]
    assert [numbers[f"annotators/{n}/Dice"] for n in (1, 2, 3)] == pytest.approx(single)
    assert numbers["annotators/Dice"] == pytest.approx(np.mean(single))
    pairs = [2 * 3 / (4 + 3), 2 * 2 / (4 + 3), 2 * 1 / (3 + 3)]
    assert numbers["annotators/agreement"] == pytest.approx(np.mean(pairs))
    assert next(iter(numbers)) == "annotators/Dice"
    assert metric.result.annotators == 3


def test_kappa_is_cohens() -> None:
    a, b = np.random.default_rng(0).integers(0, 2, (2, 500))
    b[:300] = a[:300]
    agree = (a == b).mean()
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    counts = np.array([[((a == i) & (b == j)).sum() for j in (0, 1)] for i in (0, 1)])
    assert kappa(counts) == pytest.approx((agree - chance) / (1 - chance))
    assert kappa(np.array([[5, 0], [0, 5]])) == 1
    assert np.isnan(kappa(np.array([[5, 0], [0, 0]])))
    assert np.isnan(kappa(np.zeros((2, 2))))


def test_refusals_and_units() -> None:
    with pytest.raises(ConfigError, match="not 3"):
        protocol("annotators", labels=LabelSpace(("a", "b", "c"), (0, 1, 2)))
    metric = protocol("annotators", labels=LABELS)
    one = Segmentation(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="needs data with several"):
        metric.update(["a"], [one], [{"label_map": torch.zeros(2, 2)}])
    with pytest.raises(DataError, match=r"a: the prediction has the size \[2, 2\]"):
        metric.update(["a"], [one], [{"annotations": torch.zeros(2, 3, 3)}])
    with pytest.raises(DataError, match="no image"):
        metric.compute([])
    assert unit("annotators/agreement").percent
    assert not unit("annotators/kappa").percent
