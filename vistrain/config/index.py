"""What vistrain knows about its own names without importing them: the index, and checks of configs against it.

The index (the files in `names/`) is written by `tools/make_index.py` from the sources and holds what a config may name.
Everything here answers in milliseconds, without torch; each file is read when something in it is asked for.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistrain.errors import ConfigError, nearest

HERE = Path(__file__).parents[1]  # the package
NAMES = Path(__file__).parent / "names"
# Section of the index -> the file that holds it
FILES = {
    "versions": "classes", "protocols": "classes", "classes": "classes", "configs": "configs",
    "backbones": "backbones", "our_backbones": "backbones", "weights": "weights",
}  # fmt: skip

# Class names are permanent. One that had to change stays here for ever: old name -> new name, as configs write them.
ALIASES: dict[str, str] = {
    "backbones.WholeBackbone": "backbones.TimmModel",
    "callbacks.ErrorAnalysis": "tasks.ErrorAnalysis",
    "transformer.ContrastiveDenoising": "detr.ContrastiveDenoising",
}

SECTIONS = {
    "task": "how the network is trained and evaluated; normally set by the base",
    "model": "the network",
    "data": "the data set, its batches and augmentation",
    "optimizer": "a torch optimizer, parameter `groups`, and `base_batch_size`: the global batch that `lr` is for",
    "schedule": "the learning rate over time",
    "trainer": "arguments of Lightning's Trainer",
    "callbacks": "named Lightning callbacks; null removes one",
    "logger": "metrics.csv is always written; more loggers here, those named wandb and tensorboard without a type",
    "metrics": "names of evaluation protocols",
    "run": "where the run is kept and which weights it starts from",
    "seed": "of everything random",
    "stages": "runs that follow one another, each a change to this config",
    "reference": "the published result that this config stands for",
}
# Section -> the kind of class that it is
KINDS_OF = {"model": "model", "data": "dataset", "task": "task", "optimizer": "optimizer", "schedule": "schedule"}
# Sections that are nodes, and the type hint that they stand under; where it names no class, the node names one.
SECTION_HINTS = {
    **dict.fromkeys(("task", "model", "data", "optimizer", "schedule"), ""),
    "trainer": "Trainer",
    "callbacks": "dict[str, Callback]",
    "logger": "dict[str, Logger]",
}
# What a node of the section logger is whose name says enough: it needs no `type`.
LOGGERS = {"wandb": "WandB", "tensorboard": "TensorBoard"}
PLAIN_SECTIONS = {
    "run": ("folder", "name", "weights"),
    "reference": ("paper", "metric", "value", "values", "tolerance", "weights", "sha256", "source", "note"),
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


def load(section: str) -> dict[str, Any]:
    """A section of the index: one of `FILES` (see tools/make_index.py)."""
    found: dict[str, Any] = read(FILES[section])[section]
    return found


@functools.cache
def read(file: str) -> dict[str, Any]:
    """The sections of one of the index's files, by name."""
    sections: dict[str, Any] = json.loads((NAMES / f"{file}.json").read_text(encoding="utf-8"))
    if "backbones" in sections:
        sections["backbones"] = {name: tags.split() for name, tags in sections["backbones"].items()}
    return sections


def forget() -> None:
    """Read the files anew when they are asked for: they were written."""
    read.cache_clear()
    _by_class_name.cache_clear()


def config_root() -> Path:
    """The shipped configs: inside the package where it was installed from a wheel, else beside it in the repository."""
    shipped = HERE / "configs"
    return shipped if shipped.is_dir() else HERE.parent / "configs"


def canonical(name: str) -> str:
    """The present short name of a type: `vistrain.` is left out, a renamed class gets its new name."""
    short = name.removeprefix("vistrain.")
    return ALIASES.get(short, short)


def entry_of(name: str, where: str) -> dict[str, Any] | None:
    """The index entry of a `type`; None for classes of other packages that the index does not list.

    Raises:
        ConfigError: the name looks like one of ours and does not exist.
    """
    classes = load("classes")
    short = canonical(name)
    entry: dict[str, Any] | None = classes.get(short)
    rooms = {n.partition(".")[0] for n, e in classes.items() if e["path"].startswith("vistrain.")}
    ours = "." not in short or short.partition(".")[0] in rooms
    # A full path (vistrain.ROOM.FILE.CLASS) is left to the builder.
    if entry is None and ours and not name.startswith("vistrain."):
        kind = KINDS_OF.get(where)
        raise ConfigError(
            f"{where}.type",
            f"no class {name!r}",
            nearest(name, [n for n, e in classes.items() if kind in (None, e["kind"])]),
        )
    return entry


