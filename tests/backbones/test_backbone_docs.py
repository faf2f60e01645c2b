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


def blocks() -> list[str]:
    """The file of the page, its end where it is in a package of one's own, and the case of the contract."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backbones.md").read_text(), re.S)


def test_a_backbone_of_a_package_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, end, _ = blocks()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poolnet.py").write_text(source + "\n\n" + end)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.yaml").write_text(
        """
base: vistrain:demo/segmentation
model:
  backbone:
    type: mine.poolnet.PoolBackbone
    name: poolnet_tiny
    args: {embed_dim: 8, depths: [1, 1, 1, 1], channels: null, stem_width: null}
data: {train_images: 4, val_images: 2, batch_size: 2, workers: 0}
trainer: {max_epochs: 1, limit_train_batches: 1, limit_val_batches: 0, accelerator: cpu}
schedule: null
run: {folder: run}
"""
    )
    command = [sys.executable, "-m", "vistrain", "fit", "-c", "pool.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for allow, code, said in ("mine", 0, ""), ("minee", 2, "--allow: no package 'minee' is found"):
        result = subprocess.run(
            [*command, "--allow", allow], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stderr
        assert said in result.stderr


@pytest.mark.slow
def test_the_made_up_backbone_of_the_page_keeps_the_contract(tmp_path: Path) -> None:
    source, _, case = blocks()
    (tmp_path / "poolnet.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", RUN, str(tmp_path), case.strip()]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"kept \d\d", result.stdout.strip())
