"""What every task does around its network: losses into steps, predictions into numbers, facts into checkpoints.

And all that a task may say of itself, which commands, callbacks and runs ask for and know of no other way.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console, RenderableType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vistrain import __version__
from vistrain.attention.base import AttentionOperator, auxiliary_losses, operators_of
from vistrain.contract import Contract
from vistrain.data.base.module import DataModule
from vistrain.errors import ConfigError
from vistrain.internals import lightning as internals
from vistrain.metrics import Metric, Record, Unit
from vistrain.metrics.base import numbers_of_sets
from vistrain.metrics.halves import Tested
from vistrain.network import Network
from vistrain.optim import Constant, ParameterGroups, Schedule
from vistrain.optim.settled import asked_of, names_of, regroup, settle
from vistrain.pictures import fitted
from vistrain.structures import Factory
from vistrain.tasks.base import ahead, hardware
from vistrain.tasks.base.fitting import settle_per_device
from vistrain.tasks.base.looks import picture_of, title_of
from vistrain.tasks.base.parallel import Gatherer, same_statistics, spread
from vistrain.tasks.base.predictor import Predictor

log = logging.getLogger(__name__)

Batch = dict[str, Any]
Cells = list[tuple[str, np.ndarray]]  # captions, and uint8 pictures [H, W, 3]


class Task(Contract, LightningModule):
    """Trains and evaluates a network; the base of all tasks.

    The network keeps mixed precision out of its losses and matching; the task only adds up what `losses` returns. It is
    stored under `model.` in checkpoints.

    Random numbers drawn while training (dropout, noise) depend on (seed, epoch, batch, rank) alone: each batch seeds
    the generators, so a resumed run draws what the undisturbed one would have drawn, whatever it evaluates meanwhile.

    Args:
        model: the network.
        optimizer: unbuilt torch optimizer; its arguments hold at least `lr`.
        groups: how parameters are sorted into groups; default: no decay on norms.
        schedule: factor on the learning rate for each optimizer step; default: none.
        metrics: names of the protocols to evaluate with.
        compile: compile, in place, the parts that the network names in `compiled_parts` (default: `backbone`).
        seed: of the random numbers drawn while training.
        channels_last: keep convolutions' weights as `[out, height, width, in]`; None: on CUDA, unless they are sharded.
        tf32: whether float32 products and convolutions may round to TF32; None: torch's defaults.
        recompute: keep no activations inside the network's repeated blocks, compute them again backwards.

    Attributes:
        protocols: names of those that measure what its networks predict; empty: it does not say.
        predictor: what `vistrain predict` and `vistrain.load` run its networks with; the abstract base: it cannot.
        analysis_folder: where `analyse` goes after a test; None: it is not asked to.
        checkpoint_facts: plain containers that every checkpoint carries under `vistrain`, beside the version, the
            labels and the preprocessing; the runner puts the composed config there.
        losses: detached losses of the latest batch, as the network named them.
        records: after an evaluation, on rank 0, the merged records of each metric by protocol name.
        evaluators: split -> the metrics of an evaluation by protocol name.
        numbers: the numbers of the latest evaluation, the same on every process.
        units: what they are measured in, by the same names.
        tested: on rank 0 after a test, on which samples it was, and how much its numbers depend on them.
        monitored: dotted key of a callback -> the number that it waits for; refused where no metric gives it.
        began: whether training has begun; what fails before that is the config's or the checkpoint's.
        sync_batchnorm: while training on several accelerators, batch norms use the statistics of all.
    """

    predictor: ClassVar[type[Predictor[Any]]] = Predictor  # type: ignore[type-abstract]
    protocols: ClassVar[tuple[str, ...]] = ()
    model: Network
    checkpoint_facts: dict[str, Any]
    losses: dict[str, Tensor]
    records: dict[str, list[Record]]
    evaluators: dict[str, dict[str, Metric]]
    numbers: dict[str, float]
    units: dict[str, Unit]
    tested: Tested
    analysis_folder: Path | None
    sync_batchnorm: bool
    began: bool
    monitored: dict[str, str]

    def __init__(
        self,
        model: Network,
        optimizer: Factory[Optimizer],
        groups: ParameterGroups | None = None,
        schedule: Schedule | None = None,
        metrics: Sequence[str] = (),
        compile: bool = False,
        seed: int = 0,
        channels_last: bool | None = None,
        tf32: bool | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        ahead.refuse_other_metrics(metrics, self.protocols, type(self))
        if channels_last:
            hardware.order_weights(model)
        self.model = model
        self.optimizer, self.groups = optimizer, groups or ParameterGroups()
        self.schedule = schedule or Constant()
        self.metrics, self.seed, self.channels_last, self.tf32 = tuple(metrics), seed, channels_last, tf32
        self._prepared = hardware.Prepared(model, compile, recompute)
        self.checkpoint_facts, self.losses, self.monitored, self._total_steps = {}, {}, {}, 1.0
        self._operators: list[AttentionOperator] = []
        self.records, self.evaluators, self.numbers, self.units, self.tested = {}, {}, {}, {}, Tested()
        self.analysis_folder, self.sync_batchnorm, self.began = None, False, False
        self._collected: dict[str, list[Record]] = {}
        self._gatherer: Gatherer | None = None
        self._to_log: list[dict[str, Tensor]] = []
        self._logged_rate, self._stepped = 0.0, False
        self._failing: set[type] = set()  # loggers that could not write
        self._asked: list[dict[str, Any]] = []  # the optimizer's numbers as the config gives them
        self._samples_then: int | None = None  # of the training set, where a run goes on within an epoch

    # ---------------------------------------------------------------- what a task says of itself

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """The metrics of one split (`val` or `test`) by protocol name.

        Here they are told the split's ground truth and the network's labels; a task whose metrics want other facts has
        its own.

        Raises:
            ConfigError: a name is no protocol.
        """
        if not self.metrics:
            return {}
        facts = {"ground_truth": self.datamodule.ground_truth(cast(Any, split)), "labels": self.model.labels}
        return {name: ahead.metric_of(self.datamodule, split, name, **facts) for name in self.metrics}

    def draw_sample(self, batch: Batch, index: int, prediction: Any, side: int, threshold: float) -> Cells:
        """What people are shown of one sample, side by side; here the image alone.

        Args:
            batch: as the network gets it.
            index: of the sample in it.
            prediction: what was found, or None.
            side: longest side to show, pixels.
            threshold: least score of what is shown, where there are scores.
        """
        return [(title_of(batch, index), fitted(picture_of(batch, index), side)[0])]

    def write_predictions(self, path: Path) -> None:
        """Write the predictions of the latest evaluation, as `path` or beside it; called on rank 0, which has the
        records. Nothing, here."""

    def analyse(self, folder: Path) -> None:
        """Write into a folder what goes wrong in the latest test; called on rank 0, which has the records.

        Raises:
            ConfigError: the task has no analysis.
        """
        raise ConfigError("--analysis", f"{type(self).__name__} has none", "leave it out")

    @classmethod
    def evaluate_file(cls, predictions: Path, data: DataModule | None = None) -> RenderableType:
        """The numbers of predictions that were written to files, for `vistrain evaluate`.

        What a task's own takes beside these, by keyword and with defaults, are options of the command: the name, the
        hint and the line in its docstring make them.

        Args:
            predictions: a file or a folder.
            data: the data module whose test split they are of, if there is a config.

        Returns:
            what a Rich console prints.

        Raises:
            ConfigError: the task reads no predictions.
        """
        raise ConfigError("evaluate", f"{cls.__name__} reads no files of predictions", "use `vistrain test`")

    def facts_of_test(self) -> dict[str, Any]:
        """Plain containers that `test.json` holds beside the numbers: how the test differs from the evaluations while
        training, if it does."""
        return {}

    def unit(self, name: str) -> Unit:
        """What a number of the loggers is measured in; losses (`train/loss`, `val/loss_box`) are better when low."""
        is_loss = name.rpartition("/")[2].startswith("loss")
        split, _, key = name.partition("/")
        family = key.partition("/")[0]
        for metric in self.evaluators.get(split, {}).values():  # also of numbers that were not computed yet
            if family in metric.families:
                return metric.unit(key)
        return self.units.get(name, Unit(lower_is_better=is_loss))

    @property
    def datamodule(self) -> DataModule:
        """The data of the run."""
        return cast(DataModule, internals.datamodule_of(self))

    # ---------------------------------------------------------------- setting up

    def refuse_data(self, data: DataModule) -> None:
        """Refuse data, before a file of them is read, of which the network takes no image. Nothing, here."""

    def setup(self, stage: str) -> None:
        """Build the metrics before anything is trained: a wrong name must not surface after the first epoch."""
        if self.analysis_folder is not None and type(self).analyse is Task.analyse:
            self.analyse(self.analysis_folder)  # refuses
        hardware.allow_tf32(self.tf32)
        split = "test" if stage == "test" else "val"
        self.evaluators[split] = self.build_metrics(split)
        self.refuse_data(self.datamodule)

    def teardown(self, stage: str) -> None:
        """Let go of ground truth and process group: a later `fit` copies this module."""
        self.evaluators, self.records, self._collected, self._gatherer = {}, {}, {}, None
        self._prepared.undo()

    def configure_model(self) -> None:
        """Find what fits, see `tasks.fitting`; prepare the network for the strategy, see `tasks.parallel`."""
        settle_per_device(self)
        spread(self)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of the trained parameters, as the optimizer is given them.

        Raises:
            ConfigError: the optimizer has no learning rate, or a group makes no sense.
        """
        arguments = self.optimizer.arguments
        if not isinstance(arguments.get("lr"), int | float):
            raise ConfigError("optimizer.lr", "the learning rate is missing", "give a number")
        return self.groups(self.model, arguments["lr"], arguments.get("weight_decay", 0.0))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over the parameter groups, and the schedule as a factor for each optimizer step.

        Raises:
            ConfigError: the optimizer has no learning rate, or the schedule needs an end that the run does not have.
        """
        parameters = self.parameter_groups()
        self.checkpoint_facts["optimized"] = names_of(self.model, parameters)
        optimizer = hardware.optimizer_of(self.optimizer, parameters, self.trainer)
        schedule, (total, per_epoch) = self.schedule, self.length_of_run()
        ahead.refuse_missing_numbers(self.monitored, self.evaluators, type(self))
        ahead.refuse_other_samples(self._samples_then, self._samples)
        ahead.refuse_longer_schedule(schedule, self.trainer, total, per_epoch)
        scheduler = LambdaLR(optimizer, lambda step: schedule.factor(step, total, per_epoch))
        self._asked, self._total_steps = asked_of(optimizer), total
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train(self, mode: bool = True) -> Self:
        """Like `nn.Module.train`; batch norms that `optimizer.groups.freeze` matches keep their statistics."""
        super().train(mode)
        if mode:
            self.groups.keep_statistics(self.model)
        return self

    def length_of_run(self) -> tuple[float, int]:
        """Optimizer steps of the whole run (`inf` if it has no end), and of an epoch."""
        internals.know_length_of_epoch(self.trainer)  # a run that is limited by steps would not know it yet
        batches = self.trainer.num_training_batches
        per_epoch = 1 if math.isinf(batches) else max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))
        return self.trainer.estimated_stepping_batches, per_epoch

    def on_fit_start(self) -> None:
        """Recompute and compile in place: parameter names, and so checkpoints, stay as they are."""
        self._prepared.begin()

    def on_train_epoch_end(self) -> None:
        """Say what was compiled."""
        self._prepared.report()

    # ---------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Let the optimizer's numbers act as the config gives them, where a checkpoint has brought those of then."""
        scheduler = cast(LambdaLR, self.trainer.lr_scheduler_configs[0].scheduler)
        settle(internals.plain_optimizer(self.trainer.optimizers[0]), scheduler, self._asked)
        self._operators = operators_of(self.model)
        self.began = True

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed this batch's random numbers.

        Not with `torch.manual_seed`, which turns to every kind of device and costs half a millisecond.
        """
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        for operator in self._operators:
            operator.at_progress(self.trainer.global_step / max(self._total_steps, 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the network's losses, and of those that its attention operators have of their own, a scalar."""
        ahead.refuse_other_targets(self.model, self.datamodule, batch)
        losses = {**self.model.losses(batch), **auxiliary_losses(self._operators)}
        self.losses = {name: value.detach() for name, value in losses.items()}
        if self._logs_at(self.trainer.global_step + 1):
            self._to_log.append(self.losses)
        return torch.stack([value.reshape(()) for value in losses.values()]).sum()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """An optimizer step, and then the network's own `on_step_end(step)`, for teachers and schedules.

        Here and not in `on_train_batch_end`, because callbacks write checkpoints there, before the module's hook.
        """
        if self._logs_at(self.trainer.global_step + 1):
            self._logged_rate = self.learning_rate  # before the schedule moves it on
        super().optimizer_step(*args, **kwargs)
        self._stepped = True
        self.model.on_step_end(self.trainer.global_step + 1)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Write the losses and the learning rate to the loggers, every `log_every_n_steps` optimizer steps.

        Lightning's `self.log` would look at every loss of every batch; this touches them, and waits for the device,
        only where a line is written. Losses are the mean over the accumulated micro-batches of all processes.
        """
        if not (self._stepped and self._to_log):
            self._stepped = False
            return
        group, self._to_log, self._stepped = self._to_log, [], False
        names = list(dict.fromkeys(name for losses in group for name in losses))
        zero = group[0][names[0]].new_zeros(())
        rows = [torch.stack([losses.get(name, zero).reshape(()) for name in names]) for losses in group]
        values = self.trainer.strategy.reduce(torch.stack(rows).mean(0), reduce_op="mean").tolist()
        numbers = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        numbers = {"train/loss": sum(values), **numbers, "lr": self._logged_rate, "epoch": self.current_epoch}
        self.log("train/loss", numbers["train/loss"], logger=False)  # for callbacks that monitor it
        self.write_numbers(numbers, self.trainer.global_step)

    @property
    def learning_rate(self) -> float:
        """Of the group that learns fastest: the base learning rate times the schedule's factor."""
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def _logs_at(self, step: int) -> bool:
        every = internals.log_every_n_steps(self.trainer)
        return bool(every) and (step % every == 0 or internals.is_trial(self.trainer))

    def write_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand numbers of an optimizer step to the loggers; one that cannot write says so, and the run goes on."""
        for logger in self.trainer.loggers:
            try:
                logger.log_metrics(dict(numbers), step)
                logger.save()
            except OSError as error:  # a full disk is no reason to lose the run
                if type(logger) not in self._failing:
                    log.warning("%s: numbers could not be written: %s", type(logger).__name__, error)
                self._failing.add(type(logger))
            else:
                self._failing.discard(type(logger))

    # ---------------------------------------------------------------- evaluation

    def on_validation_epoch_start(self) -> None:
        """Start collecting records."""
        if self.trainer.world_size > 1:
            same_statistics(self.model)
        self._collected = {name: [] for name in self.evaluators["val"]}

    def on_test_epoch_start(self) -> None:
        """Start collecting records."""
        self._collected = {name: [] for name in self.evaluators["test"]}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Predict, and keep each metric's records.

        Returns:
            `{"predictions": one per image, "records": by protocol, one per image}`, for callbacks that look at them.
        """
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As `validation_step`."""
        return self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Gather, compute, log."""
        if not self.trainer.sanity_checking:  # a few batches for errors' sake
            self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Gather, compute, log, and print the tables."""
        self._finish("test")
        if self.trainer.is_global_zero:
            for metric in self.evaluators["test"].values():
                Console(markup=False).print(metric.result)  # classes may be called anything

    def on_test_end(self) -> None:
        """Analyse, if that was asked for, while the records are there."""
        if self.analysis_folder is not None and self.trainer.is_global_zero:
            self.analyse(self.analysis_folder)

    def predictions(self, batch: Batch, split: str) -> list[Any]:
        """What the network predicts for each sample of an evaluation batch of `val` or `test`."""
        return self.model.predict(batch)

    def _evaluate(self, batch: Batch, split: str) -> dict[str, Any]:
        found, metrics = self.predictions(batch, split), self.evaluators[split]
        records = {name: metric.update(batch["id"], found, batch["target"]) for name, metric in metrics.items()}
        for name, new in records.items():
            self._collected[name].extend(new)
        return {"predictions": found, "records": records}

    def _finish(self, split: str) -> None:
        if self._gatherer is None:
            self._gatherer = Gatherer(self.global_rank, self.trainer.world_size)
        numbers: dict[str, float] = {}
        self.units, self.tested = {}, Tested()
        for name, metric in self.evaluators[split].items():
            records = self._gatherer.gather(self._collected.pop(name))
            with self._gatherer.from_rank_zero() as computed:
                if records is not None:
                    self.records[name] = records
                    if split == "test":
                        self.tested.add(f"{split}/", metric, records)
                    own = numbers_of_sets(metric, records, lambda i: self.datamodule.set_of(cast(Any, split), i))
                    computed.update(metric.compute(records) | own)
            numbers |= {f"{split}/{key}": float(value) for key, value in computed.items()}
            self.units |= {f"{split}/{key}": metric.unit(key) for key in computed}
        self.numbers = numbers
        in_test = split == "test"
        # For callbacks that monitor them, and as what `trainer.test` returns, which Lightning wants a logger for.
        warnings.filterwarnings("ignore", message=r"You called `self\.log\('test/")
        self.log_dict(numbers, logger=in_test)
        if not in_test:
            self.write_numbers({**numbers, "epoch": self.current_epoch}, self.trainer.global_step)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network without config or data, and where in the data the run stands."""
        network, transform = self.model, self.datamodule.eval_transform
        checkpoint["vistrain"] = {
            "version": __version__,
            "labels": None if network.labels is None else network.labels.to_dict(),
            "preprocessing": network.preprocessing.to_dict(),
            "channels": network.channels,
            "evaluation": None if transform is None else transform.to_node(),
            **self.checkpoint_facts,
        }
        if self.trainer.state.fn == TrainerFn.FITTING:
            checkpoint["vistrain"] |= {"progress": self._progress(), "samples": self._samples}

    def _progress(self) -> dict[str, int]:
        """Where in the data the run stands: epoch, samples of it that all processes together consumed, processes."""
        trainer = self.trainer
        batches, epoch = internals.batches_seen(trainer), trainer.current_epoch
        if batches >= trainer.num_training_batches:
            batches, epoch = 0, epoch + 1
        samples = batches * self.datamodule.batch_size // trainer.accumulate_grad_batches
        return {"epoch": epoch, "consumed": samples, "world_size": trainer.world_size}

    @property
    def _samples(self) -> int | None:
        """Of the training set."""
        training = self.datamodule.watched.get("train")
        return None if training is None else len(training)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Tell the data module where to continue; Lightning calls this before any loader is made."""
        progress = checkpoint.get("vistrain", {}).get("progress")
        if progress is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        regroup(checkpoint, names_of(self.model, self.parameter_groups()))
        self._samples_then = checkpoint["vistrain"].get("samples") if progress["consumed"] else None
        self.datamodule.resume = (progress["epoch"], progress["consumed"])
        internals.resume_through_sampler(self.trainer)
        if progress["world_size"] != self.trainer.world_size:
            said = "resuming on %d processes what ran on %d: results will not be equal to the bit"
            log.warning(said, self.trainer.world_size, progress["world_size"])


def as_task(module: LightningModule) -> Task:
    """What callbacks are given is a Task: they are made for no other module."""
    return cast(Task, module)
