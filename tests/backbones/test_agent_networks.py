"""Agent-DeiT and Agent-PVT: their authors' names load strictly, and sizes are theirs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vistrain.attention.agent import AgentAttention
from vistrain.attention.base import operators_of
from vistrain.attention.softmax import SoftmaxAttention
from vistrain.backbones import agent_deit, agent_pvt

DEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 6, "num_heads": 2, "agent_num": (4, 4, 9, 9)}
PVT = {
    "img_size": 32,
    "embed_dims": (8, 8, 16, 16),
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 2, 2),
    "mlp_ratios": (1, 1, 1, 1),
    "agent_sr_ratios": (2, 1, 1, 1),
    "agent_num": (4, 4, 1, 1),
}


def theirs_of_deit(state: dict[str, Tensor], firsts: list[int]) -> dict[str, Tensor]:
    """Our names -> the authors': blocks are counted through."""

    def number(found: re.Match[str]) -> str:
        return f"blocks.{firsts[int(found[1])] + int(found[2])}."

    named = {re.sub(r"^stages\.(\d)\.blocks\.(\d+)\.", number, key): value for key, value in state.items()}
    return {re.sub(r"^stem\.", "patch_embed.", key): value for key, value in named.items()}


def theirs_of_pvt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> the authors': positions and patches of stage i + 1 stand beside its blocks."""

    def named(key: str) -> str:
        key = re.sub(r"^stem\.", "stages.0.downsample.", key)
        found = re.match(r"stages\.(\d)\.(downsample|blocks)\.(.*)", key)
        if found is None:
            return key
        stage, rest = int(found[1]) + 1, found[3]
        if found[2] == "blocks":
            return f"block{stage}.{rest}"
        return f"pos_embed{stage}" if rest == "pos_embed" else f"patch_embed{stage}.{rest}"

    return {named(key): value for key, value in state.items()}


@pytest.mark.parametrize("file", [agent_deit, agent_pvt])
def test_names_of_the_authors_load_strictly(file: Any) -> None:
    torch.manual_seed(0)
    name, args = ("agent_deit_tiny", DEIT) if file is agent_deit else ("agent_pvt_tiny", PVT)
    model, other = (timm.create_model(name, **args, num_classes=3).eval() for _ in range(2))
    firsts = [0, 2, 4, 5]  # six blocks in four stages: 2, 2, 1, 1
    state = model.state_dict()
    theirs = theirs_of_deit(state, firsts) if file is agent_deit else theirs_of_pvt(state)
    marks = (
        {"blocks.5.mlp.fc2.weight", "pos_embed"} if file is agent_deit else {"block2.1.attn.kv.weight", "pos_embed1"}
    )
    assert marks <= set(theirs)
    assert not any("stages" in key for key in theirs)
    other.load_state_dict(file.checkpoint_filter_fn({"model": theirs}, other), strict=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_the_class_token_of_deit_attends_with_the_cells_and_is_no_cell_of_the_map() -> None:
    torch.manual_seed(0)
    model = timm.create_model("agent_deit_tiny", **DEIT, num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens, size = model.stem(x), (4, 4)
        cells = tokens.flatten(2).mT + model.pos_embed[:, 1:]
        row = torch.cat(((model.cls_token + model.pos_embed[:, :1]).expand(2, -1, -1), cells), 1)
        for stage in model.stages:
            for block in stage.blocks:
                row = row + block.attn(block.norm1(row), size)
                row = row + block.mlp(block.norm2(row))
        normed = torch.nn.functional.layer_norm(row, (16,), model.norm.weight, model.norm.bias, 1e-6)
        torch.testing.assert_close(model(x), model.head(normed[:, 0]))
        last = model.forward_intermediates(x, [3], norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(last.flatten(2).mT, normed[:, 1:])


def test_agents_are_as_many_as_the_authors_have() -> None:
    with torch.device("meta"):
        base = operators_of(timm.create_model("agent_deit_base"))
        small = timm.create_model("agent_deit_tiny", **{**DEIT, "depth": 12, "agent_num": (4, 9, 16, 25)})
        counts = [sum(p.numel() for p in timm.create_model(f"agent_{n}_tiny").parameters()) for n in ("deit", "pvt")]
    assert [type(operator) for operator in base] == [AgentAttention] * 4 + [SoftmaxAttention] * 8
    assert [operator.side for operator in operators_of(small)] == [2, 2, 3, 3, *[4] * 6, 5, 5]
    assert counts == [6_015_640, 11_570_352]
