"""Every backbone of ours keeps the contract. A new model is one line of its `CASES`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
from backbone_contract import CASES, CHECKS, Case, check_export, check_onnx

from vistrain.backbones.staged import ours, published

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from backbone_sizes import LARGEST, PAGE, count, differences, line

SLOW = {check_export, check_onnx}


def family_of(name: str) -> str:
    """The module that a model is registered by."""
    return timm.model_entrypoint(name).__module__


def smallest() -> set[str]:
    """One variant of each family, the one of the fewest parameters."""
    found: dict[str, str] = {}
    for name in sorted(ours(), key=lambda name: (float(published(name).parameters), name)):
        found.setdefault(family_of(name), name)
    return set(found.values())


OURS, SMALLEST = ours(), smallest()


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] * (check in SLOW)) for check in CHECKS],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case, check: object) -> None:
    check(case)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in SMALLEST)) for name in OURS]
)
def test_published_size(name: str) -> None:
    row, found = published(name), count(name)
    assert (differences(row, *found) > LARGEST) == bool(row.why)
    assert line(name, *found) in PAGE.read_text(), "run `python tools/backbone_sizes.py`"


def test_every_family_has_a_case() -> None:
    assert {family_of(name) for name in ours()} == {family_of(case.name) for case in CASES}


@pytest.mark.slow
def test_importing_the_room_registers_and_importing_the_package_does_not() -> None:
    light = "import sys, vistrain; assert 'timm' not in sys.modules"
    code = f"{light}; import vistrain.backbones, timm; print(timm.is_model({CASES[0].name!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("True\n", "")  # and no warning of an overwritten name
