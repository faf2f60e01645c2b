"""The benchmarks of classification: both sides do the same, and steady state is what is counted."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)


def test_training_takes_turns_and_leaves_set_up_apart(tmp_path: Path) -> None:
    import benchmark_timm_training as benchmark

    arguments = argparse.Namespace(model="test_resnet", size=32, batch=10, block=2, blocks=1, workers=0)
    found = benchmark.compare(arguments, tmp_path, torch.device("cpu"))
    assert found["steps"] == 4
    for side in ("ours", "timm"):
        assert all(len(blocks) == 2 and min(blocks) > 0 for blocks in found["block_seconds"][side].values())
        assert found["seconds_before"][side] > 0
        assert found["seconds_after"][side] > 0


def test_input_pipelines_give_the_same_kind_of_image(tmp_path: Path) -> None:
    import benchmark_classification_data as benchmark

    paths = benchmark.make_images(tmp_path, 2, (60, 80))
    images = [run(paths[0], 3) for run in benchmark.sides(0.1).values()]
    assert [(image.shape, image.dtype) for image in images] == [((3, 224, 224), torch.uint8)] * 2
    found = benchmark.measure(paths, 1, 0.0)
    assert found["ratio"] == pytest.approx(found["torchvision_ms"] / found["vistrain_ms"], rel=0.05)
