"""Building: a node of a composed config becomes an object, strictly, by the signature of the class that it names.

Each key, each value and each `type` is checked before the class is called. Torch is imported only by what is named.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vistrain.config import index
from vistrain.contract import constructor
from vistrain.errors import ConfigError, VistrainError, first_line, nearest, origin, shown, to_blame
from vistrain.structures import Channels, Factory, LabelSpace

ALLOWED_PACKAGES = frozenset({"vistrain", "torch", "torchvision", "timm", "lightning"})
FACTS = (LabelSpace, Channels)  # the data says these, never a config
# What torch, called in C from a constructor of ours, and arithmetic raise over values that mean nothing.
OF_VALUES = (ValueError, RuntimeError, ArithmeticError, AssertionError, MemoryError)


def build(
    node: Any,
    expected: Any,
    facts: Mapping[Any, object] | None = None,
    where: str = "model",
    *,
    allow: Collection[str] = (),
    given: Mapping[str, object] | None = None,
) -> Any:
    """Build a node of a config, the nodes in it first.

    Args:
        node: a mapping with `type` (may be left out where `expected` is one of our classes) and constructor arguments.
        expected: class that the result must be of; or `Factory[class]`, for a checked but unbuilt part.
        facts: what the data says, by annotation (`{LabelSpace: ..., Channels: 3}`), for constructors that annotate a
            parameter so.
        where: dotted key of the node, for messages.
        allow: packages beyond torch, torchvision, timm and lightning whose classes may be named.
        given: arguments that the caller has already built; the config may not write them.

    Raises:
        ConfigError: a key or type is unknown, forbidden, missing, or a value is of the wrong type.
    """
    builder = _Builder(dict(facts or {}), ALLOWED_PACKAGES | set(allow))
    if not isinstance(node, dict):
        raise ConfigError(where, f"{node!r} is not a mapping", "write `type: ...` and its arguments")
    if typing.get_origin(expected) is Factory:
        return builder.factory(node, typing.get_args(expected), where)
    return builder.part(node, (expected,), where, given or {})


def class_named(name: str, expected: type, where: str, *, allow: Collection[str] = ()) -> type:
    """The class that a `type` names, unbuilt.

    Args:
        name, expected, where, allow: as for `build`.

    Raises:
        ConfigError: there is no such class, or it is not an `expected`.
    """
    return _Builder({}, ALLOWED_PACKAGES | set(allow)).class_of({"type": name}, (expected,), where)


def check_plain(config: Mapping[str, Any]) -> None:
    """Check the values of a composed config whose types the index names in Python's own words; imports no torch.

    Raises:
        ConfigError: at its dotted key, for the first value that is of another type.
    """
    for node in index.walk(config):
        for key, value in node.value.items():
            hint = _plain(node.entry["parameters"].get(key, {}).get("hint", ""))
            if hint is not None:
                check_value(value, hint, f"{node.where}.{key}")


def _plain(hint: str) -> Any:
    """A type hint of the index; None where it names a class of ours, or an alias."""
    known = {"Any": Any, "Literal": typing.Literal, "Sequence": Sequence, "Mapping": Mapping}
    builtins = {t.__name__: t for t in (int, float, bool, str, tuple, list, dict, set)}
    try:
        return eval(hint, {"__builtins__": {}}, {**known, **builtins}) if hint else None
    except (NameError, SyntaxError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class _Builder:
    facts: dict[Any, object]
    allowed: frozenset[str]

    def part(self, node: dict[str, Any], expected: tuple[type, ...], where: str, given: Mapping[str, object]) -> Any:
        cls = self.class_of(node, expected, where)
        arguments = self.arguments(cls, node, where, given)
        own = {key: value for key, value in arguments.items() if key not in given}
        with refusals(cls, where, own, lambda rest: _made(cls, **{**rest, **given})):
            return _made(cls, **arguments)

    def factory(self, node: dict[str, Any], expected: tuple[type, ...], where: str) -> Factory[Any]:
        cls = self.class_of(node, expected, where)
        written = tuple(key for key in node if key != "type")
        return _PartFactory(cls, where, written, functools.partial(self.arguments, cls, node, where, None))

    def class_of(self, node: dict[str, Any], expected: tuple[type, ...], where: str) -> type:
        name = node.get("type")
        if name is None:
            ours = [c for c in expected if _is_ours(c) and "." in where]  # a section always names its class
            if not ours:
                raise ConfigError(where, "`type` is missing", f"it names a {_names(expected)}")
            if inspect.isabstract(ours[0]):
                kinds = ", ".join(_kinds_of(ours[0]))
                remedy = f"one of {kinds}" if kinds else f"it names a {ours[0].__name__}"
                raise ConfigError(f"{where}.type", "is missing", remedy)
            return ours[0]
        if not isinstance(name, str):
            raise ConfigError(f"{where}.type", f"{name!r} is not a name")
        entry = index.entry_of(name, where)
        found = self.import_class(entry["path"] if entry else name, f"{where}.type")
        if not issubclass(found, expected):
            raise ConfigError(f"{where}.type", f"{name} is not a {_names(expected)}")
        return found

    def import_class(self, path: str, where: str) -> type:
        """The class at a dotted path, if it is of an allowed package itself: modules expose what they import, too."""
        parts = path.split(".")
        if any(not p.isidentifier() or p.startswith("_") for p in parts):
            raise ConfigError(where, f"{path!r} is not the path of a public class")
        if parts[0] not in self.allowed:
            raise ConfigError(where, f"classes of {parts[0]!r} are not built", f"--allow {parts[0]} if you trust it")
        found: Any = None
        for i, part in enumerate(parts):
            if i and hasattr(found, part):
                found = getattr(found, part)
            else:
                prefix = ".".join(parts[: i + 1])
                try:
                    found = importlib.import_module(prefix)
                except ModuleNotFoundError as error:
                    if error.name and not prefix.startswith(error.name):
                        raise
                    if not i:
                        remedy = "install it, set PYTHONPATH, or run where it lies"
                        raise ConfigError(where, f"package {part!r} is not found", remedy) from None
                    raise ConfigError(where, f"no class {path!r}", nearest(part, dir(found))) from None
            owner = found.__name__ if isinstance(found, types.ModuleType) else getattr(found, "__module__", "")
            if str(owner).partition(".")[0] not in self.allowed:
                raise ConfigError(
                    where, f"{path!r} is not a class of {parts[0]}, it is {owner}'s", "name it by its own path"
                )
        if not isinstance(found, type):
            raise ConfigError(where, f"{path!r} is not a class")
        return found

    def arguments(
        self, cls: type, node: dict[str, Any], where: str, given: Mapping[str, object] | None
    ) -> dict[str, Any]:
        """Checked and built arguments of a class; `given` is None for a factory, whose owner brings what is missing."""
        parameters, hints = signature(cls)
        keyword = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        facts = {n: f for n in keyword for f in FACTS if f in _options(hints.get(n))}
        arguments = {n: self.facts[f] for n, f in facts.items() if f in self.facts}
        arguments.update(given or {})
        for key, value in node.items():
            path = f"{where}.{key}"
            if key == "type":
                continue
            if key in facts:
                raise ConfigError(path, "is not set by hand", "it comes from the data set; remove the key")
            if key in (given or {}):
                raise ConfigError(path, "is not set here", "it is built from its own section")
            if key not in keyword and not is_open:
                raise index.unknown_key(where, str(key), keyword, _is_ours(cls))
            arguments[key] = self.value(value, hints.get(key, Any), path)
            if key in keyword and _is_layer(cls):
                _refuse_negative(arguments[key], keyword[key].default, path)
        for name, parameter in keyword.items():
            if given is not None and name not in arguments and parameter.default is parameter.empty:
                remedy = "the data set must say it" if name in facts else f"{cls.__name__} needs it"
                raise ConfigError(f"{where}.{name}", "is missing", remedy)
        return arguments

    def value(self, value: Any, hint: Any, where: str) -> Any:
        """A plain value checked against a type hint; mappings that stand for parts are built."""
        options = _options(hint)
        if isinstance(value, dict):
            for option in options:
                if typing.get_origin(option) is Factory:
                    return self.factory(value, typing.get_args(option), where)
            expected = tuple(o for o in options if _is_part(o))
            if expected and ("type" in value or any(map(_is_ours, expected))):
                return self.part(value, expected, where, {})
        for option in options:
            origin, inner = typing.get_origin(option), typing.get_args(option)
            if not isinstance(origin, type) or not any(map(_holds_parts, inner)):
                continue
            if isinstance(value, dict) and issubclass(dict, origin):
                return {k: self.value(v, inner[1], f"{where}.{k}") for k, v in value.items()}
            if isinstance(value, list) and (issubclass(list, origin) or origin is tuple):
                built = [self.value(v, inner[0], f"{where}[{i}]") for i, v in enumerate(value)]
                return tuple(built) if origin is tuple else built
        return check_value(value, hint, where)


class _PartFactory(Factory[Any]):
    """A checked, unbuilt part. Parts inside it are built anew at each call, so that two calls share no weights."""

    def __init__(
        self, target: type, where: str, written: Collection[str], rebuild: Callable[[], dict[str, Any]]
    ) -> None:
        super().__init__(target, **rebuild())
        self.where, self.written, self.rebuild = where, written, rebuild

    def __call__(self, *args: Any, **facts: Any) -> Any:
        arguments = self.rebuild()
        parameters = signature(self.target)[0] if isinstance(self.target, type) else {}
        needed = {key for key, p in parameters.items() if p.default is p.empty}
        twice = [key for key in self.written if key in facts and key in needed]  # it would be lost without a word
        if twice:
            remedy = f"it follows from what {self.target.__name__} stands in; remove the key"
            raise ConfigError(f"{self.where}.{twice[0]}", "is not set by hand", remedy)
        own = {key: value for key, value in arguments.items() if key not in facts}
        with refusals(self.target, self.where, own, lambda rest: _made(self.target, *args, **{**rest, **facts})):
            return _made(self.target, *args, **{**arguments, **facts})


@contextmanager
def refusals(
    cls: Callable[..., Any],
    where: str,
    arguments: Collection[str],
    make: Callable[[Mapping[str, Any]], object] | None = None,
) -> Iterator[None]:
    """Inside, a class is called; what it refuses becomes an error of the node, or of the one key to blame, in one line.

    What a value leads to lies in other libraries, or in arithmetic: they raise, or ours raises `ValueError`. All else
    is a bug and keeps its traceback, and so does all that is wrong in a class of a package that had to be allowed.

    Args:
        cls: that is called.
        where: dotted key of its node.
        arguments: names of those that the config gives; a mapping where their values are known.
        make: calls it with other ones than these, to find which is to blame; asked of parts of networks.

    Raises:
        ConfigError: it refused them.
    """
    try:
        yield
    except VistrainError as error:
        # A constructor knows its parameter's name, not where in the config it stands.
        if re.split(r"[.\[]", error.where)[0] in arguments:
            raise type(error)(f"{where}.{error.where}", error.problem, error.remedy) from error
        if "`pretrained`" in error.remedy:  # of weights, whose place is a file or an address
            raise type(error)(error.where, error.problem, error.remedy.replace("`pre", f"`{where}.pre")) from error
        raise
    except ImportError:
        raise
    except Exception as error:
        kind = (
            ""
            if isinstance(error, ValueError | RuntimeError | ArithmeticError | TypeError | LookupError)
            else f"{type(error).__name__}: "
        )
        by_ours = origin(error) == "vistrain"
        if cls.__module__.partition(".")[0] not in ALLOWED_PACKAGES or (by_ours and not isinstance(error, OF_VALUES)):
            error.add_note(f"while building {where} ({cls.__module__}.{cls.__qualname__})")
            raise
        key = _to_blame(cls, arguments, make)
        if key and isinstance(arguments, Mapping):
            value, place = arguments[key], f"{where}.{key}"
            if isinstance(value, Mapping) and len(value) == 1:  # what a part hands on: the one key of it
                ((inner, value),) = value.items()
                place = f"{place}.{inner}"
            problem = f"{cls.__name__} cannot be made with {shown(value)}: {kind}{first_line(error)}"
            raise ConfigError(place, problem, _allowed(cls, where, key)) from error
        problem = f"{cls.__name__} cannot be made of these values: {kind}{first_line(error)}"
        raise ConfigError(where, problem, f"`vistrain explain {where}` tells what it takes") from error


def _made(cls: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """An object of a class. A part of a network with a width of zero would fail only where images first meet it.

    Raises:
        ValueError: a parameter of it has no elements.
    """
    torch = sys.modules.get("torch")
    if torch is None or not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        return cls(*args, **arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")  # it is refused below
        made = cls(*args, **arguments)
    for name, tensor in made.named_parameters():
        if not torch.nn.parameter.is_lazy(tensor) and not tensor.numel():
            raise ValueError(f"a width in it is 0: its {name} has no elements, {list(tensor.shape)}")
    return made


def _is_layer(cls: type) -> bool:
    """Whether a class is a part of networks of ours; torch is loaded where one is."""
    torch = sys.modules.get("torch")
    return _is_ours(cls) and torch is not None and issubclass(cls, torch.nn.Module)


def _refuse_negative(value: Any, usual: Any, where: str) -> None:
    """Refuse a negative count or side.

    Raises:
        ConfigError: it is one, where the default is none.
    """
    if type(value) is int and type(usual) is int and value < 0 <= usual:
        raise ConfigError(where, f"{value} is negative", f"give a whole number such as its default, {usual}")


def _to_blame(
    cls: Callable[..., Any], arguments: Collection[str], make: Callable[[Mapping[str, Any]], object] | None
) -> str:
    """The key of a network's part without which it can be made; empty: not one alone, or it is no such part."""
    torch = sys.modules.get("torch")
    if make is None or torch is None or not isinstance(arguments, Mapping):
        return ""
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        return ""
    if cls.__module__.partition(".")[0] not in ALLOWED_PACKAGES:
        return ""
    with torch.device("meta"):  # sizes alone
        return to_blame(make, arguments, list(arguments))


