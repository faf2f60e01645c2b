"""The command line, called in process; the work behind it is replaced where it would take long."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from vistrain import config
from vistrain.cli import main
from vistrain.commands import doctor
from vistrain.config import index
from vistrain.errors import DataError

CONFIG = "trainer: {max_epochs: 3}\noptimizer: {type: torch.optim.AdamW, lr: 1e-4}\n"


@pytest.fixture
def calls(monkeypatch):
    """What the commands ask of `vistrain.run` and `vistrain.run.predict`."""
    made: list[tuple[str, tuple, dict]] = []

    def record(name, result):
        def function(*arguments, **named):
            made.append((name, arguments, named))
            return result

        return function

    run = types.ModuleType("vistrain.run")
    run.fit, run.test = record("fit", 0), record("test", {})
    predict = types.ModuleType("vistrain.run.predict")
    predict.predict_paths = record("predict", None)
    for module in (run, predict):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys.modules["vistrain"], module.__name__.rpartition(".")[2], module, raising=False)
    made_run = types.SimpleNamespace(module=run, list=made)
    return made_run


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return "mine.yaml"


def fails(capsys, *words: str) -> str:
    """Runs a command that must end with one line on stderr and code 2."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_fit_composes_and_names_the_run_after_the_file(calls, file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "more.yaml").write_text("trainer: {devices: 2}")
    words = ["fit", "trainer.max_epochs=5", "-c", file, "--config", "more.yaml", "--debug", "seed=1", "--allow", "mine"]
    assert main(words) == 0
    name, (made,), named = calls.list[0]
    assert name == "fit"
    assert made == {
        "run": {"name": "more"},
        "trainer": {"max_epochs": 5, "devices": 2},
        "optimizer": {"type": "torch.optim.AdamW", "lr": 1e-4},
        "seed": 1,
    }
    assert named == {"resume": None, "debug": True, "allow": ["mine"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "-c", "mine.yaml"], "fit mine: loading libraries, data and network ..."),
        (["test", "--ckpt", "best.ckpt"], "test best.ckpt: loading libraries, data and network ..."),
    ],
)
def test_a_command_that_has_to_import_torch_says_so_before(calls, file, monkeypatch, caplog, words, said):
    heard: list[list[str]] = []  # what was said when the run began
    monkeypatch.setattr(calls.module, words[0], lambda *a, **k: heard.append(list(caplog.messages)) or 0)
    with caplog.at_level(logging.INFO, logger="vistrain"):
        monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
        assert main(words) == 0
        monkeypatch.delitem(sys.modules, "torch")
        assert main(words) == 0
    assert heard == [[], [said]]


def test_resume_takes_the_runs_own_config(calls, file, tmp_path):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(config.compose([file], ["run.name=old"])))
    assert main(["fit", "--resume", "runs/old", "trainer.max_epochs=9"]) == 0
    _, (made,), named = calls.list[0]
    assert (made["run"]["name"], made["trainer"]["max_epochs"]) == ("old", 9)
    assert named["resume"] == Path("runs/old")


def test_weights_become_a_key_of_the_config(calls, file):
    assert main(["fit", "-c", file, "--weights", "a.pth", "run.name=x"]) == 0
    assert calls.list[0][1][0]["run"] == {"name": "x", "weights": "a.pth"}


def test_test_takes_a_checkpoint_or_a_config_with_weights(calls, file, capsys):
    assert main(["test", "--ckpt", "best.ckpt", "data.eval_batch_size=4"]) == 0
    assert main(["test", "-c", file, "--weights", "a.pth", "seed=4"]) == 0
    first, second = calls.list
    assert first[1] == (None,)
    assert (first[2]["checkpoint"], first[2]["overrides"]) == (Path("best.ckpt"), ["data.eval_batch_size=4"])
    assert (second[1][0]["seed"], second[2]["checkpoint"], second[2]["weights"]) == (4, None, "a.pth")
    assert first[2]["analysis"] is None
    assert main(["test", "--ckpt", "best.ckpt", "--analysis", "out"]) == 0
    assert calls.list[2][2]["analysis"] == Path("out")
    assert calls.list[2][2]["overrides"] == []
    assert "give --ckpt FILE" in fails(capsys, "test")


