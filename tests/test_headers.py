"""Papers' files say where their code comes from and under which licence, so that nothing is copied that must not be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vistrain"
ROOMS = (
    *("detection", "classification", "restoration", "segmentation", "pretraining"),
    *("detr", "necks", "matching", "losses", "backbones", "attention"),
    *("layers", "metrics", "optim", "checkpoints"),
)
PAPER = re.compile(r"\b\d{4}\.\d{5}\b")
LICENCE = re.compile(r"\bMIT\b|Apache-2\.0|\bBSD\b|\bGPL\b|CC BY|no licence|non-commercial|licence is not stated")


def docstrings(tree: ast.Module) -> list[str]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, owners)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_file_that_names_a_paper_names_a_licence(room: str) -> None:
    silent = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        names_paper = any(PAPER.search(text) for text in docstrings(tree))
        if names_paper and not LICENCE.search(ast.get_docstring(tree) or ""):
            silent.append(str(path.relative_to(PACKAGE)))
    assert silent == []
