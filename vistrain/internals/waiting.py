"""Of the standard library: calls that cannot be told when to give up, such as looking up a host's name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["NoAnswer", "within"]

T = TypeVar("T")


class NoAnswer(TimeoutError):
    """A call took too long; it goes on, and nobody waits for it."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns, in a thread that is left behind if it takes too long.

    Raises:
        NoAnswer: it does.
        BaseException: what the call raises.
    """
    done: dict[str, Any] = {}

    def run() -> None:
        try:
            done["result"] = call()
        except BaseException as error:
            done["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in done:
        raise done["error"]
    if "result" not in done:
        raise NoAnswer(f"no answer within {seconds:g} seconds")
    result: T = done["result"]
    return result
