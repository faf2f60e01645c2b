"""The three errors that are the user's to mend; each ends a command in one line and exit code 2.

Anything else that escapes is a bug of vistrain: full traceback, exit code 1. The remedy of most is the nearest name.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


class VistrainError(Exception):
    """An error with a place, a problem and a remedy.

    Args:
        where: dotted config key, or the file, that is at fault.
        problem: what is wrong with it, in a few words.
        remedy: what to do about it (the nearest valid name, a command, a file to fetch); may be empty.
    """

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = str(where), problem, remedy
        super().__init__(f"{where}: {problem}" + (f" - {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[VistrainError], tuple[str, str, str]]:
        # Errors cross process boundaries (data workers); the default would replay the joined message alone.
        return type(self), (self.where, self.problem, self.remedy)


class ConfigError(VistrainError):
    """A key, a type or a combination in the config is wrong; `where` is its dotted key."""


class DataError(VistrainError):
    """A data file is missing or wrong; `where` is the file (and the item in it)."""


class WeightsError(VistrainError):
    """A checkpoint cannot be read, or does not fit the model; `where` is the file."""


def refuse_below(least: int | float, **values: int | float | None) -> None:
    """Refuse parameters, named as a config names them, that are too small; None is never.

    Raises:
        ConfigError: naming the first.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ConfigError(name, f"{value} is too small", f"use {least} or more")


def shown(value: Any) -> str:
    """A value as YAML writes it, cut where it is long."""
    names = {None: "null", True: "true", False: "false"}
    text = names[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def origin(error: BaseException) -> str:
    """The package whose code raised an error, such as `torch`; of what C raises, whose code called it."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


# What Python and torch say of their own functions, and what it means to one who wrote a value.
MEANT = (
    (r"zip\(\) argument", "lists of different lengths that belong together"),
    (r"isqrt\(\) argument", "a negative number where a square is needed"),
    (r"(division|modulo).* by zero|by zero", "a division by 0"),
    (r"Trying to create tensor with negative dimension|negative dimensions? ", "a size below 0"),
    (r"unsupported operand type|not supported between instances|not all arguments converted|can only concatenate|"
     r"can't multiply sequence", "a value of another kind than is computed with"),
    (r"object is not (iterable|subscriptable)|has no len\(\)", "one value where a list is needed"),
    (r"(list|tuple|string) index out of range|not enough values to unpack|too many values to unpack",
     "a list of another length than is needed"),
    (r"can't allocate memory|out of memory", "more memory than there is"),
)  # fmt: skip


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, on one line: its first one, or the name of its kind; of functions of Python's that nobody
    called by name, what they mean."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    meant = next((words for pattern, words in MEANT if lines and re.search(pattern, lines[0])), None)
    if meant is not None:
        return meant
    return (lines[0] if lines else type(error).__name__)[:most].rstrip(" .:")


def said_where(error: BaseException) -> str:
    """What an error of somebody's code says, on one line, with its kind, its file and its line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    return said if isinstance(error, SyntaxError) else said + place  # which names both itself


def to_blame(make: Callable[[Mapping[str, Any]], object], arguments: Mapping[str, Any], among: Iterable[str]) -> str:
    """The argument without which something can be made that cannot be made with it; empty: there is none.

    Args:
        make: called with all arguments but one at a time.
        arguments: with which it fails.
        among: names of those that may be to blame.
    """
    for name in among:
        try:
            make({key: value for key, value in arguments.items() if key != name})
        except Exception:  # it is not this one alone
            continue
        return name
    return ""


def nearest(
    name: str, known: Iterable[str], *, count: int = 1, cutoff: float = 0.6, otherwise: str | None = None
) -> str:
    """`did you mean 'x'?`, for the remedy of an error.

    Args:
        name: what was written.
        known: the names that exist.
        count: names to offer at the most.
        cutoff: how alike they must be, 0 to 1 (see `difflib.get_close_matches`).
        otherwise: said where nothing is near; None lists the names that exist (the first twelve).
    """
    names = sorted(known)
    wanted = str(name).lower()
    # By the whole name; for dotted names also by the last part alone.
    for part in (str.lower, lambda n: re.split(r"[./]", n.lower())[-1]):
        folded = {part(n): n for n in reversed(names)}
        near = difflib.get_close_matches(part(wanted), folded, count, cutoff)
        if near:
            return f"did you mean {' or '.join(repr(folded[n]) for n in near)}?"
    if otherwise is not None:
        return otherwise
    listed = ", ".join(names[:12])
    return f"there are: {listed}{', ...' if len(names) > 12 else ''}" if names else ""
