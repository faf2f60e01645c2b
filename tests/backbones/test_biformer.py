"""Bi-level routing attention on maps of any size, against attention written out region by region."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from attention_definitions import bilevel_routing

from vistrain.attention.bilevel_routing import BiLevelRoutingAttention

SMALL = {"embed_dim": (16, 32, 32, 32), "depth": (1, 1, 1, 1), "head_dim": 16, "num_classes": 3}


@pytest.mark.parametrize("pad_projected", [False, True])
@pytest.mark.parametrize("size", [(6, 9), (7, 10), (2, 3), (11, 4)])
@pytest.mark.parametrize("options", [{"topk": 2}, {"topk": 40, "qk_dim": 6, "qk_scale": 0.7}, {"side_dwconv": 0}])
def test_regions_that_tile_the_map_or_do_not(
    pad_projected: bool, size: tuple[int, int], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    attention = BiLevelRoutingAttention(12, 2, 3, pad_projected=pad_projected, **options)
    x = torch.randn(2, *size, 12)
    with torch.no_grad():
        ours = attention(x.flatten(1, 2), size)
        expected = torch.stack([bilevel_routing(attention, one.flatten(0, 1), size) for one in x])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_routing_may_be_soft_and_learned() -> None:
    torch.manual_seed(0)
    attention = BiLevelRoutingAttention(8, 2, 2, topk=4, soft_routing=True, diff_routing=True, param_routing=True)
    attention(torch.randn(1, 16, 8), (4, 4)).square().mean().backward()
    assert attention.router.weight.grad.any()
    hard = BiLevelRoutingAttention(8, 2, 2, topk=4)
    hard.load_state_dict({k: v for k, v in attention.state_dict().items() if not k.startswith("router")})
    x = torch.randn(1, 16, 8)
    assert not torch.allclose(hard(x, (4, 4)), attention(x, (4, 4)))


@pytest.mark.parametrize("kind", ["ada_avgpool", "ada_maxpool", "avgpool", "maxpool"])
def test_keys_and_values_may_be_pooled(kind: Any) -> None:
    torch.manual_seed(0)
    attention = BiLevelRoutingAttention(8, 2, 2, topk=2, kv_pool=kind, kv_per_win=1, kv_pool_ratio=2, side_dwconv=0)
    whole = BiLevelRoutingAttention(8, 2, 2, topk=2, side_dwconv=0)
    whole.load_state_dict(attention.state_dict())
    flat = torch.randn(1, 2, 2, 1, 1, 8).expand(1, 2, 2, 2, 2, 8).transpose(2, 3).reshape(1, 16, 8)
    torch.testing.assert_close(attention(flat, (4, 4)), whole(flat, (4, 4)))  # a region of one colour
    x = torch.randn(1, 16, 8)
    assert not torch.allclose(attention(x, (4, 4)), whole(x, (4, 4)))


def test_more_of_the_authors_options() -> None:
    images = torch.randn(2, 3, 64, 64)
    for options in (
        {"pre_norm": False, "layer_scale_init_value": 0.5},
        {"mlp_dwconv": True, "before_attn_dwconv": 0},
        {"topks": (1, -1, 4, -2), "param_attention": "qkv"},
        {"kv_downsample_mode": "ada_avgpool", "qk_dims": (16, 16, 32, 64)},
    ):
        model = timm.create_model("biformer_tiny", **SMALL, **options).train()
        model(images).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters()), options
