"""Which values of a timm model's own arguments mean something, by the defaults of its constructors.

timm checks none of them: a depth of a thousand million is built until the memory is full, a width of text ends in a
traceback, and heads that do not divide a width fail where the first image comes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

from vistrain.errors import ConfigError, shown

MOST = 2**16  # of a width, a depth, a side in pixels: what is larger does not fit into a memory
SHARES = ("drop",)  # in the names of arguments that are shares, 0..1
FRACTIONS = (
    "ratio",
    "rate",
    "scale",
    "factor",
    "drop",
    "eps",
)  # in those that may be no whole number, whatever they are


def refuse_values(defaults: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Refuse arguments that mean nothing: by the type, the sign and the size of what stands there by default.

    Args:
        defaults: argument -> its default; None, or no default, says nothing of the kind.
        args: of a config.

    Raises:
        ConfigError: at `args.KEY`, for the first that means nothing.
    """
    for key, value in args.items():
        usual = defaults.get(key)
        wanted = _wanted(key, value, usual)
        if wanted:
            like = "" if usual is None else f", such as its default, {shown(_plain(usual))}"
            raise ConfigError(f"args.{key}", f"{shown(value)} is not {wanted}", f"give {wanted}{like}")


def defaults_of(cls: type) -> dict[str, Any]:
    """Argument -> its default, of a model's constructor and those of its bases that it hands arguments on to."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
                found.setdefault(p.name, None if p.default is p.empty else p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _wanted(key: str, value: Any, usual: Any) -> str:
    """What would mean something in a value's place, after "is not"; empty: it does."""
    numbers, known = list(_numbers(value)), list(_numbers(usual))
    if not all(math.isfinite(n) for n in numbers):
        return "a finite number"
    if any(abs(n) > MOST for n in numbers):
        return f"a number up to {MOST}"
    if isinstance(usual, bool):
        return "" if isinstance(value, bool) else "true or false"
    if not known:
        return ""
    several = "whole numbers" if isinstance(usual, list | tuple) else "a whole number"
    whole = all(isinstance(n, int) for n in known) and not any(word in key for word in FRACTIONS)
    if not whole:
        several = "numbers" if isinstance(usual, list | tuple) else "a number"
    least = 1 if whole and min(known) > 0 else 0
    if any(word in key for word in SHARES) and not whole:
        return "" if numbers and not _others(value) and all(0 <= n <= 1 for n in numbers) else f"{several} of 0 to 1"
    bounded = f"{several} of {least} or more" if min(known) >= 0 else several
    plain = not _others(value) or _others(usual)  # some have null for stages that take no number
    right = bool(numbers) and plain and not (whole and any(isinstance(n, float) for n in numbers))
    return "" if right and (min(known) < 0 or min(numbers) >= least) else bounded


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a value, however deep in lists and mappings; true and false are none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _numbers(item)


def _others(value: Any) -> bool:
    """Whether there is anything but numbers in a value."""
    if isinstance(value, list | tuple):
        return any(map(_others, value))
    return not isinstance(value, int | float) or isinstance(value, bool)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
