"""Neighbourhood attention in Triton: its kernels in Triton's interpreter, against the tiles.

Run by `test_deformable_triton.py` in a process of its own: Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vistrain.attention.neighborhood import NeighborhoodAttention, neighborhood_attention

Given = list[Tensor]


def inputs(size: tuple[int, int], kernel: tuple[int, int], heads: int, depth: int, dtype: torch.dtype) -> Given:
    """Queries, keys, values and biases of two images."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, *size, heads, depth) for _ in range(3)]
    tensors.append(torch.randn(heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1))
    return [x.to(dtype).requires_grad_() for x in tensors]


def results(given: Given, core: str, bias: bool = True, **form: Any) -> Given:
    """What comes out, and the gradients."""
    q, k, v, rpb = given
    out = neighborhood_attention(q, k, v, rpb=rpb if bias else None, core=core, **form)
    gradient = torch.linspace(-1, 1, out.numel()).to(torch.bfloat16).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given if bias else given[:3], gradient)]


@pytest.mark.parametrize(
    ("size", "heads", "depth", "form", "bias", "dtype", "tolerance"),
    [
        ((4, 5), 2, 20, {"kernel_size": 3}, True, torch.float32, 1e-5),  # channels that fill no block
        ((5, 7), 1, 4, {"kernel_size": 2, "dilation": (2, 3)}, True, torch.float32, 1e-5),
        ((4, 6), 1, 4, {"kernel_size": 3, "stride": (1, 3)}, False, torch.float32, 1e-5),
        ((1, 6), 1, 4, {"kernel_size": (1, 3), "is_causal": (False, True)}, True, torch.float32, 1e-5),
        ((5, 5), 1, 128, {"kernel_size": 2}, True, torch.bfloat16, 1e-2),  # queries in several blocks
    ],
)
def test_attention_and_gradients_are_those_of_tiles(
    size: tuple[int, int],
    heads: int,
    depth: int,
    form: dict[str, Any],
    bias: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    kernel = form["kernel_size"]
    given = inputs(size, kernel if isinstance(kernel, tuple) else (kernel, kernel), heads, depth, dtype)
    exact = [x.detach().float().requires_grad_() for x in given]
    for ours, plain in zip(results(given, "triton", bias, **form), results(exact, "tiles", bias, **form), strict=True):
        assert ours.dtype == dtype
        assert (ours.float() - plain).norm() <= tolerance * plain.norm()


def test_gradients_are_those_of_finite_differences() -> None:
    given = inputs((2, 3), (2, 2), 1, 2, torch.float64)

    def attend(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor) -> Tensor:
        return neighborhood_attention(q, k, v, 2, rpb=rpb, core="triton")

    assert torch.autograd.gradcheck(attend, given, fast_mode=True)


def test_no_image_gives_nothing() -> None:
    *maps, rpb = inputs((3, 3), (3, 3), 1, 4, torch.float32)
    given = [*(x[:0].detach().requires_grad_() for x in maps), rpb]
    out, *gradients = results(given, "triton", kernel_size=3)
    assert out.shape == (0, 3, 3, 1, 4)
    assert not gradients[3].any()


def test_the_module_takes_its_core_and_says_so() -> None:
    module = NeighborhoodAttention(8, 2, kernel_size=3, core="triton")
    plain = NeighborhoodAttention(8, 2, kernel_size=3)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(1, 12, 8)
    torch.testing.assert_close(module(x, (3, 4)), plain(x, (3, 4)), rtol=1e-5, atol=1e-5)
    assert (module.path(x.device), plain.path(x.device)) == ("triton", "tiles")


def test_the_operators_say_the_same_to_the_compiler() -> None:
    q, k, v, rpb = inputs((2, 2), (2, 2), 1, 4, torch.float32)
    axis = [0, 2, 0, 2]
    checks = ("test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.vistrain.neighborhood.default, (q, k, v, rpb, axis, axis, [2, 2, 1, 1], 0.5), test_utils=checks
    )
