"""What factors and other numbers of losses and of matching costs may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vistrain.errors import ConfigError


def refuse_negative(**weights: float | Sequence[float]) -> None:
    """Refuse factors, named as a config names them, with which a network would learn the opposite; and lists of zeros.

    Raises:
        ConfigError: naming the first that is below 0 or not finite, or all zeros.
    """
    for name, given in weights.items():
        values = list(given) if isinstance(given, Sequence) else [given]
        wrong = [value for value in values if not 0 <= value < math.inf]
        if wrong:
            raise ConfigError(name, f"{wrong[0]:g} teaches the opposite or nothing", "give a number of 0 or more")
        if isinstance(given, Sequence) and values and not any(values):
            raise ConfigError(name, "all are 0: nothing would be learned", "give one above 0 at least")


def refuse_no_share(**shares: float) -> None:
    """Refuse numbers, named as a config names them, that are no shares or probabilities.

    Raises:
        ConfigError: naming the first that is not in 0..1.
    """
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ConfigError(name, f"{value} is not in 0..1")


def refuse_no_exponent(**exponents: float) -> None:
    """Refuse exponents and constants, named as a config names them, with which a loss is not finite.

    Raises:
        ConfigError: naming the first that is below 0 or not finite.
    """
    for name, value in exponents.items():
        if not 0 <= value < math.inf:
            raise ConfigError(name, f"{value} is no number of 0 or more", "the loss would not be finite")


def refuse_all_zero(**weights: float) -> None:
    """Refuse the factors of a sum, as `refuse_negative` does, of which none is above 0.

    Raises:
        ConfigError: naming the first.
    """
    refuse_negative(**weights)
    if not any(weights.values()):
        names = list(weights)
        also = f", and so are {', '.join(names[1:])}" if names[1:] else ""
        raise ConfigError(names[0], f"is 0{also}: nothing would be learned", "give one above 0 at least")