def test_predict_passes_its_options_on(calls):
    assert (
        main(["predict", "--ckpt", "b.ckpt", "--input", "a.jpg", "b.jpg", "--output", "out", "--threshold", "0.4"]) == 0
    )
    _, positional, named = calls.list[0]
    assert positional == (Path("b.ckpt"), ["a.jpg", "b.jpg"], Path("out"))
    options = {"threshold": 0.4, "config": None, "weights": None}
    options |= dict.fromkeys(
        (
            "annotations",
            "components",
            "flip",
            "format",
            "kitti",
            "merge",
            "mirror",
            "opacity",
            "overlap",
            "previous",
            "probabilities",
            "scales",
            "second",
            "stride",
            "tile",
            "truth",
            "window",
            "window_batch",
        )
    )
    assert named == {"batch_size": 1, "device": "auto", "allow": [], **options}


SHAPES = "data: {type: data.GeneratedShapes, train_images: 2, val_images: 2, batch_size: 2, root: shapes}"


def test_check_looks_at_generated_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes.yaml").write_text(SHAPES)
    assert main(["check", "-c", "shapes.yaml"]) == 0
    assert (tmp_path / "check" / "shapes" / "report.json").is_file()
    assert "report and pictures: check/shapes" in capsys.readouterr().out


def test_evaluate_takes_annotations_or_the_config_of_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes.yaml").write_text(SHAPES)
    (tmp_path / "none.json").write_text("[]")
    assert main(["check", "-c", "shapes.yaml"]) == 0  # generates the data
    annotations = next(tmp_path.rglob("*val*.json"))
    capsys.readouterr()
    assert main(["evaluate", "none.json", "--annotations", str(annotations)]) == 0
    first = capsys.readouterr().out
    assert main(["evaluate", "none.json", "-c", "shapes.yaml"]) == 0
    assert capsys.readouterr().out == first
    assert re.search(r"AP50 .*0\.0000", first)


def test_print_config_checks_types(capsys):
    """By the index: in a second, and without torch."""
    for change, message in (
        ("data.batch_size=many", "data.batch_size: 'many' is not a whole number"),
        ("data.train_images=[1]", "data.train_images: [1] is not a whole number"),
        ("data.keep_empty=1", "data.keep_empty: 1 is not true or false"),
        ("model.dropout=high", "model.dropout: 'high' is not a number"),
    ):
        assert main(["fit", "-c", "vistrain:demo/detection", "--print-config", change]) == 2
        assert capsys.readouterr() == ("", f"vistrain: {message}\n")


