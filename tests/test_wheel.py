"""What users install: the wheel holds every module, every config and the index, and runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vistrain

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_what_the_checkout_holds(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {file.relative_to(ROOT).as_posix() for file in (ROOT / "vistrain").rglob("*") if file.is_file()}
    assert {name for name in ours if "__pycache__" not in name} <= names
    configs = {file.relative_to(ROOT).as_posix() for file in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 500
    assert {f"vistrain/{name}" for name in configs} <= names
    assert not [name for name in names if name.startswith(("tests", "tools", "docs"))]
    assert f"-{vistrain.__version__}-" in wheel.name


def test_it_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    (tmp_path / "empty").mkdir()
    script = "import vistrain; print(vistrain.__file__); from vistrain.__main__ import main; raise SystemExit(main())"
    words = ["fit", "-c", "vistrain:det/focus_detr", "--print-config"]
    command = [sys.executable, "-P", "-c", script, *words]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(str(tmp_path / "installed"))
    assert any(line.startswith("model:") for line in rest)
