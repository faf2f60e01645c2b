"""LSNet's aggregation is its formula on maps of every size, and its gradients are those of the formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vistrain.backbones.lsnet import small_kernel_aggregation


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


@pytest.mark.parametrize("size", [(1, 2), (3, 2)])
def test_gradients(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, *size, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(1, 2, 9, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(small_kernel_aggregation, (x, kernels))
    with torch.no_grad():  # what evaluates takes another way than what trains
        evaluated = small_kernel_aggregation(x, kernels)
    torch.testing.assert_close(small_kernel_aggregation(x, kernels).detach(), evaluated)
