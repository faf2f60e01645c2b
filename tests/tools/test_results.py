"""docs/results.md is what configs and records say, and no number gets onto it without a record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vistrain.config import index

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import make_results  # noqa: E402

LEAF = "restore/bicubic_x4"
FACTS = {
    "date": "2026-01-02T03:04:05+00:00", "commit": {"id": "0" * 40, "changed": False},
    "hardware": {"processor": "a processor"}, "weights": None, "complete": True, "reproduced": True, "limit": None,
    "environment": {
        "devices": [], "python": "3.11", "versions": dict.fromkeys(("torch", "lightning", "timm", "numpy"), "1.0"),
    },
}  # fmt: skip


def folder(tmp_path: Path, **changes: object) -> Path:
    reference = index.load("configs")[LEAF]["reference"]
    results = [{"metric": name, "measured": value} for name, value in reference["values"].items()]
    record = {**FACTS, "config": "bicubic_x4", "reference": reference, "results": results, **changes}
    (tmp_path / "reproduction.json").write_text(json.dumps(record))
    return tmp_path


def test_the_page_is_what_configs_and_records_say() -> None:
    kept = json.loads(make_results.RECORDS.read_text(encoding="utf-8"))
    made = make_results.page(kept)
    assert make_results.PAGE.read_text(encoding="utf-8") == made, "run `python tools/make_results.py`"
    rows = [line for line in made.splitlines() if line.count(" | ") == 6 and line.startswith("| `")]
    assert len(rows) == sum("classes" in entry for entry in index.load("configs").values())
    measured = [row for row in rows if row.split(" | ")[5].strip()]
    assert len(measured) == len(kept) == sum("**" in row for row in rows)


def test_a_record_is_condensed_to_what_counts(tmp_path: Path) -> None:
    leaf, record = make_results.reproduction(folder(tmp_path))
    assert leaf == LEAF
    assert record["measured"] == {"sr_luma/Set5/psnr": 28.43, "sr_luma/Set5/ssim": 0.8113}
    assert (record["state"], record["commit"], record["date"]) == ("reproduced", "0" * 40, "2026-01-02")
    make_results.refuse_stale({leaf: record})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"complete": False}, "is partial"),
        ({"reproduced": False}, "is partial, or a number is outside"),
        ({"limit": 4}, "is partial"),
        ({"reference": {"metric": "sr_luma/Set5/psnr", "value": 30.0, "tolerance": 0.02}}, "publishes these numbers"),
        ({"config": "another"}, "publishes these numbers"),
        ({"commit": None}, "does not say of which commit"),
        ({"commit": {"id": "0" * 40, "changed": True}}, "its sources were changed"),
    ],
)
def test_records_that_prove_nothing_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        make_results.reproduction(folder(tmp_path, **changes))


def test_kept_records_that_no_longer_hold_are_refused(tmp_path: Path) -> None:
    _, record = make_results.reproduction(folder(tmp_path))
    for kept, message in (
        ({"restore/none": record}, "there is no such config"),
        ({"restore/bicubic_x8": record}, "is outside its tolerance now"),
        ({LEAF: {**record, "measured": {"sr_luma/Set5/psnr": 28.43}}}, "does not publish what its record measured"),
        ({LEAF: {**record, "date": ""}}, "does not say what it is, when"),
    ):
        with pytest.raises(SystemExit, match=message):
            make_results.refuse_stale(kept)


def test_states_come_from_the_tests_that_compare_numbers() -> None:
    known = index.load("configs")
    for leaf, state in {
        "det/focus_detr": "parity",
        "cls/cswin_tiny": "parity",
        "cls/swin_tiny": "timm",
        "det/gfl_r50_1x": "configured",  # its names and shapes alone are compared
        "cls/s2aformer": "configured",
    }.items():
        assert make_results.state_of(make_results.parts_of(known[leaf], {}), None)[0] == state, leaf
    assert make_results.state_of(["HAT", "NoSuchPart"], None) == ("parity in part", "parity but for NoSuchPart")