def unknown_key(where: str, key: str, known: Iterable[str], ours: bool = True) -> ConfigError:
    """The error for a key that a constructor or section does not take."""
    path = f"{where}.{key}" if where else key
    if path in ELSEWHERE:
        return ConfigError(path, "is not set here", ELSEWHERE[path])
    if ours and key in CLASS_COUNTS and key not in known:
        return ConfigError(path, "is not set by hand", "it comes from the data set; remove the key")
    return ConfigError(path, "no such key", nearest(key, known))


@dataclass(frozen=True)
class Node:
    """A mapping in a config that stands for an object whose class the index knows.

    Attributes:
        value: the mapping itself.
        where: its dotted key.
        entry: of its class, as the index has it.
    """

    value: dict[str, Any]
    where: str
    entry: dict[str, Any]

    @property
    def is_ours(self) -> bool:
        """Whether its class is one of vistrain's."""
        return bool(self.entry["path"].startswith("vistrain."))

    @property
    def settable(self) -> dict[str, dict[str, Any]]:
        """The parameters that a config may write: neither the run gives them, nor the data."""
        return {
            name: parameter
            for name, parameter in self.entry["parameters"].items()
            if f"{self.where}.{name}" not in ELSEWHERE and not (self.is_ours and _is_fact(parameter))
        }


def _is_fact(parameter: Mapping[str, Any]) -> bool:
    return bool(FACTS.search(parameter.get("hint", "")))


def walk(config: Mapping[str, Any]) -> Iterator[Node]:
    """The nodes of a config, each before those inside it; keys that are added to one meanwhile are walked, too.

    What stands under a class that the index does not know is walked only where it says `type` itself.

    Raises:
        ConfigError: a `type` looks like one of ours and does not exist.
    """
    for section, hint in SECTION_HINTS.items():
        yield from _nodes(config.get(section), section, hint)


def _nodes(value: Any, where: str, hint: str) -> Iterator[Node]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _nodes(item, f"{where}[{i}]", hint)
    if not isinstance(value, dict):
        return
    if "type" not in value and re.match(r"(dict|Mapping)\[", hint):  # named parts
        for key, item in value.items():
            named = LOGGERS.get(key) if where == "logger" else None
            yield from _nodes(item, f"{where}.{key}", named or hint.partition("[")[2])
        return
    entry = _entry_of_node(value, where, hint)
    if entry is not None:
        yield Node(value, where, entry)
    parameters = entry["parameters"] if entry else {}
    for key, item in value.items():
        yield from _nodes(item, f"{where}.{key}", parameters.get(key, {}).get("hint", ""))


def _entry_of_node(value: Mapping[str, Any], where: str, hint: str) -> dict[str, Any] | None:
    """The index entry of a node's class: of its `type`, or of the class of ours that its parameter's hint names."""
    if "type" in value:
        entry = entry_of(str(value["type"]), where)
    else:
        entry = next((e for word in re.findall(r"\w+", hint) if (e := _by_class_name().get(word))), None)
    if where == "optimizer":  # the one section with keys that are not its class's
        entry = entry or {"path": "", "parameters": {}, "open": True}
        more = {"groups": {"hint": "ParameterGroups"}, "base_batch_size": {"hint": "int | None"}}
        entry = {**entry, "parameters": {**entry["parameters"], **more}}
    return entry


def check(config: Mapping[str, Any]) -> None:
    """Refuse what `problems` finds.

    Raises:
        ConfigError: the first of them.
    """
    for problem in problems(config):
        raise problem


