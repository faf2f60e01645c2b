"""Writes the index, vistrain/config/names/, from the sources: every name that a config or the command line may use.

    python tools/make_index.py            write it
    python tools/make_index.py --check    exit with 1 if the committed one is stale
    python tools/make_index.py --remeasure    as the first, counting the unchanged models again too
    python tools/make_index.py --keep        as the first, where sources changed but no network did (a message)

What the index says of other packages (torch's optimizers, Lightning's Trainer, timm's models) is of the versions it
names; the rest depends on this repository alone, and is the same on every machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import checkout  # noqa: F401  before what imports vistrain
import leaves

import vistrain
from vistrain import config
from vistrain.config import index, source_code
from vistrain.config.builder import signature

Item = TypeVar("Item")
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
PACKAGES = ("lightning", "timm", "torch", "torchvision")
# What is measured of a leaf's model, and taken over while what the model is made of stays as it is.
MEASURED = ("parameters", "gmacs", "image_size", "any_size", "maps")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the index is stale")
    measuring = parser.add_mutually_exclusive_group()
    measuring.add_argument("--remeasure", action="store_true", help="measure every model, changed or not (minutes)")
    measuring.add_argument("--keep", action="store_true", help="take over what was measured of changed models")
    arguments = parser.parse_args(argv)
    committed = read()
    made = make(committed, measure=not arguments.check, remeasure=arguments.remeasure, keep=arguments.keep)
    if arguments.check:
        fresh = made == committed
        print("fresh" if fresh else "stale: run `make index`")
        return int(not fresh)
    write(made)
    size = sum(file.stat().st_size for file in index.NAMES.glob("*.json"))
    print(f"{index.NAMES}: {len(made['classes'])} classes, {len(made['configs'])} configs, {size} bytes")
    return 0


def make(committed: dict[str, Any], measure: bool, remeasure: bool = False, keep: bool = False) -> dict[str, Any]:
    """The index, section by section (see `index.FILES`).

    Args:
        committed: the index of before.
        measure: write the names first, then build the model of each config whose hash changed, and count its parameters
            and multiply-adds; otherwise these are taken over (`tests/config/test_leaves.py` builds some).
        remeasure: build the unchanged ones too.
        keep: build those alone of which nothing is known.
    """
    made = {**make_names(), "configs": {}, "weights": {}}
    if measure:  # composing checks configs against the index, so the names must be there first
        write({**made, "configs": committed["configs"], "weights": committed["weights"]})
    old, new = leaves.hashes(), {}
    for name, path in shown(leaves.config_files(), "configs"):
        composed = {} if leaves.is_template(path) else config.compose([path])
        before = committed["configs"].get(name, {})
        facts = {key: before[key] for key in MEASURED if key in before}
        sketch = committed["weights"].get(name, "")
        if measure and composed:
            new[name] = leaves.digest(composed)
            if remeasure or not facts or (new[name] != old.get(name) and not keep):
                facts, sketch = leaves.measure(composed), ""
            sketch = sketch or leaves.sketch(composed)
        made["configs"][name] = describe_config(path, composed) | facts
        if sketch:
            made["weights"][name] = sketch
    if measure:
        leaves.HASHES.write_text(json.dumps(new, indent=0) + "\n", encoding="utf-8")
    return made


def shown(items: Sequence[Item], what: str) -> Iterable[Item]:
    """The items, with a bar on a terminal's stderr and a line elsewhere."""
    from rich.console import (
        Console,  # after Lightning: its hints are cached in the order that they are first written in
    )
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{len(items)} {what} ...")
    return track(items, what, console=console, disable=not console.is_terminal, transient=True)


def make_names(backbones: Collection[str] | None = None) -> dict[str, Any]:
    """All sections but `configs`; of our backbones all, or some, each of which is built."""
    from vistrain.metrics import PROTOCOLS

    return {
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "protocols": {name: getattr(made, "func", made).__name__ for name, made in sorted(PROTOCOLS.items())},
        "classes": dict(sorted({**our_classes(), **foreign_classes()}.items())),
        "backbones": index.backbones_of_timm(),
        "our_backbones": our_backbones(backbones),
    }


def read() -> dict[str, Any]:
    """The committed index; empty sections where there is none."""
    files = [file for file in sorted(set(index.FILES.values())) if (index.NAMES / f"{file}.json").exists()]
    return {**{section: {} for section in index.FILES}, **{k: v for f in files for k, v in index.read(f).items()}}


def write(made: dict[str, Any]) -> None:
    """Write the index's files."""
    index.NAMES.mkdir(exist_ok=True)
    for file in set(index.FILES.values()):
        sections = {section: made[section] for section, holder in index.FILES.items() if holder == file}
        if "backbones" in sections:
            sections["backbones"] = {name: " ".join(tags) for name, tags in made["backbones"].items()}
        (index.NAMES / f"{file}.json").write_text(dump(sections), encoding="utf-8")
    index.forget()


