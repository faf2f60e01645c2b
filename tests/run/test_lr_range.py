"""The learning-rate range test: how the rate rises, where the loss falls fastest, what is left behind."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vistrain.cli import main
from vistrain.config import compose
from vistrain.errors import ConfigError
from vistrain.run.lr_range import Rising, lr_range, smoothed, suggestion


def test_the_rate_rises_by_the_same_factor() -> None:
    schedule = Rising(first=1e-3, last=10.0, steps=5)
    factors = [schedule.factor(step, 5, 100) for step in range(6)]
    assert factors == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10, 10])


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 1.0, 200)
    losses = 2 - 1 / (1 + np.exp(-3 * (np.log10(rates) + 3.5))) + 50 * np.clip(rates - 0.1, 0, None) ** 2
    found = suggestion(rates.tolist(), losses.tolist())
    assert found is not None
    assert 10**-3.7 < found < 10**-2.9  # smoothing sees the fall some steps late
    assert suggestion(rates.tolist(), np.linspace(1, 2, 200).tolist()) is None
    assert suggestion(rates[:5].tolist(), losses[:5].tolist()) is None


def test_smoothing_is_right_from_the_first_value() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.09 * 1 + 0.1 * 2) / 0.19])


def config(root: Path) -> list[str]:
    return [
        f"data.root={root}", "data.train_images=4", "data.val_images=1", "data.batch_size=4", "data.per_device=2",
        "data.workers=0", "data.image_size=32", "model.backbone={name: test_resnet}", "trainer.accelerator=cpu",
    ]  # fmt: skip


def test_a_run_is_made_and_nothing_of_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["lr-range", "-c", "vistrain:demo/classification", "--steps", "24", "--highest", "0.5", "--output", "r.png"]
    assert main([*words, *config(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "r.png: 24 steps\n" in said
    assert "suggestion" in said
    picture = cv2.imread("r.png")
    assert picture.shape[1] > 400
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "r.png"}


def test_a_run_that_diverges_ends_early(tmp_path: Path) -> None:
    composed = compose(["vistrain:demo/classification"], config(tmp_path / "data"))
    composed["optimizer"] = {"type": "torch.optim.SGD", "lr": 1.0}
    found = lr_range(composed, 40, 1e-2, 1e8)
    assert 2 < len(found.rates) < 40
    assert len(found.losses) == len(found.rates)
    assert np.isfinite(found.losses).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((5, 1e-7, 1.0), r"--steps: 5 are too few"), ((50, 1.0, 0.1), r"--lowest: 1 and 0.1 are no range")],
)
def test_ranges_that_are_none_are_refused(arguments: tuple[int, float, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lr_range({}, *arguments)
