"""Lesions of cases: against a slow computation of the definition, by hand, with nothing to find, as files."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol, unit
from vistrain.metrics.lesions import LESIONS
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

LABELS = LabelSpace(("background", "tumour"), (0, 1), ignore_index=255)
SPACING = (2.0, 1.0, 1.5)
STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]

Voxels = set[tuple[int, ...]]


def metric_of(name: str = "brats_lesions", **arguments: Any) -> Any:
    return protocol(name, labels=LABELS, **arguments)


def evaluated(metric: Any, *pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    truths = [{"label_map": torch.from_numpy(t), "spacing": torch.tensor(SPACING)} for t, _ in pairs]
    found = [Segmentation(torch.from_numpy(f)) for _, f in pairs]
    return metric.compute(metric.update([f"case {i}" for i in range(len(pairs))], found, truths))


# ------------------------------------------------------- the definition with sets of voxels, one at a time


def neighbours(voxel: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Those that differ in at most so many axes."""
    return [tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in STEPS if sum(map(abs, step)) <= most]


def dilated(voxels: Voxels, steps: int, shape: tuple[int, ...]) -> Voxels:
    for _ in range(steps):
        new = {n for voxel in voxels for n in neighbours(voxel, 2)}
        voxels = voxels | {v for v in new if all(0 <= x < side for x, side in zip(v, shape, strict=True))}
    return voxels


def components(voxels: Voxels) -> list[Voxels]:
    left, found = set(voxels), []
    while left:
        front = [left.pop()]
        part = set(front)
        while front:
            touching = set(neighbours(front.pop(), 3)) & left
            left -= touching
            part |= touching
            front += touching
        found.append(part)
    return found


def border(voxels: Voxels) -> np.ndarray:
    outer = [v for v in voxels if any(n not in voxels for n in neighbours(v, 1))]
    return np.array(outer) * SPACING


def slow_scores(truth: np.ndarray, found: np.ndarray, dilation: int, least: float) -> dict[str, float]:
    there, said = (set(map(tuple, np.argwhere(m == 1).tolist())) for m in (truth, found))
    lesions = [part & there for part in components(dilated(there, dilation, truth.shape))]
    parts, touched = components(said), set[int]()
    dice, distance, hits, misses = [], [], 0, 0
    for lesion in lesions:
        near = dilated(lesion, dilation, truth.shape)
        own = [i for i, part in enumerate(parts) if part & near]
        touched |= set(own)
        if len(lesion) * np.prod(SPACING) <= least:
            continue
        chosen = set().union(*(parts[i] for i in own))
        hits, misses = hits + bool(own), misses + (not own)
        dice.append(2 * len(chosen & lesion) / (len(chosen) + len(lesion)))
        apart = cdist(border(lesion), border(chosen)) if own else np.full((1, 1), 374.0)
        distance.append(max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95)))
    false = len(parts) - len(touched)
    count = len(dice) + false
    return {
        "Dice": sum(dice) / count if count else 1.0, "HD95": (sum(distance) + 374 * false) / count if count else 0.0,
        "TP": hits, "FP": false, "FN": misses,
    }  # fmt: skip


