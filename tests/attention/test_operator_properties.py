"""What operators equal in a limit, what they do not depend on, their derivatives, and how large their tensors grow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention.test_attention_contract import CASES
from attention_contract import Case, same
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vistrain.attention import (
    CombinerAttention,
    GaussianMixtureAttention,
    HedgehogAttention,
    HiPAttention,
    HyenaAttention,
    LandmarkAttention,
    LightningAttention,
    RelativeConvolutionAttention,
    RoutingAttention,
    SEAAttention,
    SGConv,
    SoftmaxFreeAttention,
    SoftplusAttention,
    SubsampledAttention,
    TransNormerAttention,
    URPEAttention,
)
from vistrain.attention.hedgehog import linear_attention, softmax_mimicry
from vistrain.attention.kernelized import orthogonal_features, positive_features
from vistrain.attention.lightning_attention import decayed_attention
from vistrain.attention.routing import KMeansAttention
from vistrain.attention.softmax_free import _inverse
from vistrain.errors import ConfigError

SIZE = (4, 6)


def softmax(module: Any, x: Tensor) -> Tensor:
    """Softmax attention with the module's projections."""
    q, k, v = module.heads(x)
    return module.output(F.scaled_dot_product_attention(q, k, v))


def fill(parameter: Tensor, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


def of(cls: Any, **arguments: Any) -> Any:
    return Case("", cls, {"dim": 8, "num_heads": 2, **arguments}).module()


def no_mask() -> Any:
    module = of(GaussianMixtureAttention, num_kernels=2)
    fill(module.mask.alpha, 0.5)
    fill(module.mask.sigma, 1e6)
    return module


def no_factor() -> Any:
    module = of(URPEAttention, grid=SIZE)
    fill(module.rp_bias, 0.0)
    fill(module.ur_rp_bias, 1.0)
    return module


def no_kernel() -> Any:
    module = of(RelativeConvolutionAttention, grid=SIZE)
    fill(module.kernel, 0.0)
    return module


def all_groups() -> Any:
    module = of(SEAAttention, width=6, top=6)
    fill(module.gate.weight, 0.0)
    fill(module.gate.bias, 100.0)
    return module


LIMITS = {
    "a mask of ones": no_mask,
    "no factor after the softmax": no_factor,
    "no convolution beside attention": no_kernel,
    "all groups of keys and no mean": all_groups,
    "all blocks of keys": lambda: of(HiPAttention, block=4, top=6),
    "one window": lambda: of(LandmarkAttention, window_size=24),
    "one direct block": lambda: of(CombinerAttention, block=24),
    "all keys, after training": lambda: of(SubsampledAttention, share=0.1),
}


@pytest.mark.parametrize("name", LIMITS)
@torch.no_grad()
def test_softmax_attention_in_the_limit(name: str) -> None:
    module = LIMITS[name]()
    size = (24, 24) if name == "one window" else SIZE
    x = torch.randn(2, math.prod(size), 8, generator=torch.Generator().manual_seed(3))
    same(module(x, size), softmax(module, x), 2e-5)


@pytest.mark.parametrize(("pattern", "size"), [("log", (1, 2)), ("axial", (1, 7))])
@torch.no_grad()
def test_combiner_without_far_tokens(pattern: str, size: tuple[int, int]) -> None:
    module, x = of(CombinerAttention, pattern=pattern), torch.randn(2, math.prod(size), 8)
    same(module(x, size), softmax(module, x))


@torch.no_grad()
def test_routing_to_one_cluster() -> None:
    module = Case("", RoutingAttention, {"dim": 8, "num_heads": 1, "num_clusters": 1, "local_window": 1}).module()
    x = torch.randn(2, 24, 8)
    same(module(x, SIZE), softmax(module, x), 1e-4)  # the count of clusters is 1 + 1e-5


@torch.no_grad()
def test_products_of_random_features_come_near_to_the_exponential() -> None:
    """With `test_contract[kernelized-definition]`: more features come nearer to softmax attention."""
    torch.manual_seed(0)
    q, k = F.normalize(torch.randn(2, 1, 2, 12, 4), dim=-1)
    errors = []
    for features in (16, 1024, 65536):
        weight = orthogonal_features(2, features, 4)
        ratio = positive_features(q, weight) @ positive_features(k, weight).mT / (q @ k.mT).exp()
        errors.append((ratio - 1).square().mean().sqrt().item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 0.02


@pytest.mark.parametrize(
    "module",
    [
        of(HedgehogAttention),
        of(SoftplusAttention),
        of(SubsampledAttention),
        of(TransNormerAttention, lrpe=False),
        Case("", RoutingAttention, {"dim": 8, "num_heads": 1, "num_clusters": 3, "local_window": 1}).module(),
    ],
    ids=lambda module: type(module).__name__,
)
@torch.no_grad()
def test_tokens_have_no_order(module: Any) -> None:
    x, order = torch.randn(2, 24, 8), torch.randperm(24, generator=torch.Generator().manual_seed(1))
    same(module(x[:, order], SIZE), module(x, SIZE)[:, order])


@torch.no_grad()
def test_convolutions_move_with_the_map() -> None:
    """A map moved by one row, away from what is cut off: SGConv moves by a row of tokens, Hyena by a row."""
    x = torch.randn(1, 8, 8, 8)
    x[:, 4:] = 0
    moved = x.roll(1, 1)
    for module in (HyenaAttention(8, (8, 8), filter_order=8), SGConv(8, (8, 8), bidirectional=False, kernel_dim=4)):
        module.eval()
        first, second = (module(maps.flatten(1, 2), (8, 8)).unflatten(1, (8, 8)) for maps in (x, moved))
        same(second[:, 3:7], first[:, 2:6], 1e-4)


@torch.no_grad()
def test_decay_is_the_same_in_blocks_of_any_size() -> None:
    q, k, v = torch.randn(3, 2, 4, 37, 8, dtype=torch.float64)
    slopes = torch.tensor([0.0, 0.01, 0.3, 2.0], dtype=torch.float64)
    whole = decayed_attention(q, k, v, slopes, 37)
    for block in (1, 5, 16, 64):
        same(decayed_attention(q, k, v, slopes, block), whole, 1e-12)
    summed = (k[..., None] * v[..., None, :]).cumsum(2)[:, 0]  # no decay: a running sum of products
    same(whole[:, 0], torch.einsum("bnd,bnde->bne", q[:, 0], summed), 1e-12)


def test_later_layers_decay_more_slowly() -> None:
    first, last = (LightningAttention(8, 4, layer=layer, layers=6).get_buffer("slopes") for layer in (0, 5))
    assert (first > last).all()
    assert (last > 0).all()


@torch.no_grad()
def test_causal_operators_do_not_look_ahead() -> None:
    looked = [case for case in CASES if case.module().causal]
    assert {case.cls.__name__ for case in looked} >= {"LightningAttention", "SGConv", "ExtractorAttention"}
    for case in looked:
        module, size = case.module(), case.sizes[0]
        x = case.tokens(size)
        changed = x.clone()
        changed[:, 10:] += 1
        same(module(changed, size)[:, :10], module(x, size)[:, :10])


def test_hedgehog_learns_the_weights_of_softmax() -> None:
    torch.manual_seed(0)
    module, x = HedgehogAttention(8, 2, mimicry=1.0).train(), torch.randn(4, 24, 8)
    with torch.no_grad():
        q, k, _ = module.heads(x)
        logits = q @ k.mT * module.scale
        least = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()  # entropy of the teacher
    optimizer, losses = torch.optim.Adam([*module.map_q.parameters(), *module.map_k.parameters()], 0.05), []
    for _ in range(100):
        optimizer.zero_grad()
        module(x, SIZE)
        loss = module.auxiliary_losses()["softmax_mimicry"]
        loss.backward()
        optimizer.step()
        losses.append((loss - least).item())
    assert 0 <= losses[-1] < 0.5 * losses[0]
    assert module.qkv.weight.grad is None


@torch.no_grad()
def test_mimicry_is_the_entropy_where_weights_agree() -> None:
    weights = torch.rand(1, 1, 5, 7) + 0.1
    loss = softmax_mimicry(torch.eye(5)[None, None], weights.mT, weights.log())
    shares = weights / weights.sum(-1, keepdim=True)
    same(loss, -(shares * shares.log()).sum(-1).mean())
    same(linear_attention(torch.eye(5)[None, None], weights.mT, torch.eye(7)[None, None]), shares)


@torch.no_grad()
def test_kmeans_follow_the_data_and_no_key_is_no_nan() -> None:
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(3, 8), dim=-1)
    points = centres.repeat(1, 1, 1, 8).view(1, 1, 24, 8) + 0.01 * torch.randn(1, 1, 24, 8)
    module = KMeansAttention(1, 8, 3, 8, causal=True, num_mem_kv=1)
    module.train()(points, points, points)
    nearest = (module.kmeans.means[0] @ centres.T).amax(0)
    assert (nearest > 0.99).all()
    apart = KMeansAttention(1, 8, 3, 2, causal=True).eval()
    out, loss = apart(points, -points, points)
    assert out.isfinite().all()
    assert loss.isfinite()


@torch.no_grad()
def test_subsampling_ends_with_training() -> None:
    module, x = of(SubsampledAttention, share=0.25).train(), torch.randn(2, 24, 8)
    dense = softmax(module, x)
    assert not torch.allclose(module(x, SIZE), dense)
    module.at_progress(0.95)
    same(module(x, SIZE), dense)
    near = of(SubsampledAttention, share=0.5, reach=0).train()
    torch.manual_seed(0)
    changed = x.clone()
    changed[:, -1] += 5
    torch.manual_seed(1)
    first = near(x, SIZE)
    torch.manual_seed(1)
    same(near(changed, SIZE)[:, 0], first[:, 0])  # blocks of 12: the last token is too far


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_derivatives(case: Case) -> None:
    """Of the input and of all parameters, against differences, in float64."""
    if case.cls is SoftmaxFreeAttention:
        pytest.skip("the gradient of an inverse, which 20 steps only come near to: see the test of the inverse")
    module, size = case.module().double(), case.sizes[-1]
    names = [name for name, p in module.named_parameters() if not name.endswith(case.dead or ("\0",))]
    given = [p for name, p in module.named_parameters() if name in names]
    x = case.tokens(size, 1).double().requires_grad_()

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x, size))

    assert torch.autograd.gradcheck(call, (x, *given), fast_mode=True, atol=1e-4)


