"""What vistrain knows about its own names without importing them: `index.json`, and checks of configs against it.

The index is written by `tools/make_index.py` from the sources. Everything here answers in milliseconds: no torch.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vistrain.errors import ConfigError

HERE = Path(__file__).parent

# Class names are permanent. One that had to change stays here for ever: old name -> new name, as configs write them.
ALIASES: dict[str, str] = {}

SECTIONS = {
    "task": "how the network is trained and evaluated; normally set by the base",
    "model": "the network",
    "data": "the data set, its batches and augmentation",
    "optimizer": "a torch optimizer, and parameter `groups`",
    "schedule": "the learning rate over time",
    "trainer": "arguments of Lightning's Trainer",
    "callbacks": "named Lightning callbacks; null removes one",
    "logger": "metrics.csv is always written; more loggers here",
    "metrics": "names of evaluation protocols",
    "run": "where the run is kept and which weights it starts from",
    "seed": "of everything random",
    "stages": "runs that follow one another, each a change to this config",
    "reference": "the published result that this config stands for",
}
PLAIN_SECTIONS = {
    "run": ("folder", "name", "weights"),
    "reference": ("paper", "metric", "value", "tolerance", "weights", "source", "note"),
}
TRAINER = "lightning.pytorch.Trainer"
# Keys that would contradict what the config says elsewhere.
ELSEWHERE = {
    "trainer.accumulate_grad_batches": "it follows from data.batch_size, data.per_device and the number of devices",
    "trainer.use_distributed_sampler": "vistrain has its own samplers, which resume exactly",
    "trainer.callbacks": "write them in the section callbacks",
    "trainer.logger": "write them in the section logger",
    "trainer.default_root_dir": "the run is kept in run.folder",
    "optimizer.params": "the network's parameters are given by the run",
}
CLASS_COUNTS = ("num_classes", "n_classes", "num_labels", "nb_classes", "num_channels", "in_channels", "in_chans")


@functools.cache
def load() -> dict[str, Any]:
    """The index: `classes`, `configs`, `backbones`, `versions` (see tools/make_index.py)."""
    index: dict[str, Any] = json.loads((HERE / "index.json").read_text(encoding="utf-8"))
    return index


def config_root() -> Path:
    """The shipped configs: inside the package where it was installed from a wheel, else beside it in the repository."""
    shipped = HERE / "configs"
    return shipped if shipped.is_dir() else HERE.parent / "configs"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or, where nothing is near, the names that exist (the first twelve)."""
    names = list(known)
    folded = {n.lower(): n for n in names}
    # The last part alone decides for dotted names that share their first part.
    near = difflib.get_close_matches(str(name).lower(), folded, 1) or [
        n for n in folded if n.rpartition(".")[2] == str(name).lower().rpartition(".")[2]
    ]
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    listed = ", ".join(sorted(names)[:12])
    return f"there are: {listed}{', ...' if len(names) > 12 else ''}" if names else ""


def canonical(name: str) -> str:
    """The present short name of a type: `vistrain.` is left out, a renamed class gets its new name."""
    short = name.removeprefix("vistrain.")
    return ALIASES.get(short, short)


def entry_of(name: str, where: str) -> dict[str, Any] | None:
    """The index entry of a `type`; None for classes of other packages that the index does not list.

    Raises:
        ConfigError: the name looks like one of ours and does not exist.
    """
    classes = load()["classes"]
    short = canonical(name)
    entry: dict[str, Any] | None = classes.get(short)
    rooms = {n.partition(".")[0] for n, e in classes.items() if e["path"].startswith("vistrain.")}
    ours = "." not in short or short.partition(".")[0] in rooms
    # A full path (vistrain.detection.deformable_detr.DeformableDETR) is left to the builder.
    if entry is None and ours and not name.startswith("vistrain."):
        raise ConfigError(f"{where}.type", f"no class {name!r}", nearest(name, classes))
    return entry


