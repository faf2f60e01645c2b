"""`vistrain convert-weights`, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vistrain import config
from vistrain.checkpoints import load_file
from vistrain.cli import main
from vistrain.run.networks import build_model
from vistrain.structures import LabelSpace

CONFIG = "demo/detection"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Published names of the demo's network, all numbers different."""
    composed = config.without_pretrained(config.compose([f"vistrain:{CONFIG}"]))
    from vistrain.config.builder import build
    from vistrain.data import DataModule

    labels: LabelSpace = build(composed["data"], DataModule, where="data").labels
    model = build_model(composed, labels)
    generator = torch.Generator().manual_seed(1)
    own = {
        name: torch.randn(x.shape, generator=generator) if x.is_floating_point() else x
        for name, x in model.state_dict().items()
    }
    return model.key_maps[0].export(own)


def test_there_and_back_bit_for_bit(
    tmp_path: Path, official: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": official, "iteration": 3}, tmp_path / "official.pth")
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main(["convert-weights", str(tmp_path / "official.pth"), "--as", CONFIG, "-o", str(ours)]) == 0
    assert "tensors under vistrain's names, from the names of official Focus-DETR" in capsys.readouterr().out
    with safe_open(ours, "pt") as file:
        assert file.metadata()["config"] == CONFIG
        assert len(file.metadata()["sha256_of_source"]) == 64
        assert any(name.startswith("selector.predictor.") for name in file.keys())  # noqa: SIM118
    assert main(["convert-weights", str(ours), "--as", CONFIG, "--official", "-o", str(back)]) == 0
    again = torch.load(back)
    assert again.keys() == official.keys()
    assert all(
        torch.equal(value, official[name]) and value.dtype == official[name].dtype for name, value in again.items()
    )


def test_what_does_not_fit_is_one_line(
    tmp_path: Path, official: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(dict(list(official.items())[5:]), tmp_path / "fewer.pth")
    out = str(tmp_path / "x.safetensors")
    assert main(["convert-weights", str(tmp_path / "fewer.pth"), "--as", CONFIG, "-o", out]) == 2
    assert f"fewer.pth: is not of {CONFIG}: " in capsys.readouterr().err
    torch.save(official, tmp_path / "official.pth")
    words = [
        "convert-weights",
        str(tmp_path / "official.pth"),
        "--as",
        CONFIG,
        "-o",
        out,
        "--official",
        "offical Focus-DETR",
    ]
    assert main(words) == 2
    assert "did you mean 'official Focus-DETR'?" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_numbers_that_are_none_are_refused_and_bfloat16_is_kept_exactly(
    tmp_path: Path, official: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in official.items()}
    torch.save(half, tmp_path / "half.pth")
    assert main(["convert-weights", str(tmp_path / "half.pth"), "--as", CONFIG, "-o", str(tmp_path / "x.npz")]) == 0
    written = load_file(tmp_path / "x.npz")
    assert any(torch.equal(value, half_value.float()) for value in written.values() for half_value in half.values())
    assert all(value.dtype != torch.bfloat16 for value in written.values())
    name = next(name for name, x in official.items() if x.is_floating_point())
    broken = {**official, name: official[name] * float("nan")}
    torch.save(broken, tmp_path / "nan.pth")
    assert main(["convert-weights", str(tmp_path / "nan.pth"), "--as", CONFIG, "-o", str(tmp_path / "y.npz")]) == 2
    assert "1 weights are not finite (NaN or infinite)" in capsys.readouterr().err
    assert not (tmp_path / "y.npz").exists()
