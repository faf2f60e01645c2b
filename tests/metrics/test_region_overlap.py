"""Regions of cases: definitions, empty ones under each rule, means, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol, unit
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

LABELS = LabelSpace(("background", "core", "rim"), (0, 1, 4))
WHOLE = {"whole": ("core", "rim"), "core": ("core",)}
nan = math.nan


def cubes(*places: tuple[int, int, int]) -> torch.Tensor:
    """A volume of 12 x 10 x 8 with cubes of three voxels: rim, and core in the middle."""
    volume = torch.zeros(12, 10, 8, dtype=torch.int64)
    for d, h, w in places:
        volume[d : d + 3, h : h + 3, w : w + 3] = 2
        volume[d + 1, h + 1, w + 1] = 1
    return volume


def evaluated(name: str, *pairs: tuple[torch.Tensor, torch.Tensor], **arguments: Any) -> tuple[Any, dict[str, float]]:
    metric = protocol(name, labels=LABELS, **arguments)
    truths = [{"label_map": truth, "spacing": torch.tensor([3.0, 1.0, 1.0])} for truth, _ in pairs]
    ids, found = [f"case {i}" for i in range(len(pairs))], [Segmentation(found) for _, found in pairs]
    records = metric.update(ids, found, truths)
    return metric, metric.compute(records)


def test_numbers_of_two_cubes() -> None:
    """A cube that is found one voxel (3 mm) too deep."""
    metric, numbers = evaluated("regions", (cubes((2, 2, 2)), cubes((3, 2, 2))), regions=WHOLE)
    assert numbers["regions/whole/Dice"] == pytest.approx(2 * 18 / 54)
    assert numbers["regions/whole/HD95"] == pytest.approx(3.0)
    shell = np.argwhere(np.pad(np.zeros((1, 1, 1)), 1, constant_values=1)) * (3.0, 1.0, 1.0)
    apart = cdist(shell, shell + np.array([3.0, 0.0, 0.0])).min(1)
    assert numbers["regions/whole/ASSD"] == pytest.approx(apart.mean())
    assert numbers["regions/whole/sensitivity"] == pytest.approx(18 / 27)
    assert numbers["regions/whole/specificity"] == pytest.approx(1 - 9 / (960 - 27))
    assert numbers["regions/core/Dice"] == 0
    assert numbers["regions/core/HD95"] == pytest.approx(3.0)
    assert numbers["regions/Dice"] == pytest.approx((2 * 18 / 54 + 0) / 2)
    assert next(iter(numbers)) == "regions/Dice"
    assert metric.result.per_case[0]["whole/Dice"] == numbers["regions/whole/Dice"]


def test_each_class_but_the_first_is_a_region_by_itself() -> None:
    _, numbers = evaluated("regions", (cubes((2, 2, 2)), cubes((2, 2, 2))))
    assert {name.split("/")[1] for name in numbers if name.count("/") == 2} == {"core", "rim"}
    assert numbers["regions/Dice"] == 1
    assert numbers["regions/HD95"] == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("regions", [(nan, nan), (0, nan), (0, nan)]),
        ("regions_monai", [(nan, nan), (nan, nan), (0, nan)]),
        ("brats", [(1, 0), (0, 373.12866), (0, 373.12866)]),
    ],
)
def test_empty_regions(name: str, expected: list[tuple[float, float]]) -> None:
    """Both empty, the truth, the prediction."""
    full, empty = cubes((2, 2, 2)), cubes()
    metric, numbers = evaluated(name, (empty, empty), (empty, full), (full, empty), regions=WHOLE)
    for row, (dice, distance) in zip(metric.result.per_case, expected, strict=True):
        np.testing.assert_equal((row["whole/Dice"], row["whole/HD95"]), (dice, distance))
    np.testing.assert_equal(numbers[f"{name}/whole/Dice"], np.nanmean([dice for dice, _ in expected]))
    assert metric.result.counted[f"{name}/whole/Dice"] == sum(not math.isnan(dice) for dice, _ in expected)


def test_the_three_surfaces_are_three_numbers() -> None:
    draw = torch.Generator().manual_seed(0)
    pair = tuple((torch.rand(12, 10, 8, generator=draw) < 0.1).long() for _ in range(2))
    found = {s: evaluated("regions", pair, surface=s)[1]["regions/core/HD95"] for s in ("directed", "pooled", "area")}
    assert len({round(value, 6) for value in found.values()}) == 3
    metric, _ = evaluated("regions", pair, surface="area", tolerance=2.0)
    assert metric.protocol == "custom(regions, surface=area, tolerance=2.0)"


def test_two_axes() -> None:
    metric = protocol("regions", labels=LABELS)
    truth = torch.zeros(9, 9, dtype=torch.int64)
    truth[2:5, 2:5] = 1
    records = metric.update(["slice"], [Segmentation(truth.roll(2, 1))], [{"label_map": truth}])
    assert records[0]["regions"]["core"]["HD95"] == pytest.approx(2)
    assert records[0]["regions"]["core"]["Dice"] == pytest.approx(1 / 3)


def test_units_and_table() -> None:
    assert unit("brats/WT/HD95").lower_is_better
    assert not unit("brats/WT/HD95").percent
    assert unit("regions/Dice").percent
    metric, _ = evaluated("brats", (cubes((2, 2, 2)), cubes((3, 2, 2))), (cubes(), cubes()), regions=WHOLE)
    from rich.console import Console

    console = Console(width=140)
    with console.capture() as said:
        console.print(metric.result)
    assert "brats, 2 cases" in said.get()
    assert "83.33 ± 23.57" in said.get()
    console = Console(width=80)
    with console.capture() as said:
        console.print(metric.result)
    assert "…" not in said.get()
    assert {"sens.,", "spec.,", "23.57"} <= set(said.get().split())


def test_regions_of_the_labels() -> None:
    labels = replace(LABELS, regions=(("whole", (1, 2)), ("core", (1,))))
    assert protocol("brats", labels=labels).regions == {"whole": (1, 2), "core": (1,)}
    assert protocol("brats", labels=labels, regions={"rim": ("rim",)}).regions == {"rim": (2,)}


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"'WT' is made of 'oedema' - there are the classes background, core, rim"):
        protocol("brats", labels=LABELS, regions={"WT": ("core", "oedema")})
    with pytest.raises(ConfigError, match=r"'WT' is made of nothing"):
        protocol("brats", labels=LABELS, regions={"WT": ()})
    metric = protocol("brats", labels=LABELS)
    with pytest.raises(DataError, match=r"case: the prediction has the size \[12, 10, 8\], its truth \[12, 10, 7\]"):
        metric.update(["case"], [Segmentation(cubes())], [{"label_map": cubes()[..., 1:]}])
    with pytest.raises(DataError, match="no case was evaluated"):
        metric.compute([])


def test_what_nobody_annotated_is_in_no_region() -> None:
    truth = torch.zeros(4, 4, 4, dtype=torch.uint8)
    truth[1, 1, 1], truth[3] = 1, 255
    found = truth.clone()
    found[3] = 1
    metric = protocol("regions", labels=replace(LABELS, ignore_index=255))
    (record,) = metric.update(["a"], [Segmentation(found)], [{"label_map": truth}])
    assert record["regions"]["core"]["Dice"] == 1
    assert math.isnan(record["regions"]["rim"]["Dice"])
