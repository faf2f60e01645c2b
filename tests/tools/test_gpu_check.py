"""tools/gpu_check.py: all of it in small on a CPU, with nothing installed that it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"

# What a bare machine with torch, torchvision and timm lacks
ABSENT = ("lightning", "omegaconf", "pydantic", "albumentations", "cv2", "pycocotools", "wandb", "rich", "matplotlib")
WITHOUT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ImportError(f"{{name}} is not installed")
sys.meta_path.insert(0, Absent())
"""
BARE = f"""{WITHOUT}
import runpy
sys.path.insert(0, {str(TOOLS)!r})
sys.argv = ["gpu_check.py", "--dry", "--output", sys.argv[1]]
runpy.run_path({str(TOOLS / "gpu_check.py")!r}, run_name="__main__")
"""


NETWORKS = "backbones, attention, modules, necks, detection, classification, restoration, segmentation, pretraining"


def test_networks_are_imported_where_torch_is_all() -> None:
    command = [sys.executable, "-c", f"{WITHOUT}\nfrom vistrain import {NETWORKS}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TOOLS.parent)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_everything_runs_in_small_on_a_bare_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BARE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    assert {(row["torch"], row["dry"], row["run"]) for row in rows} == {(torch.__version__, True, rows[0]["run"])}
    parts = {row["part"] for row in rows}
    assert parts >= {"card", "deformable cores", "detection", "classification", "operators", "backbones", "restoration"}
    assert parts >= {"segmentation", "volumes"}
    kinds = {row["name"].split(",")[0] for row in rows if row["part"] in ("segmentation", "volumes")}
    assert kinds == {"UPerNet", "Mask2Former", "3-D U-Net"}
    cores = [row for row in rows if row["part"] == "deformable cores"]
    assert len({row["name"] for row in cores}) == len(cores) >= 10
    assert all(row["output"] < 1e-2 and row["training_ms"] > 0 for row in cores)
    steps = [row["name"] for row in rows if row["part"] == "detection"]
    assert [name.split(",")[0] for name in steps[:3]] == ["DeformableDETR", "DINO", "FocusDETR"]
    table = (tmp_path / "gpu_check.md").read_text()
    assert "## detection" in table
    assert "there is no CUDA device" in table


def test_a_model_of_each_family_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    import gpu_check
    import timm

    import vistrain.backbones  # noqa: F401 - registers ours

    small_images = {"eurosat", "gmm_swin", "gmm_vit"}
    ours = {name: timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    families = {module.rpartition(".")[2] for module in ours.values() if module.startswith("vistrain.backbones.")}
    assert len(families) > 25
    measured = {ours[name].rpartition(".")[2] for name in gpu_check.FAMILIES}
    assert families - measured == small_images


def test_an_error_costs_its_own_row_and_no_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    from gpu_measuring import Check, markdown

    check = Check(tmp_path, torch.device("cpu"), minutes=1, dry=False)

    def broken() -> None:
        raise RuntimeError("CUDA out of memory\nand more")

    check.attempt("part", "breaks", broken, 1)
    check.attempt("part", "takes too long", broken, 100)
    check.attempt("part", "works", lambda: check.record("part", "works", step_ms=12.345), 1)
    rows = [json.loads(line) for line in (tmp_path / "gpu_check.jsonl").read_text().splitlines()]
    assert rows[0]["error"] == "RuntimeError: CUDA out of memory"
    assert "100 s wanted" in rows[1]["left_out"]
    assert rows[2]["step_ms"] == 12.345
    assert "| works | 12.3 |" in markdown(check)


def test_what_hangs_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    from gpu_measuring import Check, OutOfTime, _Deadline

    check = Check(tmp_path, torch.device("cpu"), minutes=1, dry=True)
    with pytest.raises(OutOfTime), _Deadline(0.05):
        threading.Event().wait(20)
    assert check.waits(lambda: None) is None


def test_mistakes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    import gpu_check

    folder, file = tmp_path / "folder", tmp_path / "file"
    file.write_text("mine")
    (tmp_path / "taken" / "gpu_check.md").mkdir(parents=True)
    for arguments, output, message in (
        (["--device", "cuda:99"], folder, "no cuda:99"),
        (["--device", "card"], folder, "--device card names no device"),
        (["--dry", "--parts", "x"], folder, "no part x"),
        (["--dry", "--device", "meta"], folder, "--device meta is not measured here"),
        (["--dry", "--device", "cpu:1"], folder, "--device cpu:1 is not measured here"),
        (["--dry", "--minutes", "nan"], folder, "--minutes nan"),
        (["--dry", "--minutes", "inf"], folder, "--minutes inf"),
        (["--dry"], tmp_path / "taken", "gpu_check.md: it is a folder"),
        (["--dry"], file, f"--output {file} cannot be written"),
    ):
        with pytest.raises(SystemExit):
            gpu_check.main([*arguments, "--output", str(output)])
        assert message in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_rows_begin_on_a_line_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    from gpu_measuring import Check

    file = tmp_path / "gpu_check.jsonl"
    file.write_text('{"part": "card"}\n[1]\n{"part": "ca')
    check = Check(tmp_path, torch.device("cpu"), minutes=1, dry=True)
    assert capsys.readouterr().out.splitlines() == [f"{file}, line {n}: no row; it stays as it is" for n in (2, 3)]
    check.record("part", "works")
    *before, last = file.read_text().splitlines()
    assert before == ['{"part": "card"}', "[1]", '{"part": "ca']
    assert json.loads(last)["name"] == "works"


def test_what_cannot_be_written_or_is_stopped_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    import gpu_check

    for error, code, said in (
        (OSError(28, "No space left on device"), f"{tmp_path}: No space left on device", ""),
        (KeyboardInterrupt(), 130, "stopped: rows and table hold"),
    ):

        def stop(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(gpu_check.Check, "attempt", stop)
        with pytest.raises(SystemExit) as ended:
            gpu_check.main(["--dry", "--output", str(tmp_path)])
        assert str(ended.value.code).startswith(str(code))
        assert said in capsys.readouterr().err
