"""Selective dense attention: what levels choose, and the neck around it. The authors' results: `parity/`."""

from __future__ import annotations

import pytest
import torch

from vistrain.errors import ConfigError
from vistrain.necks import SelectiveDenseAttention
from vistrain.necks.selective_attention import SelectiveAttention

SIDES = ((8, 12), (4, 6), (2, 3))


def test_levels_keep_their_shape_and_choose_from_all() -> None:
    torch.manual_seed(0)
    neck = SelectiveDenseAttention((8, 8), (8, 16), embed_dim=16, num_levels=3)
    assert (neck.channels, neck.strides) == ((16, 16, 16), (8, 16, 32))
    maps = [torch.randn(2, 8, *size, requires_grad=True) for size in SIDES[:2]]
    levels = neck(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 16, *size) for size in SIDES]
    levels[0].sum().backward()  # the finest level reads the coarsest map
    assert maps[1].grad.any()


@torch.no_grad()
def test_equal_levels_are_chosen_whole_by_both() -> None:
    module = SelectiveAttention(1, 3, 16).eval()
    module.refine.channel_add_conv[3].weight.zero_()
    module.refine.channel_add_conv[3].bias.zero_()
    values = torch.randn(2, 16, 1, 1)
    maps = [values.expand(-1, -1, *size) for size in SIDES]
    torch.testing.assert_close(module(maps), 3 * maps[1])  # itself, and the choices of channels and of cells


def test_derivatives() -> None:
    torch.manual_seed(0)
    module = SelectiveAttention(1, 3, 16).eval().double()
    maps = [torch.randn(1, 16, *size, dtype=torch.float64, requires_grad=True) for size in SIDES]
    assert torch.autograd.gradcheck(lambda *levels: module(levels), maps, fast_mode=True)


def test_too_few_channels() -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        SelectiveDenseAttention((8,), (8,), embed_dim=8)
