"""Mean IoU against mmsegmentation's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity import fixtures
from parity.models import contiguous
from vistrain.metrics import protocol
from vistrain.predictions import Segmentation


@pytest.mark.parametrize("name", ["reduce_zero", "raw"])
def test_mmsegmentation(name: str) -> None:
    fixture = fixtures.load("dense/mmseg_miou.pt")
    stored = fixture["outputs"][name]
    truth = fixture["inputs"]["gts"]
    if name == "reduce_zero":
        truth = [torch.where(t == 0, 255, torch.where(t == 255, 255, t.int() - 1)).to(torch.uint8) for t in truth]
    metric = protocol("miou", labels=contiguous(7 if name == "reduce_zero" else 8))
    found = [Segmentation(semantic=p) for p in fixture["inputs"]["preds"]]
    numbers = metric.compute(metric.update(range(4), found, [{"label_map": t} for t in truth]))
    assert numbers["miou/aAcc"] == pytest.approx(float(stored[0]), abs=1e-12)
    rows = metric.result.per_class
    for key, values in (("Acc", stored[1]), ("IoU", stored[2])):
        np.testing.assert_allclose([row[key] for row in rows], values.numpy(), rtol=0, atol=1e-12, equal_nan=True)
    assert numbers["miou/mIoU"] == pytest.approx(float(stored[2].nanmean()), abs=1e-12)
