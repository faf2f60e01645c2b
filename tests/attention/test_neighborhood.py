"""Neighbourhood attention against its definition, written as a loop."""

import pytest
import torch
from attention_definitions import neighborhood as by_definition
from torch import Tensor

from vistrain.attention.choice import names
from vistrain.attention.neighborhood import NeighborhoodAttention, neighborhood_attention, neighborhood_mask
from vistrain.layers import windows


def tensors(*size: int, heads: int = 2, dim: int = 4, kernel: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, *size, heads, dim)] * 3 + [(heads, 2 * kernel - 1, 2 * kernel - 1)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(
    ("size", "kernel", "dilation"),
    [((7, 7), 7, 1), ((9, 12), 3, 1), ((8, 17), 3, 2), ((11, 10), 3, 3), ((15, 16), 5, 3), ((3, 20), 3, 1)],
)
def test_definition(size: tuple[int, int], kernel: int, dilation: int) -> None:
    q, k, v, rpb = tensors(*size, kernel=kernel)
    expected = by_definition(q, k, v, kernel, dilation, rpb)
    for tile in (None, 1, 2, 5, 100):
        ours = neighborhood_attention(q, k, v, kernel, dilation, rpb=rpb, tile=tile)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_gradients() -> None:
    inputs = [x[:, :6].requires_grad_() if x.dim() == 5 else x.requires_grad_() for x in tensors(6, 7, heads=1, dim=2)]
    assert torch.autograd.gradcheck(
        lambda q, k, v, rpb: neighborhood_attention(q, k, v, 3, 2, rpb=rpb), inputs, fast_mode=True
    )


def test_a_stride_of_the_kernel_is_attention_in_windows() -> None:
    q, k, v, _ = tensors(8, 12)
    mask = neighborhood_mask((8, 12), 4, stride=4)
    windows = torch.arange(8)[:, None] // 4 * 3 + torch.arange(12) // 4
    assert torch.equal(mask, windows.flatten()[:, None] == windows.flatten())
    ours = neighborhood_attention(q, k, v, 4, stride=4)
    flat = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=mask)
    torch.testing.assert_close(ours.flatten(1, 2).transpose(1, 2), expected)


def test_causal_neighbourhoods_end_at_the_query() -> None:
    mask = neighborhood_mask((1, 6), (1, 3), is_causal=(False, True))
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]


def test_maps_smaller_than_a_neighbourhood() -> None:
    q, k, v, _ = tensors(5, 6)
    with pytest.raises(
        ValueError, match=r"a map of 5x6 is smaller than neighbourhoods of \(3, 3\) dilated by \(2, 2\)"
    ):
        neighborhood_attention(q, k, v, 3, 2)
    module = NeighborhoodAttention(8, 2, kernel_size=3, dilation=2)
    x = torch.randn(2, 5 * 6, 8)
    padded = torch.nn.functional.pad(x.view(2, 5, 6, 8), (0, 0, 0, 0, 0, 1)).flatten(1, 2)
    expected = module(padded, (6, 6)).view(2, 6, 6, 8)[:, :5].flatten(1, 2)
    torch.testing.assert_close(module(x, (5, 6)), expected)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    module, x = NeighborhoodAttention(8, 2, kernel_size=3, attn_drop=0.5), torch.randn(1, 30, 8)
    assert not torch.equal(module(x, (5, 6)), module.eval()(x, (5, 6)))
    assert torch.equal(module(x, (5, 6)), module(x, (5, 6)))


def test_keys_and_values_are_not_copied_for_each_query() -> None:
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        cells = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                Largest.cells = max(Largest.cells, out.untyped_storage().nbytes() // out.element_size())
            return out

    q, k, v = torch.randn(3, 1, 28, 28, 1, 64).unbind()
    with Largest():
        neighborhood_attention(q, k, v, 7)
    assert Largest.cells < 4 * q.numel()  # 49 times for each of keys and values, were they gathered


@pytest.mark.parametrize("operator", ["halo", "neighborhood"])
def test_large_maps_are_computed_piece_by_piece(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small = {"halo": {"block_size": 4, "mask_border": True}, "neighborhood": {"kernel_size": 3, "dilation": 2}}
    module, x = names()[operator](8, num_heads=2, **small[operator]), torch.randn(2, 16 * 24, 8, requires_grad=True)
    results = []
    for limit in (2**22, 1):
        monkeypatch.setattr(windows, "AT_ONCE", limit)
        out = module(x, (16, 24))
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])])
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole)
