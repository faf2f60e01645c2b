"""Runs that are stopped anywhere, on one process or two, end with the bits of the undisturbed run."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_tools import run_ranks
from lightning.pytorch.callbacks import Callback
from training_tools import TinyData, TinyDetector, Watch, fit, make_task, make_trainer

from vistrain.callbacks import EMA, Checkpoints, NaNGuard, Preemption
from vistrain.checkpoints import load_file
from vistrain.cli import main
from vistrain.config import compose, to_yaml
from vistrain.errors import ConfigError
from vistrain.optim import Cosine
from vistrain.run.folders import own_run
from vistrain.run.parts import _scale_rate

Weights = dict[str, torch.Tensor]


class Signals(Callback):
    """Sends this process a signal at one place of the run, and notes where evaluations began and ended."""

    def __init__(self, number: int = 0, hook: str = "", at: int = 0) -> None:
        self.number, self.hook, self.at = number, hook, at
        self.evaluated: list[int] = []
        self.count = 0

    def _pass(self, hook: str) -> None:
        if hook == self.hook:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, *args: Any) -> None:
        self._pass("train_batch")

    def on_validation_batch_start(self, *args: Any) -> None:
        self._pass("validation_batch")

    def on_validation_epoch_end(self, *args: Any) -> None:
        self._pass("validation_end")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.evaluated.append(trainer.global_step)


SETTINGS: dict[str, Any] = {"max_epochs": 3, "val_check_interval": 0.5, "logger": False}
EVERY_FOUR_STEPS: dict[str, Any] = {"check_val_every_n_epoch": None, "val_check_interval": 4}


def parts(per_device: int | None = None, workers: int = 0) -> tuple[Any, TinyData]:
    model = TinyDetector(dropout=0.3, norm=True)  # random numbers and batch statistics
    return make_task(model, schedule=Cosine(warmup_steps=3)), TinyData(workers=workers, per_device=per_device)


def stop_and_resume(folder: Path, stop: Signals, per_device: int | None = None, workers: int = 0) -> dict[str, Any]:
    """A run that gets a signal, then the rest of it; what came of both."""
    task, data = parts(per_device, workers)
    first = Watch()
    code: Any = 0
    try:
        fit(folder, task, data, [NaNGuard(), EMA(decay=0.9), first, stop, Checkpoints(), Preemption()], **SETTINGS)
    except SystemExit as error:
        code = error.code
    saved = load_file(folder / "last.ckpt")["global_step"]
    task, data = parts(per_device, workers)
    rest, evaluations = Watch(), Signals()
    callbacks = [NaNGuard(), EMA(decay=0.9), rest, evaluations, Checkpoints(), Preemption()]
    fit(folder, task, data, callbacks, resume=folder / "last.ckpt", **SETTINGS)
    return {
        "code": code, "saved": saved, "weights": task.state_dict(), "ids": (first.ids, rest.ids),
        "evaluated": stop.evaluated + evaluations.evaluated,
    }  # fmt: skip


@pytest.fixture(scope="module", params=[None, 2])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`(per_device, weights, ids)` of a whole run, without and with accumulation."""
    task, data = parts(request.param)
    watch = Watch()
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, task, data, [NaNGuard(), EMA(decay=0.9), watch, Checkpoints()], **SETTINGS)
    return request.param, task.state_dict(), watch.ids


@pytest.mark.parametrize(
    ("number", "hook", "at", "code", "saved"),
    [
        (signal.SIGTERM, "train_batch", 1, 75, 1),
        (signal.SIGUSR1, "train_batch", 3, 75, None),  # before an evaluation, without accumulation
        (signal.SIGINT, "train_batch", 4, 130, None),
        (signal.SIGHUP, "train_batch", 2, 75, None),
        (signal.SIGTERM, "train_batch", 6, 75, None),  # the end of an epoch, without accumulation
        (signal.SIGTERM, "validation_batch", 2, 75, 3),
        (signal.SIGTERM, "validation_batch", 9, 75, 6),  # in the evaluation at an epoch's end
        (signal.SIGTERM, "validation_end", 1, 75, 4),  # numbers are computed to the end: a step later
    ],
)
def test_a_signal_costs_no_step_and_no_evaluation(
    tmp_path: Path, undisturbed: Any, number: int, hook: str, at: int, code: int, saved: int | None
) -> None:
    per_device, weights, ids = undisturbed
    found = stop_and_resume(tmp_path, Signals(number, hook, at), per_device)
    assert found["code"] == code
    assert saved is None or found["saved"] == saved
    assert found["evaluated"] == [3, 6, 9, 12, 15, 18]
    before, after = found["ids"]
    done = found["saved"] * len(ids) // 18
    assert before[:done] + after == ids
    assert all(torch.equal(value, weights[name]) for name, value in found["weights"].items())


