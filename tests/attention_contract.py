"""What every attention operator of ours keeps to; `attention/test_attention_contract.py` runs it.

Checks are functions of a `Case`; all of `CHECKS` are run for each of the files in `attention/cases/`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistrain.attention.base import EXPONENTS, AttentionOperator, attend
from vistrain.contract import constructor
from vistrain.errors import DataError

Size = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: of the line.
        cls: the operator.
        args: of its constructor, that make it small.
        definition: of the module, tokens `[B, N, C]` and (H, W) -> `[B, N, C]`: what it must equal. None where a
            parity test and tests of its own properties stand for it.
        dim: C.
        sizes: (H, W) that it takes: odd ones, narrow ones.
        refused: (H, W) that it refuses with a `DataError`; none if it takes all.
        export: whether `torch.export` takes it; why not stands beside.
        bf16: how far results under autocast may lie off, as a share of their spread.
        dead: names of parameters that receive no gradient, or only zeros, by its definition (as suffixes).
        batch_dependent: whether, faithfully, an image's result depends on its neighbours in a batch.
    """

    name: str
    cls: type[AttentionOperator]
    args: dict[str, Any]
    definition: Callable[[Any, Tensor, Any], Tensor] | None = None
    dim: int = 8
    sizes: tuple[Size, ...] = ((8, 8), (7, 9), (5, 12), (3, 2))
    refused: tuple[Size, ...] = ()
    export: bool = True
    bf16: float = 0.1
    dead: tuple[str, ...] = ()
    batch_dependent: bool = False

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
        return torch.randn(batch, math.prod(size), self.dim, generator=generator)


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to within a share of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


def check_statements(case: Case) -> None:
    """It says what it computes and costs; its constructor takes `dim`, and needs nothing else of users."""
    cls = case.cls
    assert all((cls.formula, cls.cost, cls.sizes, cls.padding))
    assert cls.growth in EXPONENTS
    parameters, _ = constructor(cls)
    assert "dim" in parameters
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    assert needed <= {"dim", "num_heads", "grid", "layer", "layers"}
    with_mask = "mask" in inspect.signature(cls.forward).parameters
    assert with_mask == cls.takes_mask


def check_call(case: Case) -> None:
    """`forward(x: [B, N, C], size)` -> `[B, N, C]`, finite, at every size."""
    module = case.module()
    for size in case.sizes:
        x = case.tokens(size)
        before = x.clone()
        module.check_size(size)
        out = module(x, size)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        assert out.isfinite().all()
        assert torch.equal(x, before)


def check_sizes(case: Case) -> None:
    """Other sizes are refused with a `DataError` that names one that is taken; hosts pad to it where there is one."""
    module = case.module()
    for size in case.refused:
        with pytest.raises(DataError):
            module(case.tokens(size), size)
        with pytest.raises(DataError, match=r"\d+") as refused:
            module.check_size(size)
        assert case.cls.__name__ in str(refused.value)
        try:
            whole = module.fitting(size)
        except DataError:
            continue
        module.check_size(whole)
        assert all(a >= b for a, b in zip(whole, size, strict=True))
        assert attend(module, case.tokens(size), size).shape == case.tokens(size).shape
    if 4 not in module.axes:
        with pytest.raises(DataError, match="axes"):
            module.check_size((2, 2, 2, 2))


def check_axes(case: Case) -> None:
    """Maps of one and of three axes, where it says that it takes them."""
    module = case.module()
    for size in [size for size in ((12,), (2, 4, 4)) if len(size) in module.axes]:
        whole = module.fitting(size)
        out = module(case.tokens(whole), whole)
        assert out.shape == (2, math.prod(whole), case.dim)
        assert out.isfinite().all()
        if case.definition is not None:
            same(out, case.definition(module, case.tokens(whole), whole))


def check_masks(case: Case) -> None:
    """What stands in masked tokens changes nothing; a map without any real token gives no NaN, nor do its gradients."""
    if not case.cls.takes_mask:
        return
    module, size = case.module(), case.sizes[0]
    x = case.tokens(size).requires_grad_()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.7
    mask[1] = False
    out = module(x, size, mask)
    assert out.isfinite().all()
    out.square().mean().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    other = torch.where(mask[..., None], x.detach(), torch.full_like(x, 3.0))
    same(module(other, size, mask)[mask], out.detach()[mask])
    same(module(x.detach(), size, torch.ones_like(mask)), module(x.detach(), size))


def check_equal_tokens(case: Case) -> None:
    """Maps of zeros, and of one value, give finite results and gradients: no division by nothing."""
    module, size = case.module().train(), case.sizes[0]
    for value in (0.0, 1.0):
        x = torch.full_like(case.tokens(size), value).requires_grad_()
        out = module(x, size)
        out.square().mean().backward()
        assert out.isfinite().all()
        assert x.grad.isfinite().all()


def check_definition(case: Case) -> None:
    """What the paper's formula says, at every size."""
    if case.definition is None:
        return
    module = case.module().double()
    with torch.no_grad():
        for size in case.sizes:
            x = case.tokens(size).double()
            same(module(x, size), case.definition(module, x, size), 1e-6)  # tables of positions are of float32


def check_gradients(case: Case) -> None:
    """Input and parameters receive gradients: finite, and some of each not zero. Its own losses are finite scalars."""
    module, x = case.module().train(), case.tokens(case.sizes[0]).requires_grad_()
    total = module(x, case.sizes[0]).square().mean()
    own = module.auxiliary_losses()
    assert all(loss.shape == () and loss.isfinite() for loss in own.values())
    assert not module.auxiliary_losses()
    sum(own.values(), total).backward()
    gradients = {"input": x.grad, **{name: p.grad for name, p in module.named_parameters() if p.requires_grad}}
    gradients = {name: g for name, g in gradients.items() if not name.endswith(case.dead or ("\0",))}
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values()), gradients


def check_batch_independence(case: Case) -> None:
    """An image's result does not depend on its neighbours in the batch."""
    if case.batch_dependent:
        return
    module, size = case.module(), case.sizes[min(1, len(case.sizes) - 1)]
    x = case.tokens(size, 3)
    together = module(x, size)
    for i in range(3):
        same(module(x[i : i + 1], size), together[i : i + 1])


def check_bfloat16(case: Case) -> None:
    """Under autocast, called as hosts do, results stay near those of float32, forward and backward."""
    module, size = case.module(), case.sizes[0]
    full = module(case.tokens(size), size)
    with torch.autocast("cpu", torch.bfloat16):
        half = attend(module, case.tokens(size), size)
    if case.cls.float32:
        same(half, full)
    spread = (full - full.mean()).abs().max()
    assert (half.float() - full).abs().max() < case.bf16 * spread
    half.float().square().mean().backward()
    assert all(p.grad is None or (p.grad.isfinite().all() and p.grad.dtype == p.dtype) for p in module.parameters())


def check_export(case: Case) -> None:
    """`torch.export` with a free batch computes the same."""
    if not case.export:
        return

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
    x, other = case.tokens(size), case.cls(**case.args).eval()
    module(x, size)  # what the first call settles, and keeps in buffers
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(x, size), module(x, size))
    assert torch.equal(copy.deepcopy(module)(x, size), module(x, size))


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    check for name, check in list(globals().items()) if name.startswith("check_")
)
