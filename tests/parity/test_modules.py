"""Modules of convolutional networks against their authors' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from parity import fixtures
from vistrain.backbones.eurosat import BalancedBlock
from vistrain.backbones.module_hosts import Bottleneck, Places
from vistrain.by_name import Chosen
from vistrain.modules import ECA, ELA, IBN, IBNB, ULSAM, FDConv, TVConv, WeightedConvolution


def found(committed: str, pattern: str) -> list[str]:
    """Committed fixtures, and others of the same kind."""
    return sorted({f"modules/{name}.pt" for name in committed.split()} | set(fixtures.names(f"modules/{pattern}.pt")))


def arguments(fixture: dict[str, Any], *unused: str, **renamed: str) -> dict[str, Any]:
    """The official arguments, by our names."""
    given = {key: value for key, value in fixture["constructor"].items() if key not in ("cls", *unused)}
    return {renamed.get(key, key): value for key, value in given.items()}


@torch.no_grad()
def same(module: nn.Module, fixture: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Weights load strictly, and outputs are equal."""
    module.eval().load_state_dict(fixture["state_dict"], strict=True)
    for x, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        torch.testing.assert_close(module(x), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", found("eca_layer", "eca_*"))
def test_eca(name: str) -> None:
    fixture = fixtures.load(name)
    same(ECA(**arguments(fixture, channel="dim")), fixture)


@pytest.mark.parametrize("name", found("ela_72", "ela_*"))
def test_ela(name: str) -> None:
    fixture = fixtures.load(name)
    # The two classes of the authors differ in their groups alone: 72 has them, 73 has none and a finer norm
    grouped = {"channels_per_group": 8, "norm_groups": 16} if fixture["constructor"]["cls"].endswith("ELA72") else {}
    groups = grouped or {"channels_per_group": None, "norm_groups": 32}
    same(ELA(**arguments(fixture, channel="dim", ks="kernel_size"), **groups), fixture)


@pytest.mark.parametrize("name", found("ulsam", "ulsam*"))
def test_ulsam(name: str) -> None:
    fixture = fixtures.load(name)
    same(ULSAM(**arguments(fixture, "nout", "h", "w", nin="dim")), fixture)


@pytest.mark.parametrize("name", found("eurosat_balanced_block", "eurosat_*"))
def test_coordinate_excitation(name: str) -> None:
    fixture = fixtures.load(name)
    names = {"in_channels": "dim_in", "out_channels": "dim", "drop_prob": "drop_block"}
    same(BalancedBlock(**arguments(fixture, **names)), fixture)


@pytest.mark.parametrize("name", found("fdconv_big fdconv_small fdconv_knNone", "fdconv_*"))
def test_fdconv(name: str) -> None:
    fixture = fixtures.load(name)
    same(FDConv(**{"padding": 0, **arguments(fixture)}), fixture)


@pytest.mark.parametrize("name", found("tvconv", "tvconv*"))
def test_tvconv(name: str) -> None:
    fixture = fixtures.load(name)
    names = {
        "TVConv_k": "kernel_size",
        "TVConv_posi_chans": "positions",
        "TVConv_inter_chans": "hidden",
        "TVConv_inter_layers": "hidden_layers",
        "TVConv_Bias": "bias",
    }
    given = arguments(fixture, "channels", "h", "w", **names)
    made = fixture["constructor"]
    same(TVConv(made["channels"], made["channels"], (made["h"], made["w"]), **given), fixture)


@pytest.mark.parametrize("name", found("ibn_a_bottleneck", "ibn_*_bottleneck"))
def test_ibn(name: str) -> None:
    fixture = fixtures.load(name)
    given = fixture["constructor"]
    state = {f"end.{key}" if key.startswith("IN.") else key: value for key, value in fixture["state_dict"].items()}
    places = Places(Chosen(IBN if given["ibn"] == "a" else IBNB, {}), (8, 8))
    block = Bottleneck(given["inplanes"], given["planes"], given.get("stride", 1), places, is_last=True)
    same(block, {**fixture, "state_dict": state})


@pytest.mark.parametrize("name", found("wconv2d", "wconv2d"))
def test_weighted_convolution(name: str) -> None:
    fixture = fixtures.load(name)
    same(WeightedConvolution(**arguments(fixture)), fixture)