def _allowed(cls: Callable[..., Any], where: str, key: str) -> str:
    """What may stand at a key, in words."""
    parameter = signature(cls)[0].get(key) if isinstance(cls, type) else None
    known = parameter is not None and isinstance(parameter.default, int | float | str | tuple | list | None)
    default = f"its default, {shown(parameter.default)}, can be; " if known and parameter is not None else ""
    return f"{default}`vistrain explain {where}.{key}` tells what it takes"


def signature(cls: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Constructor parameters of a class, without `self`, and their type hints.

    Parameters that a class takes as `**base` are among them (see `vistrain.contract.constructor`). Hints of foreign
    classes that cannot be resolved are left out; ours must resolve.
    """
    try:
        return constructor(cls)
    except ValueError:  # classes written in C have no signature
        return {}, {}
    except (NameError, TypeError, AttributeError):
        if _is_ours(cls):
            raise
        return dict(inspect.signature(cls).parameters), {}


def check_value(value: Any, hint: Any, where: str) -> Any:
    """A plain value of a config as its hint wants it: a list becomes a tuple, an int a float, no more.

    Raises:
        ConfigError: the value is of another type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    if hint is Any:
        return value
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return value  # a hint without a meaning for plain values
    except PydanticUserError:  # a TypedDict or dataclass brings its own settings
        adapter = TypeAdapter(hint)
    try:
        # JSON mode is strict about scalars, and lets lists, which are all that YAML has, be tuples and sets.
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":  # names of files may hold bytes of any encoding
            raise ConfigError(where, f"{shown(value)} is not UTF-8", "rename the file or the folder") from None
        short = [e["loc"] for e in errors if e["type"] == "missing"]
        if short:  # of a tuple
            place = "".join(f"[{p}]" for p in short[-1][:-1] if isinstance(p, int))
            raise ConfigError(f"{where}{place}", f"{shown(value)} is not {int(short[-1][-1]) + 1} values") from None
        deepest = max(sum(isinstance(p, int) for p in e["loc"]) for e in errors)
        found = [e for e in errors if sum(isinstance(p, int) for p in e["loc"]) == deepest]
        place = "".join(f"[{p}]" for p in found[0]["loc"] if isinstance(p, int))
        wants = dict.fromkeys(_wanted(e, hint) for e in found)
        raise ConfigError(f"{where}{place}", f"{shown(found[0]['input'])} is not {' or '.join(wants)}") from None


# What pydantic calls a mistake -> what was wanted; its own words are about its own types.
WANTED = {
    "bool_type": "true or false", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "string_type": "a text", "none_required": "null", "list_type": "a list",
    "tuple_type": "a list", "dict_type": "a mapping", "mapping_type": "a mapping", "bytes_type": "a text",
    "set_type": "a list", "sequence_type": "a list", "dataclass_type": "a mapping", "finite_number": "a finite number",
}  # fmt: skip


def _wanted(error: Any, hint: Any) -> str:
    """What one of pydantic's errors says was wanted, after "is not"."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in WANTED:
        return WANTED[kind]
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind in ("too_long", "too_short"):
        return f"{context.get('max_length', context.get('min_length'))} values"
    if kind.startswith(("is_instance", "is_subclass", "needs_python", "callable")):
        return f"a mapping that describes a {_names([o for o in _options(hint) if _is_part(o)]) or hint}"
    message: str = error["msg"]
    return message[:1].lower() + message[1:]


def _options(hint: Any) -> list[Any]:
    """The members of a union; a list of one for everything else."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for argument in typing.get_args(hint) for option in _options(argument)]
    return [hint]


def _is_part(option: Any) -> bool:
    """Whether a hint is a class that a `type` node could be built for, not a container or scalar."""
    if not isinstance(option, type) or typing.get_origin(option) is not None or issubclass(option, dict):
        return False
    return option.__module__.partition(".")[0] not in sys.stdlib_module_names


def _holds_parts(hint: Any) -> bool:
    return any(
        _is_part(o) or typing.get_origin(o) is Factory or any(map(_holds_parts, typing.get_args(o)))
        for o in _options(hint)
    )


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "vistrain"


def _kinds_of(cls: type) -> list[str]:
    """The names of what an abstract class may be, of the modules that are loaded, its own among them."""
    names = []
    for name, entry in index.load("classes").items():
        module, _, own = entry["path"].rpartition(".")
        found = vars(sys.modules[module]).get(own) if module in sys.modules else None
        if isinstance(found, type) and issubclass(found, cls) and not inspect.isabstract(found):
            names.append(name)
    return names


def _names(classes: Collection[type]) -> str:
    return " or ".join(c.__name__ for c in classes)