def test_tables_of_types_fit_a_line(capsys):
    assert main(["explain", "trainer"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_print_config_is_composed_yaml_that_composes_to_the_same(calls, file, capsys, tmp_path):
    assert main(["fit", "-c", file, "--print-config", "trainer.max_epochs=7"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    again = config.compose(["again.yaml"])
    assert again == config.compose([file], ["trainer.max_epochs=7", "run.name=mine"])
    assert calls.list == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit"], "fit: which config? - give --config FILE"),
        (["fit", "mine.yaml"], "mine.yaml: stands alone - write --config mine.yaml"),
        (["fit", "--resume", "runs/none"], "--resume: runs/none has no config.yaml"),
        (["fit", "-c", "nothing.yaml"], "nothing.yaml: no such file"),
        (
            ["fit", "-c", "mine.yaml", "trainer.max_epoch=3"],
            "trainer.max_epoch: no such key - did you mean 'max_epochs'?",
        ),
        (["fit", "-c", "mine.yaml", "--trainer.max_epochs", "3"], "without dashes"),
        (["fit", "-c", "mine.yaml", "--trainer.max_epochs=3"], "trainer.max_epochs=VALUE, without dashes"),
        (["fit", "-c", "mine.yaml", "--debgu"], "fit does not take it - did you mean '--debug'?"),
        (["fit", "-c", "mine.yaml", "--deb"], "fit does not take it - did you mean '--debug'?"),
        (["fit", "-c", "mine.yaml", "stray"], "stray: fit does not take it"),
        (["predict", "--ckpt", "a", "--input", "b", "--output", "c", "seed=1"], "seed=1: a checkpoint is run as it is"),
        (["predict", "--input", "b", "--output", "c"], "predict: which network? - give --ckpt"),
        (["list", "backbone"], "list backbone: cannot be listed - did you mean 'backbones'?"),
        (["list", "optimizers", "adamx"], "nothing matches - did you mean 'torch.optim.Adam"),
        (["explain", "DeformableDETTR"], "no such class, key or config - did you mean"),
        (["explain", "trainer.max_epoch"], "did you mean 'trainer.max_epochs'?"),
        (["evaluate", "p.json"], "no truth to compare with"),
        (["evaluate", "p.json", "--annotations", "a.json", "seed=1"], "exclude each other"),
        (["evaluate", "p.json", "--annotations", "a.json"], "a.json"),
    ],
)
def test_the_users_errors_end_in_one_line_and_code_2(calls, file, capsys, words, message):
    assert message in fails(capsys, *words)


def test_data_errors_of_a_run_end_in_one_line_too(calls, file, capsys):
    def fit(*arguments, **named):
        raise DataError("img.jpg", "is truncated", "fetch it again")

    calls.module.fit = fit
    assert fails(capsys, "fit", "-c", file) == "vistrain: img.jpg: is truncated - fetch it again\n"


def test_a_bug_keeps_its_traceback(calls, file):
    def fit(*arguments, **named):
        raise ZeroDivisionError("a bug")

    calls.module.fit = fit
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["fit", "-c", file])


@pytest.mark.parametrize("as_lightning_does", [False, True])
def test_an_interrupt_says_how_to_resume(calls, file, capsys, as_lightning_does):
    def fit(*arguments, **named):
        folder = Path("runs/mine")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.ckpt").touch()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if as_lightning_does:
                sys.exit(1)
            raise

    calls.module.fit = fit
    assert main(["fit", "-c", file]) == 130
    assert capsys.readouterr().err == "vistrain: interrupted - continue with: vistrain fit --resume runs/mine\n"


def test_usage_errors_and_help_return_codes(capsys):
    assert main([]) == 2
    assert main(["fitt"]) == 2
    assert main(["fit", "--print-config=half"]) == 2
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "vistrain fit --config vistrain:demo/detection" in said
    for command in (
        "fit",
        "test",
        "reproduce",
        "predict",
        "evaluate",
        "check",
        "list",
        "explain",
        "profile",
        "convert-weights",
        "doctor",
        "completion",
    ):
        assert command in said
        assert main([command, "--help"]) == 0
        assert f"vistrain {command}" in capsys.readouterr().out


def test_listing_matches_names_and_parts_of_names(capsys):
    assert main(["list", "optimizers", "adam*"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "torch.optim.AdamW" in names
    assert all("adam" in n.lower() for n in names)
    assert main(["list", "backbones", "resnet50"]) == 0
    assert re.search(r"^resnet50 .*tv_in1k", capsys.readouterr().out, re.M)
    assert main(["list", "backbones", "cswin*"]) == 0
    row = r"^cswin_tiny +2107.00652 +22.3 M +4.3 G at 224 +top-1 82.8 +strides 4 8 16 32 +any size$"
    assert re.search(row, capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("detection.DeformableDETR", r"num_queries +int +  = 300"),
        ("DeformableDETR", r"labels +LabelSpace +  given by the data"),
        ("model.num_queries", r"detection.DeformableDETR\n +num_queries +int += 300"),
        ("trainer.max_epochs", r"max_epochs +Optional\[int\] += null"),
        ("trainer.callbacks", "write them in the section callbacks"),
        ("schedule", r"optim.MultiStep"),
        ("run.folder", "run.folder: a key of run"),
        ("torch.optim.AdamW", r"betas .*= \[0.9, 0.999\]"),
        ("optimizer.lr", r"torch.optim.SGD"),
        ("casvit_xs", r"2408.03703[^$]*args may hold[^$]*drop_path_rate +0\.0\n[^$]*layers +\(3, 3, 6, 3\)"),
    ],
)
def test_explain(capsys, name, expected):
    assert main(["explain", name]) == 0
    assert re.search(expected, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vistrain f", ["fit", "folds"]),
        ("vistrain fit --p", ["--print-config"]),
        ("vistrain fit tr", ["trainer."]),
        ("vistrain fit trainer.max_ep", ["trainer.max_epochs="]),
        ("vistrain fit -c mine.yaml optimizer.am", ["optimizer.amsgrad="]),
        ("vistrain fit -c mine.yaml optimizer.amsgrad=", ["optimizer.amsgrad=false", "optimizer.amsgrad=true"]),
        ("vistrain fit -c mine.yaml optimizer.type=torch.optim.AdamW", ["optimizer.type=torch.optim.AdamW"]),
        ("vistrain fit -c mi", ["mine.yaml"]),
        ("vistrain list backb", ["backbones"]),
        ("vistrain completion z", ["zsh"]),
        ("vistrain fit -c broken.yaml see", ["seed="]),
        ("vistrain nothing x", []),
    ],
)
def test_completion_candidates(file, capsys, line, expected):
    assert main(["completion", "--line", line]) == 0
    assert capsys.readouterr().out.split() == expected


def test_the_bash_script_completes(tmp_path):
    script = subprocess.run(
        [sys.executable, "-m", "vistrain", "completion", "bash"], capture_output=True, text=True, check=True
    )
    (tmp_path / "vistrain").write_text(f'#!/bin/sh\nexec {sys.executable} -m vistrain "$@"\n')
    (tmp_path / "vistrain").chmod(0o755)
    test = f"""{script.stdout}
    compopt() {{ :; }}
    COMP_LINE='vistrain fit optimizer.type=torch.optim.AdamW'; COMP_POINT=${{#COMP_LINE}}
    COMP_WORDS=(vistrain fit optimizer.type = torch.optim.AdamW); COMP_CWORD=4
    _vistrain; echo "${{COMPREPLY[@]}}"
    COMP_LINE='vistrain fit trainer.max_ep'; COMP_POINT=${{#COMP_LINE}}
    COMP_WORDS=(vistrain fit trainer.max_ep); COMP_CWORD=2
    _vistrain; echo "${{COMPREPLY[@]}}" """
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    made = subprocess.run(["bash", "-c", test], capture_output=True, text=True, env=environment, check=True)
    assert made.stdout.split("\n")[:2] == ["torch.optim.AdamW", "trainer.max_epochs="]


def test_what_must_be_quick_imports_no_torch(tmp_path):
    (tmp_path / "mine.yaml").write_text(CONFIG)
    commands = [
        ["--help"], ["list", "backbones", "res*"], ["list", "configs"], ["explain", "model.num_queries"],
        ["fit", "-c", str(tmp_path / "mine.yaml"), "--print-config"], ["completion", "--line", "vistrain fit -c "],
    ]  # fmt: skip
    code = (
        f"import sys\nfrom vistrain.cli import main\nfor c in {commands!r}: main(c)\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


COUNT = """
import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
from vistrain.cli import main
main(["--help"])
sys.setprofile(None)
sys.stderr.write(f"{calls} {len(sys.modules)}")
"""


def test_help_answers_at_once():
    """What its 0.15 s go into, counted: seconds depend on what else runs. About 31 000 calls and 130 modules."""
    made = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    calls, modules = map(int, made.stderr.split())
    assert "usage: vistrain" in made.stdout
    assert calls < 50_000
    assert modules < 200


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m vistrain list backbones | head -n 1"
    made = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")


def test_doctor_reports_versions_and_is_well_here():
    text, _ = doctor.report()
    assert re.search(r"^torchvision.ops.nms +works$", text, re.M)
    assert re.search(r"^timm +\d", text, re.M)
    assert "shared memory" in text


def test_doctor_explains_a_torch_and_torchvision_that_do_not_fit(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    import torchvision.ops

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    text, is_well = doctor.report()
    assert not is_well
    assert "problem: torch and torchvision do not fit together" in text
    assert "operator torchvision::nms does not exist" in text
    assert "pip install" in text


def test_doctor_names_what_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # which raises ImportError
    text, is_well = doctor.report()
    assert not is_well
    assert "problem: timm cannot be imported (import of timm halted" in text


def test_doctor_notices_a_stale_index_and_small_shared_memory(monkeypatch):
    entry = index.load("classes")["optim.Cosine"]
    stale = {"optim.Cosine": {**entry, "parameters": {"a": {}}}}
    monkeypatch.setattr(index, "load", lambda section: stale)
    assert doctor.stale_names() == ["optim.Cosine"]
    usage = types.SimpleNamespace(total=64 << 20, free=0)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert "--shm-size" in doctor._shared_memory()[2]
