"""What an attention operator is to a host network, to the benchmark and to the documentation."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.contract import Contract
from vistrain.errors import DataError

log = logging.getLogger(__name__)

Size = tuple[int, ...]  # of a map: (H, W); (D, H, W) or (L,) where an operator's mathematics extends to them
Growth = Literal["N", "N log N", "N sqrt N", "N^2"]
# The largest growth exponent of time that may be measured between 4k and 16k tokens, by what an operator states
EXPONENTS: dict[Growth, float] = {"N": 1.1, "N log N": 1.2, "N sqrt N": 1.6, "N^2": 2.1}
# A map is padded to more than so many times its cells, and to more than these: it is worth a warning
MOST_PADDING, FEW_CELLS = 4, 1024


class AttentionOperator(Contract, nn.Module):
    """Base of all that mix the tokens of a map, `forward(x: [B, N, C], size: Size) -> [B, N, C]`.

    N is the product of `size`, tokens are counted row by row. A subclass with `takes_mask` has a third parameter,
    `mask: Tensor | None = None`, `[B, N]` bool, True where a token is real: keys elsewhere get no weight, what comes
    out there is finite and means nothing, and a map without any real token gives no NaN.

    A constructor takes `dim` (C), and everything else with a default. Of these names it takes those that it
    needs, and the host gives them: `num_heads`; `grid` (`Size`: the map that the host is built for); `layer` and
    `layers` (`int`: which of how many blocks it stands in, from 0). All other parameters are the user's
    (`attention_args`).

    What it says of itself, on the class; an object may know it more exactly:

    Attributes:
        formula: the mathematics on one line; empty for a base of several operators, which is none itself.
        cost: multiply-adds on one line, in N tokens, C channels, and its own parameters.
        growth: how time and memory grow with N.
        sizes: which maps it takes, in words (`multiples of window_size`); see `fitting`.
        axes: numbers of axes that a map may have.
        padding: what it does with padded cells, in words.
        takes_mask: whether `forward` has a `mask`.
        float32: whether it must stay in float32: half types overflow, or lose what it is about. Hosts see to it.
        causal: whether a token sees earlier ones alone, by its definition.
        needs: what it needs of training, in words: a schedule, a loss of its own, a teacher; empty for nothing.
        oddities: what is kept for fidelity though one would not write it so; empty for nothing.

    Raises:
        TypeError: when a class is made that states its formula without cost or docstring, or an unknown growth.
    """

    formula: str = ""
    cost: str = ""
    growth: Growth = "N^2"
    sizes: str = "any"
    axes: tuple[int, ...] = (2,)
    padding: str = "padded cells count like any other"
    takes_mask: bool = False
    float32: bool = False
    causal: bool = False
    needs: str = ""
    oddities: str = ""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.growth not in EXPONENTS:
            raise TypeError(f"{cls.__qualname__}.growth: {cls.growth!r} is none of {', '.join(EXPONENTS)}")
        documented = bool(cls.__doc__) or not __debug__  # some leave docstrings out
        if vars(cls).get("formula") and not (cls.cost and documented):
            lacks = "a docstring" if cls.cost else "`cost`, its multiply-adds on one line"
            raise TypeError(f"{cls.__qualname__} states its formula and lacks {lacks}")

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary: dict[str, Tensor] = {}

    def fitting(self, size: Size) -> Size:
        """The least size, no smaller along any axis, that it takes: hosts pad maps to it with zeros, bottom and right.

        Raises:
            DataError: there is none; it names sizes that there are (see `refusal`).
        """
        return size

    def check_size(self, size: Size) -> None:
        """Refuse a map that it cannot take as it is.

        Raises:
            DataError: naming sizes that it takes.
        """
        if len(size) not in self.axes:
            counts = " or ".join(map(str, self.axes))
            raise DataError(type(self).__name__, f"maps have {counts} axes, not {len(size)}", "choose another operator")
        fitting = self.fitting(size)
        if fitting != size:
            raise self.refusal(size, fitting)

    def refusal(self, size: Size, *taken: Size) -> DataError:
        """The error for a map that it cannot take.

        Args:
            size: of the map.
            taken: sizes that it takes, the nearest first.
        """
        named = " or ".join("x".join(map(str, sides)) for sides in taken)
        problem = f"takes no map of {'x'.join(map(str, size))}"
        return DataError(type(self).__name__, problem, f"it takes {self.sizes}: {named}")

    def path(self, device: torch.device) -> str:
        """The name of the computation that runs on a device; more than one only where measured to be worth it."""
        return "torch"

    def at_progress(self, share: float) -> None:
        """Told before each training step which share of training is done, in 0..1: for what changes meanwhile."""

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """The losses of the latest training `forward`, weighted scalars by name, which are given out once.

        An operator puts them into `self.auxiliary` in `forward`, while `self.training`.
        """
        found, self.auxiliary = self.auxiliary, {}
        return found


def attend(operator: AttentionOperator, x: Tensor, size: Size) -> Tensor:
    """Calls an operator as hosts do: on a map of any size that can be padded for it, and in the precision it needs.

    Args:
        operator: any.
        x: `[B, N, C]`.
        size: of the map.

    Returns:
        `[B, N, C]`.

    Raises:
        DataError: a size that it can take in no way.
    """
    if operator.float32 and not x.is_meta and torch.is_autocast_enabled(x.device.type):
        _warn_of_float32(type(operator).__name__)
        with torch.autocast(x.device.type, enabled=False):
            return _fitted(operator, x.float(), size)
    return _fitted(operator, x, size)


def _fitted(operator: AttentionOperator, x: Tensor, size: Size) -> Tensor:
    if len(size) not in operator.axes:
        operator.check_size(size)
    whole = operator.fitting(size)
    if whole == size:
        return _called(operator, x, size)
    cells, there = math.prod(whole), math.prod(size)
    if cells > MOST_PADDING * there and cells > FEW_CELLS:
        _warn_of_padding(type(operator).__name__, size, whole, operator.sizes)
    edges = [edge for side, full in zip(size[::-1], whole[::-1], strict=True) for edge in (0, full - side)]
    padded = F.pad(x.unflatten(1, size), (0, 0, *edges)).flatten(1, len(size))
    if operator.takes_mask:
        real = F.pad(torch.ones((1, *size), dtype=torch.bool, device=x.device), edges).flatten(1)
        out = _called(operator, padded, whole, real.expand(x.shape[0], -1))
    else:
        out = _called(operator, padded, whole)
    cropped = out.unflatten(1, whole)[(slice(None), *(slice(side) for side in size))]
    return cropped.flatten(1, len(size))


def _called(operator: AttentionOperator, x: Tensor, *rest: Any) -> Tensor:
    """What an operator gives; somebody's own may give anything.

    Raises:
        TypeError: it gives no tensor of the shape of `x`.
    """
    out: Tensor = operator(x, *rest)
    if torch.compiler.is_compiling() or (isinstance(out, Tensor) and out.shape == x.shape):
        return out
    given = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise TypeError(f"{type(operator).__name__}.forward gives {given} for tokens {list(x.shape)}: give the same shape")


@functools.cache
def _warn_of_float32(name: str) -> None:
    log.warning("%s stays in float32: half types overflow in it, or are too coarse for it", name)


@functools.cache
def _warn_of_padding(name: str, size: Size, whole: Size, sizes: str) -> None:
    given, padded = ("x".join(map(str, sides)) for sides in (size, whole))
    times = math.prod(whole) / math.prod(size)
    log.warning("%s takes %s: a map of %s is padded to %s, %.0f times its cells", name, sizes, given, padded, times)


def is_operator(value: object) -> bool:
    """Whether something is an operator's class; bases of several state no formula."""
    return isinstance(value, type) and issubclass(value, AttentionOperator) and bool(value.formula)


def operators_of(network: nn.Module) -> list[AttentionOperator]:
    """All attention operators in a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, AttentionOperator)]


def paths_of(network: nn.Module, device: torch.device) -> list[str]:
    """Which computations a network's operators run on a device: `SoftmaxAttention x 4: scaled_dot_product_attention`.

    One line for each kind of operator and computation, in the order of the modules.
    """
    found = Counter((type(operator).__name__, operator.path(device)) for operator in operators_of(network))
    return [f"{name} x {count}: {path}" for (name, path), count in found.items()]


def auxiliary_losses(operators: Iterable[AttentionOperator]) -> dict[str, Tensor]:
    """The losses that operators have of their latest training pass, by name, summed over operators."""
    total: dict[str, Tensor] = {}
    for operator in operators:
        for name, loss in operator.auxiliary_losses().items():
            total[name] = total[name] + loss if name in total else loss
    return total
