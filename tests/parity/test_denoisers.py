"""DnCNN, NAFNet with its local form, and weighted convolutions against their authors' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from vistrain.checkpoints import load_weights
from vistrain.layers.weighted_conv import TrainableWeightedConv2d, WeightedConv2d, WeightedConv3d
from vistrain.restoration import DnCNN, NAFNet, NAFNetLocal, RestorationModel

WCONV = {
    "k3": WeightedConv2d(4, 6, 3, [0.7], bias=True),
    "k5": WeightedConv2d(4, 6, 5, [0.2, 0.8], stride=2, padding=2, groups=2, bias=True),
    "k7": WeightedConv2d(4, 6, 7, [0.25, 0.15, 0.55], padding=6, dilation=2, bias=True),
    "k1": WeightedConv2d(4, 6, 1, [], padding=0, bias=True),
    "t7": TrainableWeightedConv2d(4, 6, padding=3, bias=True),
    "3d": WeightedConv3d(2, 3, 3, [0.8]),
}


def check(model: nn.Module, weights: dict[str, Tensor], image: Tensor, stored: Tensor, atol: float = 1e-4) -> None:
    load_weights(model, weights)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), stored, rtol=0, atol=atol)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("form", "arguments"), [("BR", "kwargs"), ("R", "kwargs_R")])
def test_dncnn(form: str, arguments: str) -> None:
    fixture = fixtures.load("restoration_pretraining/dncnn.pt")
    model = DnCNN(**fixture["constructor"][arguments])
    weights = part(fixture["state_dict"], f"{form}.")
    check(model, weights, fixture["inputs"][f"x_{form}"], fixture["outputs"][f"y_{form}"])


def nafnet(cls: type[nn.Module], name: str, stored: str, **changes: Any) -> None:
    fixture = fixtures.load("restoration_pretraining/nafnet.pt")
    output = fixture["outputs"][stored]
    image = fixture["inputs"][name][: len(output)]
    check(cls(**fixture["constructor"]["kwargs"], **changes), fixture["state_dict"], image, output)


@pytest.mark.parametrize(("name", "stored"), [("x", "y"), ("x2", "y2")])
def test_nafnet(name: str, stored: str) -> None:
    nafnet(NAFNet, name, stored)


@pytest.mark.parametrize(("size", "stored"), [(32, "y2first_local_train32"), (16, "y2_local_train16")])
def test_nafnet_local(size: int, stored: str) -> None:
    nafnet(NAFNetLocal, "x2", stored, train_size=(1, 3, size, size))


@pytest.mark.parametrize("case", WCONV)
def test_weighted_convolution(case: str) -> None:
    fixture = fixtures.load("restoration_pretraining/wconv.pt")
    weights = part(fixture["state_dict"], f"{case}.")
    check(WCONV[case], weights, fixture["inputs"][case], fixture["outputs"][case], atol=1e-5)


def test_official_names_load_into_the_model_around_the_network() -> None:
    """All of DnCNN's names begin with `model.`, as those of a wrapper would."""
    fixture = fixtures.load("restoration_pretraining/dncnn.pt")
    network = DnCNN(**fixture["constructor"]["kwargs"])
    model = RestorationModel(network, channels=1)
    load_weights(model, part(fixture["state_dict"], "BR."), key_maps=model.key_maps)
    with torch.no_grad():
        restored = model.eval()(fixture["inputs"]["x_BR"])
    torch.testing.assert_close(restored, fixture["outputs"]["y_BR"], rtol=0, atol=1e-4)
