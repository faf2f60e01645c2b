"""The house rules that a machine can check: floors, light imports, docstrings, leaf files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vistrain").rglob("*.py"))


def test_rooms_import_only_from_floors_below() -> None:
    # In a process of its own: import-linter reconfigures logging.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("module", ["vistrain", "vistrain.cli", "vistrain.config", "vistrain.structures"])
def test_light_modules_import_no_heavy_library(module: str) -> None:
    heavy = "torch", "timm", "lightning", "albumentations", "wandb", "matplotlib"
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_definition_has_a_docstring() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
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
