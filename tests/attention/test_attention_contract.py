"""Every attention operator keeps the contract. A new one is a file of `cases/`: its definition and its cases."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from attention_contract import CHECKS, Case, check_export

import vistrain.attention
from vistrain.attention.base import AttentionOperator


def cases() -> list[Case]:
    """`CASES` of all files of the folder `cases`."""
    found: list[Case] = []
    for path in sorted((Path(__file__).parent / "cases").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"attention_cases_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += module.CASES
    return found


CASES = cases()


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] * (check is check_export)) for check in CHECKS],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case, check: object) -> None:
    check(case)


def test_every_operator_has_a_case() -> None:
    room = vistrain.attention
    exported = [vars(room)[name] for name in room.__all__]
    operators = {cls for cls in exported if isinstance(cls, type) and issubclass(cls, AttentionOperator)}
    assert operators == {case.cls for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)
