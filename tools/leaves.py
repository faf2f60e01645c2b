"""What the leaf configs are made of: their models, built without memory, and hashes that say when to build them again.

Used by `make_index.py` and by `tests/config/test_leaves.py`; `make leaves` builds them all.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistrain import config
from vistrain.config import index, source_code

# Rooms that no network is made of; what all networks rest on (vistrain/*.py) shows in whichever is built.
ELSEWHERE = (
    "callbacks", "checkpoints", "commands", "config", "data", "internals", "metrics", "optim", "pictures", "run",
    "tasks",
)  # fmt: skip
HASHES = Path(__file__).parents[1] / "tests" / "config" / "leaf_hashes.json"  # written with the index
# What decides a leaf's network, its parameter groups and its learning rates
SECTIONS = ("model", "task", "optimizer", "schedule")
DATA = ("type", "labels")


def config_files() -> list[tuple[str, Path]]:
    """Shipped leaf configs as `(det/name, path)`; folders that begin with `_` hold bases."""
    root = index.config_root()
    names = {p.relative_to(root).with_suffix("").as_posix(): p for p in root.rglob("*.yaml")}
    return [(name, path) for name, path in sorted(names.items()) if not name.startswith("_") and "/_" not in name]


def hashes() -> dict[str, str]:
    """The digest of each leaf when it was last measured."""
    found: dict[str, str] = json.loads(HASHES.read_text(encoding="utf-8")) if HASHES.exists() else {}
    return found


def is_template(path: Path) -> bool:
    """Whether a leaf is a start for a user's own data, not complete as it is."""
    return "???" in path.read_text(encoding="utf-8")


def classes_of(composed: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted paths of our classes that the model's section names, sorted."""
    nodes = index.walk({"model": composed["model"]})
    return tuple(sorted({node.entry["path"] for node in nodes if node.is_ours}))


def digest(composed: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with what a leaf's model is made of, or how it is measured.

    That is: its sections, the sources of its classes with what they import, and the code below. Comments and docstrings
    do not count; nor do ground modules (`vistrain/*.py`) or the versions of other packages.
    """
    sections = {name: composed.get(name) for name in SECTIONS}
    sections["data"] = {key: composed.get("data", {}).get(key) for key in DATA}
    modules = {path.rpartition(".")[0] for path in classes_of(composed)} | _of_backbone(composed)
    found = hashlib.sha256(json.dumps(sections, sort_keys=True).encode())
    for module in _made_of(frozenset(modules)):
        found.update(f"{module}\n{_code_of(module)}".encode())
    found.update(_own_code().encode())
    return found.hexdigest()[:12]


@functools.cache
def _made_of(modules: frozenset[str]) -> list[str]:
    """Modules and what they import, of the rooms that networks are made of, sorted."""
    rooms = [p.name for p in source_code.PACKAGE.iterdir() if (p / "__init__.py").is_file() and p.name not in ELSEWHERE]
    return sorted(source_code.dependencies(modules, rooms))


@functools.cache
def _own_code() -> str:
    """What measures a leaf."""
    return "".join(code(inspect.getsource(function)) for function in (build, measure))


def _of_backbone(composed: Mapping[str, Any]) -> set[str]:
    """The module that registers the backbone with timm, if it is one of ours."""
    import timm

    import vistrain.backbones  # noqa: F401  registers ours

    backbone = composed["model"].get("backbone")
    name = str(backbone.get("name")).partition(".")[0] if isinstance(backbone, dict) else ""
    return {timm.model_entrypoint(name).__module__} if timm.is_model(name) else set()


@functools.cache
def _code_of(module: str) -> str:
    file = source_code.file_of(module)
    assert file is not None
    return code(file.read_text(encoding="utf-8"))


def code(source: str) -> str:
    """Python without docstrings, lines of comment and empty lines."""
    lines: list[str] = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        is_owner = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_owner and ast.get_docstring(node) is not None and len(node.body) > 1:
            first = node.body[0]
            assert first.end_lineno is not None
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "\n".join(line for line in lines if not re.fullmatch(r"\s*(#.*)?", line))


def build(composed: dict[str, Any]) -> Any:
    """The network of a composed config, in evaluation mode, on the meta device."""
    from vistrain import run
    from vistrain.data import DataModule
    from vistrain.devices import on_meta

    with on_meta():
        data = config.build(composed["data"], DataModule, {}, "data")
        return run.build_model(config.without_pretrained(composed), data.labels, data.channels).eval()


def measure(composed: dict[str, Any]) -> dict[str, Any]:
    """Parameters, and multiply-adds (10^9) of one image of the model's `measured_size`.

    Of a classifier also whether its backbone takes images of any size, and the strides of its maps.
    """
    from vistrain.backbones.timm_model import TimmModel
    from vistrain.run.profile import count

    model = build(composed)
    parameters = sum(p.numel() for p in model.parameters())
    backbone = getattr(model, "backbone", None)
    whole = isinstance(backbone, TimmModel)
    facts = {"any_size": backbone.any_size, "maps": list(backbone.strides)} if whole else {}
    size = tuple(model.measured_size)
    multiply_adds, _, _ = count(model, size, model.channels)
    return {"parameters": parameters, "gmacs": round(multiply_adds / 1e9, 1), "image_size": list(size), **facts}


def sketch(composed: dict[str, Any]) -> str:
    """What weights of a leaf's model look like, see `vistrain.checkpoints.likeness`."""
    from vistrain.checkpoints import likeness

    return likeness.sketch(build(composed).state_dict())
