"""Comparisons with stored results, at the tolerances that the fixtures state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistrain.predictions import Detections

ATOL = 1e-4
RTOL_LOSS = 1e-4


def assert_outputs(ours: Any, theirs: Any, where: str = "") -> None:
    """Every tensor of `theirs` (nested dicts and lists) is in `ours`, within 1e-4; logits come before boxes."""
    if isinstance(theirs, dict):
        for key in sorted(theirs, key=lambda k: (k != "pred_logits", k != "pred_boxes")):
            assert_outputs(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_outputs(a, b, f"{where}[{index}]")
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL, msg=lambda text: f"{where}: {text}")


def assert_losses(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, each within 1e-4 relative."""
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=RTOL_LOSS, atol=1e-7, msg=lambda t, n=name: f"{n}: {t}")


def assert_detections(ours: Detections, theirs: dict[str, Tensor]) -> None:
    """The same labels in the same order, scores within 1e-4, boxes within 1e-3 pixels (or 1e-6 of the longer side)."""
    torch.testing.assert_close(ours.scores, theirs["scores"], rtol=0, atol=ATOL)
    assert torch.equal(ours.labels, theirs["labels"])
    tolerance = max(1e-3, 1e-6 * theirs["boxes"].abs().max().item())
    torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=0, atol=tolerance)