def dump(sections: dict[str, Any]) -> str:
    """JSON with one line per class, config and backbone: short, and readable in a diff."""
    parts = []
    for section, content in sections.items():
        rows = ",\n".join(f"{json.dumps(k)}:{_short(v)}" for k, v in content.items())
        parts.append(f"{json.dumps(section)}: {{\n{rows}\n}}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def our_classes() -> dict[str, Any]:
    """What a config may name of ours, as `room.Class`: what a room exports (`__all__`) and a config can reach.

    Reached are modules, the sections' classes, and what the hints of their constructors name, with its subclasses.
    """
    rooms = [m.name for m in pkgutil.iter_modules(vistrain.__path__) if m.ispkg]
    exported: dict[type, str] = {}
    for room in rooms:
        module = importlib.import_module(f"vistrain.{room}")
        for name in getattr(module, "__all__", ()):
            cls = getattr(module, name)
            if inspect.isclass(cls) and cls.__module__.startswith(f"vistrain.{room}") and not inspect.isabstract(cls):
                exported[cls] = room
    wanted = reached(exported)
    found: dict[str, Any] = {}
    for cls in sorted(wanted, key=lambda c: c.__qualname__):
        twins = [entry["path"] for name, entry in found.items() if name.rpartition(".")[2] == cls.__name__]
        if twins:
            raise SystemExit(f"two classes are called {cls.__name__}: {twins[0]} and {cls.__module__}")
        found[f"{exported[cls]}.{cls.__name__}"] = describe_class(cls, kind_of(cls, exported[cls]))
    return found


def reached(exported: dict[type, str]) -> set[type]:
    """Those of the exported classes that a config can come to.

    Raises:
        SystemExit: a hint names a class of a room that does not export it.
    """
    wanted = {cls for cls in exported if issubclass(cls, section_classes())}
    new = wanted
    while new:
        named = {c: cls for cls in new for hint in signature(cls)[1].values() for c in classes_in(hint)}
        for cls, owner in named.items():
            is_in_room = (source_code.PACKAGE / cls.__module__.split(".")[1]).is_dir()
            if is_in_room and cls not in exported and not any(issubclass(c, cls) for c in exported):
                raise SystemExit(f"{owner.__qualname__} takes a {cls.__qualname__}, which its room does not export")
        new = {cls for cls in exported if issubclass(cls, tuple(named))} - wanted
        wanted |= new
    return wanted


def section_classes() -> tuple[type, ...]:
    """What the sections of a config expect, torch's modules, which stand anywhere in a network, and what checkpoints
    carry as a node."""
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from vistrain.data import DataModule, EvalTransform
    from vistrain.optim import ParameterGroups, Schedule

    return (nn.Module, DataModule, EvalTransform, Schedule, ParameterGroups, Callback, Logger)


def classes_in(hint: Any) -> list[type]:
    """The classes of ours that a type hint names, at any depth."""
    inner = [c for argument in typing.get_args(hint) for c in classes_in(argument)]
    ours = isinstance(hint, type) and getattr(hint, "__module__", "").startswith("vistrain.")
    return inner + ([hint] if ours and typing.get_origin(hint) is None else [])


def foreign_classes() -> dict[str, Any]:
    """What configs use most of other packages, by the path that a config writes."""
    import lightning.pytorch as lightning
    import torch

    found = {index.TRAINER: describe_class(lightning.Trainer, "trainer", index.TRAINER)}
    for module, base, kind in (
        (torch.optim, torch.optim.Optimizer, "optimizer"),
        (lightning.callbacks, lightning.callbacks.Callback, "callback"),
        (lightning.loggers, lightning.loggers.Logger, "logger"),
    ):
        for name, cls in sorted(vars(module).items()):
            if inspect.isclass(cls) and issubclass(cls, base) and cls is not base and not name.startswith("_"):
                path = f"{module.__name__}.{name}"
                found[path] = describe_class(cls, kind, path)
    return found


def kind_of(cls: type, room: str) -> str:
    """What a class is for, as `vistrain list` groups it."""
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    from vistrain import data, optim, tasks
    from vistrain.network import Network

    if issubclass(cls, Network):
        return "model"
    if issubclass(cls, data.DataModule):
        return "dataset"
    if issubclass(cls, tasks.Task):
        return "task"
    if issubclass(cls, Callback):
        return "callback"
    if issubclass(cls, Logger):
        return "logger"
    return "schedule" if issubclass(cls, optim.Schedule) else room


def describe_class(cls: type, kind: str, path: str = "") -> dict[str, Any]:
    """One entry: path, kind, first paragraph of the docstring, paper, parameters with hints and defaults.

    For classes of ours every hint must resolve: they are the schema of configs.
    """
    parameters, _ = signature(cls)
    own = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    has_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    doc = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    entry: dict[str, Any] = {"path": path or f"{cls.__module__}.{cls.__qualname__}", "kind": kind, "doc": doc}
    module = sys.modules[cls.__module__].__doc__ or ""
    paper = ARXIV.search(cls.__doc__ or "") or ARXIV.search(module)
    if paper and not path:
        entry["paper"] = paper.group()
    if has_open:
        entry["open"] = True
    entry["parameters"] = {name: describe_parameter(p) for name, p in own.items()}
    if kind == "attention":
        entry["operator"] = describe_operator(cls)
    if kind == "modules":
        entry["module"] = describe_module(cls)
    return entry | (options_of_task(cls) if kind == "task" else {})


def describe_operator(cls: Any) -> dict[str, Any]:
    """What an attention operator says of itself, without what is as usual, and the names that hosts know it by."""
    from vistrain.attention import AttentionOperator, choice

    said = [name for name in vars(AttentionOperator)["__annotations__"] if not name.startswith("_")]
    usual = {name: getattr(AttentionOperator, name) for name in said}
    own = {name: getattr(cls, name) for name in said}
    own["axes"], usual["axes"] = list(cls.axes), list(AttentionOperator.axes)  # as JSON gives them back
    known = [name for name, operator in choice.names().items() if operator is cls and name != cls.__name__]
    kept = ("growth", "sizes", "padding")
    return {"names": known, **{name: v for name, v in own.items() if name in kept or v != usual[name]}}


def describe_module(cls: Any) -> dict[str, Any]:
    """What a module of convolutional hosts says of itself, and the names that hosts know it by."""
    from vistrain.modules.base import MODULES

    known = [name for name, module in MODULES.names().items() if module is cls and name != cls.__name__]
    said = {name: getattr(cls, name) for name in ("formula", "cost", "place", "sizes", "oddities")}
    return {"names": known, **{name: value for name, value in said.items() if value}}


def options_of_task(task: Any) -> dict[str, Any]:
    """What `vistrain predict` and `vistrain evaluate` take for a task: hints, defaults and what docstrings say.

    They are the keyword-only parameters of its predictor, beyond those of every predictor, and of `evaluate_file`.
    """
    from vistrain.tasks.base.predictor import Predictor

    predictor = task.predictor
    path = f"{predictor.__module__}.{predictor.__qualname__}"
    common = signature(Predictor)[0]
    predict = {
        name: {**describe_parameter(p), "doc": source_code.parameter_doc(path, name).partition(": ")[2]}
        for name, p in signature(predictor)[0].items()
        if p.kind is p.KEYWORD_ONLY and name not in common
    }
    doc = inspect.getdoc(task.evaluate_file) or ""
    evaluate = {
        name: {**describe_parameter(p), "doc": source_code.entry_of_args(doc, name).partition(": ")[2]}
        for name, p in inspect.signature(task.evaluate_file).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    }
    return {"predict": predict, "evaluate": evaluate}


def describe_parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    """`hint` as written in the source, and `default` where there is one that a config could write."""
    described: dict[str, Any] = {}
    if parameter.annotation is not parameter.empty:
        hint = parameter.annotation
        text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
        described["hint"] = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
    if parameter.default is not parameter.empty:
        try:
            described["default"] = json.loads(json.dumps(parameter.default))
        except TypeError:
            described["built"] = type(parameter.default).__name__
    return described


def our_backbones(names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Paper, size, strides and published accuracy of the variants that are registered here.

    Args:
        names: of variants, for some alone.
    """
    import timm

    from vistrain.backbones.sizes import takes_any_size
    from vistrain.backbones.staged import ours, published
    from vistrain.devices import on_meta

    found: dict[str, dict[str, Any]] = {}
    for name in shown(ours() if names is None else list(names), "backbones of ours"):
        with on_meta():
            model = timm.create_model(name)
        row = published(name)
        found[name] = {
            "paper": model.pretrained_cfg["paper_ids"].removeprefix("arXiv:"),
            "parameters": sum(p.numel() for p in model.parameters()),
            "gmacs": row.gmacs,
            "image_size": row.size,
            "strides": [stage["reduction"] for stage in model.feature_info],
            "any_size": takes_any_size(model, flexible=False),
            "top1": row.top1,
        }
    return found


def describe_config(path: Path, composed: dict[str, Any]) -> dict[str, Any]:
    """Title (the first comment line), classes of model, task and data, backbone and strides, and the reference."""
    entry: dict[str, Any] = {"title": path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()}
    if not composed:
        return entry
    backbone = composed["model"].get("backbone") or {}
    entry["classes"] = [composed[section]["type"] for section in ("model", "task", "data")]
    entry |= {"backbone": backbone.get("name"), "strides": backbone.get("strides")}
    entry["reference"] = composed.get("reference")
    return {k: v for k, v in entry.items() if v is not None}


if __name__ == "__main__":
    sys.exit(main())