def blobs(draw: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    found = np.zeros(shape, np.uint8)
    for _ in range(count):
        corner = [int(draw.integers(0, side)) for side in shape]
        found[tuple(slice(c, c + int(draw.integers(1, 4))) for c in corner)] = 1
    return found


@pytest.mark.parametrize("name", list(LESIONS))
def test_against_the_definition(name: str) -> None:
    """Also at the volume's border, with lesions that the dilation joins, and with parts of two lesions."""
    draw, rule, shape, counts = np.random.default_rng(5), LESIONS[name], (11, 16, 13), np.zeros(3)
    for trial in range(4):
        truth = blobs(draw, shape, int(draw.integers(1, 7)))
        found = np.where(draw.random(shape) < 0.9, np.roll(truth, 1, 2), 0).astype(np.uint8)
        found |= blobs(draw, shape, int(draw.integers(0, 4)))
        if trial == 0:  # a lesion in a corner, and nothing near it
            truth[:, :11], found[:, :11] = 0, 0
            truth[:3, :3, :3] = 1
        metric = metric_of(name, surface="directed")
        numbers = evaluated(metric, (truth, found))
        wanted = slow_scores(truth, found, rule.dilation, rule.least)
        for measure, value in wanted.items():
            assert numbers[f"{name}/tumour/{measure}"] == pytest.approx(value, abs=1e-9), measure
        counts += [wanted["TP"], wanted["FP"], wanted["FN"]]
    assert counts[0] > 0
    assert counts[2] > 0


def test_one_found_one_missed_one_made_up_one_too_small() -> None:
    truth, found = np.zeros((30, 40, 30), np.uint8), np.zeros((30, 40, 30), np.uint8)
    truth[2:6, 2:6, 2:6] = 1  # 64 voxels of 3 mm3
    found[2:6, 2:6, 2:8] = 1
    truth[20:24, 2:6, 2:6] = 1
    found[20:23, 30:33, 20:23] = 1
    truth[2:4, 30:32, 20:22] = 1  # 24 mm3: left out, though it is found
    found[2:4, 30:32, 20:22] = 1
    metric = metric_of()
    numbers = evaluated(metric, (truth, found))
    dice, distance = 2 * 64 / (64 + 96), metric.measure(truth == 1, found == 1, SPACING)[0][0][3]
    assert 2 < distance <= 3  # two voxels of 1.5 mm
    assert numbers["brats_lesions/Dice"] == pytest.approx(dice / 3)
    assert numbers["brats_lesions/HD95"] == pytest.approx((distance + 2 * 374) / 3)
    assert [numbers[f"brats_lesions/tumour/{m}"] for m in ("TP", "FP", "FN")] == [1, 1, 1]
    kinds = [(row["kind"], row["mm3"], row["parts"]) for row in metric.result.per_lesion()]
    assert sorted(kinds) == [("false", 81.0, 1), ("found", 192.0, 1), ("left out", 24.0, 1), ("missed", 192.0, 0)]
    (row,) = metric.result.per_case
    assert row["tumour/Dice"] == numbers["brats_lesions/Dice"]
    assert evaluated(metric_of(least=20.0), (truth, found))["brats_lesions/Dice"] == pytest.approx((dice + 1) / 4)


def test_nothing_there_and_nothing_found() -> None:
    nothing, something = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    something[3:7, 3:7, 3:7] = 1
    numbers = evaluated(metric_of(), (nothing, nothing), (nothing, something), (something, nothing))
    assert numbers["brats_lesions/Dice"] == pytest.approx(1 / 3)
    assert numbers["brats_lesions/HD95"] == pytest.approx(2 * 374 / 3)
    assert [numbers[f"brats_lesions/{m}"] for m in ("TP", "FP", "FN")] == [0, 1, 1]


def test_what_nobody_annotated_is_not_false() -> None:
    truth, found = np.full((8, 8, 8), 255, np.uint8), np.ones((8, 8, 8), np.uint8)
    truth[:4] = 0
    found[:4] = 0
    numbers = evaluated(metric_of(), (truth, found))
    assert (numbers["brats_lesions/Dice"], numbers["brats_lesions/FP"]) == (1, 0)


def test_names_units_and_refusals() -> None:
    assert metric_of().protocol == "brats_lesions"
    assert metric_of(dilation=1, penalty=100).protocol == "custom(brats_lesions, dilation=1, penalty=100)"
    assert unit("brats_lesions/WT/Dice").percent
    assert unit("brats_lesions/WT/HD95").lower_is_better
    assert [unit(f"brats_lesions/{m}").lower_is_better for m in ("TP", "FP", "FN")] == [False, True, True]
    with pytest.raises(ConfigError, match="dilation: -1"):
        metric_of(dilation=-1)
    with pytest.raises(DataError, match=r"prediction has the size \[2, 2, 2\]"):
        metric_of().update(["a"], [Segmentation(torch.zeros(2, 2, 2))], [{"label_map": torch.zeros(3, 3, 3)}])
    with pytest.raises(DataError, match="no case"):
        metric_of().compute([])
