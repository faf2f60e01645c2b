"""Deformable sampling in Triton: its kernels in Triton's interpreter, which runs them on a CPU, against the plain core.

Run by `test_deformable_triton.py` in a process of its own: Triton decides when it is imported whether it interprets.
The interpreter takes a millisecond for every operation of every program, so everything here is tiny.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vistrain.layers.deformable import MSDeformAttn, deformable_sampling

Shapes = list[tuple[int, int]]


def inputs(shapes: Shapes, dtype: torch.dtype, batch: int, queries: int, heads: int, depth: int) -> list[Tensor]:
    """Two points on each level, some outside."""
    torch.manual_seed(0)
    exact = torch.promote_types(dtype, torch.float32)
    extents = torch.tensor([(w, h) for h, w in shapes])[:, None]
    points = (torch.rand(batch, queries, heads, len(shapes), 2, 2, dtype=exact) * 1.6 - 0.3) * extents - 0.5
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, depth).to(dtype)
    weights = torch.rand(points.shape[:-1], dtype=exact)
    return [x.requires_grad_() for x in (value, points, weights)]


def results(given: list[Tensor], shapes: Shapes, core: str) -> list[Tensor]:
    """Samples, and the gradients of values, points and weights."""
    out = deformable_sampling(given[0], shapes, given[1], given[2], core)
    gradient = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given, gradient)]


@pytest.mark.parametrize(
    ("shapes", "batch", "queries", "heads", "depth", "dtype", "tolerance"),
    [
        ([(3, 5), (2, 1)], 2, 3, 1, 4, torch.float32, 1e-5),  # two images
        ([(4, 3)], 1, 3, 2, 20, torch.float32, 1e-5),  # channels that fill no block
        ([(3, 3)], 1, 65, 1, 128, torch.bfloat16, 1e-2),  # queries in several blocks
        ([(2, 3), (1, 2), (1, 1)], 1, 2, 1, 16, torch.float16, 1e-2),
    ],
)
def test_samples_and_gradients_are_the_plain_cores(
    shapes: Shapes, batch: int, queries: int, heads: int, depth: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = inputs(shapes, dtype, batch, queries, heads, depth)
    for ours, plain in zip(results(given, shapes, "triton"), results(given, shapes, "embedding_bag"), strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_finite_differences() -> None:
    shapes = [(2, 3)]
    given = inputs(shapes, torch.float64, 1, 2, 1, 2)

    def sample(value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        return deformable_sampling(value, shapes, points, weights, "triton")

    assert torch.autograd.gradcheck(sample, given, fast_mode=True)


@pytest.mark.parametrize(("batch", "queries"), [(0, 2), (1, 0)])
def test_nothing_to_sample_gives_nothing(batch: int, queries: int) -> None:
    out, *gradients = results(inputs([(2, 2)], torch.float32, batch, queries, 2, 4), [(2, 2)], "triton")
    assert out.shape == (batch, queries, 8)
    assert not any(gradient.any() for gradient in gradients)


def test_diverged_and_distant_points() -> None:
    value, points, weights = (x.detach() for x in inputs([(2, 3)], torch.float32, 1, 3, 1, 4))
    points[0, 0], weights[0, 0] = torch.nan, torch.nan
    points[0, 1] = torch.tensor([[1e30, 0.0], [0.0, -1e30]])
    out = deformable_sampling(value, [(2, 3)], points, weights, "triton")
    assert out[0, 0].isnan().all()
    assert not out[0, 1].any()
    assert out[0, 2].isfinite().all()


def test_the_module_hides_padding_in_bfloat16() -> None:
    """Under autocast the kernel reads half precision as it is; padded tokens do not matter."""
    torch.manual_seed(0)
    module = MSDeformAttn(16, 1, 1, 2, core="triton")
    plain = MSDeformAttn(16, 1, 1, 2, core="grid_sample")
    plain.load_state_dict(module.state_dict())
    query, tokens, reference = torch.randn(1, 2, 16), torch.randn(1, 6, 16), torch.rand(1, 2, 1, 2)
    mask = torch.tensor([[False, False, True, False, False, True]])
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, theirs = (m(query, reference, tokens, [(2, 3)], mask) for m in (module, plain))
        unseen = module(query, reference, tokens.masked_fill(mask[..., None], 1e3), [(2, 3)], mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    assert unseen.equal(ours)


def test_the_operators_say_the_same_to_the_compiler() -> None:
    value, points, weights = inputs([(2, 2)], torch.float32, 1, 1, 1, 4)
    checks = ("test_autograd_registration", "test_faketensor")
    sampling = torch.ops.vistrain.deformable_sampling.default
    torch.library.opcheck(sampling, (value, [2, 2], points, weights), test_utils=checks)
