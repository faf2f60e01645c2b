"""Writes vistrain/config/index.json from the sources: every name that a config or the command line may use.

    python tools/make_index.py            write it
    python tools/make_index.py --check    exit with 1 if the committed one is stale
    python tools/make_index.py --remeasure    as the first, counting the unchanged models again too

What the index says of other packages (torch's optimizers, Lightning's Trainer, timm's models) is of the versions it
names; the rest depends on this repository alone, and is the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import re
import sys
import typing
from pathlib import Path
from typing import Any

import vistrain
from vistrain import config
from vistrain.config import builder as building
from vistrain.config import index

PACKAGE = Path(vistrain.__file__).parent
TARGET = PACKAGE / "config" / "index.json"
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
SECTIONS = ("versions", "classes", "backbones", "our_backbones", "protocols", "configs")
PACKAGES = ("lightning", "timm", "torch", "torchvision")
# What is measured of a leaf's model, and taken over while its section of the config stays as it is.
MEASURED = ("parameters", "gmacs", "image_size", "any_size", "maps")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the index is stale")
    parser.add_argument("--remeasure", action="store_true", help="measure every model, changed or not (minutes)")
    arguments = parser.parse_args(argv)
    if not TARGET.exists():
        TARGET.write_text(json.dumps({section: {} for section in SECTIONS}))
    made = make(measure=not arguments.check, remeasure=arguments.remeasure)
    if arguments.check:
        fresh = made == json.loads(TARGET.read_text(encoding="utf-8"))
        print("fresh" if fresh else "stale: run `make index`")
        return int(not fresh)
    TARGET.write_text(dump(made), encoding="utf-8")
    print(f"{TARGET}: {len(made['classes'])} classes, {len(made['configs'])} configs, {TARGET.stat().st_size} bytes")
    return 0


def make(measure: bool, remeasure: bool = False) -> dict[str, Any]:
    """The index.

    Args:
        measure: build the model of each config and count its parameters and multiply-adds; otherwise both are taken
            over from the committed index (a test of its own compares them).
        remeasure: measure the unchanged ones too.
    """
    from vistrain.metrics import PROTOCOLS

    classes = {**our_classes(), **foreign_classes()}
    made: dict[str, Any] = {
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "classes": dict(sorted(classes.items())),
        "backbones": backbones(),
        "our_backbones": our_backbones(),
        "protocols": {name: getattr(made, "func", made).__name__ for name, made in sorted(PROTOCOLS.items())},
        "configs": {},
    }
    # Composing checks configs against the index, so the names must be there first.
    old = json.loads(TARGET.read_text(encoding="utf-8"))
    TARGET.write_text(dump({**made, "configs": old["configs"]}), encoding="utf-8") if measure else None
    index.load.cache_clear()
    made["configs"] = {
        name: describe_config(name, path, measure, old["configs"], remeasure) for name, path in config_files()
    }
    return made


def dump(made: dict[str, Any]) -> str:
    """JSON with one line per class, config and backbone: short, and readable in a diff."""
    parts = []
    for section, content in made.items():
        rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in content.items())
        parts.append(f" {json.dumps(section)}: {{\n{rows}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def our_classes() -> dict[str, Any]:
    """The public classes of the rooms that a config can name or reach, as `room.Class`.

    These are modules, the sections' classes, and what their constructors' hints name, with its subclasses.
    """
    candidates: dict[type, str] = {}
    for module in sorted(m.name for m in pkgutil.walk_packages(vistrain.__path__, "vistrain.")):
        room = module.split(".")[1]
        if not (PACKAGE / room).is_dir():
            continue
        for name, cls in vars(importlib.import_module(module)).items():
            if (
                inspect.isclass(cls)
                and cls.__module__ == module
                and not name.startswith("_")
                and not inspect.isabstract(cls)
            ):
                candidates[cls] = room
    wanted = {cls for cls in candidates if issubclass(cls, section_classes())}
    new = wanted
    while new:
        named = {c for cls in new for hint in building.signature(cls)[1].values() for c in classes_in(hint)}
        new = {cls for cls in candidates if issubclass(cls, tuple(named))} - wanted
        wanted |= new
    found: dict[str, Any] = {}
    for cls, room in candidates.items():
        if cls in wanted:
            bare = [n for n in found if n.rpartition(".")[2] == cls.__name__]
            if bare:
                raise SystemExit(
                    f"two classes are called {cls.__name__}: {found[bare[0]]['path']} and {cls.__module__}"
                )
            found[f"{room}.{cls.__name__}"] = describe_class(cls, kind_of(cls, room))
    return found


def section_classes() -> tuple[type, ...]:
    """What the sections of a config expect, and torch's modules, which stand anywhere in a network."""
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from vistrain.data import DataModule
    from vistrain.optim import ParameterGroups, Schedule

    return (nn.Module, DataModule, Schedule, ParameterGroups, Callback, Logger)


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

    from vistrain import data, optim, tasks

    if callable(getattr(cls, "losses", None)) and callable(getattr(cls, "predict", None)):
        return "model"
    if issubclass(cls, data.DataModule):
        return "dataset"
    if issubclass(cls, tasks.Task):
        return "task"
    if issubclass(cls, Callback):
        return "callback"
    return "schedule" if issubclass(cls, optim.Schedule) else room


