"""Swin on maps of any size, against attention written out token by token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vistrain import config, run
from vistrain.backbones import Backbone
from vistrain.devices import on_meta


def last_block(always: bool = True) -> Any:
    """The shifted block of the coarsest stage, with weights that are at no special value."""
    torch.manual_seed(0)
    args = {"embed_dim": 8, "depths": (1, 1, 1, 2), "num_heads": (1, 1, 2, 4), "always_partition": always}
    block = Backbone("swin_tiny_patch4_window7_224", args=args).eval().body.layers[3].blocks[1]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block


def by_hand(block: Any, x: Tensor, window: int = 7, shift: int = 3) -> Tensor:
    """A shifted-window block: pad, shift, and attend to the tokens of one window that were neighbours before it."""
    _, height, width, channels = x.shape
    rows, columns = height + -height % window, width + -width % window
    padded = torch.zeros(rows, columns, channels)
    padded[:height, :width] = block.norm1(x)[0]
    y, x_at = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack((y.flatten(), x_at.flatten()), 1)
    moved = (places - shift) % torch.tensor([rows, columns])
    wrapped = places < shift  # came round to the far end
    groups = torch.cat((moved // window, wrapped), 1)
    allowed = (groups[:, None] == groups[None]).all(-1)
    inside = moved % window
    offset = inside[:, None] - inside[None] + window - 1
    bias = block.attn.relative_position_bias_table[(offset[..., 0] * (2 * window - 1) + offset[..., 1])]  # [T, T, H]
    heads = block.attn.num_heads
    query, key, value = block.attn.qkv(padded.flatten(0, 1)).unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
    scores = query @ key.transpose(1, 2) * (channels // heads) ** -0.5 + bias.permute(2, 0, 1)
    mixed = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value
    attended = block.attn.proj(mixed.transpose(0, 1).flatten(1)).view(rows, columns, channels)[:height, :width]
    x = x + attended
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("size", [(14, 7), (10, 13), (3, 5), (7, 8)])
def test_shifted_windows_of_a_padded_map(size: tuple[int, int]) -> None:
    block = last_block()
    assert block.shift_size == (3, 3)
    x = torch.randn(1, *size, block.norm1.normalized_shape[0])
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_hand(block, x), rtol=0, atol=1e-4)
        torch.testing.assert_close(copy.deepcopy(block)(x), block(x), rtol=0, atol=0)


def test_published_swin_detectors_shift_on_every_map_and_normalise_them() -> None:
    composed = config.compose(["vistrain:det/focus_detr_swin_tiny_12ep"], ["model.backbone.pretrained=false"])
    with on_meta():
        model = run.build_parts(composed).model
    blocks = [block for stage in model.backbone.body.layers for block in stage.blocks]
    assert [block.shift_size for block in blocks] == [(0, 0), (3, 3)] * (len(blocks) // 2)
    assert [norm.normalized_shape for norm in model.neck.norms] == [(192,), (384,), (768,)]
    assert model.preprocessing.interpolation == "bilinear"
