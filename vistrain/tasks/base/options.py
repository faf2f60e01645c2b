"""What users may choose for a task by name: options of its predictor, and of its evaluation of files."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from vistrain.config.builder import check_value
from vistrain.errors import ConfigError


def checked(options: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task with the values that their hints want.

    Args:
        options: plain values by name.
        hints: of all options that the task has.

    Raises:
        ConfigError: an option is not of this task, or its value is of another type.
    """
    for name in options:
        if name not in hints:
            remedy = f"its options are {', '.join(map(_option, hints))}" if hints else ""
            raise ConfigError(_option(name), "means nothing for the task of this network", remedy)
    return {name: check_value(value, hints[name], _option(name)) for name, value in options.items()}


def overlap_of(tile: int | None, overlap: int | None) -> int:
    """The overlap of tiles that `--tile` and `--overlap` say, pixels: a quarter of the tile if none is given.

    Raises:
        ConfigError: they do not fit together.
    """
    if overlap is not None and tile is None:
        raise ConfigError("--overlap", "means nothing without tiles", "give --tile, too")
    if tile is not None and tile < 1:
        raise ConfigError("--tile", f"{tile} is too small", "a side in pixels")
    found = (tile or 0) // 4 if overlap is None else overlap
    if tile is not None and not 0 <= found < tile:
        raise ConfigError("--overlap", f"{overlap} with tiles of {tile}", "less than the tile's side")
    return found


def keyword_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Hints of the keyword-only parameters of a function, by name."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
