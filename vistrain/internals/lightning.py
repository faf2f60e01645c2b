"""Of Lightning: how far its loops are, what follows a batch, and the few things that it does by itself and must not.

Lightning keeps its loops and connectors to itself, and a Trainer gets half of its public attributes from mixed-in
functions that no type checker sees.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.optim import Optimizer

# ---------------------------------------------------------------- a trainer's settings, typed


def datamodule_of(module: LightningModule) -> Any:
    """The data module that `fit` or `test` was called with; None before, and without one."""
    return cast(Any, module.trainer).datamodule


def callbacks_of(trainer: Trainer) -> Sequence[Callback]:
    """The trainer's callbacks, in their order."""
    return cast(Sequence[Callback], cast(Any, trainer).callbacks)


def log_every_n_steps(trainer: Trainer) -> int:
    """Optimizer steps between two lines of the loggers; 0 for none."""
    return int(cast(Any, trainer).log_every_n_steps)


def is_trial(trainer: Trainer) -> bool:
    """Whether it is a `fast_dev_run`, which leaves nothing behind."""
    return bool(cast(Any, trainer).fast_dev_run)


def is_cut_short(trainer: Trainer) -> bool:
    """Whether a run is cut short of its epochs: by steps, by time, or by a limit on the batches of an epoch."""
    limits: Any = trainer
    return bool(
        limits.fast_dev_run
        or trainer.max_steps != -1
        or limits.limit_train_batches != 1.0
        or any(isinstance(callback, Timer) for callback in callbacks_of(trainer))
    )


# ---------------------------------------------------------------- where a run stands


def in_precision(trainer: Trainer) -> AbstractContextManager[Any]:
    """Inside, forward passes compute in the trainer's precision."""
    return trainer.precision_plugin.forward_context()


def take_in(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Let a trainer stand before a `fit` of a module with data, without starting it: its processes, its loops."""
    trainer.strategy.connect(module)
    trainer.state.fn, trainer.training = TrainerFn.FITTING, True
    trainer._data_connector.attach_data(module, datamodule=data)


def know_length_of_epoch(trainer: Trainer) -> None:
    """Make `num_training_batches` and `estimated_stepping_batches` known before optimizers are made.

    `fit_loop.setup_data` makes the training loader, once; a later call returns at once.
    """
    trainer.fit_loop.setup_data()


def batches_seen(trainer: Trainer) -> int:
    """Micro-batches of this epoch that went through the network.

    `processed` of the epoch loop's progress, and not `completed`, which lags by one inside `on_train_batch_end`, where
    checkpoints are written.
    """
    return cast(_ProcessedTracker, trainer.fit_loop.epoch_loop.batch_progress.current).processed


def is_inside_group(trainer: Trainer) -> bool:
    """Whether the micro-batches so far end in the middle of an accumulation group: `ready` counts those that began."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches != 0


def batches_in_all(trainer: Trainer) -> int:
    """Micro-batches since the run began, over all epochs and resumptions."""
    return trainer.fit_loop.total_batch_idx + 1


def evaluation_follows(trainer: Trainer) -> bool:
    """Whether the batch that just ended is the last one before an evaluation: what the epoch loop asks itself next."""
    fetcher = trainer.fit_loop._data_fetcher
    return (
        fetcher is not None and trainer.enable_validation and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    )


def epoch_ends(trainer: Trainer) -> bool:
    """Whether the batch that just ended is the epoch's last."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def resume_with_evaluation(checkpoint: dict[str, Any]) -> None:
    """Let a run that continues from this checkpoint begin with the evaluation that was about to start.

    Lightning goes back to an evaluation whose first batch has begun: where its progress is one ahead of what was
    processed.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["started"] = counts["processed"] + 1


def resume_through_sampler(trainer: Trainer) -> None:
    """Let loops that are about to be restored begin where the sampler does, be it inside an epoch or after one.

    Lightning resumes a loader through its own state alone, and warns of all others. Where a run has `max_steps`, it
    goes back into an epoch that is over: `FitLoop.restarting` asks `_iteration_based_training`. That epoch then gets a
    batch too many, and all later epochs and evaluations are late.
    """
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    loop: Any = trainer.fit_loop
    loop._iteration_based_training = _false


def _false() -> bool:
    """In place of what Lightning would answer."""
    return False


# ---------------------------------------------------------------- signals and processes


def keep_from_signals(trainer: Trainer) -> None:
    """Set no signal handlers, and broadcast nothing about signals before each batch.

    `Trainer` calls `_signal_connector.register_signal_handlers` when it begins, and its epoch loop
    `_broadcast_sigterm_tensor` for each batch of a run of several processes.
    """
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = _nothing
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _nothing


def _nothing() -> None:
    """In place of what Lightning would do."""


def launched_processes(trainer: Trainer) -> list[Any]:
    """The `subprocess.Popen`s of the ranks that this process started; none under torchrun and srun."""
    launcher = trainer.strategy.launcher
    return list(launcher.procs) if isinstance(launcher, _SubprocessScriptLauncher) else []


def rank_of_process() -> int:
    """This process among all, also before there is a Trainer."""
    return int(cast(Any, rank_zero_only).rank)


# ---------------------------------------------------------------- strategies


def ddp_arguments(strategy: DDPStrategy) -> dict[str, Any]:
    """What DistributedDataParallel will be made with; it may be changed until the strategy wraps the module."""
    return strategy._ddp_kwargs


def shard_over(strategy: ModelParallelStrategy, processes: int) -> None:
    """Shard over so many processes; read when the strategy sets up its environment."""
    strategy._data_parallel_size = processes


def plain_optimizer(optimizer: Any) -> Optimizer:
    """torch's optimizer inside Lightning's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else cast(Optimizer, optimizer)


# ---------------------------------------------------------------- averaging


def average_of(averaging: WeightAveraging) -> nn.Module:
    """The averaged copy of a LightningModule; there once the callback was set up for training."""
    assert averaging._average_model is not None
    return averaging._average_model.module


def latest_update(averaging: WeightAveraging) -> int:
    """The optimizer step that was averaged last; checkpoints hold it."""
    return averaging._latest_update_step


def note_update(averaging: WeightAveraging, step: int) -> None:
    """Say that the average holds this optimizer step."""
    averaging._latest_update_step = step
