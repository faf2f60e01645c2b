"""The backbone that docs/backbones.md adds keeps the contract, taken from the page as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import importlib, sys
import pytest
import vistrain.backbones as room
room.__path__.append(sys.argv[1])
importlib.import_module("vistrain.backbones.poolnet")
from backbone_contract import CHECKS, Case
from vistrain.run.profile import counted
from vistrain.backbones.staged import published
(case,) = eval(f"[{sys.argv[2]}]")
for check in CHECKS:
    check(case)
row = published(case.name)
assert counted(case.name, 224) == (pytest.approx(row.parameters, abs=0.1), pytest.approx(row.gmacs, rel=0.025))
print("kept", len(CHECKS))
"""


@pytest.mark.slow
def test_the_made_up_backbone_of_the_page_keeps_the_contract(tmp_path: Path) -> None:
    source, case = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backbones.md").read_text(), re.S)
    (tmp_path / "poolnet.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", RUN, str(tmp_path), case.strip()]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"kept \d\d", result.stdout.strip())
