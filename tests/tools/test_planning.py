"""The arithmetic of tools/plan_scaling.py, and that its table says where its numbers come from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import plan_scaling
from plan_scaling import Device, plan

DEVICE = Device(
    step=0.5, per_device=2, parameters=25 * 2**20, rate=1e9, latency=0.0, overlap=1.0, record=8000.0, images=5000,
    gather_rate=1e9, loader=20.0, image=1e5,
)  # fmt: skip
GRADIENT = 100 * 2**20  # bytes: four buckets


def test_one_device_sends_nothing() -> None:
    alone = plan(DEVICE, 1)
    assert (alone.traffic, alone.exposed, alone.step, alone.efficiency, alone.gathered) == (0, 0, 0.5, 1, 0)
    assert alone.images_per_second == 4
    assert alone.cores == pytest.approx(0.2)


def test_what_hides_behind_the_backward_pass_costs_the_last_bucket() -> None:
    eight = plan(DEVICE, 8)
    assert eight.traffic == pytest.approx(2 * 7 / 8 * GRADIENT)
    assert eight.reducing == pytest.approx(eight.traffic / 1e9)
    assert eight.reducing < 0.5 * 2 / 3
    assert eight.exposed == pytest.approx(eight.reducing / 4)
    assert eight.images_per_second == pytest.approx(16 / (0.5 + eight.exposed))
    assert eight.gathered == pytest.approx(5000 * 8000 * 7 / 8)
    assert eight.reading == pytest.approx(1e5 * eight.images_per_second)


def test_a_slow_network_shows() -> None:
    slow = Device(**{**DEVICE.__dict__, "rate": 1e8, "latency": 1e-5})
    many = plan(slow, 64)
    assert many.reducing == pytest.approx(many.traffic / 1e8 + 2 * 63 * 1e-5 * 4)
    assert many.exposed == pytest.approx(many.reducing - 0.5 * 2 / 3)
    assert many.efficiency == pytest.approx(0.5 / many.step)


def test_a_record_is_what_the_metric_makes() -> None:
    few, many = plan_scaling.record_bytes(100), plan_scaling.record_bytes(300)
    assert (many - few) / 200 == pytest.approx(4 * 4 + 4 + 8, abs=0.5)  # box, score, category


def test_the_table_says_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    plan_scaling.main(["--parameters", "1000000", "--step", "0.1", "--per-device", "4", "--rate", "1e10"])
    said = capsys.readouterr().out
    assert "| | 8 devices | 64 devices | 512 devices |" in said
    assert "Measured or given: the step" in said
    assert "the ring's rate" in said.split("Assumed:")[0]
    assert "latency" in said.split("Assumed:")[1]
    with pytest.raises(SystemExit):
        plan_scaling.main(["--config", "det/none", "--step", "0.1", "--per-device", "4"])
