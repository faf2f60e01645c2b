"""Configs: YAML files, their bases and overrides are composed into one plain dict; `build` makes objects of its nodes.

Composing merges bases, files and overrides in this order and resolves `${key}` references last. It imports no torch.
"""

from __future__ import annotations

import logging
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vistrain import processes
from vistrain.config import index, values
from vistrain.config.builder import build
from vistrain.errors import ConfigError, first_line, nearest
from vistrain.internals.omegaconf import read_scalar, read_yaml, without_resolvers

__all__ = ["build", "compose", "locate", "merge", "parse_overrides", "read_file", "to_yaml", "without_pretrained"]

log = logging.getLogger(__name__)

SCHEME = "vistrain:"
# What a config may cost, far above any honest one; strangers' files are read, too.
MOST_BYTES = 4 * 2**20  # of a file
MOST_DEPTH = 50  # of values in values, and of bases on bases
MOST_NODES = 200_000  # of a file, aliases repeated
MOST_TEXT = 10_000_000  # characters of all values once references are resolved; a container counts for NODE_TEXT
NODE_TEXT = 100
NAMED_PARTS = ("attention", "module", "operator")  # mappings whose other keys are arguments of what `name` names


def compose(
    files: Iterable[str | Path],
    overrides: Iterable[str] = (),
    *,
    start: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    found: list[ConfigError] | None = None,
) -> dict[str, Any]:
    """One plain dict from files and overrides, its keys and types checked against the index.

    Args:
        files: paths, or shipped configs as `vistrain:det/name`; later ones win. A file's `base:` (an address or a list
            of them, relative to the file) comes before the file itself.
        overrides: `dotted.key=value`, the value in YAML.
        start: a composed config to begin with (of a run, of a checkpoint).
        changes: like a last file, as a mapping.
        found: if given, it gets all that is wrong with keys, types and values, and nothing of it is raised.

    Returns:
        Plain dicts, lists and scalars; every reference resolved; without `base`.

    Raises:
        ConfigError: a file cannot be read or parsed, bases form a circle, a reference leads nowhere or wants a
            resolver, a key or a type does not exist.
    """
    merged: Any = dict(start or {})
    known: dict[Path, dict[str, Any]] = {}
    dropped: list[str] = []
    for file in files:
        merged = merge(merged, _read(str(file), (), known, dropped), dropped=dropped)
    asked = parse_overrides(overrides)
    dropped += _dropped_by_types(merged, asked)
    merged = merge(merge(merged, asked, dropped=dropped), dict(changes or {}), dropped=dropped)
    config = _resolve(merged)
    if isinstance(config.get("metrics"), str):  # metrics=accuracy
        config["metrics"] = [config["metrics"]]
    wrong = False
    for problem in _problems(config):
        if found is None:
            raise problem
        found.append(problem)
        wrong = True
    if not wrong and processes.is_first():  # what a name that does not exist would have dropped, nobody wants to know
        for line in dropped:
            log.warning("%s - give those that the new one shall have", line)
    return config


