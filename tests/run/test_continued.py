"""A run that goes on: what can change acts and is said, and numbers outlive a full disk."""

from __future__ import annotations

import csv
import errno
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import LABELS, TinyData, TinyDetector, fit, make_task

from vistrain.callbacks import EMA, Checkpoints
from vistrain.callbacks.loggers import CSVMetrics
from vistrain.callbacks.preemption import Preemption
from vistrain.checkpoints import load_file
from vistrain.data.base.faults import Watched, dead_worker
from vistrain.data.base.module import Loader
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.optim import ParameterGroups
from vistrain.run import refusals
from vistrain.run.continued import Continued
from vistrain.structures import LabelSpace

SETTINGS: dict[str, Any] = {"limit_val_batches": 0, "logger": False}
CONFIG: dict[str, Any] = {
    "seed": 0,
    "optimizer": {"type": "torch.optim.AdamW", "lr": 0.05, "weight_decay": 0.01},
    "trainer": {"max_epochs": 1},
}


def begun(folder: Path, epochs: int = 1, callbacks: Any = (), **more: Any) -> Any:
    task = make_task(TinyDetector(norm=True))
    task.checkpoint_facts = {"config": CONFIG}
    fit(folder, task, TinyData(), [*callbacks, Checkpoints()], **{**SETTINGS, "max_epochs": epochs, **more})
    return task


def gone_on(folder: Path, task: Any, **more: Any) -> Any:
    return fit(
        folder, task, TinyData(), [Checkpoints()], resume=folder / "last.ckpt", max_epochs=2, **{**SETTINGS, **more}
    )


def test_the_optimizers_numbers_act(tmp_path: Path) -> None:
    begun(tmp_path)
    task = make_task(TinyDetector(norm=True), lr=0.001)
    task.optimizer.arguments["betas"] = (0.5, 0.6)
    task.optimizer.arguments["weight_decay"] = 0.0  # the groups of decayed and undecayed parameters become one
    trainer = gone_on(tmp_path, task)
    groups = trainer.optimizers[0].param_groups
    assert [(g["lr"], g["initial_lr"], g["betas"], g["weight_decay"]) for g in groups] == [
        (0.001, 0.001, (0.5, 0.6), 0.0)
    ]
    state = load_file(tmp_path / "last.ckpt")
    assert state["optimizer_states"][0]["state"][0]["step"] == 12
    assert state["vistrain"]["optimized"] == [[name for name, _ in task.model.named_parameters()]]


def test_other_groups_of_the_same_parameters_go_on_with_their_memory(tmp_path: Path) -> None:
    begun(tmp_path)
    rules = [{"match": ["head.*"], "lr_scale": 0.5}]
    trainer = gone_on(tmp_path, make_task(TinyDetector(norm=True), groups=ParameterGroups(rules)))
    rates = sorted({group["lr"] for group in trainer.optimizers[0].param_groups})
    assert rates == [0.025, 0.05]


def test_a_run_that_stands_within_an_epoch_wants_its_own_samples(tmp_path: Path) -> None:
    begun(tmp_path, max_steps=2)
    with pytest.raises(ConfigError, match="16 training samples, but the run stands within an epoch of 24"):
        fit(tmp_path, make_task(TinyDetector(norm=True)), TinyData(count=16), resume=tmp_path / "last.ckpt", **SETTINGS)


