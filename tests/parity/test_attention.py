"""Attention operators against their authors' code: what stands in a fixture of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from parity import fixtures
from vistrain.attention import (
    AgentAttention,
    AxialAttention,
    HyenaAttention,
    LightningAttention,
    ReducedAgentAttention,
    SGConv,
    URPEAttention,
)
from vistrain.attention.hedgehog import HedgehogFeatureMap, linear_attention
from vistrain.attention.routing import KMeansAttention
from vistrain.necks.selective_attention import SelectiveAttention

TOLERANCE = 1e-5  # of single operators


def found(committed: str, pattern: str) -> list[str]:
    """Committed fixtures, and others of the same kind."""
    return sorted({f"modules/{name}.pt" for name in committed.split()} | set(fixtures.names(f"modules/{pattern}.pt")))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def side(tokens: int) -> tuple[int, int]:
    """(H, W) of a square map."""
    length = round(tokens**0.5)
    assert length**2 == tokens
    return length, length


@pytest.mark.parametrize("name", found("agent_attention_deit agent_attention_swin", "agent_attention_*"))
@torch.no_grad()
def test_agent(name: str) -> None:
    fixture = fixtures.load(name)
    state, x = fixture["state_dict"], fixture["inputs"][0]
    grid = (state["ha_bias"].shape[2], state["wa_bias"].shape[3])
    shared = {key: fixture["constructor"][key] for key in ("dim", "num_heads", "agent_num")}
    cls, own = AgentAttention, {"cls_token": "ac_bias" in state, "qkv_bias": "qkv.bias" in state}
    if "kv.weight" in state:
        cls, own = ReducedAgentAttention, {"sr_ratio": grid[0] // state["ah_bias"].shape[3]}
        own["qkv_bias"] = "kv.bias" in state
    module = cls(**shared, grid=grid, **own).eval()
    module.load_state_dict(state, strict=True)
    same(module(x, grid), fixture["outputs"][0])


@pytest.mark.parametrize("name", found("hyena2d_2d_seq hyena2d_2d_sqrt hyena2d_parallel hyena2d_prod_std", "hyena2d_*"))
@torch.no_grad()
def test_hyena(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = {key: value for key, value in fixture["constructor"].items() if key != "cls"}
    renamed = {"d_model": "dim", "hyena2d_filter": "joint", "l_max": "grid"}
    arguments = {renamed.get(key, key): value for key, value in arguments.items()}
    arguments["grid"] = (arguments["grid"],) * 2
    module = HyenaAttention(**arguments).eval()
    module.load_state_dict(fixture["state_dict"], strict=True)
    for x, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        same(module(x, side(x.shape[1])), theirs)


@pytest.mark.parametrize("name", found("hedgehog_feature_map", "hedgehog_*"))
@torch.no_grad()
def test_hedgehog(name: str) -> None:
    fixture = fixtures.load(name)
    shape = (fixture["constructor"][key] for key in ("num_heads", "head_dim", "feature_dim"))
    features = HedgehogFeatureMap(*shape)
    features.load_state_dict({"layer": fixture["state_dict"]["mlp.layer"]}, strict=True)
    q, k, v = fixture["inputs"]
    same(features(q), fixture["outputs"][0])
    weights = features(q) @ features(k).mT
    same(weights / weights.sum(-1, keepdim=True), fixture["outputs"][1])
    same(linear_attention(features(q), features(k), v), fixture["outputs"][2])


@pytest.mark.parametrize("name", found("lightning_tnl_attention", "lightning_*"))
@torch.no_grad()
def test_lightning(name: str) -> None:
    fixture = fixtures.load(name)
    arguments: dict[str, Any] = fixture["constructor"]
    module = LightningAttention(
        arguments["embed_dim"],
        arguments["num_heads"],
        bidirectional=False,
        layer=arguments["layer_idx"],
        layers=arguments["num_layers"],
        bias=arguments["bias"],
        block=16,
    )
    module.load_state_dict(fixture["state_dict"], strict=True)
    x = fixture["inputs"][0]
    same(module.get_buffer("slopes"), fixture["slope_rate"].flatten())
    same(module(x, (x.shape[1],)), fixture["outputs"][0])


@pytest.mark.parametrize("name", found("sgconv_bi", "sgconv_*"))
@torch.no_grad()
def test_sgconv(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = {key: value for key, value in fixture["constructor"].items() if key not in ("cls", "mode")}
    module = SGConv(arguments.pop("d_model"), (arguments.pop("l_max"),), **arguments).eval()
    module.load_state_dict(fixture["state_dict"], strict=True)
    x = fixture["inputs"][0]
    same(module(x.mT, (x.shape[2],)).mT, fixture["outputs"][0])


@torch.no_grad()
def test_urpe() -> None:
    fixture = fixtures.load("modules/urpe_formula.pt")
    q, k, v = fixture["inputs"]
    heads, tokens, features = q.shape[1:]
    module = URPEAttention(heads * features, heads, (1, tokens))
    module.load_state_dict(fixture["state_dict"], strict=False)
    assert set(fixture["state_dict"]) <= set(module.state_dict())
    same(module.attend(q, k, v, (1, tokens)), fixture["outputs"][0])


@pytest.mark.parametrize("name", found("routing_kmeans_attention_lucidrains", "routing_*"))
@torch.no_grad()
def test_routing(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = {key: value for key, value in fixture["constructor"].items() if key != "cls"}
    state = {key: value for key, value in fixture["state_dict"].items() if value.numel()}  # memories of no token
    module = KMeansAttention(**arguments).eval()
    module.load_state_dict(state, strict=True)
    out, loss = module(*fixture["inputs"])
    same(out, fixture["outputs"][0])
    torch.testing.assert_close(loss, fixture["outputs"][1], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", found("sdanet_selective_attention", "sdanet_*"))
@torch.no_grad()
def test_selective_dense_attention(name: str) -> None:
    fixture = fixtures.load(name)
    module = SelectiveAttention(fixture["constructor"]["refine_level"]).eval()
    module.load_state_dict(fixture["state_dict"], strict=True)
    assert sum(p.numel() for p in module.parameters()) == 207_387
    same(module(fixture["inputs"][0]), fixture["outputs"][0])


@pytest.mark.parametrize("name", found("axial_attention_lucidrains", "axial_*"))
@torch.no_grad()
def test_axial(name: str) -> None:
    fixture = fixtures.load(name)
    given = fixture["constructor"]
    sums = given.get("sum_axial_out", True)
    module = AxialAttention(given["dim"], given["heads"], given["num_dimensions"], sums)
    # Theirs wraps each line's attention in a permutation
    lines = re.compile(r"^axial_attentions\.(\d+)\.fn\.")
    state = {lines.sub(r"lines.\1.", key): value for key, value in fixture["state_dict"].items()}
    module.load_state_dict(state, strict=True)
    x = fixture["inputs"][0].movedim(given["dim_index"], -1)
    size = tuple(x.shape[1:-1])
    out = module(x.flatten(1, -2), size).unflatten(1, size)
    same(out.movedim(-1, given["dim_index"]), fixture["outputs"][0])