def unknown_key(where: str, key: str, known: Iterable[str], ours: bool = True) -> ConfigError:
    """The error for a key that a constructor or section does not take."""
    path = f"{where}.{key}" if where else key
    if path in ELSEWHERE:
        return ConfigError(path, "is not set here", ELSEWHERE[path])
    if ours and key in CLASS_COUNTS and key not in known:
        return ConfigError(path, "is not set by hand", "it comes from the data set; remove the key")
    return ConfigError(path, "no such key", nearest(key, known))


def check(config: Mapping[str, Any]) -> None:
    """Check every key of a composed config, and every `type`, against the index. Values are the builder's matter.

    Raises:
        ConfigError: with the dotted key and the nearest name, for the first thing that is wrong.
    """
    for key in config:
        if key not in SECTIONS:
            raise unknown_key("", str(key), SECTIONS)
    for name, keys in PLAIN_SECTIONS.items():
        section = config.get(name)
        for key in section if isinstance(section, dict) else ():
            if key not in keys:
                raise unknown_key(name, str(key), keys)
    for name in ("task", "model", "data", "schedule"):
        _check_value(config.get(name), name, "")
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict):
        _check_value(optimizer.get("groups"), "optimizer.groups", "ParameterGroups")
        _check_value({k: v for k, v in optimizer.items() if k != "groups"}, "optimizer", "")
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        for key in trainer:
            if f"trainer.{key}" in ELSEWHERE:
                raise unknown_key("trainer", key, ())
        _check_value({"type": TRAINER, **trainer}, "trainer", "")
    for name in ("callbacks", "logger"):
        section = config.get(name)
        parts = section.items() if isinstance(section, dict) and "type" not in section else [("", section)]
        for key, node in parts:
            _check_value(node, f"{name}.{key}" if key else name, "")
    for i, stage in enumerate(config.get("stages") or ()):
        if isinstance(stage, dict):
            try:
                check(stage)
            except ConfigError as error:
                raise ConfigError(f"stages[{i}].{error.where}", error.problem, error.remedy) from None


def _check_value(value: Any, where: str, hint: str) -> None:
    if isinstance(value, list):
        for i, item in enumerate(value):
            _check_value(item, f"{where}[{i}]", hint)
    elif isinstance(value, dict) and "type" not in value and re.match(r"(dict|Mapping)\[", hint):
        for key, item in value.items():
            _check_value(item, f"{where}.{key}", hint.partition("[")[2])
    elif isinstance(value, dict):
        _check_node(value, where, hint)


def _check_node(node: dict[str, Any], where: str, hint: str) -> None:
    if "type" in node:
        entry = entry_of(str(node["type"]), where)
    else:
        entry = next((e for word in re.findall(r"\w+", hint) if (e := _by_class_name().get(word))), None)
    if entry is None:
        return
    ours, parameters = entry["path"].startswith("vistrain."), entry["parameters"]
    for key, value in node.items():
        if key == "type":
            continue
        if key not in parameters:
            if entry.get("open"):
                continue
            raise unknown_key(where, str(key), parameters, ours)
        _check_value(value, f"{where}.{key}", parameters[key].get("hint", ""))
    if entry["path"].startswith("vistrain.backbones.") and isinstance(node.get("name"), str):
        _check_backbone(node["name"], f"{where}.name")


def _check_backbone(name: str, where: str) -> None:
    """Refuse a backbone name early, if the index was made with the timm that is installed (another may know more)."""
    index = load()
    known = index["backbones"]
    arch, _, tag = name.partition(".")
    if ":" in name or index["versions"]["timm"] != importlib.metadata.version("timm"):
        return
    if arch not in known:
        raise ConfigError(where, f"no backbone {name!r}", nearest(arch, known))
    if tag and tag not in known[arch]:
        options = [f"{arch}.{t}" for t in known[arch]]
        raise ConfigError(where, f"no weights {name!r}", nearest(name, options) if options else f"write {arch!r}")


@functools.cache
def _by_class_name() -> dict[str, dict[str, Any]]:
    """Our classes by their bare names, which are unique in the house."""
    ours = {n: e for n, e in load()["classes"].items() if e["path"].startswith("vistrain.")}
    return {name.rpartition(".")[2]: entry for name, entry in ours.items()}
