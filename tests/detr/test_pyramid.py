"""Tokens of a pyramid: what the host knows of them is what their mask says."""

from __future__ import annotations

import pytest
import torch

from vistrain.detr.pyramid import flatten_pyramid
from vistrain.layers.padding import padding_mask
from vistrain.layers.position import SinePositionEncoding


@pytest.mark.parametrize("image", [(64, 96), (67, 101), (33, 40), (800, 1333)])
def test_the_host_counts_the_tokens_that_are_not_padding(image: tuple[int, int]) -> None:
    height, width = image
    sizes = [(height, max(width // 3, 1)), (height // 2 + 1, width), (1, 1), (height - 7, width - 5)]
    levels = [torch.zeros(len(sizes), 4, -(-height // s), -(-width // s)) for s in (8, 16, 32, 64)]
    mask = padding_mask(torch.tensor(sizes), height, width)
    encoding, embed = SinePositionEncoding(2), torch.zeros(4, 4)
    pyramid = flatten_pyramid(levels, mask, encoding, embed, sizes)
    assert pyramid.padding_mask is not None
    assert pyramid.valid_tokens() == (~pyramid.padding_mask).sum(1).tolist()
    assert flatten_pyramid(levels, mask, encoding, embed).valid_tokens() is None