def test_what_changes_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "vistrain")
    task = begun(tmp_path)
    asked = {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": 1e-5}, "trainer": {"max_epochs": 3, "devices": 1}}
    found = Continued.read(tmp_path, asked)
    assert found.changes == ("optimizer.lr", "trainer.max_epochs", "trainer.devices")
    found.refuse_misfit(task, LABELS, {}, ())
    assert "goes on" not in caplog.text  # something may be refused yet: the run says it once nothing is
    assert "optimizer.lr: 0.05 -> 1e-05, trainer.max_epochs: 1 -> 3" in found.said[-1]
    again = Continued.read(tmp_path, CONFIG)
    assert again.changes == ()
    assert "all 1 epochs are done" in again.said[0]


@pytest.mark.parametrize(("key", "value"), [("fold", 1), ("fold", None), ("folds", 4), ("tumours_seed", 1)])
def test_samples_that_are_held_out_stay_so(tmp_path: Path, key: str, value: int | None) -> None:
    task, data = make_task(TinyDetector(norm=True)), {"type": "data.GeneratedTumours", "fold": 0}
    task.checkpoint_facts = {"config": {**CONFIG, "data": data}}
    fit(tmp_path, task, TinyData(), [Checkpoints()], **SETTINGS, max_epochs=1)
    assert Continued.read(tmp_path, {**CONFIG, "data": {**data, "folds": 5}}).changes == ()  # the default, said
    with pytest.raises(ConfigError, match=rf"data\.{key}: was \d and cannot become {value}: what was trained on"):
        Continued.read(tmp_path, {**CONFIG, "data": {**data, key: value}})


def test_weights_to_start_from_cannot_change(tmp_path: Path) -> None:
    task = make_task(TinyDetector(norm=True))
    parts = {"backbone": {"name": "test_vit", "pretrained": False}, "teacher": {"name": "test_vit"}}
    network = {"type": "pretraining.MaskAlign", **parts}
    task.checkpoint_facts = {"config": {**CONFIG, "model": network}}
    fit(tmp_path, task, TinyData(), [Checkpoints()], **SETTINGS, max_epochs=1)
    same = {**network, "teacher": {**network["teacher"], "pretrained": True}}
    assert Continued.read(tmp_path, {**CONFIG, "model": same}).changes == ()  # the default, said
    for part, value in (("backbone", True), ("backbone", "a.ckpt"), ("teacher", "a.ckpt")):
        other = {**network, part: {**network[part], "pretrained": value}}
        with pytest.raises(ConfigError, match=rf"model\.{part}\.pretrained: was .* it acts at the start alone"):
            Continued.read(tmp_path, {**CONFIG, "model": other})


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    begun(tmp_path, callbacks=[EMA(decay=0.5)])
    found = Continued.read(tmp_path, CONFIG)
    task, average = make_task(TinyDetector(norm=True)), {"ema": {"type": "callbacks.EMA"}}
    found.refuse_misfit(task, LABELS, average, ())
    with pytest.raises(ConfigError, match="callbacks: the run averages its weights"):
        found.refuse_misfit(task, LABELS, {"ema": None}, ())
    with pytest.raises(ConfigError, match=r"3 classes, but the run has 2; class 3 is 'cow', but the run's is none"):
        found.refuse_misfit(task, LabelSpace(("cat", "dog", "cow"), (3, 7, 8)), average, ())
    turned = LabelSpace(LABELS.names[::-1], LABELS.ids, LABELS.name)
    with pytest.raises(ConfigError, match=rf"class 1 is '{turned.names[0]}', but the run's is '{LABELS.names[0]}'"):
        found.refuse_misfit(task, turned, average, ())
    with pytest.raises(ConfigError, match=r"model: \d weights are others than the run's"):
        found.refuse_misfit(make_task(TinyDetector()), LABELS, average, ())
    frozen = make_task(TinyDetector(norm=True))
    frozen.model.backbone.requires_grad_(False)
    with pytest.raises(ConfigError, match="model: 4 parameters are no longer trained, such as backbone"):
        found.refuse_misfit(frozen, LABELS, average, ())
    found.content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="is damaged: optimizer_states: exp_avg of"):
        found.refuse_misfit(task, LABELS, average, ())
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"last\.ckpt"):
        Continued.read(tmp_path, CONFIG)


# ---------------------------------------------------------------- a full disk


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_numbers_that_the_disk_refused_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def trained(folder: Path) -> list[dict[str, str]]:
        fit(folder, make_task(), TinyData(), [Checkpoints()], log_every_n_steps=1)
        return rows(folder)

    whole = trained(tmp_path / "whole")
    written, calls = CSVMetrics._write, [0]

    def failing(self: CSVMetrics, step: int, same: bool, anew: bool) -> None:
        calls[0] += 1
        if calls[0] in (2, 3, 4, 8, 9):
            if calls[0] == 4 and self.path.exists():  # half a row is on the disk
                with self.path.open("a") as file:
                    file.write("7,0.1")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, step, same, anew)

    monkeypatch.setattr(CSVMetrics, "_write", failing)
    assert trained(tmp_path / "full") == whole
    assert caplog.text.count("CSVMetrics: numbers could not be written") == 2


