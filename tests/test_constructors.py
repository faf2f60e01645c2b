"""Constructors hand on what they do not use as `**base`, and never by hand: copies of a signature drift apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vistrain"
MOST, MOST_POSITIONAL = 6, 3


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every `super().__init__(...)` of a file, with the line where it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr="__init__")):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def rooms() -> list[str]:
    return sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("room", rooms())
def test_no_constructor_hands_more_than_a_handful_on(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / room]
    found = [call for path in files for call in calls(path)]
    by_hand = {where: len(c.args) + sum(k.arg is not None for k in c.keywords) for where, c in found}
    assert {where: count for where, count in by_hand.items() if count > MOST} == {}
    positional = {where: len(c.args) for where, c in found}
    assert {where: count for where, count in positional.items() if count > MOST_POSITIONAL} == {}
