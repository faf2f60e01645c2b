"""The data benchmark compares like with like."""

from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("variant", ["flip + multi-scale", "flip + multi-scale | crop"])
def test_both_sides_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    import benchmark_data

    paths = benchmark_data.make_images(tmp_path, 3)
    assert benchmark_data.check_equal(paths, benchmark_data.VARIANTS[variant]) <= 2  # sizes agree, else it exits
    found = benchmark_data.measure(paths[:1], variant, repeats=1, elsewhere=None)
    assert found["vistrain_ms"] > 0
    assert found["ratio"] == pytest.approx(found["torchvision_ms"] / found["vistrain_ms"], rel=0.02)
