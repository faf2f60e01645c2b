"""CSWin's stripes on maps of any size, against attention written out stripe by stripe."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor

from vistrain.backbones.cswin import CSWin, StripeAttention

SMALL = {"embed_dim": 16, "depth": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)}


def by_hand(attention: StripeAttention, qkv: Tensor, height: int, width: int) -> Tensor:
    """Each stripe alone: softmax over its cells, and the convolution of its values with zeros around it."""
    batch, rows, columns, _, dim = qkv.shape
    top, left = (-rows % height) // 2, (-columns % width) // 2  # the smaller half comes first
    padded = qkv.new_zeros(batch, math.ceil(rows / height) * height, math.ceil(columns / width) * width, 3, dim)
    padded[:, top : top + rows, left : left + columns] = qkv
    out = torch.zeros_like(padded[..., 0, :])
    kernel, bias = attention.get_v.weight[:, 0], attention.get_v.bias
    for y in range(0, padded.shape[1], height):
        for x in range(0, padded.shape[2], width):
            q, k, v = padded[:, y : y + height, x : x + width].unbind(3)
            split = (t.reshape(batch, -1, attention.num_heads, dim // attention.num_heads) for t in (q, k, v))
            one, two, three = (t.transpose(1, 2) for t in split)
            logits = one @ two.mT * (dim // attention.num_heads) ** -0.5
            mixed = (logits.softmax(-1) @ three).transpose(1, 2).reshape(v.shape)
            framed = torch.nn.functional.pad(v, (0, 0, 1, 1, 1, 1))
            for i in range(3):
                for j in range(3):
                    mixed = mixed + framed[:, i : i + height, j : j + width] * kernel[:, i, j]
            out[:, y : y + height, x : x + width] = mixed + bias
    return out[:, top : top + rows, left : left + columns]


@pytest.mark.parametrize("stripe", [(None, 2), (2, None), (None, 7), (7, None), (None, None), (None, 1)])
@pytest.mark.parametrize("size", [(14, 7), (10, 13), (3, 5)])
def test_stripes_on_maps_that_they_divide_or_not(stripe: tuple[int | None, int | None], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = StripeAttention(8, 2, stripe)
    qkv = torch.randn(2, *size, 3, 8)
    with torch.no_grad():
        expected = by_hand(attention, qkv, stripe[0] or size[0], stripe[1] or size[1])
        torch.testing.assert_close(attention(qkv), expected, rtol=0, atol=1e-5)


def test_a_stage_of_one_stripe_attends_over_the_whole_map() -> None:
    branches = [[len(s.blocks[0].attns) for s in CSWin(img_size=size, **SMALL).stages] for size in (224, 112, 56)]
    assert branches == [[2, 2, 2, 1], [2, 2, 1, 1], [2, 2, 2, 1]]


def test_logits_may_have_their_own_scale_and_projections_no_bias() -> None:
    qkv = torch.randn(1, 4, 6, 3, 8)
    attention = StripeAttention(8, 2, (None, 2), scale=0.0)
    with torch.no_grad():  # every cell attends to all of its stripe alike
        mean = qkv[..., 2, :].unflatten(2, (3, 2)).mean((1, 3), keepdim=True).expand(1, 4, 3, 2, 8).flatten(2, 3)
        attention.get_v.weight.zero_()
        torch.testing.assert_close(attention(qkv), mean + attention.get_v.bias)
    blocks = timm.create_model("cswin_tiny", qkv_bias=False, qk_scale=0.5, **SMALL).stages[0].blocks
    assert (blocks[0].qkv.bias, blocks[0].attns[1].scale) == (None, 0.5)