def problems(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Every key of a composed config, and every `type`, that the index does not know; of a section with a `type` that
    does not exist, what stands before it. Values are the builder's matter.

    Args:
        config: composed, its sections of the right shapes.

    Yields:
        Errors with the dotted key and the nearest name.
    """
    for key in config:
        if key not in SECTIONS:
            yield unknown_key("", str(key), SECTIONS)
    for name, keys in PLAIN_SECTIONS.items():
        section = config.get(name)
        for key in section if isinstance(section, dict) else ():
            if key not in keys:
                yield unknown_key(name, str(key), keys)
    protocols = load("protocols") if config.get("metrics") else {}
    for name in config.get("metrics") or ():
        if name not in protocols:
            yield ConfigError("metrics", f"unknown protocol {name!r}", nearest(str(name), protocols))
    for section in SECTION_HINTS:
        try:
            if section == "logger":
                loggers(config.get("logger"))
            for node in walk({section: config.get(section)}):
                yield from _problems_of(node)
        except ConfigError as error:
            yield error
    for i, stage in enumerate(config.get("stages") or ()):
        for problem in problems(stage) if isinstance(stage, dict) else ():
            yield ConfigError(f"stages[{i}].{problem.where}", problem.problem, problem.remedy)


def _problems_of(node: Node) -> Iterator[ConfigError]:
    parameters = node.entry["parameters"]
    for key in map(str, node.value):
        path = f"{node.where}.{key}"
        if key == "type":
            continue
        if path in ELSEWHERE or (key not in parameters and not node.entry.get("open")):
            yield unknown_key(node.where, key, [*parameters, "type"], node.is_ours)
        elif node.is_ours and _is_fact(parameters.get(key, {})):
            yield ConfigError(path, "is not set by hand", "it comes from the data set; remove the key")
    backbone = node.value.get("name") if node.entry["path"].startswith("vistrain.backbones.") else None
    if isinstance(backbone, str):
        try:
            check_backbone(backbone, f"{node.where}.name")
        except ConfigError as error:
            yield error


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with every default of every class that the index knows written out; it composes as the original does.

    Defaults that are objects are left out: their class decides them.
    """
    filled = copy.deepcopy(dict(config))
    for node in walk(filled):
        for name, parameter in node.settable.items():
            if "default" in parameter:
                node.value.setdefault(name, copy.deepcopy(parameter["default"]))
    return filled


def node_at(config: Mapping[str, Any], path: str) -> Node | None:
    """What stands, or could stand, at a dotted key; None where the index knows no class for it.

    Raises:
        ConfigError: see `walk`.
    """
    filled = copy.deepcopy(dict(config))
    inner = filled
    for key in path.split("."):
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    return next((node for node in walk(filled) if node.where == path), None)


def loggers(section: Any) -> dict[str, dict[str, Any]]:
    """The section `logger` as nodes by name; it may also be a name, or a list of them. Null and false remove one.

    Raises:
        ConfigError: a name does not say which logger it is, or cannot be chosen.
    """
    if isinstance(section, dict):
        wanted = section
    else:
        names = section if isinstance(section, list | tuple) else [] if section is None else [section]
        wanted = {str(name): {} for name in names}
    found: dict[str, dict[str, Any]] = {}
    for name, node in wanted.items():
        if name == "csv":
            raise ConfigError("logger.csv", "is not set here", "metrics.csv is always written; remove the key")
        if node is None or node is False:
            continue
        node = {} if node is True else node
        if not isinstance(node, dict):
            raise ConfigError(f"logger.{name}", f"{node!r} is not a mapping", "write the logger's arguments")
        if "type" not in node and name not in LOGGERS:
            remedy = nearest(name, LOGGERS) + "; others need a type, see `vistrain list loggers`"
            raise ConfigError(f"logger.{name}", "no such logger", remedy)
        found[name] = node
    return found


def check_backbone(name: str, where: str) -> None:
    """Refuse the name of a backbone, or of its weights, that does not exist.

    What the index does not know is looked up in timm itself, which takes seconds, if another one is installed than the
    index was made with. A name that is gone from that one is refused when it is built.

    Raises:
        ConfigError: at `where`, with the nearest name.
    """
    if ":" in name:  # hf-hub:, local-dir:
        return
    problem = _problem_of_backbone(name, where, load("backbones"))
    if problem is not None and not made_with_installed("timm"):
        problem = _problem_of_backbone(name, where, backbones_of_timm())
    if problem is not None:
        raise problem


def _problem_of_backbone(name: str, where: str, known: Mapping[str, list[str]]) -> ConfigError | None:
    arch, _, tag = name.partition(".")
    if arch not in known:
        return ConfigError(where, f"no backbone {name!r}", nearest(arch, known))
    if tag and tag not in known[arch]:
        options = [f"{arch}.{t}" for t in known[arch]]
        return ConfigError(where, f"no weights {name!r}", nearest(name, options) if options else f"write {arch!r}")
    return None


def made_with_installed(package: str) -> bool:
    """Whether the index was made with the version of a package that is installed."""
    made: str = load("versions")[package]
    return made == importlib.metadata.version(package)


@functools.cache
def backbones_of_timm() -> dict[str, list[str]]:
    """Every model of the installed timm and of ours, with the tags of its weights, the default first. Imports torch."""
    timm: Any = importlib.import_module("timm")
    importlib.import_module("vistrain.backbones")  # registers ours with timm
    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for name in timm.list_models(pretrained=True):
        arch, _, tag = name.partition(".")
        tags.setdefault(arch, []).extend([tag] if tag else [])
    return dict(sorted(tags.items()))


@functools.cache
def _by_class_name() -> dict[str, dict[str, Any]]:
    """Our classes, and Lightning's Trainer, by their bare names, which are unique in the index."""
    classes = load("classes")
    return {n.rpartition(".")[2]: e for n, e in classes.items() if e["path"].startswith("vistrain.") or n == TRAINER}
