"""Mean IoU: the confusion matrix counts exactly, and each protocol does with it what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vistrain.errors import ConfigError, DataError
from vistrain.metrics import mean_iou, protocol, unit
from vistrain.metrics.mean_iou import confusion
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace


def space(*names: str) -> LabelSpace:
    return LabelSpace(names, tuple(range(len(names))), ignore_index=255)


def evaluate(name: str, labels: LabelSpace, pairs: list[tuple[list, list]], **arguments):
    metric = protocol(name, labels=labels, **arguments)
    targets = [{"label_map": torch.tensor(truth, dtype=torch.uint8)} for truth, _ in pairs]
    found = [Segmentation(semantic=torch.tensor(prediction)) for _, prediction in pairs]
    records = metric.update(range(len(pairs)), found, targets)
    assert json.loads(json.dumps(records)) == records  # plain: they cross processes
    return metric.compute(records), metric


def test_the_confusion_matrix_counts_each_pixel(monkeypatch):
    draw = np.random.default_rng(0)
    for classes, kind in ((5, np.uint8), (254, np.uint8), (300, np.int16)):
        truth = draw.integers(0, classes, (37, 53)).astype(kind)
        truth[:3] = 255 if kind is np.uint8 else -1
        found = draw.integers(0, classes, (37, 53))
        expected = np.zeros((classes + 1, classes), np.int64)
        rows = np.where(truth.astype(int) == (255 if kind is np.uint8 else -1), classes, truth.astype(int))
        np.add.at(expected, (rows, found), 1)
        np.testing.assert_array_equal(confusion(truth, found, classes), expected)
        monkeypatch.setattr(mean_iou, "EXACT", 100)  # in parts
        np.testing.assert_array_equal(confusion(truth, found, classes), expected)
        for wrong in (classes, -1):
            with pytest.raises(ValueError, match="none of the"):
                confusion(truth, np.full_like(found, wrong), classes)


def test_a_class_that_is_not_in_the_truth():
    pairs = [([[0, 0, 1, 255]], [[0, 2, 1, 2]])]
    labels = space("a", "b", "c", "d")
    numbers, metric = evaluate("miou", labels, pairs)
    assert numbers["miou/mIoU"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert numbers["miou/mAcc"] == pytest.approx((1 / 2 + 1) / 2)
    assert numbers["miou/aAcc"] == pytest.approx(2 / 3)
    assert metric.result.ignored == 0.25
    numbers, _ = evaluate("miou_present", labels, pairs)
    assert numbers["miou_present/mIoU"] == pytest.approx((1 / 2 + 1) / 2)
    _, metric = evaluate("miou", labels, pairs, absent="left_out")
    assert metric.protocol == "custom(miou, absent=left_out)"


def test_void_counts_against_the_others():
    pairs = [([[0, 0, 1, 2, 2]], [[0, 2, 1, 1, 2]])]
    numbers, metric = evaluate("miou_void", space("a", "b", "void"), pairs)
    assert numbers["miou_void/mIoU"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert numbers["miou_void/mAcc"] == pytest.approx((1 / 2 + 1) / 2)
    assert numbers["miou_void/aAcc"] == pytest.approx(2 / 3)
    assert [row["name"] for row in metric.result.per_class] == ["a", "b"]
    with pytest.raises(ConfigError, match="called 'void', and there is none"):
        protocol("miou_void", labels=space("a", "b"))


def test_it_is_of_all_pixels_and_not_of_images():
    pairs = [([[0, 0, 0, 0]], [[0, 0, 0, 1]]), ([[1, 1]], [[1, 1]])]
    numbers, metric = evaluate("miou", space("a", "b"), pairs)
    assert numbers["miou/mIoU"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert unit("miou/mIoU").percent
    assert not unit("miou/mIoU").lower_is_better
    tables = metric.result.tables()
    assert [table.row_count for table in tables] == [3, 2]
    assert metric.result.confusion.tolist() == [[3, 1], [0, 2]]


@pytest.mark.parametrize("absent", ["zero", "left_out"])
def test_classes_that_occur_nowhere_are_not_printed(absent: str):
    labels = space("a", "b", "nowhere", "only predicted", "neither")
    _, metric = evaluate("miou", labels, [([[0, 1]], [[0, 3]])], absent=absent)
    _, classes, line = metric.result.tables()
    assert list(classes.columns[0].cells) == ["a", "b", "only predicted"]
    assert line == "2 classes without pixels are left out"
    assert len(metric.result.per_class) == 5


def test_what_cannot_be_measured_is_said():
    with pytest.raises(DataError, match=r"size \[1, 2\], its truth \[1, 3\]"):
        evaluate("miou", space("a", "b"), [([[0, 0, 1]], [[0, 0]])])
    with pytest.raises(DataError, match="all pixels of the truth are ignored"):
        evaluate("miou", space("a", "b"), [([[255, 255]], [[0, 0]])])
    with pytest.raises(DataError, match="no image"):
        protocol("miou", labels=space("a")).compute([])
