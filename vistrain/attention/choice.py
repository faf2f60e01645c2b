"""Operators by name, with their arguments checked: what a host network's `attention` may be."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vistrain.attention.base import AttentionOperator, Size
from vistrain.contract import constructor
from vistrain.errors import ConfigError, first_line, nearest, to_blame

FACTS = ("dim", "grid", "layer", "layers")  # what a host gives, and nobody else; a user may say num_heads
OF_EITHER_SIGN = ("shift",)  # numbers that are added
ZERO_FOR_NONE = ("side_dwconv",)  # counts of which 0 leaves something out
Operator = str | type[AttentionOperator]
Choice = Operator | Mapping[str, Any]  # a mapping: `name`, and the operator's arguments


@functools.cache
def operators() -> dict[str, type[AttentionOperator]]:
    """All operators of the room by class name."""
    room = importlib.import_module(__name__.rpartition(".")[0])
    found = {name: vars(room)[name] for name in sorted(room.__all__)}
    return {n: cls for n, cls in found.items() if isinstance(cls, type) and issubclass(cls, AttentionOperator)}


@functools.cache
def names() -> dict[str, type[AttentionOperator]]:
    """What an operator may be called -> the operator.

    Its class (`ShiftedWindowAttention`), the same in short (`shifted_window`), and its file (`window`): of a file with
    several operators the one that is called like it, else the first.
    """
    short = {short_name(cls): cls for cls in operators().values()}
    files: dict[str, type[AttentionOperator]] = {}
    for cls in sorted(operators().values(), key=_place):
        files.setdefault(cls.__module__.rpartition(".")[2], cls)
    return {**files, **short, **operators()}


def short_name(cls: type) -> str:
    """`ShiftedWindowAttention` -> `shifted_window`."""
    stem = cls.__name__.removesuffix("Attention") or cls.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", stem).lower()


def _place(cls: type) -> tuple[str, int]:
    """Where a class stands: its file, and its place in it."""
    return cls.__module__, list(vars(importlib.import_module(cls.__module__))).index(cls.__name__)


@dataclass(frozen=True)
class ChosenOperator:
    """An operator and what a user says of its arguments, checked.

    Attributes:
        cls: the operator.
        arguments: of its constructor.
    """

    cls: type[AttentionOperator]
    arguments: Mapping[str, Any]

    def build(
        self, dim: int, num_heads: int, grid: Size, layer: int, layers: int, where: str = "args.attention"
    ) -> AttentionOperator:
        """The operator for one block of a host.

        Args:
            dim, num_heads, grid, layer, layers: what the host gives, see `AttentionOperator`; it gets those that it
                takes.
            where: dotted key, for messages.

        Raises:
            ConfigError: it cannot be made so.
        """
        facts = {"dim": dim, "num_heads": num_heads, "grid": grid, "layer": layer, "layers": layers}
        taken = constructor(self.cls)[0]
        given = {name: value for name, value in facts.items() if name in taken}
        try:
            return self.cls(**{**given, **self.arguments})
        except ConfigError as error:
            raise ConfigError(
                f"{where}_args.{error.where}", f"{self.cls.__name__}: {error.problem}", error.remedy
            ) from error
        except (ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
            with torch.device("meta"):
                name = to_blame(lambda rest: self.cls(**{**given, **rest}), self.arguments, self.arguments)
            if not name:
                raise
            problem = f"{self.cls.__name__} cannot be made with {self.arguments[name]!r}: {first_line(error)}"
            default = taken[name].default
            remedy = f"leave it out ({default!r}), or give a value of that kind"
            raise ConfigError(f"{where}_args.{name}", problem, remedy) from error


def choose(
    attention: Choice | Sequence[Choice],
    arguments: Mapping[str, Any] | None,
    stages: int,
    where: str = "args.attention",
) -> list[ChosenOperator]:
    """The operator of each stage.

    Args:
        attention: one for all stages, or one for each: a name (see `names`), a class, or a mapping with `name` and
            arguments of that operator.
        arguments: of every operator.
        stages: how many there are.
        where: dotted key, for messages.

    Raises:
        ConfigError: a name or an argument does not exist, or there are not as many as stages.
    """
    if isinstance(attention, str | type | Mapping):
        return [_chosen(attention, arguments or {}, where)] * stages
    if not isinstance(attention, Sequence):
        raise ConfigError(where, f"{attention!r} names no operator", "write a name, or one for each stage")
    if len(attention) != stages:
        raise ConfigError(where, f"{len(attention)} operators for {stages} stages", "write one, or one for each stage")
    return [_chosen(choice, arguments or {}, f"{where}[{i}]") for i, choice in enumerate(attention)]


def _chosen(choice: Choice, arguments: Mapping[str, Any], where: str) -> ChosenOperator:
    own = {}
    if isinstance(choice, Mapping):
        own = {str(key): value for key, value in choice.items() if key != "name"}
        if "name" not in choice:
            raise ConfigError(where, "`name` is missing", "it names the operator; the other keys are its arguments")
        choice = choice["name"]
    if isinstance(choice, str):
        if choice not in names():
            raise ConfigError(where, f"no attention operator {choice!r}", nearest(choice, _offered(choice), count=2))
        choice = names()[choice]
    elif not isinstance(choice, type) or not issubclass(choice, AttentionOperator):
        raise ConfigError(where, f"{choice!r} is no attention operator", "see `vistrain list attention`")
    places = {**dict.fromkeys(arguments, f"{where.partition('[')[0]}_args"), **dict.fromkeys(own, where)}
    checked = {key: _checked(choice, key, value, places[key]) for key, value in {**arguments, **own}.items()}
    return ChosenOperator(choice, checked)


def _offered(written: str) -> list[str]:
    """The names in the form of what was written: classes, or short names and files."""
    return [name for name in names() if (name in operators()) == written[:1].isupper()]


def _checked(cls: type[AttentionOperator], key: str, value: Any, where: str) -> Any:
    parameters, hints = constructor(cls)
    if key in FACTS:
        raise ConfigError(f"{where}.{key}", "is not set by hand", "the network gives it; remove the key")
    if key not in parameters:
        known = [name for name in parameters if name not in FACTS]
        raise ConfigError(f"{where}.{key}", f"{cls.__name__} has no such argument", nearest(key, known))
    from vistrain.config.builder import check_value  # networks load without OmegaConf, where nobody chooses operators

    checked = check_value(value, hints.get(key, Any), f"{where}.{key}")
    _refuse_meaningless(checked, key, parameters[key].default, f"{where}.{key}")
    return checked


def _refuse_meaningless(value: Any, key: str, usual: Any, where: str) -> None:
    """Refuse counts and sides below 1 (or 0, where that is the default or stands for none), and no shares.

    Raises:
        ConfigError: the value is no such number.
    """
    if isinstance(value, float) and key.endswith("drop") and not 0 <= value < 1:
        raise ConfigError(where, f"{value:g} is no share that is dropped", "give a number from 0 to below 1")
    if isinstance(value, float) and value < 0 and key not in OF_EITHER_SIGN:
        raise ConfigError(where, f"{value:g} is negative", "give a number of 0 or more")
    if isinstance(value, int) and not isinstance(value, bool) and not isinstance(usual, float):
        is_none = key in ZERO_FOR_NONE or (isinstance(usual, int) and usual <= 0)
        least = 0 if is_none else 1
        if value < least:
            raise ConfigError(where, f"{value} is too small", f"give a whole number of {least} or more")
