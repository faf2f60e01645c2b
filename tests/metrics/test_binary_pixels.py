"""Areas under curves and two-by-two measures, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol
from vistrain.metrics.binary_pixels import LEVELS, area_under_curve, two_by_two
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

VESSELS = LabelSpace(("background", "vessel"), (0, 255), ignore_index=255)


def sample(draw: np.random.Generator, shape: tuple[int, int]) -> tuple[Segmentation, torch.Tensor]:
    """8-bit probabilities with ties, a truth that leaves some pixels out, and what 0.5 makes of them."""
    truth = draw.choice([0, 0, 0, 1, 255], shape)
    level = np.clip(draw.normal(90 + 60 * (truth == 1), 40, shape), 0, 255).round()
    share = torch.from_numpy(level / 255).float()
    found = Segmentation((share > 0.5).long(), probabilities=torch.stack((1 - share, share)))
    return found, torch.from_numpy(truth)


def test_numbers_are_those_of_the_definitions() -> None:
    draw = np.random.default_rng(0)
    samples = [sample(draw, shape) for shape in ((40, 31), (25, 50))]
    metric = protocol("vessels", labels=VESSELS)
    found, truths = [one for one, _ in samples], [{"label_map": truth} for _, truth in samples]
    records = metric.update([0, 1], found, truths)
    numbers = metric.compute(records)
    share = np.concatenate([found.probabilities[1].numpy().ravel() for found, _ in samples])
    truth = np.concatenate([truth.numpy().ravel() for _, truth in samples])
    share, truth = share[truth != 255], truth[truth != 255] == 1
    ranks, positives = rankdata(share), int(truth.sum())
    area = (ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (~truth).sum())
    assert numbers["vessels/AUC"] == pytest.approx(area, abs=1e-12)
    chosen = share > 0.5
    tp, fp, fn = (int(x.sum()) for x in (truth & chosen, ~truth & chosen, truth & ~chosen))
    assert numbers["vessels/Dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert numbers["vessels/MCC"] == pytest.approx(np.corrcoef(truth, chosen)[0, 1])
    assert numbers["vessels/accuracy"] == pytest.approx((truth == chosen).mean())
    assert numbers["vessels/sensitivity"] == pytest.approx(chosen[truth].mean())
    assert numbers["vessels/specificity"] == pytest.approx(1 - chosen[~truth].mean())
    scores = [2 * (truth & (share > k / 255)).sum() / (truth.sum() + (share > k / 255).sum()) for k in range(255)]
    best = int(np.argmax(scores))
    assert metric.result.best_threshold == best / 255
    assert metric.result.best_dice == pytest.approx(scores[best])


def test_area_of_single_precision_is_right_to_a_hundred_thousandth() -> None:
    draw = np.random.default_rng(1)
    truth = draw.random(4000) < 0.2
    share = (1 / (1 + np.exp(-draw.normal(3 * truth - 4, 1.5)))).astype(np.float32)
    levels = (share.astype(np.float64) * LEVELS).round().astype(int)
    area = area_under_curve(*(np.bincount(levels[truth == value], minlength=LEVELS + 1) for value in (False, True)))
    ranks, positives = rankdata(share), int(truth.sum())
    exact = (ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (~truth).sum())
    assert area == pytest.approx(exact, abs=1e-5)


def test_one_class_alone_has_no_area() -> None:
    assert math.isnan(area_under_curve(np.array([1, 2]), np.array([0, 0])))
    assert math.isnan(two_by_two(0, 0, 0, 5)["Dice"])
    found, _ = sample(np.random.default_rng(0), (4, 4))
    metric = protocol("vessels", labels=VESSELS)
    records = metric.update(["a"], [found], [{"label_map": torch.zeros(4, 4, dtype=torch.long)}])
    with pytest.raises(DataError, match="pixels of one class alone"):
        metric.compute(records)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="tells two classes apart, not 3"):
        protocol("vessels", labels=LabelSpace(("a", "b", "c"), (0, 1, 2)))
    found, truth = sample(np.random.default_rng(0), (4, 4))
    metric = protocol("vessels", labels=VESSELS)
    with pytest.raises(ConfigError, match="needs probabilities"):
        metric.update(["a"], [Segmentation(found.semantic)], [{"label_map": truth}])
    with pytest.raises(DataError, match=r"the prediction has the size \[4, 4\], its truth \[3, 4\]"):
        metric.update(["a"], [found], [{"label_map": truth[1:]}])