def test_an_evaluation_that_a_resumed_run_begins_with_shares_the_row_of_its_step(tmp_path: Path) -> None:
    first = CSVMetrics(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": step / 3}, step)
    second = CSVMetrics(tmp_path)
    second.resume_at(2)
    second.log_metrics({"val/x": 0.5}, 2)
    second.log_metrics({"train/loss": 1.0}, 3)
    third = CSVMetrics(tmp_path)
    third.resume_at(3)
    third.log_metrics({"val/x": 0.25}, 3)  # no new column now
    assert [list(row.values()) for row in rows(tmp_path)] == [
        ["1", "0.333333333", ""], ["2", "0.666666667", "0.5"], ["3", "1", "0.25"],
    ]  # fmt: skip


# ---------------------------------------------------------------- what others refuse


def test_what_other_libraries_raise_is_said_in_our_words(tmp_path: Path) -> None:
    task, data = make_task(), TinyData()

    def said(error: Exception, checkpoint: Path | None = None) -> Any:
        with pytest.raises(Exception) as caught, refusals.of_run(task, data, checkpoint):  # noqa: PT011
            raise error
        return caught.value

    narrow = ValueError("Expected more than 1 value per channel when training, got input size torch.Size([1, 4, 1, 1])")
    assert str(said(narrow)).startswith("data.per_device: a batch norm has one value of each channel")
    task.eval()
    assert str(said(narrow)).startswith("data: a norm has one value of each channel")
    assert str(said(narrow)).endswith("evaluate larger images (data.eval_scale, where it is set)")
    task.train()
    full = str(said(torch.OutOfMemoryError("CUDA")))
    assert full.startswith("data.per_device: the device's memory is full - set it to auto")
    assert all(word in full for word in ("task.recompute=true", "smaller images"))
    task.eval()
    assert str(said(torch.OutOfMemoryError("CUDA"))).startswith("data.eval_batch_size: the device's memory is full")
    task.train()
    bug = ValueError("a bug")  # this test's code raises it, no library's
    assert said(bug) is bug
    with pytest.raises(ConfigError, match="trainer"), refusals.of_run(task, data, None):
        torch.nn.Linear(-1, 2)


def test_a_compiler_that_fails_is_the_configs_or_the_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    task, data, preemption = make_task(), TinyData(), Preemption()
    monkeypatch.setattr(type(task), "trainer", types.SimpleNamespace(callbacks=[preemption]))
    said = r"task\.compile: torch could not compile this network: no g\+\+"
    with pytest.raises(ConfigError, match=said), refusals.of_run(task, data, None):
        raise InternalTorchDynamoError("no g++")
    preemption.wanted = 75
    with pytest.raises(SystemExit, match="75"), refusals.of_run(task, data, None):
        raise InternalTorchDynamoError("killed")


def test_a_killed_worker_is_named_whatever_was_raised() -> None:
    data = Watched(TinyData().dataset("train"), 1)
    data._board[0, 0], data._board[0, 1] = 4711, 6
    error = dead_worker(EOFError("ran out of input"), [data], [4711])
    assert isinstance(error, DataError)
    assert str(error).startswith("sample 5: data worker 4711 was killed while it was at this sample")
    deep = OSError("x")
    deep.__context__ = ValueError("y")
    deep.__context__.__cause__ = RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly")
    assert "data worker 4711" in str(dead_worker(deep, [data]))
    assert dead_worker(EOFError(), [data]) is None


def test_a_stopped_worker_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    data = Watched(TinyData().dataset("train"), 1)
    data._board[0, 0], data._board[0, 1] = 4711, 6
    loader = Loader(data, batch_size=2)
    loader._processes = [types.SimpleNamespace(pid=4711, exitcode=None)]
    monkeypatch.setattr("vistrain.data.base.module.is_stopped", lambda pid: pid == 4711)
    loader.waiting(61.0)
    assert "no data for 61 s: worker 4711 (stopped) is at sample 5" in caplog.text