def test_a_signal_with_data_workers(tmp_path: Path, undisturbed: Any) -> None:
    per_device, weights, _ = undisturbed
    found = stop_and_resume(tmp_path, Signals(signal.SIGTERM, "train_batch", 8), per_device, workers=2)
    assert found["code"] == 75
    assert all(torch.equal(value, weights[name]) for name, value in found["weights"].items())


def test_a_run_whose_last_step_is_done_ends_as_usual(tmp_path: Path) -> None:
    task, data = parts()
    stop = Signals(signal.SIGTERM, "train_batch", 18)
    fit(tmp_path, task, data, [stop, Checkpoints(), Preemption()], limit_val_batches=0, **SETTINGS)
    assert load_file(tmp_path / "last.ckpt")["global_step"] == 18
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_epochs_without_evaluation_end_and_resume(tmp_path: Path) -> None:
    for at in (6, 7):
        whole, cut = (make_task(TinyDetector(dropout=0.3)) for _ in range(2))
        settings = {"max_epochs": 2, "limit_val_batches": 0, "logger": False}
        fit(tmp_path / f"whole{at}", whole, TinyData(), [Checkpoints()], **settings)
        folder = tmp_path / f"cut{at}"
        callbacks = [Signals(signal.SIGTERM, "train_batch", at), Checkpoints(), Preemption()]
        with pytest.raises(SystemExit) as left:
            fit(folder, cut, TinyData(), callbacks, **settings)
        assert left.value.code == 75
        again = make_task(TinyDetector(dropout=0.3))
        trainer = fit(folder, again, TinyData(), [Checkpoints()], resume=folder / "last.ckpt", **settings)
        assert trainer.global_step == 12
        states = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in states)


@pytest.mark.parametrize("evaluations", [{"check_val_every_n_epoch": 2}, EVERY_FOUR_STEPS])
@pytest.mark.parametrize("at", [6, 7, 12])  # the end of an epoch, the next one's first step, an evaluation's
def test_runs_of_so_many_steps_go_on_after_an_epoch(tmp_path: Path, at: int, evaluations: dict[str, Any]) -> None:
    settings = {"max_steps": 18, "max_epochs": -1, "logger": False, **evaluations}
    ends: list[tuple[Any, list[Any], list[int]]] = []
    for name, number in (("whole", 0), ("cut", signal.SIGTERM), ("cut", 0)):
        task, data = parts()
        watch, stop = Watch(), Signals(number, "train_batch", at)
        last = tmp_path / name / "last.ckpt"
        resume = last if last.is_file() else None
        with pytest.raises(SystemExit) if number else nullcontext():
            fit(tmp_path / name, task, data, [watch, stop, Checkpoints(), Preemption()], resume=resume, **settings)
        ends.append((task.state_dict(), watch.ids, stop.evaluated))
    whole, first, rest = ends
    assert first[1][:at] + rest[1] == whole[1]  # a batch that was begun when the run was left comes again
    assert first[2] + rest[2] == whole[2]
    assert all(torch.equal(value, rest[0][name]) for name, value in whole[0].items())


# ---------------------------------------------------------------- two processes


def ranks(folder: Path, stop: tuple[int, str, int] | None, per_device: int | None, workers: int) -> dict[str, Any]:
    """On each rank: the whole run; or on rank 1 a signal, on all the exit code, and then the rest of the run."""
    rank = int(os.environ["RANK"])
    multiprocessing.set_start_method("fork", force=True)  # of data workers: children of a fork server take after it

    def one(name: str, callbacks: list[Callback], resume: Path | None = None) -> Any:
        task, data = parts(per_device, workers)
        trainer = make_trainer(
            folder / name,
            [NaNGuard(), EMA(decay=0.9), *callbacks, Checkpoints(), Preemption()],
            devices=2,
            strategy="ddp",
            accumulate_grad_batches=data.accumulation(2),
            **SETTINGS,
        )
        trainer.fit(task, datamodule=data, ckpt_path=None if resume is None else str(resume))
        return task

    code: Any = 0
    if stop is not None:
        watch = Signals(*stop) if rank == 1 else Signals()
        try:
            one("cut", [watch])
        except SystemExit as error:
            code = error.code
        torch.distributed.barrier()
        task = one("cut", [], folder / "cut" / "last.ckpt")
    else:
        task = one("whole", [])
    return {"code": code, "weights": {k: v.numpy() for k, v in task.state_dict().items()}}


