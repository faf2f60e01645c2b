"""The house rules that a machine can check: floors, light imports, names of tasks, probes, files, docstrings."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vistrain.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vistrain"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Rooms and files that every task uses, and that ask the task, the network or the data module instead of knowing one.
SHARED = (
    "__init__.py", "__main__.py", "callbacks", "checkpoints", "cli.py", "commands", "config", "contract.py",
    "data/base", "devices.py", "errors.py", "internals", "layers", "network.py", "optim", "pictures", "processes.py",
    "run", "structures.py", "surroundings.py", "tasks/base", "writing.py",
)  # fmt: skip
TASKS = re.compile(r"detect(ion|or)|classif(ication|ier)|restor(ation|er)|segment(ation|er)|correspondence", re.I)
# Names of configs, and of the folders of their runs, as help texts and messages show them.
ADDRESSES = re.compile(r"(vistrain:|configs/|runs/)\S+")

# What several floors have something of, each its own: an operator and the network around it, a loss and a metric.
SUBJECTS = ("base", "boxes", "classification", "coco", "deformable")

# Files that ask an object whether it has a name (`hasattr`, or `getattr` with a default): how often, and why they may.
# Never networks, tasks and data modules: what these may have is written on their bases.
PROBES = {
    "backbones/backbone.py": (1, "timm's models share no class"),
    "backbones/create.py": (2, "timm's models and their modules share no class"),
    "backbones/sizes.py": (3, "layers of timm's models"),
    "backbones/timm_body.py": (8, "timm's models share no class"),
    "backbones/timm_model.py": (2, "timm's models share no class"),
    "callbacks/loggers.py": (1, "settings of W&B that older releases have not"),
    "commands/doctor.py": (1, "classes that the index names, which may be gone"),
    "config/builder.py": (2, "any module's contents, by a path that a config writes"),
    "config/compose.py": (3, "errors of YAML and OmegaConf, which have no common fields"),
    "contract.py": (1, "`sets_itself`, which classes have that need it"),
    "data/base/workers.py": (2, "signals that Windows has not"),
    "data/classification/transforms.py": (2, "timm's transforms, which hold their steps under two names"),
    "layers/norms.py": (1, "the activation that timm's norms have"),
    "processes.py": (3, "what systems other than Linux have not"),
    "structures.py": (1, "a callable's name"),
    "tasks/base/given.py": (1, "open files of whatever library, temporary ones that pass names on among them"),
}


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree, which several tests walk."""
    return ast.parse(path.read_text())


def test_rooms_import_only_from_floors_below() -> None:
    # In a process of its own: import-linter reconfigures logging.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


LIGHT = ("vistrain", "vistrain.cli", "vistrain.config", "vistrain.structures", "vistrain.processes")


@pytest.mark.parametrize("module", [*LIGHT, *(module.__name__ for module in COMMANDS)])
def test_light_modules_import_no_heavy_library(module: str) -> None:
    heavy = "torch", "timm", "lightning", "albumentations", "wandb", "matplotlib"
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_shared_rooms_name_no_task() -> None:
    """The walls of a room that every task uses do not move when a task is added."""
    shared = [path for path in SOURCES if _is_in(path, SHARED)]
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in shared
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if TASKS.search(ADDRESSES.sub("", line))
    ]
    assert len(shared) > 50
    assert not named, "\n".join(named)


def _is_in(path: Path, places: tuple[str, ...]) -> bool:
    return any(PACKAGE / place in (path, *path.parents) for place in places)


def test_nothing_is_probed_that_has_a_base() -> None:
    """A `getattr` or `hasattr` more is a name that should stand on a base, or a new entry of the list, and why."""
    found = {path.relative_to(PACKAGE).as_posix(): _probes(path) for path in SOURCES}
    assert {name: count for name, count in found.items() if count} == {n: count for n, (count, _) in PROBES.items()}


def _probes(path: Path) -> int:
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    asked = [(c.func.id, len(c.args)) for c in calls if isinstance(c.func, ast.Name)]
    return asked.count(("hasattr", 2)) + asked.count(("getattr", 3))


def test_files_called_alike_are_alike() -> None:
    """Only rooms that stand side by side for each task, and commands and their work, may call files the same."""
    places: dict[str, dict[str, str]] = {}
    for path in SOURCES:
        room = path.relative_to(PACKAGE).parts[0]
        if path.stem != "__init__" and path.stem not in SUBJECTS and room != "commands":
            room = "tasks and data" if room in ("tasks", "data") else room
            places.setdefault(path.stem, {})[room] = path.relative_to(ROOT).as_posix()
    several = [" = ".join(paths.values()) for paths in places.values() if len(paths) > 1]
    assert not several, "\n".join(several)


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_every_public_definition_has_a_docstring() -> None:
    missing = []
    for path in SOURCES:
        tree = parsed(path)
        missing += [f"{path.relative_to(ROOT)}"] if ast.get_docstring(tree) is None else []
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            missing += _undocumented(path, node) if not node.name.startswith("_") else []
        missing += [
            f"{path.relative_to(ROOT)}: {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and _lacks(node)
        ]
    assert not missing, "\n".join(missing)


def _undocumented(path: Path, cls: ast.ClassDef) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {cls.name}.{node.name}"
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and _lacks(node)
    ]


def _lacks(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is None
