"""The checkout that a tool lies in comes before any other `vistrain`: what writes into a repository reads the same one.

Imported before vistrain, by tools that write into the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT))

import vistrain  # noqa: E402

if Path(vistrain.__file__).resolve().parents[1] != ROOT:  # it was imported before
    raise SystemExit(f"{ROOT}: its tools write there, and the vistrain of {vistrain.__file__} was imported: run alone")