def _problems(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong with a composed config: values first, since the index walks sections of the right shapes alone."""
    of_values = list(values.problems(config))
    yield from of_values
    misshapen = {error.where.partition("[")[0] for error in of_values}
    yield from index.problems({key: value for key, value in config.items() if key not in misshapen})


def _dropped_by_types(merged: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Another `type` on the command line takes the keys of the old class along; between files that is everyday."""
    for name, node in asked.items():
        there = merged.get(name)
        if not (isinstance(node, dict) and isinstance(there, dict) and "type" in node and "type" in there):
            continue
        lost = [key for key in there if key not in node]
        if lost and index.canonical(str(node["type"])) != index.canonical(str(there["type"])):
            yield f"{name}.type={node['type']} drops {name}.{f', {name}.'.join(lost)} of {there['type']}"


def merge(old: Any, new: Any, where: str = "", dropped: list[str] | None = None) -> Any:
    """`new` over `old`: mappings are merged, all else is replaced, and so is a node whose `type` changes.

    Another `name` takes along what was an argument of the old one: `args` of a backbone, unless the names are two
    weights of one architecture (`resnet50.tv_in1k`, `resnet50.a1_in1k`), and of operators all that stands beside it.

    Args:
        old: what stands there.
        new: what comes over it.
        where: dotted key, for messages.
        dropped: gets a line for each name that takes arguments along.

    Raises:
        ConfigError: a mapping would be merged into a list.
    """
    if isinstance(old, list) and old and isinstance(new, dict):
        raise ConfigError(where, "is a list and cannot be changed in parts", "give the whole list")
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "type" in old and "type" in new and index.canonical(str(old["type"])) != index.canonical(str(new["type"])):
        return new
    if "name" in old and "name" in new and _architecture(old) != _architecture(new):
        old = _without_arguments(old, new, where, [] if dropped is None else dropped)
    inner = {k: merge(old[k], v, f"{where}.{k}".lstrip("."), dropped) if k in old else v for k, v in new.items()}
    return {**old, **inner}


def _architecture(node: Mapping[str, Any]) -> str:
    return str(node["name"]).partition(".")[0]


def _without_arguments(old: dict[str, Any], new: Mapping[str, Any], where: str, dropped: list[str]) -> dict[str, Any]:
    """`old` without the arguments of what its `name` names, `new` naming another; see `merge`."""
    if where.rpartition(".")[2] in NAMED_PARTS:
        there, given = where, new
        kept, lost = {}, {key: value for key, value in old.items() if key != "name"}
    else:
        there, given = f"{where}.args", new.get("args") or {}
        kept, lost = {key: value for key, value in old.items() if key != "args"}, old.get("args") or {}
    if isinstance(lost, dict) and (unsaid := [key for key in lost if key not in given]):
        keys = f", {there}.".join(unsaid)
        dropped.append(f"{where}.name={new['name']} drops {there}.{keys} of {old['name']}")
    return kept


class _Dumper(yaml.SafeDumper):
    """YAML as OmegaConf reads it, where `1e-4` is a number; lists of scalars stand on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str, lambda d, s: d.represent_scalar("tag:yaml.org,2002:str", s, style="'" if re.match(r"[-+.\d]*\de", s) else None)
)
for _kind in (list, tuple):
    _Dumper.add_representer(
        _kind,
        lambda d, v: d.represent_sequence(
            "tag:yaml.org,2002:seq", v, flow_style=not any(isinstance(item, dict | list | tuple) for item in v)
        ),
    )


def to_yaml(config: Mapping[str, Any]) -> str:
    """A composed config as YAML; `compose` reads it back to the same dict."""
    return yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def locate(address: str, beside: Path | None = None) -> Path:
    """The file of an address: a path (relative to `beside`, or the working directory) or `vistrain:det/name`.

    Raises:
        ConfigError: there is no such file.
    """
    if address.startswith(SCHEME):
        name = address.removeprefix(SCHEME).removesuffix(".yaml")
        path = index.config_root() / f"{name}.yaml"
        if name.startswith("_base_/") and not path.is_file():
            # Bases lie with their task now; configs of before name the one folder of then.
            path = next(index.config_root().glob(f"*/{name}.yaml"), path)
        is_inside = not name.startswith("/") and ".." not in name.split("/")
        if not is_inside or not path.is_file():
            raise ConfigError(address, "no such config", nearest(name, _shipped()))
        return path
    path = (beside or Path()) / Path(address).expanduser()
    if not path.is_file():
        name = Path(address).with_suffix("").as_posix().removeprefix("configs/")
        remedy = f"write {SCHEME}{name}" if name in _shipped() else "`vistrain list configs` shows those shipped"
        raise ConfigError(address, "no such file", remedy)
    return path


def _shipped() -> list[str]:
    """The shipped configs, bases among them, as `vistrain:` names them."""
    root = index.config_root()
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def _read(
    address: str, parents: tuple[Path, ...], known: dict[Path, dict[str, Any]], dropped: list[str]
) -> dict[str, Any]:
    """A file over its bases, references unresolved.

    Args:
        address: see `locate`.
        parents: the files that led here.
        known: what was read already: bases may share bases, which are read once.
        dropped: see `merge`.
    """
    try:
        path = locate(address, parents[-1].parent if parents else None).resolve()
    except ConfigError as error:
        raise (
            ConfigError(f"{parents[-1]}: base {address}", error.problem, error.remedy) if parents else error
        ) from None
    if path in parents:
        raise ConfigError(str(parents[-1]), f"`base: {address}` closes a circle", "remove one of the bases")
    if len(parents) >= MOST_DEPTH:
        raise ConfigError(str(parents[0]), f"its bases stand on more than {MOST_DEPTH} others", "merge some of them")
    if path not in known:
        own = read_file(path)
        bases = own.pop("base", None)
        bases = [] if bases is None else [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(
                str(path), f"`base: {str(bases)[:60]}` is no address", "write `base: FILE`, or a list of files"
            )
        merged: dict[str, Any] = {}
        for base in bases:
            merged = merge(merged, _read(base, (*parents, path), known, dropped), dropped=dropped)
        known[path] = merge(merged, own, dropped=dropped)
    return known[path]


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in one file.

    Raises:
        ConfigError: it cannot be read, is not YAML, no mapping, or larger than any config.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(str(path), f"holds {path.stat().st_size / 2**20:.0f} MB", "a config is a short YAML file")
        loaded = read_yaml(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}", f"not YAML: {problem}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"cannot be read: {first_line(error)}") from None
    if loaded is not None and not isinstance(loaded, dict):
        kind = "list" if isinstance(loaded, list) else type(loaded).__name__
        raise ConfigError(str(path), f"holds a {kind}", "a config is a mapping: `section: ...`")
    _refuse_bombs(loaded, str(path))
    return loaded or {}


def _refuse_bombs(value: Any, where: str) -> None:
    """Refuse what aliases blow up, or nest without an end.

    Raises:
        ConfigError: it is deeper than `MOST_DEPTH`, or more than `MOST_NODES`.
    """
    sizes: dict[int, int] = {}

    def size(item: Any, depth: int) -> int:
        if not isinstance(item, dict | list):
            return 1
        if depth > MOST_DEPTH:
            raise ConfigError(where, f"values are nested more than {MOST_DEPTH} deep", "a config is flat")
        if id(item) not in sizes:  # aliases of one object are counted, not walked, again
            sizes[id(item)] = 1 + sum(size(i, depth + 1) for i in (item.values() if isinstance(item, dict) else item))
        return sizes[id(item)]

    if size(value, 0) > MOST_NODES:
        raise ConfigError(where, f"its aliases repeat more than {MOST_NODES} values", "write fewer")


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`dotted.key=value` as a mapping.

    Raises:
        ConfigError: one is no such change.
    """
    merged: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise ConfigError(
                item, "is not a change to the config", "write dotted.key=value, as in trainer.max_epochs=12"
            )
        part = _parse_value(key, text)
        for name in reversed(key.split(".")):
            part = {name: part}
        _refuse_bombs(part, key[:60])
        merged = merge(merged, part)
    return merged


def _parse_value(key: str, text: str) -> Any:
    """The value of a change: lists, mappings and quoted texts are YAML; all else is a number, null, true, false, or a
    text as it stands, whatever marks of YAML are in it (` #`, `: `, `&`, `*`, `!`)."""
    text = text.strip()
    if text == "~":
        raise ConfigError(key, "~ alone means nothing in YAML, and home to a shell", "write null, or the folder")
    try:
        if text[:1] in ("[", "{", "'", '"'):
            return read_yaml(text)
        value = read_scalar(text)
    except yaml.YAMLError as error:
        raise ConfigError(key, f"value is not YAML: {first_line(error)}", "quote it") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(key, f"value cannot be read: {first_line(error)}", "quote it, if it is a text") from None
    return text if isinstance(value, str) else value


def _resolve(merged: dict[str, Any]) -> dict[str, Any]:
    _refuse_long(merged)
    try:
        with without_resolvers():  # a stranger's config reads nothing of this machine
            resolved: Any = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        message, where = str(error).splitlines()[0], getattr(error, "full_key", None) or "config"
        if message.startswith("Missing mandatory value"):
            raise ConfigError(where, "must be given", f"add {where}=... or write it in a config") from None
        if lost := re.match(r"Interpolation key '([^']+)' not found", message):
            section = lost[1].partition(".")[0]
            why = f"; another `{section}.type` drops the keys of the one before" if "." in lost[1] else ""
            raise ConfigError(where, f"refers to {lost[1]}, which nothing sets", f"set {lost[1]}{why}") from None
        remedy = "only ${dotted.key} is resolved, no functions" if "Unsupported interpolation" in message else ""
        raise ConfigError(where, message, remedy) from None
    _refuse_objects(resolved, "")
    return typing.cast(dict[str, Any], _with_homes(resolved))


REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def _refuse_long(root: dict[str, Any]) -> None:
    """Refuse references whose values would fill the memory: twenty that stand for two of the next one each do.

    Raises:
        ConfigError: there are such, or references in references, of which nobody can say.
    """
    known: dict[str, int] = {}

    def length(value: Any, where: tuple[str, ...]) -> int:
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            total = NODE_TEXT + sum(length(item, (*where, str(key))) for key, item in items)
        elif isinstance(value, str) and "${" in value:
            if re.search(r"\$\{[^}]*\$\{", value):
                raise ConfigError(".".join(where), "holds a reference in a reference", "write the inner one out")
            total = len(value) + sum(of_reference(key, where) for key in REFERENCE.findall(value))
        else:
            return len(value) if isinstance(value, str) else NODE_TEXT
        if total > MOST_TEXT:
            raise ConfigError(
                ".".join(where) or "config", "its references stand for more than memory holds", "write fewer"
            )
        return total

    def of_reference(key: str, where: tuple[str, ...]) -> int:
        up = len(key) - len(key.lstrip("."))
        names = [*(where[: max(len(where) - up, 0)] if up else ()), *re.findall(r"[^.\[\]]+", key)]
        full = ".".join(names)
        if full not in known:
            known[full] = 0  # a circle is OmegaConf's to refuse
            target: Any = root
            for name in names:
                if isinstance(target, list):
                    target = target[int(name)] if name.isdigit() and int(name) < len(target) else None
                else:
                    target = target.get(name) if isinstance(target, dict) else None
            known[full] = length(target, tuple(names))
        return known[full]

    length(root, ())


def _with_homes(value: Any) -> Any:
    """`~/` and `~someone/` at the beginning of texts written out, as a shell does in words of its own alone."""
    if isinstance(value, dict):
        return {key: _with_homes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_homes(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and re.match(r"~[\w.-]*/", value) else value


def _refuse_objects(value: Any, where: str) -> None:
    """YAML tags can make bytes and paths, which neither a checkpoint nor a strict type can hold."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_objects(item, f"{where}.{key}".lstrip("."))
    elif value is not None and not isinstance(value, str | int | float):
        raise ConfigError(where, f"holds a {type(value).__name__}", "write plain YAML, without tags")


def without_pretrained(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose network starts without weights, since all of them are about to be loaded: backbones and teachers
    anywhere in it."""

    def plain(node: dict[str, Any]) -> dict[str, Any]:
        inner = {key: plain(value) if isinstance(value, dict) else value for key, value in node.items()}
        if isinstance(inner.get("backbone"), dict):
            inner["backbone"] = {**inner["backbone"], "pretrained": False}
        return {**inner, "pretrained": False} if "pretrained" in inner else inner

    return {**config, "model": plain(config["model"])} if "model" in config else config
