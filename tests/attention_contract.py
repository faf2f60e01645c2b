"""What every attention operator of ours keeps to; `attention/test_attention_contract.py` runs it.

Checks are functions of a `Case`; all of `CHECKS` are run for each of its table.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistrain.errors import DataError

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: of the line.
        cls: the operator.
        args: of its constructor, that make it small.
        definition: of the module, tokens `[B, N, C]` and (H, W) -> `[B, N, C]`: what it must equal.
        dim: C.
        sizes: (H, W) that it takes: odd ones, narrow ones.
        refused: (H, W) that it refuses with a `DataError`; none if it takes all.
    """

    name: str
    cls: type[nn.Module]
    args: dict[str, Any]
    definition: Callable[[Any, Tensor, Size], Tensor]
    dim: int = 8
    sizes: tuple[Size, ...] = ((8, 8), (7, 9), (5, 12), (3, 2))
    refused: tuple[Size, ...] = ()

    def module(self) -> Any:
        """With weights that are at no special value, the same at each call, in evaluation mode."""
        torch.manual_seed(0)
        module = self.cls(**self.args)
        with torch.no_grad():
            for parameter in module.parameters():
                spread = 0.3 if parameter.dim() < 2 else 1 / math.sqrt(parameter[0].numel())
                parameter.add_(torch.randn_like(parameter) * spread)
        return module.eval()

    def tokens(self, size: Size, batch: int = 2) -> Tensor:
        """`[B, H * W, C]`, the same at each call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, size[0] * size[1], self.dim, generator=generator)


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to within a share of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


def check_call(case: Case) -> None:
    """`forward(x: [B, N, C], size)` -> `[B, N, C]`, finite, at every size; others are refused with a reason."""
    module = case.module()
    for size in case.sizes:
        x = case.tokens(size)
        before = x.clone()
        out = module(x, size)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        assert out.isfinite().all()
        assert torch.equal(x, before)
    for size in case.refused:
        with pytest.raises(DataError):
            module(case.tokens(size), size)


def check_definition(case: Case) -> None:
    """What the paper's formula says, at every size."""
    module = case.module().double()
    with torch.no_grad():
        for size in case.sizes:
            x = case.tokens(size).double()
            same(module(x, size), case.definition(module, x, size), 1e-6)  # tables of positions are of float32


def check_gradients(case: Case) -> None:
    """Input and parameters receive gradients: finite, and some of each not zero."""
    module, x = case.module().train(), case.tokens(case.sizes[0]).requires_grad_()
    module(x, case.sizes[0]).square().mean().backward()
    gradients = {"input": x.grad, **{name: p.grad for name, p in module.named_parameters()}}
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values()), gradients


def check_batch_independence(case: Case) -> None:
    """An image's result does not depend on its neighbours in the batch."""
    module, size = case.module(), case.sizes[1]
    x = case.tokens(size, 3)
    together = module(x, size)
    for i in range(3):
        same(module(x[i : i + 1], size), together[i : i + 1])


def check_bfloat16(case: Case) -> None:
    """Under autocast results stay near those of float32, forward and backward."""
    module, size = case.module().train(), case.sizes[0]
    full = module(case.tokens(size), size)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(case.tokens(size), size)
    spread = (full - full.mean()).abs().max()
    assert (half.float() - full).abs().max() < 0.1 * spread
    half.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in module.parameters())


def check_export(case: Case) -> None:
    """`torch.export` with a free batch computes the same."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.operator = case.module()

        def forward(self, x: Tensor) -> Tensor:
            return self.operator(x, case.sizes[0])

    model, x = Sized(), case.tokens(case.sizes[0])
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    with torch.no_grad():
        for tokens in (x, case.tokens(case.sizes[0], 3)):
            same(program.module()(tokens), model(tokens))


def check_copies(case: Case) -> None:
    """Weights go out and in again, strictly; copies compute the same."""
    module, size = case.module(), case.sizes[0]
    other, x = case.cls(**case.args).eval(), case.tokens(size)
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x, size), module(x, size))
    assert torch.equal(copy.deepcopy(module)(x, size), module(x, size))


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    check for name, check in list(globals().items()) if name.startswith("check_")
)
