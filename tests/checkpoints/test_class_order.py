"""Weights of as many classes as the network has, of other names or in another order: class layers start anew."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistrain.errors import WeightsError
from vistrain.network import Network
from vistrain.run.networks import load_named, load_whole, refuse_other_classes
from vistrain.structures import LabelSpace

TRAINED = LabelSpace(("car", "bus", "tram"), (1, 2, 3))


class Small(Network):
    """A body, and a layer of the classes."""

    class_layers = (r"^head\.",)

    def __init__(self, labels: LabelSpace | None) -> None:
        super().__init__()
        self.body, self.head, self.labels = nn.Linear(2, 4), nn.Linear(4, 3), labels

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {}

    def predict(self, batch: Mapping[str, Any]) -> list[Any]:
        return []


def saved(path: Path, labels: LabelSpace | None) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in Small(labels).state_dict().items()}
    facts = {} if labels is None else {"vistrain": {"labels": labels.to_dict()}}
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}, **facts}, path)
    return path, state


@pytest.mark.parametrize("names", [("bus", "car", "tram"), ("car", "bus", "train")])
def test_class_layers_of_other_classes_start_anew_and_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    path, state = saved(tmp_path / "first.ckpt", TRAINED)
    model = Small(LabelSpace(names, (1, 2, 3)))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_named(model, path)
    assert [item.name for item in report.left_out] == ["head.weight", "head.bias"]
    assert report.loaded == 2
    assert "left out head.weight: of other classes, or of the same in another order" in str(report)
    for name, value in model.state_dict().items():
        assert torch.equal(value, (first if name.startswith("head") else state)[name]), name
    with pytest.raises(WeightsError, match=r"first\.ckpt: is for other classes: head\.weight"):
        load_whole(model, path)


@pytest.mark.parametrize("known", [TRAINED, None])
def test_the_same_classes_and_unknown_ones_are_loaded_whole(tmp_path: Path, known: LabelSpace | None) -> None:
    path, state = saved(tmp_path / "first.ckpt", known)
    model = Small(LabelSpace(TRAINED.names, (7, 8, 9)))  # ids are the data's affair: channels are the same
    assert load_named(model, path).left_out == ()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LabelSpace(("car", "tram", "bus"), (1, 2, 3)), "in another order: class 1 was bus, and is tram in the data"),
        (LabelSpace(TRAINED.names, (1, 2, 4)), "classes of other ids: tram had the id 3, and has 4 in the data"),
        (LabelSpace(("car", "bus", "train"), (1, 2, 3)), "not in the data: tram"),
    ],
)
def test_a_test_says_how_the_classes_differ(data: LabelSpace, said: str) -> None:
    with pytest.raises(WeightsError, match=rf"best\.ckpt: it was trained on .*{re.escape(said)}"):
        refuse_other_classes(Path("best.ckpt"), TRAINED, data)
