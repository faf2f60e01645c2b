"""Configs: YAML files, their bases and overrides are composed into one plain dict; `build` makes objects of its nodes.

Composing merges bases, files and overrides in this order and resolves `${key}` references last. It imports no torch.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vistrain.config import index
from vistrain.config.builder import build
from vistrain.errors import ConfigError, nearest
from vistrain.internals.omegaconf import without_resolvers

__all__ = ["build", "compose", "locate", "merge", "to_yaml", "without_pretrained"]

SCHEME = "vistrain:"


def compose(
    files: Iterable[str | Path],
    overrides: Iterable[str] = (),
    *,
    start: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One plain dict from files and overrides, its keys and types checked against the index.

    Args:
        files: paths, or shipped configs as `vistrain:det/name`; later ones win. A file's `base:` (an address or a list
            of them, relative to the file) comes before the file itself.
        overrides: `dotted.key=value`, the value in YAML.
        start: a composed config to begin with (of a run, of a checkpoint).
        changes: like a last file, as a mapping.

    Returns:
        Plain dicts, lists and scalars; every reference resolved; without `base`.

    Raises:
        ConfigError: a file cannot be read or parsed, bases form a circle, a reference leads nowhere or wants a
            resolver, a key or a type does not exist.
    """
    merged: Any = dict(start or {})
    for part in (*(_read(str(f), ()) for f in files), _parse_overrides(overrides), dict(changes or {})):
        merged = merge(merged, part)
    config = _resolve(merged)
    index.check(config)
    return config


def merge(old: Any, new: Any, where: str = "") -> Any:
    """`new` over `old`: mappings are merged, all else is replaced, and so is a node whose `type` changes.

    Raises:
        ConfigError: a mapping would be merged into a list.
    """
    if isinstance(old, list) and old and isinstance(new, dict):
        raise ConfigError(where, "is a list and cannot be changed in parts", "give the whole list")
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "type" in old and "type" in new and index.canonical(str(old["type"])) != index.canonical(str(new["type"])):
        return new
    return {**old, **{k: merge(old[k], v, f"{where}.{k}".lstrip(".")) if k in old else v for k, v in new.items()}}


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
    path = (beside or Path()) / address
    if not path.is_file():
        name = Path(address).with_suffix("").as_posix().removeprefix("configs/")
        remedy = f"write {SCHEME}{name}" if name in _shipped() else "`vistrain list configs` shows those shipped"
        raise ConfigError(address, "no such file", remedy)
    return path


def _shipped() -> list[str]:
    """The shipped configs, bases among them, as `vistrain:` names them."""
    root = index.config_root()
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def _read(address: str, parents: tuple[Path, ...]) -> dict[str, Any]:
    """A file over its bases, references unresolved; `parents` are the files that led here."""
    try:
        path = locate(address, parents[-1].parent if parents else None).resolve()
    except ConfigError as error:
        raise (
            ConfigError(f"{parents[-1]}: base {address}", error.problem, error.remedy) if parents else error
        ) from None
    if path in parents:
        raise ConfigError(str(parents[-1]), f"`base: {address}` closes a circle", "remove one of the bases")
    try:
        loaded = OmegaConf.load(path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}", f"not YAML: {problem}") from None
    except (OSError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(str(path), f"cannot be read: {str(error).splitlines()[0]}") from None
    own: Any = OmegaConf.to_container(loaded, resolve=False)
    if not isinstance(loaded, DictConfig):
        raise ConfigError(str(path), "holds a list", "a config is a mapping: `section: ...`")
    bases = own.pop("base", None) or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, _read(str(base), (*parents, path)))
    result: dict[str, Any] = merge(merged, own)
    return result


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise ConfigError(
                item, "is not a change to the config", "write dotted.key=value, as in trainer.max_epochs=12"
            )
        try:
            part: Any = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(key, f"value is not YAML: {str(error).splitlines()[0]}", "quote it") from None
        merged = merge(merged, part)
    return merged


def _resolve(merged: dict[str, Any]) -> dict[str, Any]:
    try:
        with without_resolvers():  # a stranger's config reads nothing of this machine
            resolved: Any = OmegaConf.to_container(OmegaConf.create(merged), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, RecursionError) as error:
        message, where = str(error).splitlines()[0], getattr(error, "full_key", None) or "config"
        if message.startswith("Missing mandatory value"):
            raise ConfigError(where, "must be given", f"add {where}=... or write it in a config") from None
        remedy = "only ${dotted.key} is resolved, no functions" if "Unsupported interpolation" in message else ""
        raise ConfigError(where, message, remedy) from None
    _refuse_objects(resolved, "")
    return typing.cast(dict[str, Any], resolved)


def _refuse_objects(value: Any, where: str) -> None:
    """YAML tags can make bytes and paths, which neither a checkpoint nor a strict type can hold."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_objects(item, f"{where}.{key}".lstrip("."))
    elif value is not None and not isinstance(value, str | int | float):
        raise ConfigError(where, f"holds a {type(value).__name__}", "write plain YAML, without tags")


def without_pretrained(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose network starts without weights, since all of them are about to be loaded."""
    model = config.get("model", {})
    if not isinstance(model.get("backbone"), dict):
        return config
    return {**config, "model": {**model, "backbone": {**model["backbone"], "pretrained": False}}}
