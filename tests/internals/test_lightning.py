"""What vistrain relies on in Lightning without its promise: that each name exists, and does what is relied on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn
from torch.utils.data import DataLoader

from vistrain.internals import lightning as internals


class Small(LightningModule):
    """A weight that learns nothing much."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.length: Any = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        internals.know_length_of_epoch(self.trainer)
        self.length = self.trainer.num_training_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing."""


class Notes(Callback):
    """What the functions say after each batch, and what happens next."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.after: list[tuple[Any, ...]] = []
        self.events: list[str] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.events.append("batch")
        self.after.append((
            internals.batches_seen(trainer), internals.is_inside_group(trainer), internals.batches_in_all(trainer),
            internals.evaluation_follows(trainer), internals.epoch_ends(trainer),
        ))  # fmt: skip

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.events.append("evaluation")
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"step_{trainer.global_step}.ckpt")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        internals.resume_with_evaluation(checkpoint)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.events.append("end")


def run(folder: Path, callbacks: list[Callback], resume: Path | None = None, **more: Any) -> tuple[Trainer, Small]:
    settings = {"max_epochs": 1, "val_check_interval": 4, "accumulate_grad_batches": 2, "log_every_n_steps": 7, **more}
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=callbacks,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=str(folder), **settings,
    )  # fmt: skip
    module, data = Small(), torch.zeros(6, 1)
    trainer.fit(module, DataLoader(data), DataLoader(data[:2]), ckpt_path=None if resume is None else str(resume))
    return trainer, module


def test_loops_say_where_they_are(tmp_path: Path) -> None:
    notes = Notes()
    trainer, module = run(tmp_path, [notes])
    assert module.length == 6
    assert notes.after == [
        (1, True, 1, False, False), (2, False, 2, False, False), (3, True, 3, False, False), (4, False, 4, True, False),
        (5, True, 5, False, False), (6, False, 6, False, True),
    ]  # fmt: skip
    assert notes.events == [*["batch"] * 4, "evaluation", "batch", "batch", "end"]
    assert internals.log_every_n_steps(trainer) == 7
    assert not internals.is_trial(trainer)
    assert notes in internals.callbacks_of(trainer)
    assert internals.datamodule_of(module) is None
    assert internals.is_trial(run(tmp_path, [], fast_dev_run=True)[0])


def test_a_run_may_begin_with_the_evaluation_that_it_was_stopped_before(tmp_path: Path) -> None:
    run(tmp_path, [Notes(tmp_path)])
    notes = Notes()
    run(tmp_path, [notes], resume=tmp_path / "step_2.ckpt")
    assert notes.events[0] == "evaluation"
    assert notes.events.count("evaluation") == 1


def test_signals_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            internals.keep_from_signals(trainer)

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.seen = signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    loop = type(Trainer(logger=False, accelerator="cpu", enable_checkpointing=False).fit_loop.epoch_loop)
    # Not in the first releases of 2.6.
    monkeypatch.setattr(loop, "_broadcast_sigterm_tensor", lambda _: pytest.fail("it was broadcast"), raising=False)
    off = Off()
    run(tmp_path, [off])
    assert off.seen is before


def test_an_epoch_that_is_over_is_not_begun_again(tmp_path: Path) -> None:
    trainer = Trainer(max_steps=4, logger=False, accelerator="cpu", enable_checkpointing=False)
    loop: Any = trainer.fit_loop
    loop.restarting = True
    assert loop.restarting  # what Lightning would do
    internals.resume_through_sampler(trainer)
    loop.restarting = True
    assert not loop.restarting


def test_processes_that_were_launched(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    launcher = _SubprocessScriptLauncher(SimpleNamespace(creates_processes_externally=True), 1, 1)  # type: ignore[arg-type]
    assert launcher.procs == []
    launcher.procs.append(process)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    assert internals.launched_processes(trainer) == [process]
    trainer.strategy.launcher = None
    assert internals.launched_processes(trainer) == []
    process.wait()
    assert internals.rank_of_process() == 0


def test_strategies_take_arguments() -> None:
    ddp = DDPStrategy(find_unused_parameters=True)
    assert internals.ddp_arguments(ddp) == {"find_unused_parameters": True}
    internals.ddp_arguments(ddp)["gradient_as_bucket_view"] = True
    assert internals.ddp_arguments(ddp)["gradient_as_bucket_view"] is True
    sharded = ModelParallelStrategy()
    assert sharded._data_parallel_size == "auto"
    internals.shard_over(sharded, 3)
    assert sharded._data_parallel_size == 3


def test_passes_compute_in_the_trainers_precision(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, default_root_dir=tmp_path)
    with internals.in_precision(trainer):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == torch.bfloat16


def test_optimizers_are_unwrapped() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    assert internals.plain_optimizer(optimizer) is optimizer
    assert internals.plain_optimizer(LightningOptimizer(optimizer)) is optimizer


def test_averages_are_reached(tmp_path: Path) -> None:
    class Averaging(WeightAveraging):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            assert isinstance(internals.average_of(self), Small)
            assert internals.average_of(self) is not pl_module

    averaging = Averaging()
    run(tmp_path, [averaging])
    assert internals.latest_update(averaging) == 3
    internals.note_update(averaging, 9)
    assert averaging.state_dict()["latest_update_step"] == 9
