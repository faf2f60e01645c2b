"""Golden rows: models compute today what they computed when they equalled their authors' code."""

import json

import pytest
from golden_rows import FOLDER, ROWS


@pytest.mark.parametrize("name", ROWS)
def test_golden_row(name: str) -> None:
    path = FOLDER / f"{name}.json"
    assert path.stat().st_size <= 2048
    row, stored = ROWS[name](), json.loads(path.read_text())
    losses = stored.pop("losses", {})
    assert row.pop("losses", {}) == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert row.pop("parameters") == stored.pop("parameters")
    assert set(row) == set(stored)
    for key, values in stored.items():
        assert row[key] == pytest.approx(values, rel=1e-4, abs=1e-3 if key == "detected boxes" else 1e-5), key


def test_every_row_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(ROWS)
