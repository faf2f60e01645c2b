"""What a run would refuse is said before it: by `vistrain check` all at once, by `vistrain fit` before it is begun."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vistrain import run
from vistrain.cli import main
from vistrain.config import compose
from vistrain.errors import VistrainError
from vistrain.run.rehearsal import Refusals, rehearse

BASE = "vistrain:demo/restoration"
TINY = [
    "data.workers=0", "data.train_images=8", "data.val_images=2", "data.repeat=2", "data.batch_size=4", "data.patch=8",
    "model.network.num_feat=8", "model.network.num_block=1", "schedule.warmup_steps=1", "trainer.accelerator=cpu",
    "trainer.check_val_every_n_epoch=1", "trainer.max_epochs=2",
]  # fmt: skip
# A change, and the beginning of what is said; one step is an epoch of 4 of 16 patches: 8 steps in all.
REFUSED = [
    (["schedule.warmup_steps=9"], "schedule.warmup_steps: a warm-up of 9 steps, but the run has 8 - "),
    (["schedule.warmup_steps=0", "schedule.warmup_epochs=2.5"], "schedule.warmup_epochs: a warm-up of 10 steps, but"),
    (["schedule={type: optim.MultiStep, milestones: [1, 2]}"], "schedule.milestones: 2 is never reached: the run ends"),
    (["schedule.cooldown_epochs=2"], "schedule.cooldown_epochs: warm-up and cool-down fill the run of 8 steps"),
    (["trainer.max_epochs=-1"], "schedule: Cosine needs a run with an end"),
    (["metrics=[coco_box]"], "metrics: 'coco_box' does not measure what RestorationTask's networks predict"),
    (["callbacks.stop={type: lightning.pytorch.callbacks.EarlyStopping, monitor: val/x}"], "callbacks.stop.mode: is"),
    (["callbacks.best={type: callbacks.Checkpoints, monitor: val/nope}"], "callbacks.best.monitor: nothing gives"),
    (["optimizer.lr=null"], "optimizer.lr: null is not a number of 0 or more"),
    (["optimizer={type: torch.optim.AdamW}"], "optimizer.lr: the learning rate is missing"),
    (["optimizer.groups={rules: [{match: nowhere, lr: 1}]}"], "optimizer.groups"),
    (["optimizer={type: torch.optim.Muon, lr: 1e-3}"], "optimizer: Muon cannot be made of these values"),
    (["optimizer.betas=[0.9, 0.99]", "optimizer.amsgrad=5"], "optimizer.amsgrad: 5 is not true or false"),
    (["callbacks.f={type: lightning.pytorch.callbacks.LearningRateFinder}"], "callbacks.f: would train with another"),
    (["callbacks.f={type: lightning.pytorch.callbacks.BatchSizeFinder}"], "callbacks.f: would change the batch"),
    (
        ["callbacks.f={type: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {0: 2}}"],
        "callbacks.f: would change how many",
    ),
    (["run.name=../x"], "run.name: '../x' is not a name, which a folder in runs/ can have"),
    (["trainer.num_nodes=2"], "trainer.num_nodes: 2 machines, but nothing says which the others are"),
    (["trainer.accelerator=mps"], "trainer.accelerator: 'mps' is not here"),
    (["trainer.val_check_interval=100"], "trainer.val_check_interval: Lightning refuses it"),
    (["trainer.precision=16-true", "trainer.strategy=nope"], "trainer.strategy: Lightning refuses it"),
    (["logger={mine: {type: lightning.pytorch.loggers.CSVLogger, prefix: 5}}"], "logger.mine.prefix: 5 is not a text"),
    (["run.weights=nowhere.pth"], "nowhere.pth: no such file"),
    (["schedule.warmup_epochs=1"], "schedule.warmup_epochs: schedule.warmup_steps is given, too - keep one: schedule."),
    (["model.network.num_feat=x"], "model.network.num_feat: 'x' is not a whole number"),
    (["model.nope=1"], "model.nope: no such key"),
    (["data.patch=0"], "data.patch: 0 is too small"),
    (["seed=-1"], "seed: -1 is not a whole number from 0"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("vistrain")
    before = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.level, logger.handlers[:], logger.propagate = before[0], before[1], before[2]


def said(changes: list[str]) -> list[str]:
    found: list[Any] = []
    config = compose([BASE], [*TINY, *changes], start={"run": {"name": "mine"}}, found=found)
    heard = Refusals()
    heard.add(found)
    rehearse(config, heard)
    return list(heard.found)


def test_what_a_small_set_makes_too_large_is_said_at_once() -> None:
    changes = ["data.batch_size=64", "data.per_device=48", "schedule.warmup_steps=9"]
    (message,) = said(changes)
    assert message.startswith("data.batch_size: 64 images in a batch, of 16 to train on")
    assert "data.per_device: 48 at once do not divide 16; schedule.warmup_steps: a warm-up of 9 steps" in message
    mended = message.partition("these work together: ")[2].split()
    assert mended == ["data.batch_size=16", "data.per_device=16", "schedule.warmup_steps=0"]
    assert said(mended) == []
    with pytest.raises(VistrainError) as refused:
        run.fit(compose([BASE], [*TINY, *changes], start={"run": {"name": "mine"}}))
    assert str(refused.value) == message


def test_a_run_that_is_never_evaluated_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert said(["trainer.check_val_every_n_epoch=50"]) == []
    assert "nothing is evaluated, and there will be no best.ckpt: the run ends after 8 steps, its first" in caplog.text
    assert "would come after 200 - lower trainer.check_val_every_n_epoch=50" in caplog.text
    caplog.clear()
    assert said(["trainer.limit_val_batches=0"]) == []
    assert "there will be no best.ckpt: trainer.limit_val_batches=0" in caplog.text
    caplog.clear()
    assert said(["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"]) == []
    assert "the last epoch is not evaluated" in caplog.text
    caplog.clear()
    assert said(["trainer.max_epochs=3", "trainer.max_steps=10", "trainer.check_val_every_n_epoch=1"]) == []
    assert "the last 2 steps are not evaluated: trainer.max_steps=10, an evaluation comes after every 4" in caplog.text


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_what_fit_refuses_is_heard_in_a_rehearsal(changes: list[str], message: str) -> None:
    heard = said(changes)
    assert [line for line in heard if line.startswith(message)], heard
    with pytest.raises(VistrainError) as refused:
        run.fit(compose([BASE], [*TINY, *changes], start={"run": {"name": "mine"}}))
    assert str(refused.value) in heard
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainer.precision=16-true"], "trainer.precision: this network does not compute in 16-true"),
        (["run.folder=file"], "run.folder: file cannot be made: File exists"),
        (["run.folder=/proc/x/y"], "run.folder: /proc/x/y cannot be made: No such file or directory"),
        (["run.folder=" + "x" * 300], "run.folder: xxx"),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_what_only_the_first_step_or_the_disk_tells_is_refused_too(
    changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    assert main(["fit", "-c", BASE, *TINY, *changes]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"vistrain: {message}")


def test_a_table_of_numbers_that_cannot_be_read_is_put_aside(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["fit", "-c", BASE, *TINY, "run.folder=mine", "trainer.max_epochs=1"]) == 0
    (Path("mine") / "metrics.csv").write_bytes(b"\xff\x00,,\n1,2")
    Path("mine/.lock.1.tmp").mkdir()
    with caplog.at_level("WARNING", "vistrain"):
        assert main(["fit", "--resume", "mine", "trainer.max_epochs=2"]) == 0
    assert "mine/metrics.csv cannot be read" in caplog.text
    assert Path("mine/metrics.csv.damaged").is_file()
    assert Path("mine/metrics.csv").read_text().startswith("step,")


def test_what_fit_takes_is_not_refused_and_costs_no_weights() -> None:
    assert said([]) == []
    assert said(["trainer.max_steps=3", "schedule.warmup_steps=5"]) == []  # cut short: only mentioned
    assert said(["callbacks.ema={type: callbacks.EMA}", "trainer.devices=2", "trainer.strategy=ddp"]) == []


def test_check_says_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["model.nope=1", "schedule.warmup_steps=-1", "trainer.precision=x", "data.batch_size=400", "metrics=[nope]"]
    assert main(["check", "-c", BASE, *TINY, *wrong]) == 2
    output, errors = capsys.readouterr()
    lines = errors.splitlines()
    number = sum(line.startswith("vistrain: ") for line in lines)
    ending = f"a run would be refused or lose something: see above, and {number} reasons on stderr"
    assert output.splitlines()[-1] == ending
    for key in ("model.nope", "schedule.warmup_steps", "trainer.precision", "metrics"):
        assert len([line for line in lines if line.startswith(f"vistrain: {key}: ")]) == 1, errors
    assert "16 images to train on are fewer than the global batch of 400 - lower data.batch_size" in output
    report = json.loads(Path("check/restoration/report.json").read_text())
    assert not report["ok"]
    assert report["config"] == [line.removeprefix("vistrain: ") for line in lines if line.startswith("vistrain: ")]


def test_check_is_content_with_what_a_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", BASE, *TINY]) == 0
    assert json.loads(Path("check/restoration/report.json").read_text())["config"] == []
    degradation = "degradation: {type: data.Bicubic, scale: 2}"
    data = "{type: data.GeneratedTextures, train_images: 8, val_images: 2, batch_size: 2, workers: 0, %s}"
    Path("data.yaml").write_text(f"data: {data % degradation}\n")
    assert main(["check", "-c", "data.yaml"]) == 0  # a description of data alone is no run
    assert "there is no model: the data alone was looked at" in capsys.readouterr().out


def test_files_of_pretrained_weights_are_looked_at() -> None:
    """Those that a run reads: not where all weights come from elsewhere."""
    Path("page.pth").write_text("<html>")
    base = ["vistrain:demo/classification"]
    changes = ["data.workers=0", "data.train_images=8", "data.val_images=2", "data.batch_size=4", "data.image_size=32",
               "trainer.max_epochs=50", "trainer.accelerator=cpu"]  # fmt: skip
    stages = "stages=[{trainer: {max_epochs: 50}}, {trainer: {max_epochs: 60}}]"
    for file, problem in (("nope.pth", "no such file"), ("page.pth", "is a web page"), (".", "is a folder")):
        for more, before in (([], ""), ([stages], "stages[0]: ")):
            key = f"model.backbone.pretrained={file}"
            config = compose(base, [*changes, key, *more], start={"run": {"name": "mine"}})
            heard = Refusals()
            rehearse(config, heard)
            found = [line for line in heard.found if f"{file}: {problem}" in line]
            assert len(found) == 1, heard.found
            assert found[0].startswith(f"{before}{file}: {problem}")


@pytest.mark.parametrize("limit", [None, 0])
def test_unreadable_images_are_tolerated_as_a_run_does(limit: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", BASE, *TINY, "data.root=set"]) == 0
    capsys.readouterr()
    first = sorted(path for path in Path("set").rglob("*.png") if "train" in str(path))[0]
    first.write_bytes(b"junk")
    changes = ["data.root=set", "data.batch_size=16"]
    changes += [] if limit is None else [f"callbacks.u={{type: callbacks.Unreadable, limit: {limit}}}"]
    found = said(changes)
    assert bool(found) == (limit is not None), found
    assert main(["check", "-c", BASE, *TINY, *changes]) == 2
    output, errors = capsys.readouterr()
    assert str(first) in output
    assert output.splitlines()[-1] == "a run would be refused or lose something: see above"
    assert "cannot be read" not in errors
    assert "vistrain check" not in errors


def test_a_stage_is_refused_before_the_first_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    stages = "stages=[{trainer: {max_epochs: 2}}, {schedule: {warmup_steps: 99}}]"
    for command in ("check", "fit"):
        assert main([command, "-c", BASE, *TINY, stages]) == 2
        assert "vistrain: stages[1]: schedule.warmup_steps: a warm-up of 99 steps" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_mistakes_of_a_config_come_before_those_of_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"")
    for change, message in (
        ("schedule.warmup_steps=99", "schedule.warmup_steps: a warm-up of 99"),
        ("optimizer.amsgrad=5", "optimizer.amsgrad: 5 is not true or false"),
        ("seed=1", "run.folder: runs/mine holds a run already"),
    ):
        assert main(["fit", "-c", BASE, *TINY, "run.folder=runs/mine", change]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"vistrain: {message}")
