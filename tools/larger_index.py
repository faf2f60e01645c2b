"""A copy of the package whose index of names is several times as long, to see what grows with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vistrain.config import index


def write(folder: Path, times: int) -> None:
    """Copy the package and its configs into a folder: with it first in PYTHONPATH, `python -m vistrain` runs the copy.

    Args:
        folder: to hold them.
        times: entries in place of each one; the copies are called `NAME_2`, `NAME_3` ...
    """
    shutil.copytree(index.HERE, folder / "vistrain", ignore=shutil.ignore_patterns("__pycache__", "configs"))
    shutil.copytree(index.config_root(), folder / "configs")
    for file in (folder / "vistrain" / "config" / "names").glob("*.json"):
        sections: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        longer = {section: _copies(entries, times) for section, entries in sections.items()}
        file.write_text(json.dumps(longer), encoding="utf-8")


def _copies(entries: dict[str, Any], times: int) -> dict[str, Any]:
    return {f"{name}_{n}" if n > 1 else name: entry for n in range(1, times + 1) for name, entry in entries.items()}
