"""What numbers are measured in, by their names."""

from __future__ import annotations

import pytest

from vistrain.metrics import METRICS, PROTOCOLS, Metric, Unit, unit


@pytest.mark.parametrize(
    ("name", "percent", "lower"),
    [
        ("coco/AP", True, False), ("coco/AR100", True, False), ("cls/top1", True, False), ("cls/nll", False, True),
        ("cls/ece", True, True), ("cls/mAP", True, False), ("sr_luma/Set5/psnr", False, False),
        ("denoise/ssim", False, False), ("lpips/lpips", False, True), ("lpips/Set5/lpips", False, True),
        ("unknown/number", False, False),
    ],
)  # fmt: skip
def test_units(name: str, percent: bool, lower: bool) -> None:
    found = unit(name)
    assert (found.percent, found.lower_is_better) == (percent, lower)


def test_every_protocol_has_a_family() -> None:
    families = [family for metric in METRICS for family in metric.families]
    assert set(families) >= {"coco", "cls", "lpips", "sr_luma", "denoise"}
    assert all(issubclass(metric, Metric) for metric in METRICS)
    assert {"coco_box", "accuracy", "multi_label", "lpips"} <= set(PROTOCOLS)
    assert unit("sr_luma/psnr") == Unit(digits=2)


def test_a_metric_that_misspells_is_told() -> None:
    with pytest.raises(TypeError, match="did you mean 'families'"):
        type("Mine", (Metric,), {"familes": ("mine",)})
