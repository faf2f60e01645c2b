"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vistrain.internals.torch import BatchNorm


def recompute(module: nn.Module) -> None:
    """From now on a module keeps its inputs alone while it trains, and computes the rest again when gradients ask.

    Gradients stay what they are, dropout draws what it drew, and batch norms count a batch once. Names of parameters
    stay, too. `keep` takes it back.
    """
    forward, norms = module.forward, [m for m in module.modules() if isinstance(m, BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return contextlib.nullcontext(), _without_counting(norms)

    def again(*args: Any, **kwargs: Any) -> Any:
        # The compiler cannot enter the context; what it makes of the module frees by itself what is cheap to compute
        if not (module.training and torch.is_grad_enabled()) or (norms and torch.compiler.is_compiling()):
            return forward(*args, **kwargs)
        more: dict[str, Any] = {"context_fn": contexts} if norms else {}
        return checkpoint(forward, *args, use_reentrant=False, **more, **kwargs)

    module.forward = again


def keep(module: nn.Module) -> None:
    """The inverse of `recompute`."""
    del module.forward


@contextlib.contextmanager
def _without_counting(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Within it, batch norms use a batch's statistics and leave their running ones alone."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
