"""What other folds have left is read back, or refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vistrain.errors import DataError
from vistrain.run import folds
from vistrain.tasks.volumes.predictor import rules_of

BROKEN = {
    "deep": ("[" * 100_000, "nested too deeply"),
    "long": ("1" * 5000, "not valid JSON"),
    "cut": ('{"a": [', "not valid JSON"),
    "list": ("[]", "holds no lists of records"),
    "number": ('{"regions": 5}', "holds no lists of records"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_records_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, problem = BROKEN[name]
    monkeypatch.setattr(folds, "data_of", lambda config, allow: None)  # nothing of the data is looked at before
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "fold_0" / folds.RECORDS).write_text(content)
    with pytest.raises(DataError, match=rf"records\.json: {problem}|records\.json: not a valid file: {problem}") as e:
        folds.report({}, tmp_path, 1)
    assert "delete it, and run the command again" in str(e.value)


def test_rules_are_read_from_a_plain_file_of_json(tmp_path: Path) -> None:
    file = tmp_path / "folds.json"
    for content, problem in (
        ("[" * 100_000, "nested too deeply"),
        ('{"choices": {"components": 5}}', "has no rules for components"),
        ("5", "has no rules for components"),
        ('{"choices": {"components": {"WT": true}}}', "has the rule True for 'WT'"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=problem):
            rules_of(file, ("WT",))
    file.write_text('{"choices": {"components": {"WT": "largest"}}}')
    assert rules_of(file, ("WT",)) == {"WT": "largest"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(DataError, match="is a pipe"):
            rules_of(tmp_path / "pipe.json", ("WT",))
