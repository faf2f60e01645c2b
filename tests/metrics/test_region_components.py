"""Rules for connected components: chosen where they help, applied as they were measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vistrain.errors import DataError
from vistrain.metrics import protocol
from vistrain.metrics.region_components import LARGEST, cleaned, components_of
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

LABELS = LabelSpace(("background", "organ", "lesion"), (0, 1, 2))


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An organ with one false island of 5 voxels, and two true lesions of 8 voxels beside false specks of one."""
    draw = np.random.default_rng(seed)
    truth = np.zeros((16, 16, 16), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    truth[10:12, 10:12, 2:4] = truth[10:12, 2:4, 10:12] = 2
    found = truth.copy()
    found[7, 2:8, 2:8] = 0
    found[14, 14, 8:13] = 1
    for z in (0, 13):
        found[z, int(draw.integers(5, 9)), 14] = 2
    return truth, found


def records(metric, cases):
    predictions = [Segmentation(semantic=torch.from_numpy(found)) for _, found in cases]
    targets = [{"label_map": torch.from_numpy(t), "spacing": torch.tensor([2.0, 1.0, 1.0])} for t, _ in cases]
    return metric.update([f"case {i}" for i in range(len(cases))], predictions, targets)


def test_rules_are_those_that_help_and_their_numbers_are_those_of_the_cleaned_maps() -> None:
    cases = [case(seed) for seed in range(4)]
    metric = protocol("components", labels=LABELS, ground_truth=None)
    numbers = metric.compute(records(metric, cases))
    rules = metric.choice()
    assert rules["organ"] == LARGEST
    assert rules["lesion"] in (3.0, 10.0)  # specks have 2 mm^3, lesions 16
    regions = {"organ": (1,), "lesion": (2,)}
    overlap = protocol("regions", labels=LABELS)
    again = [(truth, cleaned(found.copy(), rules, regions, 2.0)) for truth, found in cases]
    wanted = overlap.compute(records(overlap, again))
    assert numbers["components/Dice"] == pytest.approx(wanted["regions/Dice"], abs=1e-12)
    assert numbers["components/lesion/Dice"] == 1.0
    assert metric.result.before["organ"] < metric.result.after["organ"] < 1


def test_nothing_is_chosen_where_nothing_helps() -> None:
    truth = case(0)[0]
    metric = protocol("components", labels=LABELS)
    numbers = metric.compute(records(metric, [(truth, truth)]))
    assert metric.choice() == {}
    assert numbers["components/Dice"] == 1


def test_a_rule_that_costs_another_region_is_not_taken() -> None:
    """Islands of the whole that hold true parts of the core, and more false voxels than true ones."""
    labels = LabelSpace(LABELS.names, LABELS.ids, regions=(("whole", (1, 2)), ("core", (2,))))
    truth, found = np.zeros((2, 12, 12), np.uint8), np.zeros((2, 12, 12), np.uint8)
    truth[:, 1:5, 1:5] = found[:, 1:5, 1:5] = 1
    found[:, 8:11, 8:11] = 1
    truth[:, 9, 9] = found[:, 9, 9] = 2
    metric = protocol("components", labels=labels)
    metric.compute(records(metric, [(truth, found)]))
    assert metric.choice() == {}


def test_what_is_not_annotated_counts_nowhere() -> None:
    labels = LabelSpace(LABELS.names, LABELS.ids, ignore_index=255)
    truth, found = case(0)
    truth[14] = 255  # the false island
    metric = protocol("components", labels=labels)
    metric.compute(records(metric, [(truth, found)]))
    assert "organ" not in metric.choice()


def test_components_touch_at_corners_and_ties_keep_one() -> None:
    mask = np.zeros((2, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[0, 0, 2] = True
    assert components_of(mask)[1] == 1
    two = np.zeros((1, 1, 5), np.uint8)
    two[..., 0] = two[..., 4] = 1
    assert cleaned(two, {"x": LARGEST}, {"x": (1,)}, 1.0).sum() == 1
    assert cleaned(np.zeros((1, 2, 2), np.uint8), {"x": LARGEST}, {"x": (1,)}, 1.0).sum() == 0


def test_sizes_must_agree() -> None:
    metric = protocol("components", labels=LABELS)
    with pytest.raises(DataError, match="the prediction has the size"):
        metric.update(["a"], [Segmentation(semantic=torch.zeros(2, 2, 2))], [{"label_map": torch.zeros(2, 2, 3)}])