def describe_class(cls: type, kind: str, path: str = "") -> dict[str, Any]:
    """One entry: path, kind, first paragraph of the docstring, paper, parameters with hints and defaults.

    For classes of ours every hint must resolve: they are the schema of configs.
    """
    parameters, _ = building.signature(cls)
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
    return entry


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


def backbones() -> dict[str, list[str]]:
    """Every model of timm and of ours, with the tags of its weights, the default first."""
    import timm

    importlib.import_module("vistrain.backbones")  # registers ours with timm

    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for name in timm.list_models(pretrained=True):
        arch, _, tag = name.partition(".")
        tags.setdefault(arch, []).append(tag) if tag else None
    return dict(sorted(tags.items()))


def our_backbones() -> dict[str, dict[str, Any]]:
    """Paper, size, strides and published accuracy of every variant that is registered here."""
    import timm
    import torch

    from vistrain.backbones.sizes import takes_any_size
    from vistrain.backbones.staged import ours, published

    found: dict[str, dict[str, Any]] = {}
    for name in ours():
        with torch.device("meta"):
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


def config_files() -> list[tuple[str, Path]]:
    """Shipped leaf configs as `(det/name, path)`; folders that begin with `_` hold bases."""
    root = index.config_root()
    names = {p.relative_to(root).with_suffix("").as_posix(): p for p in root.rglob("*.yaml")}
    return [(name, path) for name, path in sorted(names.items()) if not name.startswith("_") and "/_" not in name]


def describe_config(
    name: str, path: Path, measure: bool, old: dict[str, Any], remeasure: bool = False
) -> dict[str, Any]:
    """Title (the first comment line), model, reference, backbone and strides, and what the model measures.

    A model whose section of the config is as it was is not measured again: hundreds of configs take minutes.
    """
    text = path.read_text(encoding="utf-8")
    title = text.splitlines()[0].removeprefix("#").strip()
    entry: dict[str, Any] = {"title": title}
    if "???" in text:  # a start for a user's own data, not complete as it is
        return entry
    composed = config.compose([path])
    model = composed.get("model", {})
    entry |= {"model": model.get("type"), "task": composed.get("task", {}).get("type")}
    entry |= {"dataset": composed.get("data", {}).get("type"), "backbone": model.get("backbone", {}).get("name")}
    entry["strides"] = model.get("backbone", {}).get("strides")
    entry["reference"] = composed.get("reference")
    entry["fingerprint"] = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:12]
    before = old.get(name, {})
    taken_over = {k: before[k] for k in MEASURED if k in before}
    is_known = before.get("fingerprint") == entry["fingerprint"] and "parameters" in taken_over
    entry |= measure_model(composed) if measure and (remeasure or not is_known) else taken_over
    return {k: v for k, v in entry.items() if v is not None}


def measure_model(composed: dict[str, Any]) -> dict[str, Any]:
    """Parameters, and multiply-adds (10^9) of one image of the model's `measured_size` or `DETECTOR_SIZE`.

    Of a classifier also whether its backbone takes images of any size, and the strides of its maps.
    """
    import torch

    from vistrain.backbones.timm_model import TimmModel
    from vistrain.run.profile import DETECTOR_SIZE, count

    with torch.device("meta"):
        model = build_model(composed)
    size = tuple(getattr(model, "measured_size", DETECTOR_SIZE))
    parameters = sum(p.numel() for p in model.parameters())
    backbone = getattr(model, "backbone", None)
    whole = isinstance(backbone, TimmModel)
    facts = {"any_size": backbone.any_size, "maps": list(backbone.strides)} if whole else {}
    multiply_adds, _, _ = count(model, size, getattr(model, "channels", 3))
    return {"parameters": parameters, "gmacs": round(multiply_adds / 1e9, 1), "image_size": list(size), **facts}


def build_model(composed: dict[str, Any]) -> Any:
    """The network of a composed config, in evaluation mode, without fetching weights."""
    from torch import nn

    from vistrain.data import DataModule
    from vistrain.structures import Channels, LabelSpace

    data = config.build(composed["data"], DataModule, {}, "data")
    changed = composed["model"]
    if "backbone" in changed:
        changed = config.merge(changed, {"backbone": {"pretrained": False}})
    model = config.build(changed, nn.Module, {LabelSpace: data.labels, Channels: data.channels}, "model")
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
