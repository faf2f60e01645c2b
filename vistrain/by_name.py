"""Parts of host networks by name, with their arguments checked: attention operators, modules of convolutional ones."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from vistrain.contract import constructor
from vistrain.errors import ConfigError, first_line, nearest, said_where, shown, to_blame

OF_EITHER_SIGN = ("shift",)  # numbers that are added
ZERO_FOR_NONE = ("side_dwconv",)  # counts of which 0 leaves something out
Part = TypeVar("Part")
Choice = str | type | Mapping[str, Any]  # a mapping: `name`, and the part's arguments


@dataclass(frozen=True)
class Chosen(Generic[Part]):
    """A part and what a user says of its arguments, checked.

    Attributes:
        cls: of the part.
        arguments: of its constructor.
        places: argument -> the dotted key that it was written at, for messages.
    """

    cls: type[Part]
    arguments: Mapping[str, Any]
    places: Mapping[str, str] = field(default_factory=dict)

    def made(self, facts: Mapping[str, Any], where: str) -> Part:
        """The part for one block of a host.

        Args:
            facts: what the host gives; the constructor gets those that it takes.
            where: dotted key, for messages.

        Raises:
            ConfigError: it cannot be made so.
        """
        taken = constructor(self.cls)[0]
        given = {name: value for name, value in facts.items() if name in taken}
        try:
            return self.cls(**{**given, **self.arguments})
        except ConfigError as error:
            # What the host gave is the host's to say: whoever builds it finds the argument that is to blame.
            place = self.places.get(error.where, error.where or where)
            raise ConfigError(place, f"{self.cls.__name__}: {error.problem}", error.remedy) from error
        except Exception as error:  # of a part that somebody writes, too
            with torch.device("meta"):
                name = to_blame(lambda rest: self.cls(**{**given, **rest}), self.arguments, self.arguments)
            if not name:
                raise ValueError(f"{self.cls.__name__} cannot be made: {said_where(error)}") from error
            problem = f"{self.cls.__name__} cannot be made with {self.arguments[name]!r}: {first_line(error)}"
            remedy = f"leave it out ({taken[name].default!r}), or give a value of that kind"
            raise ConfigError(self.places.get(name, where), problem, remedy) from error


@dataclass(frozen=True)
class NamedParts(Generic[Part]):
    """The parts that stand in a room, one or several in a file, and how they are called.

    Attributes:
        room: package whose `__all__` has them.
        base: of their classes.
        what: one of them, in words.
        listed: the word of `vistrain list` that lists them.
        facts: the parameters of a class that the host gives, and nobody else.
        suffix: what short names leave out of a class.
    """

    room: str
    base: type[Part]
    what: str
    listed: str
    facts: Callable[[type[Part]], Collection[str]]
    suffix: str = ""

    def classes(self) -> dict[str, type[Part]]:
        """All of the room by class name."""
        base: Any = self.base  # a class, which can be hashed, as mypy does not see
        return _classes(self.room, base)

    def names(self) -> dict[str, type[Part]]:
        """What a part may be called -> its class.

        Its class (`ShiftedWindowAttention`), the same in short (`shifted_window`), and its file (`window`): of a file
        with several the one that is called like it, else the first.
        """
        return _names(self)

    def short_name(self, cls: type) -> str:
        """`ShiftedWindowAttention` -> `shifted_window`."""
        stem = cls.__name__.removesuffix(self.suffix) or cls.__name__
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", stem).lower()

    def choose(
        self,
        chosen: Choice | Sequence[Choice | None] | None,
        arguments: Mapping[str, Any] | None,
        stages: int,
        where: str,
    ) -> list[Chosen[Part] | None]:
        """The part of each stage.

        Args:
            chosen: one for all stages, or one for each: a name (see `names`), a class, or a mapping with `name` and
                arguments of that part; None for none.
            arguments: of every part.
            stages: how many there are.
            where: dotted key, for messages.

        Raises:
            ConfigError: a name or an argument does not exist, or there are not as many as stages.
        """
        if arguments is not None and not isinstance(arguments, Mapping):
            remedy = f"write a mapping of the {self._word}'s arguments, {{name: value}}"
            raise ConfigError(f"{where}_args", f"{shown(arguments)} is not a mapping", remedy)
        if chosen is None or isinstance(chosen, str | type | Mapping):
            return [self._one(chosen, arguments or {}, where)] * stages
        if not isinstance(chosen, Sequence):
            raise ConfigError(where, f"{shown(chosen)} names no {self._word}", "write a name, or one for each stage")
        if len(chosen) != stages:
            problem = f"{len(chosen)} {self._word}s for {stages} stages"
            raise ConfigError(where, problem, "write one, or one for each stage")
        return [self._one(choice, arguments or {}, f"{where}[{i}]") for i, choice in enumerate(chosen)]

    @property
    def _word(self) -> str:
        return self.what.rpartition(" ")[2]

    def _one(self, choice: Choice | None, arguments: Mapping[str, Any], where: str) -> Chosen[Part] | None:
        own = {}
        if choice is None:
            return None
        if isinstance(choice, Mapping):
            own = {str(key): value for key, value in choice.items() if key != "name"}
            if "name" not in choice:
                remedy = f"it names the {self._word}; the other keys are its arguments"
                raise ConfigError(where, "`name` is missing", remedy)
            choice = choice["name"]
        if isinstance(choice, str):
            if choice not in self.names():
                raise ConfigError(where, f"no {self.what} {choice!r}", self._instead_of(choice))
            cls = self.names()[choice]
        elif isinstance(choice, type) and issubclass(choice, self.base):
            cls = choice
        else:
            raise ConfigError(where, f"{shown(choice)} is no {self.what}", f"see `vistrain list {self.listed}`")
        places = {key: f"{where.partition('[')[0]}_args" for key in arguments} | dict.fromkeys(own, where)
        checked = {k: self._checked(cls, k, v, places[k]) for k, v in {**arguments, **own}.items()}
        return Chosen(cls, checked, {key: f"{place}.{key}" for key, place in places.items()})

    def _instead_of(self, written: str) -> str:
        """What to do about a name that is none."""
        see = f"`vistrain list {self.listed}` shows all"
        if "." in written:
            return f"a class by its path stands here in Python alone, or in a backbone of yours: docs/adding.md; {see}"
        room = importlib.import_module(self.room)
        if any(file.name == written for file in pkgutil.iter_modules(room.__path__)):
            return f"{self.room.replace('.', '/')}/{written}.py has no class below {self.base.__name__} with a formula"
        elsewhere = _listed_elsewhere(written, self.listed)
        if elsewhere:
            return f"it is one of `vistrain list {elsewhere}`, which stand in other hosts; {see}"
        near = nearest(written, self._offered(written), count=2, otherwise="")
        return f"{near} {see}" if near else see

    def _offered(self, written: str) -> list[str]:
        """The names in the form of what was written: classes, or short names and files."""
        return [name for name in self.names() if (name in self.classes()) == written[:1].isupper()]

    def _checked(self, cls: type[Part], key: str, value: Any, where: str) -> Any:
        parameters, hints = constructor(cls)
        facts = self.facts(cls)
        if key in facts:
            raise ConfigError(f"{where}.{key}", "is not set by hand", "the network gives it; remove the key")
        if key not in parameters:
            known = [name for name in parameters if name not in facts]
            raise ConfigError(f"{where}.{key}", f"{cls.__name__} has no such argument", nearest(key, known))
        from vistrain.config.builder import check_value  # networks load without OmegaConf, where nobody chooses parts

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


def gathered(room: str, path: Iterable[str], is_part: Callable[[Any], bool]) -> dict[str, type]:
    """The parts in the files of a room, by class name.

    Args:
        room: package.
        path: its `__path__`.
        is_part: whether something that a file defines is one of them.

    Raises:
        ConfigError: a file cannot be imported.
    """
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(path):
        try:
            module = importlib.import_module(f"{room}.{file.name}")
        except Exception as error:
            place = f"{room.replace('.', '/')}/{file.name}.py"
            remedy = "mend it, or take it out: all files of the room are imported with it"
            raise ConfigError(place, f"cannot be imported: {said_where(error)}", remedy) from error
        of_file = {name: value for name, value in vars(module).items() if is_part(value)}
        found |= {name: value for name, value in of_file.items() if value.__module__ == module.__name__}
    return found


def _listed_elsewhere(written: str, listed: str) -> str:
    """The word of `vistrain list` that lists a part of another kind than `listed`; empty: none does."""
    from vistrain.config import index  # as above

    for entry in index.load("classes").values():
        said = entry.get("operator") or entry.get("module")
        if said and entry["kind"] != listed and written in (*said["names"], entry["path"].rpartition(".")[2]):
            return str(entry["kind"])
    return ""


@functools.cache
def _classes(room: str, base: Any) -> dict[str, Any]:
    module = importlib.import_module(room)
    found = {name: vars(module)[name] for name in sorted(module.__all__)}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, base)}


@functools.cache
def _names(parts: NamedParts[Part]) -> dict[str, type[Part]]:
    short = {parts.short_name(cls): cls for cls in parts.classes().values()}
    files: dict[str, type[Part]] = {}
    for cls in sorted(parts.classes().values(), key=_place):
        files.setdefault(cls.__module__.rpartition(".")[2], cls)
    return {**files, **short, **parts.classes()}


def _place(cls: type) -> tuple[str, int]:
    """Where a class stands: its file, and its place in it."""
    return cls.__module__, list(vars(importlib.import_module(cls.__module__))).index(cls.__name__)
