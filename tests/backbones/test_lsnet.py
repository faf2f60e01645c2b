"""LSNet's aggregation is its formula on maps of every size, small ones too, which it computes in another way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vistrain.backbones.lsnet import SMALL, small_kernel_aggregation


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7), (9, 11)])
def test_weighted_sums_of_neighbours(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, kernels = torch.randn(2, 6, *size), torch.randn(2, 3, 9, *size)
    out, padded = small_kernel_aggregation(x, kernels), F.pad(x, (1, 1, 1, 1))
    for channel in range(6):
        for row in range(size[0]):
            for column in range(size[1]):
                near = padded[:, channel, row : row + 3, column : column + 3].flatten(1)
                wanted = (near * kernels[:, channel % 3, :, row, column]).sum(1)
                torch.testing.assert_close(out[:, channel, row, column], wanted)


def test_both_ways_are_tried() -> None:
    assert 7 * 7 <= SMALL < 9 * 11
