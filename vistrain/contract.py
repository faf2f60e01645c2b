"""What a base class promises and offers is written on it once, and a subclass that misspells it is told at once.

Two devices for the bases that users derive from (`Network`, `Task`, `DataModule` ...): a check of names, and
constructors that take their base's parameters without repeating them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from typing import Any

CLOSE = 0.86  # of difflib: `key_map` is near `key_maps`, `class_layer` near `class_layers`, `tile` near nothing
INHERITED = "base"  # `def __init__(self, own: int = 1, **base)`: the rest are the parameters of the base class


class Contract:
    """Base of classes whose public names are offers to subclasses: nearly one of them is a mistake, not a new name.

    A direct subclass is the contract; what it defines or annotates are the names. A class below it that defines a
    name very like one of these, and not it, cannot be made. Private names are free.

    Raises:
        TypeError: when such a class is made; it says which name is meant.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in (*vars(cls), *vars(cls).get("__annotations__", {})):
            refuse_misspelt(cls, name)


def refuse_misspelt(cls: type, name: str) -> None:
    """Refuse a name that is nearly, and not, one of the contract that a class stands under.

    Raises:
        TypeError: it is.
    """
    near = _near(_contract(cls), name)
    if near:
        raise TypeError(f"{cls.__qualname__}.{name}: did you mean {near!r}? ({_contract(cls).__name__} has that)")


@functools.cache
def _contract(cls: type) -> type:
    """The direct subclass of `Contract` or `GuardedContract` that a class is, or derives from."""
    return next((c for c in reversed(cls.__mro__) if issubclass(c, Contract) and c.__module__ != __name__), cls)


@functools.cache
def _near(contract: type, name: str) -> str:
    """The name of the contract that another one is nearly; empty if it is one, is private, or is like none."""
    offered = [n for n in (*vars(contract), *vars(contract).get("__annotations__", {})) if not n.startswith("_")]
    if name.startswith("_") or name in offered or any(name in vars(c) for c in contract.__mro__):
        return ""
    found = difflib.get_close_matches(name, offered, 1, CLOSE)
    return found[0] if found else ""


class GuardedContract(Contract):
    """A contract whose objects cannot be given such names either, for classes that say most of it in constructors.

    Raises:
        TypeError: when such a name is set.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_misspelt(type(self), name)
        super().__setattr__(name, value)


def constructor(cls: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Parameters of a constructor without `self`, and their type hints, with those that it takes as `**base`.

    `def __init__(self, own: int = 1, **base: Any)` takes all parameters of the next constructor in the order of
    inheritance, but for those that it has itself (under another default, perhaps) and those that the class names in
    `sets_itself`, which it passes on by itself (a collection of names, or a mapping with their values).

    Raises:
        ValueError: the class has no readable signature, as classes written in C.
        NameError: a hint does not resolve.
    """
    inspect.signature(cls)  # raises what classes without a signature raise
    owners = [c for c in cls.__mro__ if "__init__" in vars(c)]
    if owners[0] is object or not inspect.isfunction(vars(owners[0])["__init__"]) or "__signature__" in vars(cls):
        parameters = dict(inspect.signature(cls).parameters)
        return parameters, typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    return _merged(owners)


def _merged(owners: list[type]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    made = vars(owners[0])["__init__"]
    own = dict(list(inspect.signature(made).parameters.items())[1:])
    hints = typing.get_type_hints(made)
    rest = own.get(INHERITED)
    if rest is None or rest.kind is not rest.VAR_KEYWORD:
        return own, hints
    del own[INHERITED]
    hints.pop(INHERITED, None)
    inherited, inherited_hints = _merged(owners[1:])
    hidden = {*own, *getattr(owners[0], "sets_itself", ())}
    kept = {name: parameter for name, parameter in inherited.items() if name not in hidden}
    return {**kept, **own}, {**{n: h for n, h in inherited_hints.items() if n in kept or n == "return"}, **hints}