@pytest.mark.slow
@pytest.mark.parametrize(("per_device", "workers"), [(None, 0), (1, 2)])
def test_two_processes_stop_together_and_resume_exactly(tmp_path: Path, per_device: int | None, workers: int) -> None:
    whole = run_ranks(ranks, 2, tmp_path, None, per_device, workers, init=False, limit=200)
    for stop in ((signal.SIGTERM, "train_batch", 5), (signal.SIGTERM, "validation_batch", 3)):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        found = run_ranks(ranks, 2, tmp_path, stop, per_device, workers, init=False, limit=200)
        for rank in range(2):
            assert found[rank]["code"] == 75
            for name, value in found[rank]["weights"].items():
                assert (value == whole[rank]["weights"][name]).all(), name


def continued(folder: Path) -> list[tuple[int, ...]]:
    """On each rank of two: the images that a run of one process continues with."""
    watch, data = Watch(), TinyData()
    trainer = make_trainer(
        folder, [watch], devices=2, strategy="ddp", accumulate_grad_batches=data.accumulation(2), max_epochs=1,
        logger=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(make_task(), datamodule=data, ckpt_path=str(folder / "last.ckpt"))
    return watch.ids


@pytest.mark.slow
def test_another_number_of_processes_continues_at_the_right_sample(tmp_path: Path) -> None:
    watch = Watch()
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    fit(folder, make_task(), TinyData(), [watch], max_epochs=1, logger=False, limit_val_batches=0)
    fit(tmp_path, make_task(), TinyData(), [Checkpoints(every_n_steps=2)], max_steps=2, max_epochs=-1, logger=False)
    first, second = run_ranks(continued, 2, tmp_path, init=False, limit=200)
    dealt = [tuple(i for pair in zip(a, b, strict=True) for i in pair) for a, b in zip(first, second, strict=True)]
    assert dealt == watch.ids[2:]


# ---------------------------------------------------------------- which run a folder holds


def test_the_same_run_is_found_again_and_another_one_is_refused(tmp_path: Path) -> None:
    config = {
        "run": {"folder": str(tmp_path)}, "seed": 0, "model": {"type": "a.B", "width": 3, "lr": 1e-4},
        "data": {"root": "here", "workers": 2, "batch_size": 8}, "trainer": {"max_epochs": 3},
    }  # fmt: skip
    assert own_run(config) is None
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert own_run(config) is None  # nothing was saved: it starts anew
    (tmp_path / "last.ckpt").touch()
    moved = {**config, "data": {**config["data"], "root": "there", "workers": 0}, "trainer": {"max_epochs": 5}}
    assert own_run(moved) == tmp_path
    with pytest.raises(ConfigError, match=r"another run: model\.width is different there"):
        own_run({**config, "model": {**config["model"], "width": 4}})
    with pytest.raises(ConfigError, match="another run: seed"):
        own_run({**config, "seed": 1})
    for damage in ("model: {", "- a", "[" * 100_000):
        (tmp_path / "config.yaml").write_text(damage)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            own_run(config)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="another run"):
        own_run(config)


def test_a_command_that_is_run_again_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    asked: list[Path | None] = []
    monkeypatch.setattr("vistrain.run.fit", lambda config, **given: asked.append(given["resume"]) or 0)
    command = ["fit", "--config", "vistrain:demo/restoration", f"run.folder={tmp_path}"]
    assert main(command) == main([*command, "--resume", "auto"]) == 0
    (tmp_path / "last.ckpt").touch()
    config = compose(["vistrain:demo/restoration"], [f"run.folder={tmp_path}", "trainer.max_epochs=2"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert main(command) == main([*command, "--resume", "auto"]) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(command) == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert main([*command, "data.root=elsewhere"]) == 0
    assert asked == [None, None, None, tmp_path, tmp_path, tmp_path]
    assert main([*command, "data.patch=16", "--resume", "auto"]) == 2
    assert main(["fit", "--resume", "auto"]) == 2


def test_the_learning_rate_follows_the_batch_only_where_asked() -> None:
    for given, rate in (({}, 0.1), ({"base_batch_size": 16}, 0.4), ({"base_batch_size": 256}, 0.025)):
        optimizer = {"lr": 0.1, **given}
        _scale_rate(optimizer, 64)
        assert optimizer == {"lr": pytest.approx(rate)}
    for wrong in (0, -1, "16", True, 1.5):
        with pytest.raises(ConfigError, match=r"optimizer\.base_batch_size"):
            _scale_rate({"lr": 0.1, "base_batch_size": wrong}, 64)
    assert compose(["vistrain:demo/restoration"], ["optimizer.base_batch_size=8"])["optimizer"]["base_batch_size"] == 8
    with pytest.raises(ConfigError, match="did you mean 'base_batch_size'"):
        compose(["vistrain:demo/restoration"], ["optimizer.base_batchsize=8"])
