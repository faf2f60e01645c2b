"""Single values of COCO's files: which are taken, and how a message shows them."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

MOST_PIXELS = 2**31  # of a listed image: run lengths are counted in 32 bits


def is_id(value: Any) -> bool:
    """Whether a value can be an id: an integer of 64 bits."""
    return (type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))) and _is_short(value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not an integer of more than 64 bits, which no library takes."""
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, Integral):
        return not isinstance(value, bool) and _is_short(value)
    return isinstance(value, Real) and math.isfinite(value)


def _is_short(value: Any) -> bool:
    return bool(-(2**63) <= value < 2**63)


def crowd_flag(value: Any) -> int | None:
    """`iscrowd` as 0 or 1: some programs write it as text, as true and false, or null; None for any other value."""
    if value is None:
        return 0
    known = {"0": 0, "1": 1, "false": 0, "true": 1, "": 0}
    if isinstance(value, str):
        return known.get(value.strip().lower())
    return int(value == 1) if isinstance(value, Real) and value in (0, 1) else None


def shown(value: Any) -> str:
    """A value of a file in a message: on one line, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
