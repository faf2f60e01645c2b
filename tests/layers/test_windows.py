"""Windows: cutting and joining, masks of shifted windows, relative positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vistrain.errors import DataError
from vistrain.layers.windows import (
    check_divides,
    relative_position_bias,
    relative_position_index,
    shifted_window_mask,
    window_attention,
    window_merge,
    window_order,
    window_partition,
)


@pytest.mark.parametrize(("window", "size"), [((4, 4), (8, 12)), ((2, 6), (4, 12)), ((3, 1), (9, 5))])
def test_merge_is_the_inverse_of_partition(window: tuple[int, int], size: tuple[int, int]) -> None:
    x = torch.arange(2 * size[0] * size[1] * 3).reshape(2, *size, 3)
    windows = window_partition(x, window)
    assert windows.shape == (2 * size[0] // window[0] * size[1] // window[1], window[0] * window[1], 3)
    assert torch.equal(windows[0], x[0, : window[0], : window[1]].reshape(-1, 3))
    assert torch.equal(window_merge(windows, window, size), x)


@pytest.mark.parametrize("size", [(0, 8), (3, 8), (8, 10), (10, 8)])
def test_maps_that_windows_do_not_tile_are_refused(size: tuple[int, int]) -> None:
    check_divides((4, 4), (4, 8))
    with pytest.raises(DataError, match=f"image: {size[0]}x{size[1]} is not cut evenly by windows of 4x4"):
        check_divides((4, 4), size)


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (0, 3), (2, 0)])
def test_a_shifted_windows_tokens_see_those_that_were_near_before_the_roll(shift: tuple[int, int]) -> None:
    size, window = (6, 12), (3, 4)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    places = torch.stack((rows, columns), -1).roll((-shift[0], -shift[1]), (0, 1))
    places = window_partition(places[None], window)
    distance = (places[:, :, None] - places[:, None, :]).abs()
    near = (distance < torch.tensor(window)).all(-1)
    assert torch.equal(shifted_window_mask(size, window, shift), (~near).float() * -100)


def test_the_mask_takes_another_value_and_type() -> None:
    mask = shifted_window_mask((4, 4), (2, 2), (1, 1), value=float("-inf"), dtype=torch.float64)
    assert mask.dtype == torch.float64
    assert mask[0].eq(0).all()
    assert mask[3].isinf().sum() == 12


def test_relative_positions_of_a_rectangle() -> None:
    h, w = 3, 5
    table = torch.arange((2 * h - 1) * (2 * w - 1)).float()[:, None]
    bias = relative_position_bias(table, relative_position_index((h, w)))
    assert bias.shape == (1, h * w, h * w)
    for i in range(h * w):
        for j in range(h * w):
            dy, dx = i // w - j // w, i % w - j % w
            assert bias[0, i, j] == (dy + h - 1) * (2 * w - 1) + dx + w - 1


def test_a_bias_gives_its_gradient_to_its_row() -> None:
    table = torch.arange(6.0).view(3, 2).requires_grad_()
    bias = relative_position_bias(table, torch.tensor([[0, 2]]))
    assert bias.tolist() == [[[0.0, 4.0]], [[1.0, 5.0]]]
    bias.sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("size", [(3, 4), (6, 8), (9, 4), (3, 12)])
@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (2, 0)])
def test_an_order_is_roll_partition_and_mask(size: tuple[int, int], shift: tuple[int, int]) -> None:
    """Attention in the order's windows equals attention in all windows with all masks."""
    torch.manual_seed(0)
    window, batch = (3, 4), 2
    q, k, v = torch.randn(3, batch, *size, 10)
    bias = torch.randn(2, 12, 12)
    order = window_order(batch, size, window, shift)
    assert torch.equal(order.join(order.cut(q), batch), q.flatten(1, 2))

    def heads(windows: Tensor) -> Tensor:
        return windows.unflatten(2, (2, 5)).transpose(1, 2)

    cut = [heads(order.cut(x)) for x in (q, k, v)]
    found = order.join(window_attention(*cut, bias, order.groups, scale=0.3), batch).view(batch, *size, 10)

    rolled = [heads(window_partition(x.roll((-shift[0], -shift[1]), (1, 2)), window)) for x in (q, k, v)]
    mask = shifted_window_mask(size, window, shift).repeat(batch, 1, 1)[:, None]
    weights = (0.3 * rolled[0] @ rolled[1].transpose(-2, -1) + bias + mask).softmax(-1)
    expected = window_merge((weights @ rolled[2]).transpose(1, 2).flatten(2), window, size).roll(shift, (1, 2))
    torch.testing.assert_close(found, expected)
