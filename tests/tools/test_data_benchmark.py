"""The data benchmark compares like with like."""

from pathlib import Path

import pytest

from vistrain.data import DetrAugment

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("crop", [0.0, 1.0])
def test_both_sides_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: float) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    import benchmark_data

    paths = benchmark_data.make_images(tmp_path, 3)
    augment = DetrAugment(crop=crop)
    assert benchmark_data.check_equal(paths, augment) <= 2  # sizes agree, else it exits
    found = benchmark_data.measure(paths[:1], augment, repeats=1)
    assert found["vistrain_ms"] > 0
    assert found["ratio"] == pytest.approx(found["torchvision_ms"] / found["vistrain_ms"], rel=0.02)
