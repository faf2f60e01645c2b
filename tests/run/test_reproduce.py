"""`vistrain reproduce`: what is compared, what is refused, the record and the exit code."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from vistrain import run
from vistrain.cli import build_parser, main
from vistrain.commands import completion
from vistrain.config import index
from vistrain.errors import ConfigError
from vistrain.run import reproduce

CONFIG = """\
trainer: {max_epochs: 3}
metrics: [denoise]
reference: {paper: 1608.03981, values: {denoise/Set12/psnr: 30.43, denoise/BSD68/psnr: 29.23}, tolerance: 0.02}
"""
MEASURED = {"test/denoise/Set12/psnr": 30.41, "test/denoise/BSD68/psnr": 29.2312, "test/denoise/psnr": 29.4}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A config, weights, and an evaluation that says `numbers`, a dictionary that the test may change."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dncnn.yaml").write_text(CONFIG)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    numbers, calls = dict(MEASURED), []

    def test(config, *, weights, allow):
        calls.append({"config": config, "weights": weights})
        return numbers

    monkeypatch.setattr(run, "test", test)
    return numbers, calls


def reproduced(*words: str) -> int:
    return main(["reproduce", "--config", "dncnn.yaml", "--weights", "weights.pth", *words])


def record(folder: str = "reproduced/dncnn") -> dict:
    return json.loads(open(f"{folder}/reproduction.json").read())


def test_within_the_tolerance(files, capsys):
    _, calls = files
    assert reproduced() == 0
    said = capsys.readouterr().out
    assert "30.43" in said
    assert "30.410" in said
    assert "-0.020" in said
    assert "reproduced; record: reproduced/dncnn/reproduction.json" in said
    assert calls[0]["weights"] == "weights.pth"
    assert calls[0]["config"]["run"]["folder"] == "reproduced/dncnn"


def test_outside_the_tolerance_is_code_3(files, capsys):
    numbers, _ = files
    for value in (29.2, 29.26, math.nan):  # better than published is not published either
        numbers["test/denoise/BSD68/psnr"] = value
        assert reproduced() == 3
        assert "OUTSIDE" in capsys.readouterr().out
    assert record()["reproduced"] is False
    assert record()["results"][1]["measured"] is None  # JSON has no NaN


def test_the_record_says_what_was_run(files):
    assert reproduced("--output", "out", "seed=7") == 0
    made = record("out")
    first = made["results"][0]
    assert (first["metric"], first["published"], first["tolerance"], first["within"]) == (
        "denoise/Set12/psnr", 30.43, 0.02, True,
    )  # fmt: skip
    assert first["difference"] == pytest.approx(-0.02)
    assert made["date"].startswith("20")
    assert made["vistrain"]
    assert made["environment"]["versions"]["torch"]
    assert made["environment"]["python"]
    assert made["hardware"]["processor"]
    assert made["hardware"]["cores"] >= 1
    assert made["weights"]["bytes"] == 7
    assert len(made["weights"]["sha256"]) == 64
    assert made["composed"]["seed"] == 7
    assert made["commit"] is None or len(made["commit"]["id"]) == 40


def test_a_test_set_that_is_not_there_is_said_and_not_counted(files, capsys):
    numbers, _ = files
    del numbers["test/denoise/BSD68/psnr"]
    assert reproduced() == 0
    said = capsys.readouterr().out
    assert "not measured" in said
    assert "dncnn, protocol denoise: 1 of 2 numbers" in said
    assert "reproduced in part: 1 of 2 numbers measured" in said
    assert record()["results"][1]["within"] is None
    assert (record()["complete"], record()["reproduced"]) == (False, True)
    numbers["test/denoise/Set12/psnr"] = 30.0
    assert reproduced() == 3
    assert "not reproduced: 1 of 2 numbers measured" in capsys.readouterr().out
    assert (record()["complete"], record()["reproduced"]) == (False, False)


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "1"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "3"}, {"PMI_RANK": "2"}, {"NODE_RANK": "1"}],
)
def test_only_the_first_process_writes(files, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert reproduced() == 0
    assert not Path("reproduced/dncnn/reproduction.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert reproduced() == 0
    assert record()["complete"] is True


def test_nothing_in_common_is_refused(files, capsys):
    numbers, _ = files
    numbers.clear()
    numbers["test/sr_luma/Set5/psnr"] = 30.43
    assert reproduced() == 2
    assert "reference: none of its numbers was measured" in capsys.readouterr().err


def test_weights_are_asked_for_but_where_nothing_is_trained(files, capsys, monkeypatch):
    _, calls = files
    for parameters, code in ((1, 2), (0, 0)):
        layer = torch.nn.Conv2d(1, 1, 1) if parameters else torch.nn.Identity()
        parts = types.SimpleNamespace(model=layer)
        monkeypatch.setattr(run, "build_parts", lambda config, allow, parts=parts: parts)
        assert main(["reproduce", "--config", "dncnn.yaml"]) == code
        assert len(calls) == 1 - parameters
    assert "with which weights? - give --weights FILE" in capsys.readouterr().err
    assert record()["weights"] is None
    assert main(["reproduce", "--config", "dncnn.yaml", "run.weights=weights.pth"]) == 0
    assert calls[-1]["weights"] == "weights.pth"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "publishes no number"),
        ({"paper": "1608.03981", "tolerance": 0.1}, "publishes no number"),
        ({"metric": "coco/AP", "value": 48.8}, "None for coco/AP is not a number"),
        ({"metric": "coco/AP", "value": "48.8", "tolerance": 0.1}, "'48.8' for coco/AP is not a number"),
        ({"values": {"a/psnr": 1, "a/ssim": 1}, "tolerance": {"psnr": 0.1}}, "None for a/ssim is not a number"),
    ],
)
def test_a_reference_that_cannot_be_compared(reference, message):
    with pytest.raises(ConfigError, match="reference") as caught:
        reproduce.published(reference)
    assert message in str(caught.value)


def test_units_and_tolerances_of_each_kind():
    """Papers print percent where tools print fractions; decibels and SSIM are the same in both."""
    rows = reproduce.published({"metric": "coco/AP", "value": 48.8, "tolerance": 0.2})
    assert reproduce.compare(rows, {"test/coco/AP": 0.487})[0].within
    assert not reproduce.compare(rows, {"test/coco/AP": 0.4905})[0].within
    rows = reproduce.published(
        {"values": {"sr_luma/psnr": 28.42, "sr_luma/ssim": 0.8104}, "tolerance": {"psnr": 0.02, "ssim": 0.001}}
    )
    found = reproduce.compare(rows, {"sr_luma/psnr": 28.43, "sr_luma/ssim": 0.8130})
    assert [row.within for row in found] == [True, False]


PUBLISHING = [n for n, e in index.load("configs").items() if {"value", "values"} & set(e.get("reference") or {})]


@pytest.mark.parametrize("leaf", PUBLISHING)
def test_every_leaf_publishes_what_can_be_compared(leaf):
    assert reproduce.published(index.load("configs")[leaf]["reference"])


def test_help_and_completion_import_no_torch():
    code = (
        "import sys; from vistrain.cli import main; main(['reproduce', '--help']);"
        "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Exit code: 0 if all are within the tolerance, 3 if one is outside" in said
    assert said.splitlines()[-1] == "[]"
    parser = build_parser("completion")
    assert "reproduce" in completion.candidates("vistrain repr", parser)
    assert "--weights" in completion.candidates("vistrain reproduce --w", parser)