def test_derivatives_of_the_inverse() -> None:
    spread = 0.1 * torch.rand(2, 5, 5, dtype=torch.float64)
    kernel = (torch.eye(5, dtype=torch.float64) + spread + spread.mT).requires_grad_()
    same(_inverse(kernel), torch.linalg.inv(kernel + 0.01 * torch.eye(5)), 1e-8)
    assert torch.autograd.gradcheck(_inverse, (kernel,))


class Largest(TorchDispatchMode):
    """The most numbers that a tensor of a computation has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


SUBQUADRATIC = [
    case
    for case, module in ((case, case.module()) for case in CASES)
    if module.growth != "N^2" and 2 in module.axes and "mimicry" not in case.args  # whose loss is quadratic
]


@pytest.mark.parametrize("case", SUBQUADRATIC, ids=lambda case: case.name)
def test_no_tensor_is_quadratic_in_tokens(case: Case) -> None:
    """Forward and backward: four times the tokens, at most so many times the numbers as the operator states."""
    found = []
    for side in (24, 48):
        grid = {"grid": (side, side)} if isinstance(case.args.get("grid"), tuple) else {}
        torch.manual_seed(0)
        module, x = case.cls(**{**case.args, **grid}).train(), torch.randn(1, side**2, case.dim)
        with Largest() as largest:
            module(x, (side, side)).square().mean().backward()
        found.append(largest.numbers)
    assert found[1] <= {"N": 4.5, "N log N": 5.0, "N sqrt N": 8.5}[module.growth] * found[0]


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        SoftmaxFreeAttention(8, 3)
    with pytest.raises(ConfigError, match="order"):
        HyenaAttention(8, order=1)
    with pytest.raises(ConfigError, match="sqrt_decay"):
        HyenaAttention(8, sqrt_decay=True)
