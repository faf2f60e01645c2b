"""COCO evaluation against pycocotools' stored numbers: crowds, an empty image, over 100 of a class, an absent class."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from parity import fixtures
from vistrain.metrics import CocoMask
from vistrain.metrics.coco_engine import AREAS, CurveArrays, curve_arrays, mean_where_defined
from vistrain.tasks.detection.evaluate import evaluate_file

FIXTURE = "dense/coco_eval.pt"
BACKENDS = [
    "pycocotools",
    pytest.param(
        "faster_coco_eval",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is absent"
        ),
    ),
]


def summary(arrays: CurveArrays) -> list[float]:
    """COCO's twelve numbers, in its order."""
    precision, recall = arrays.precision[..., -1], arrays.recall
    parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    parts += [precision[..., a] for a in range(1, len(AREAS))]
    parts += [recall[..., 0, m] for m in range(3)] + [recall[..., a, -1] for a in range(1, len(AREAS))]
    return [mean_where_defined(part) for part in parts]


@pytest.mark.parametrize("backend", BACKENDS)
def test_box_numbers_of_files(tmp_path, backend: str) -> None:
    fixture = fixtures.load(FIXTURE)
    for name in ("gt", "dt"):
        (tmp_path / f"{name}.json").write_text(fixture["inputs"][name])
    result = evaluate_file(tmp_path / "dt.json", tmp_path / "gt.json", backend)
    assert list(result.numbers.values()) == fixture["outputs"]["bbox"].tolist()
    per_class = [row["AP"] for row in result.per_class]
    np.testing.assert_array_equal(per_class, fixture["outputs"]["bbox_per_cat"].numpy())
    assert np.isnan(per_class[-1])
    assert result.protocol == "coco_box"


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_numbers_of_files(tmp_path, backend: str) -> None:
    fixture = fixtures.load(FIXTURE)
    for name in ("gt", "dt"):
        (tmp_path / f"{name}.json").write_text(fixture["inputs"][name])
    result = evaluate_file(tmp_path / "dt.json", tmp_path / "gt.json", backend, CocoMask)
    assert list(result.numbers.values()) == fixture["outputs"]["segm"].tolist()
    assert result.protocol == "coco_mask"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_arrays(iou_type: str, backend: str) -> None:
    fixture = fixtures.load(FIXTURE)
    truth, detections = (json.loads(fixture["inputs"][name]) for name in ("gt", "dt"))
    image_ids = sorted(image["id"] for image in truth["images"])
    arrays = curve_arrays(truth, detections, image_ids, iou_type=iou_type, backend=backend)
    assert summary(arrays) == fixture["outputs"][iou_type].tolist()
