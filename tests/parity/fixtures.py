"""Finds the stored results of the authors' code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "VISTRAIN_PARITY"


def folder() -> Path | None:
    """The fixtures: `VISTRAIN_PARITY`, else `shared/parity` beside the main work tree; None if there are none."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    beside = main_work_tree(Path(__file__).resolve().parents[2]).parent / "shared" / "parity"
    return beside if beside.is_dir() else None


def problem() -> str | None:
    """What is wrong with `VISTRAIN_PARITY`, if anything."""
    place = os.environ.get(VARIABLE)
    return f"{VARIABLE}={place} is not a folder" if place and not Path(place).is_dir() else None


def main_work_tree(root: Path) -> Path:
    """The main work tree of a repository whose work tree `root` may be a linked one (`git worktree add`)."""
    link = root / ".git"
    if link.is_file():
        git_dir = root / link.read_text().removeprefix("gitdir:").strip()
        common = git_dir / "commondir"
        if common.is_file():  # absent for submodules, whose .git is a file too
            return (git_dir / common.read_text().strip()).resolve().parent
    return root


def names(pattern: str) -> list[str]:
    """Fixtures that match a pattern relative to the folder (`dense/official_defdetr*.pt`), sorted; none without it."""
    place = folder()
    return [] if place is None else sorted(path.relative_to(place).as_posix() for path in place.glob(pattern))


def load(name: str) -> dict[str, Any]:
    """One fixture, or a skip that says why.

    Args:
        name: path within the folder, with its suffix (`.pt`, `.json`).
    """
    place = folder()
    if place is None:
        pytest.skip(f"no parity fixtures: set {VARIABLE}, or put them at ../shared/parity beside the work tree")
    if not (place / name).is_file():
        pytest.skip(f"{name} is not among the fixtures of {place}")
    if name.endswith(".json"):
        return json.loads((place / name).read_text())
    import torch  # here: finding fixtures must not cost torch's import

    return torch.load(place / name, weights_only=True)
