"""In which layer of a network a number first was none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.internals.torch import tree_leaves


class _Found(Exception):
    """Ends the pass in which it was found."""


def where_it_arose(network: nn.Module, run: Callable[[], object]) -> str:
    """The first layer whose inputs are finite and whose output is not, as a sentence; empty where none is.

    Args:
        network: its weights are looked at first.
        run: a pass through it, without gradients; its last result is the losses.
    """
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name} is not finite"
    found: list[str] = []
    doubtful: list[str] = []  # minus infinity alone may be meant: a mask

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(map(_finite, _tensors(inputs))):
                return
            broken = [x for x in _tensors(output) if not _finite(x)]
            said = f"it first arose in {name} ({type(module).__name__})"
            if any((x.isnan() | x.isposinf()).any() for x in broken):
                found.append(said)
                raise _Found
            if broken:
                doubtful.append(said)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            losses = run()
    except _Found:
        return found[0]
    except RuntimeError:  # the run ends anyway, and says why
        return ""
    finally:
        for handle in hooks:
            handle.remove()
    if all(map(_finite, _tensors(losses))):
        return ""
    return doubtful[0] if doubtful else "every layer's output is finite: it arose between layers, or in the losses"


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.is_floating_point()]


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())
