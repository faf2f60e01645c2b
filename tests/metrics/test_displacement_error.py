"""Errors of displacements: by hand, pixel by pixel, and whatever the order and the batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from vistrain.errors import DataError
from vistrain.metrics import protocol, unit_of
from vistrain.predictions import Displacement

AXES = {"disparity": 1, "flow": 2}


def test_by_hand() -> None:
    """KITTI: 3 pixels and 5 %, both to be exceeded."""
    truth = torch.tensor([[[100.0, 100.0, 10.0, 10.0, 10.0, torch.nan]]])
    found = torch.tensor([[[104.0, 106.0, 13.0, 13.5, 10.0, 99.0]]])
    metric = protocol("disparity")
    numbers = metric.compute(metric.update(["a"], [Displacement(found)], [{"disparity": truth}]))
    # 4 px of 100 is 4 %: right; 6 px: wrong; 3 px is not more than 3; 3.5 px of 10: wrong
    assert numbers == pytest.approx({
        "disparity/D1-all": 2 / 5, "disparity/EPE": (4 + 6 + 3 + 3.5) / 5, "disparity/bad1": 4 / 5,
        "disparity/bad2": 4 / 5, "disparity/bad3": 3 / 5,
    })  # fmt: skip
    assert next(iter(numbers)) == "disparity/D1-all"
    shares = "bad1 80.00 %, bad2 80.00 %, bad3 60.00 %"
    assert metric.result == f"disparity: D1-all 40.00 %, EPE 3.300 px, {shares} on 1 pair"


def random_pairs(name: str, seed: int, count: int = 5) -> list[tuple[str, Displacement, dict[str, Any]]]:
    draw = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(count):
        shape = (AXES[name], *(int(n) for n in torch.randint(1, 9, (2,), generator=draw)))
        truth = torch.randn(shape, generator=draw) * 60
        found = truth + torch.randn(shape, generator=draw) * 4
        truth[:, torch.rand(shape[1:], generator=draw) < 0.3] = torch.nan
        pairs.append((f"pair {i}", Displacement(found), {name: truth}))
    return pairs


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("seed", range(3))
def test_pixel_by_pixel_in_any_order_and_batches(name: str, seed: int) -> None:
    metric, pairs = protocol(name), random_pairs(name, seed)
    together = metric.update(*zip(*pairs, strict=True))
    one_by_one = [record for pair in reversed(pairs) for record in metric.update(*([part] for part in pair))]
    numbers = metric.compute(together)
    assert metric.compute(one_by_one) == pytest.approx(numbers, rel=1e-12)
    errors, outliers = [], 0
    for _, found, target in pairs:
        truth = target[name].double().numpy()
        for row in range(truth.shape[1]):
            for column in range(truth.shape[2]):
                right = truth[:, row, column]
                if np.isnan(right).any():
                    continue
                error = math.dist(found.field.double().numpy()[:, row, column], right)
                errors.append(error)
                outliers += error > 3 and error / math.hypot(*right) > 0.05
    assert numbers[f"{name}/EPE"] == pytest.approx(np.mean(errors))
    assert numbers[f"{name}/{'D1-all' if name == 'disparity' else 'Fl-all'}"] == pytest.approx(outliers / len(errors))
    for bound in (1, 2, 3):
        assert numbers[f"{name}/bad{bound}"] == pytest.approx(np.mean(np.array(errors) > bound))


def test_bounds_of_the_numbers() -> None:
    pairs = random_pairs("flow", 7)
    metric = protocol("flow")
    exact = [Displacement(torch.nan_to_num(target["flow"])) for _, _, target in pairs]
    targets = [target for _, _, target in pairs]
    assert set(metric.compute(metric.update(range(5), exact, targets)).values()) == {0.0}
    far = [Displacement(found.field + 1e4) for found in exact]
    worst = metric.compute(metric.update(range(5), far, targets))
    assert [worst[f"flow/{key}"] for key in ("Fl-all", "bad1", "bad2", "bad3")] == [1.0] * 4
    none = metric.update(["a"], exact[:1], [{"flow": torch.full_like(targets[0]["flow"], torch.nan)}])
    assert all(math.isnan(value) for value in metric.compute(none).values())


def test_what_cannot_be_measured_is_said() -> None:
    metric, target = protocol("flow"), {"flow": torch.zeros(2, 3, 4)}
    with pytest.raises(DataError, match=r"a: predicted \[1, 3, 4\], the truth of flow is \[2, 3, 4\]"):
        metric.update(["a"], [Displacement(torch.zeros(1, 3, 4))], [target])
    with pytest.raises(DataError, match="is no finite number"):
        metric.update(["a"], [Displacement(torch.full((2, 3, 4), torch.nan))], [target])
    with pytest.raises(DataError, match="no pair was evaluated"):
        metric.compute([])
    for name in ("flow/EPE", "flow/Fl-all", "disparity/bad1"):
        unit = unit_of(name)
        assert unit is not None
        assert unit.lower_is_better
        assert unit.percent is not name.endswith("EPE")
