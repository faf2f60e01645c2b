"""One checkpoint of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vistrain import run
from vistrain.checkpoints import load_file, save_durably
from vistrain.cli import main
from vistrain.errors import ConfigError
from vistrain.run.averaging import average_checkpoints
from vistrain.run.networks import load_checkpoint

KEPT = Path(__file__).parents[1] / "kept" / "classification.ckpt"


def variant(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    content = load_file(KEPT)
    change(content)
    save_durably(content, folder / name)
    return folder / name


def shifted(by: float) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for value in content["state_dict"].values():
            if value.is_floating_point():
                value += by

    return change


def test_weights_are_averaged_and_the_file_is_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = [variant(tmp_path, f"{by}.ckpt", shifted(by)) for by in (3.0, 6.0)]
    out = tmp_path / "mean.ckpt"
    assert main(["average", str(KEPT), *map(str, others), "-o", str(out)]) == 0
    first, mean = load_checkpoint(KEPT), load_checkpoint(out)
    assert f"{len(first['state_dict'])} tensors, mean of 3 checkpoint(s)" in capsys.readouterr().out
    for name, value in first["state_dict"].items():
        found = mean["state_dict"][name]
        assert found.dtype == value.dtype
        if value.is_floating_point():
            torch.testing.assert_close(found, value + 3)
        else:
            assert torch.equal(found, value)
    network, facts = run.load(out)
    assert facts["labels"] == first["labels"]
    assert facts["averaged"][0] == str(KEPT)
    assert not network.training


def test_one_checkpoint_is_copied_without_what_a_run_needs(tmp_path: Path) -> None:
    average_checkpoints([KEPT], tmp_path / "out.ckpt")
    found, was = load_file(tmp_path / "out.ckpt"), load_checkpoint(KEPT)
    assert set(found) == {"vistrain", "state_dict"}
    assert all(torch.equal(found["state_dict"][f"model.{name}"], value) for name, value in was["state_dict"].items())
    assert "progress" not in found["vistrain"]


def other_classes(content: dict[str, Any]) -> None:
    labels = content["vistrain"]["labels"]
    labels["names"] = ("another", *labels["names"][1:])


def other_network(content: dict[str, Any]) -> None:
    content["vistrain"]["config"]["model"]["backbone"]["name"] = "resnet18"


def other_weights(content: dict[str, Any]) -> None:
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = content["state_dict"][name][:1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_classes, r"other.ckpt: has other labels than .*classification.ckpt"),
        (other_network, r"other.ckpt: is of another network than .*: model.backbone.name differs"),
        (other_weights, r"other.ckpt: has other weights than .*, such as "),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    other = variant(tmp_path, "other.ckpt", change)
    with pytest.raises(ConfigError, match=said):
        average_checkpoints([KEPT, other], tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_no_checkpoint_is_overwritten(tmp_path: Path) -> None:
    copy = variant(tmp_path, "a.ckpt", lambda content: None)
    with pytest.raises(ConfigError, match=r"--output: .*a.ckpt is one of the checkpoints"):
        average_checkpoints([KEPT, copy], copy)
