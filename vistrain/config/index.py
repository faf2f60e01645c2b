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

HERE = Path(__file__).parents[1]  # the package

# Class names are permanent. One that had to change stays here for ever: old name -> new name, as configs write them.
ALIASES: dict[str, str] = {
    "backbones.WholeBackbone": "backbones.TimmModel",
    "callbacks.ErrorAnalysis": "tasks.ErrorAnalysis",
    **{
        f"transformer.{name}": f"detr.{name}"
        for name in (
            "BoxDecoder", "ContrastiveDenoising", "DeformableDecoder", "DeformableDecoderLayer", "DeformableEncoder",
            "DeformableEncoderLayer", "QuerySelfAttention",
        )
    },
}  # fmt: skip

SECTIONS = {
    "task": "how the network is trained and evaluated; normally set by the base",
    "model": "the network",
    "data": "the data set, its batches and augmentation",
    "optimizer": "a torch optimizer, parameter `groups`, and `base_batch_size`: the global batch that `lr` is for",
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
# Sections that are nodes, and the type hint that they stand under; where it names no class, the node names one.
SECTION_HINTS = {
    **dict.fromkeys(("task", "model", "data", "optimizer", "schedule"), ""),
    "trainer": "Trainer",
    "callbacks": "dict[str, Callback]",
    "logger": "dict[str, Logger]",
}
PLAIN_SECTIONS = {
    "run": ("folder", "name", "weights"),
    "reference": ("paper", "metric", "value", "values", "tolerance", "weights", "source", "note"),
}
TRAINER = "lightning.pytorch.Trainer"
# Keys that a constructor takes but the run gives: written there they would contradict what stands elsewhere.
ELSEWHERE = {
    "trainer.accumulate_grad_batches": "it follows from data.batch_size, data.per_device and the number of devices",
    "trainer.use_distributed_sampler": "vistrain has its own samplers, which resume exactly",
    "trainer.callbacks": "write them in the section callbacks",
    "trainer.logger": "write them in the section logger",
    "trainer.default_root_dir": "the run is kept in run.folder",
    "trainer.enable_checkpointing": "write callbacks.checkpoints",
    "trainer.enable_model_summary": "--print-config full counts the parameters",
    "trainer.enable_progress_bar": "progress is a bar on terminals and lines elsewhere",
    "optimizer.params": "the network's parameters are given by the run",
    "data.seed": "write seed, at the top",
    "task.seed": "write seed, at the top",
    "task.groups": "write optimizer.groups",
    **{f"task.{name}": f"write the section {name}" for name in ("model", "optimizer", "schedule", "metrics")},
}
FACTS = re.compile(r"\b(LabelSpace|Channels)\b")  # hints of what the data says
CLASS_COUNTS = ("num_classes", "n_classes", "num_labels", "nb_classes", "num_channels", "in_channels", "in_chans")


@functools.cache
def load() -> dict[str, Any]:
    """The index: `classes`, `configs`, `backbones`, `versions` (see tools/make_index.py)."""
    index: dict[str, Any] = json.loads((HERE / "config" / "index.json").read_text(encoding="utf-8"))
    return index


def config_root() -> Path:
    """The shipped configs: inside the package where it was installed from a wheel, else beside it in the repository."""
    shipped = HERE / "configs"
    return shipped if shipped.is_dir() else HERE.parent / "configs"


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or, where nothing is near, the names that exist (the first twelve)."""
    names = sorted(known)
    wanted = str(name).lower()
    # By the whole name; for dotted names also by the last part alone.
    for part in (str.lower, lambda n: re.split(r"[./]", n.lower())[-1]):
        folded = {part(n): n for n in reversed(names)}
        near = difflib.get_close_matches(part(wanted), folded, 1)
        if near:
            return f"did you mean {folded[near[0]]!r}?"
    listed = ", ".join(names[:12])
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
    protocols = load()["protocols"]
    for name in config.get("metrics") or ():
        if name not in protocols:
            raise ConfigError("metrics", f"unknown protocol {name!r}", nearest(name, protocols))
    for name, hint in SECTION_HINTS.items():
        _check_value(config.get(name), name, hint)
    for i, stage in enumerate(config.get("stages") or ()):
        if isinstance(stage, dict):
            try:
                check(stage)
            except ConfigError as error:
                raise ConfigError(f"stages[{i}].{error.where}", error.problem, error.remedy) from None


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every default of every class that the index knows written out; it composes as the original does.

    Defaults that are objects are left out: their class decides them.
    """
    return {k: _complete(v, k, SECTION_HINTS[k]) if k in SECTION_HINTS else v for k, v in config.items()}


def entry_of_node(node: Mapping[str, Any], where: str, hint: str) -> dict[str, Any] | None:
    """The index entry of a node's class: of its `type`, or of the class of ours that its parameter's hint names."""
    if "type" in node:
        entry = entry_of(str(node["type"]), where)
    else:
        entry = next((e for word in re.findall(r"\w+", hint) if (e := _by_class_name().get(word))), None)
    if where == "optimizer":  # the one section with keys that are not its class's
        entry = entry or {"path": "", "parameters": {}, "open": True}
        more = {"groups": {"hint": "ParameterGroups"}, "base_batch_size": {"hint": "int | None"}}
        entry = {**entry, "parameters": {**entry["parameters"], **more}}
    return entry


def _inner(value: Any, where: str, hint: str) -> list[tuple[Any, Any, str, str]] | None:
    """Items of a list, or of a mapping of named parts, as `(key, item, where, hint)`; None for nodes and scalars."""
    if isinstance(value, list):
        return [(i, item, f"{where}[{i}]", hint) for i, item in enumerate(value)]
    if isinstance(value, dict) and "type" not in value and re.match(r"(dict|Mapping)\[", hint):
        return [(key, item, f"{where}.{key}", hint.partition("[")[2]) for key, item in value.items()]
    return None


def _check_value(value: Any, where: str, hint: str) -> None:
    items = _inner(value, where, hint)
    if items is not None:
        for _, item, path, item_hint in items:
            _check_value(item, path, item_hint)
        return
    entry = entry_of_node(value, where, hint) if isinstance(value, dict) else None
    if entry is None:
        return
    ours, parameters = entry["path"].startswith("vistrain."), entry["parameters"]
    for key, item in value.items():
        path = f"{where}.{key}"
        if key == "type":
            continue
        if path in ELSEWHERE or (key not in parameters and not entry.get("open")):
            raise unknown_key(where, str(key), parameters, ours)
        item_hint = parameters.get(key, {}).get("hint", "")
        if ours and FACTS.search(item_hint):
            raise ConfigError(path, "is not set by hand", "it comes from the data set; remove the key")
        _check_value(item, path, item_hint)
    if entry["path"].startswith("vistrain.backbones.") and isinstance(value.get("name"), str):
        check_backbone(value["name"], f"{where}.name")


def _complete(value: Any, where: str, hint: str) -> Any:
    items = _inner(value, where, hint)
    if items is not None:
        done = {key: _complete(item, path, item_hint) for key, item, path, item_hint in items}
        return list(done.values()) if isinstance(value, list) else done
    entry = entry_of_node(value, where, hint) if isinstance(value, dict) else None
    if entry is None:
        return value
    parameters = entry["parameters"]
    filled = {k: _complete(v, f"{where}.{k}", parameters.get(k, {}).get("hint", "")) for k, v in value.items()}
    for name, parameter in parameters.items():
        settable = f"{where}.{name}" not in ELSEWHERE and not FACTS.search(parameter.get("hint", ""))
        if name not in filled and "default" in parameter and settable:
            filled[name] = parameter["default"]
    return filled


def check_backbone(name: str, where: str) -> None:
    """Refuse a backbone name early, if the index was made with the timm that is installed (another may know more).

    Raises:
        ConfigError: at `where`, with the nearest name.
    """
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
    """Our classes, and Lightning's Trainer, by their bare names, which are unique in the house."""
    classes = load()["classes"]
    return {n.rpartition(".")[2]: e for n, e in classes.items() if e["path"].startswith("vistrain.") or n == TRAINER}
