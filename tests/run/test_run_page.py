"""The page of a run, and runs beside each other, from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vistrain.cli import main
from vistrain.run.comparison import Comparison

CONFIG = """\
run: {name: mine}
seed: 1
data: {type: data.CocoFiles, root: shapes}
model: {type: detection.FocusDETR, num_queries: %d}
trainer: {max_epochs: 2}
metrics: [coco_box]
"""


def make_run(folder: Path, queries: int = 20, shift: float = 0.0, tested: bool = True, digest: str = "same") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG % queries)
    rows = ["step,train/loss,lr,epoch,val/coco/AP,val/coco/APl,perf/images_per_s,perf/data_share"]
    rows += [f"{i},{3 - 0.1 * i},0.001,{i // 5},{0.04 * i if i % 5 == 0 else ''},-1,{20 + i},0.1" for i in range(1, 11)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    facts = {
        "date": "2026-01-01T00:00:00+00:00",
        "command": ["vistrain", "fit", "-c", "vistrain:demo/detection", "name=a b"],
        "commit": {"id": "0123abc", "changed": True},
        "hardware": {"processor": "a processor"},
        "versions": {"torch": "2"},
    }
    (folder / "environment.json").write_text(json.dumps(facts))
    summary = {"seconds": 75, "memory_bytes": 2**30, "steps": 10, "processes": 1, "unreadable": ["bad<1>.jpg"]}
    (folder / "summary.json").write_text(json.dumps({**summary, "samples": {"train": 8, "val": 4}}))
    if tested:
        rng = np.random.default_rng(0)
        halves = [0.4 + shift + float(rng.normal(0, 0.05)) for _ in range(40)]
        record: dict[str, Any] = {"checkpoint": "best.ckpt", "numbers": {"test/coco/AP": 0.4 + shift}}
        record |= {"images": {"of": 40, "digest": digest}, "halves": {"test/coco/AP": halves}}
        (folder / "test.json").write_text(json.dumps(record))
    (folder / "eval").mkdir()
    for name in ("curves.png", "eval/epoch_001.png", "eval/epoch_002.png", "eval/worst.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name)
    return folder


def test_a_report_tells_a_colleague_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "mine")
    (run / "best.ckpt").write_bytes(b"")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for said in (
        "detection.FocusDETR · data.CocoFiles · 10 steps of 2 epochs",
        "on 40 samples, protocol coco_box",
        "<td>test/coco/AP</td><td class=\"number\">0.4000</td><td>0.3",  # and its interval
        "<td>val/coco/AP</td><td class=\"number\">0.4000</td><td class=\"number\">10</td>",
        "What differs from vistrain:demo/detection",
        "<td>model.embed_dim</td><td>128</td><td></td>",
        "8 train, 4 val, of shapes",
        "1 could not be read and were replaced: bad&lt;1&gt;.jpg",
        "0:01:15",
        "1.00 GiB",
        "a processor",
        "vistrain fit -c vistrain:demo/detection &#x27;name=a b&#x27;",
        "commit 0123abc with changes",
    ):  # fmt: skip
        assert said in page, said
    assert page.count("data:image/png;base64,") == 3  # curves, worst, the latest evaluation
    assert "(eval/epoch_002.png)" in text
    assert "(eval/epoch_001.png)" not in text


def test_a_run_with_little_in_it_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {name: bare}\n")
    assert main(["report", str(folder)]) == 0
    assert "Nothing was evaluated." in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere"], "nowhere is no run"),
        (["compare", "mine"], "name two runs"),
        (["compare", "mine", "mine"], "a run is named twice"),
        (["report", "mine", "broken"], "test.json: not valid JSON"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("mine"))
    (make_run(Path("broken")) / "test.json").write_text("{")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error.replace("nowhere: is", "nowhere is")


def test_a_template_is_compared_with_what_the_run_gave_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    facts = json.loads((run / "environment.json").read_text())
    facts["command"] = ["__main__.py", "fit", "-c", "vistrain:det/custom_coco", "data.root=shapes"]
    (run / "environment.json").write_text(json.dumps(facts))
    assert main(["report", str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "What differs from vistrain:det/custom\\_coco" in text
    assert "| data.root |" not in text
    assert "vistrain fit -c vistrain:det/custom_coco data.root=shapes" in text


def test_steps_are_those_that_were_done(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    (run / "summary.json").write_text(json.dumps({"steps": 12}))
    assert Comparison.of([run, make_run(tmp_path / "other")]).runs[0].steps == 12


def test_runs_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "first"), make_run(tmp_path / "second", queries=30, shift=0.1)]
    runs.append(make_run(tmp_path / "third", shift=0.0, digest="other"))
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "out")]) == 0
    assert "second - first" in capsys.readouterr().out
    found = Comparison.of(runs)
    headings, rows = found.numbers()
    assert headings == ["number", "first", "second", "third", "second - first", "third - first"]
    # The halves of both are shifted alike: the paired interval is a point; other samples have none.
    assert rows[0] == ["test/coco/AP", "0.4000", "0.5000", "0.4000", "+0.1000 (+0.1000 to +0.1000) *", "+0.0000"]
    assert ["val/coco/APl", "-", "-", "-", "", ""] in rows
    assert found.config() == [["model.num_queries", "20", "30", "20"]]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| model.num\\_queries | 20 | 30 | 20 |" in text
    assert "(curves.png)" in text
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000


def test_runs_of_one_name_are_told_apart_and_need_not_share_a_number(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a" / "run", tested=False), make_run(tmp_path / "b" / "run", tested=False)
    (second / "metrics.csv").write_text("step,val/cls/top1\n1,0.5\n")
    found = Comparison.of([first, second])
    assert found.names == (str(first), str(second))
    assert found.numbers()[1] == []
    found.write(tmp_path / "out")
    assert "No number is of two runs" in (tmp_path / "out" / "compare.md").read_text()
    assert "No number is of two runs" in str(found.table())


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("summary", "seconds", "abc"),
        ("summary", "memory_bytes", [1]),
        ("summary", "samples", 5),
        ("summary", "unreadable", 5),
        ("environment", "command", "vistrain fit"),
        ("environment", "commit", [1]),
        ("test", "halves", [1]),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    file: str, key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "mine")
    content = json.loads((run / f"{file}.json").read_text())
    (run / f"{file}.json").write_text(json.dumps({**content, key: value}))
    assert main(["report", str(run)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"vistrain: {run / file}.json: is damaged: {key}")
    assert "\n" not in said


def test_a_run_that_went_on_tells_how_it_was_started(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    facts = json.loads((run / "environment.json").read_text())
    resumed = {**facts, "command": ["vistrain", "fit", "--resume", "mine"], "started": facts["command"]}
    (run / "environment.json").write_text(json.dumps(resumed))
    assert main(["report", str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "What differs from vistrain:demo/detection" in text
    assert "--resume" not in text
