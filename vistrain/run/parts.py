"""From a composed config to the parts of a run, in their order, and to Lightning's Trainer.

The order is the only logic here: the data's facts (labels, channels) build the network, the network's facts
(preprocessing) reach the transforms, and both are stored in every checkpoint.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder
from torch.optim import Optimizer

from vistrain import metrics, processes
from vistrain.callbacks import default_callbacks, make_loggers
from vistrain.checkpoints import refuse_unreadable
from vistrain.config import compose, without_pretrained
from vistrain.config.builder import build
from vistrain.data import DataModule
from vistrain.devices import unusable_gpu
from vistrain.errors import ConfigError
from vistrain.layers.seeding import seeded
from vistrain.network import Network
from vistrain.optim import ParameterGroups, Schedule
from vistrain.run import refusals
from vistrain.run.networks import build_model, pretrained_files, refuse_backbones, section
from vistrain.structures import Factory
from vistrain.tasks import Task
from vistrain.tasks.base.ahead import together
from vistrain.tasks.base.parallel import trainer_arguments

log = logging.getLogger(__name__)

# Callbacks of Lightning's that would change what a config says, and what a run that goes on must find again.
NOT_HERE: dict[type[Callback], tuple[str, str]] = {
    BatchSizeFinder: ("would change the batch behind the loaders", "set data.per_device; data.batch_size stays"),
    LearningRateFinder: ("would train with another schedule first", "set optimizer.lr"),
    GradientAccumulationScheduler: ("would change how many batches make a step", "set data.batch_size"),
}


@dataclass
class Parts:
    """What a config builds before anything runs."""

    data: DataModule
    model: Network
    task: Task


def stage_configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config of each stage, its changes merged in.

    Raises:
        ConfigError: with the changes of one, the whole is none.
    """
    common = {key: value for key, value in config.items() if key != "stages"}
    return [compose([], start=common, changes=changes) for changes in config["stages"]]


def build_parts(config: Mapping[str, Any], allow: Collection[str] = (), stage: str | None = None) -> Parts:
    """Build data, network and task of a composed config.

    Args:
        config: composed.
        allow: see `fit`.
        stage: `fit` or `test` reads that stage's annotations first: what is missing is said before weights are fetched.
            None touches no data file but for the label space.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    data = data_of(config, allow)
    if stage is not None:
        refuse_backbones(config)
        refuse_before_writing(config, data, allow)
        data.prepare_data()
        data.setup(stage)
    return _parts_upon(data, config, allow)


def refuse_before_writing(config: Mapping[str, Any], data: DataModule, allow: Collection[str] = ()) -> None:
    """Refuse what cannot be built of a config, where its data would be generated or prepared first, which takes longer.

    Raises:
        ConfigError, WeightsError: something is the user's to mend.
    """
    if not data.unwritten:
        return
    if not (config.get("run") or {}).get("weights"):
        for file in pretrained_files(config.get("model")):
            refuse_unreadable(file)
    state = torch.get_rng_state()  # a run whose data are there already draws the same first values
    with seeded(0):
        _parts_upon(data, without_pretrained(dict(config)), allow).task.refuse_data(data)
    torch.set_rng_state(state)


def _parts_upon(data: DataModule, config: Mapping[str, Any], allow: Collection[str]) -> Parts:
    model = build_model(config, data.labels, data.channels, allow)
    data.preprocessing = model.preprocessing
    made = {name: make() for name, make in parts_of_task(config, data.batch_size, allow).items()}
    return Parts(data, model, build_task(config, model, made, allow))


def data_of(config: Mapping[str, Any], allow: Collection[str] = ()) -> DataModule:
    """The data module of a composed config; nothing is read.

    Raises:
        ConfigError: something is the user's to mend.
    """
    given = {"seed": config.get("seed", 0)}
    data: DataModule = build(section(config, "data"), DataModule, where="data", allow=allow, given=given)
    return data


def parts_of_task(
    config: Mapping[str, Any], batch_size: int, allow: Collection[str] = ()
) -> dict[str, Callable[[], Any]]:
    """What a config's task is given beside its network, each by the function that builds it.

    Args:
        config: composed.
        batch_size: the global one.
        allow: see `fit`.
    """

    def optimizer() -> Factory[Optimizer]:
        node = {key: value for key, value in section(config, "optimizer").items() if key != "groups"}
        _scale_rate(node, batch_size)
        found: Factory[Optimizer] = build(node, Factory[Optimizer], where="optimizer", allow=allow)
        return found

    def groups() -> ParameterGroups:
        node = section(config, "optimizer").get("groups", {})
        found: ParameterGroups = build(node, ParameterGroups, where="optimizer.groups", allow=allow)
        return found

    def schedule() -> Schedule | None:
        node = config.get("schedule")
        return build(node, Schedule, where="schedule", allow=allow) if node else None

    return {"optimizer": optimizer, "groups": groups, "schedule": schedule}


def build_task(config: Mapping[str, Any], model: Network, made: Mapping[str, Any], allow: Collection[str] = ()) -> Task:
    """The task of a composed config.

    Args:
        config: composed.
        model: its network.
        made: what the functions of `parts_of_task` have built.
        allow: see `fit`.

    Raises:
        ConfigError: a value, or a metric of another task.
    """
    given = {"model": model, "metrics": tuple(config.get("metrics") or ()), "seed": config.get("seed", 0), **made}
    task: Task = build(section(config, "task"), Task, where="task", allow=allow, given=given)
    task.checkpoint_facts = {"config": dict(config)}
    return task


def _scale_rate(optimizer: dict[str, Any], batch_size: int) -> None:
    """The learning rate in proportion to the global batch, if `base_batch_size` says for which batch it is meant.

    Linear scaling: Goyal et al. 2017, arXiv 1706.02677, section 2.1. Only what is asked for; never by itself.
    """
    base, rate = optimizer.pop("base_batch_size", None), optimizer.get("lr")
    if base is None:
        return
    if not isinstance(base, int) or isinstance(base, bool) or base < 1:
        raise ConfigError("optimizer.base_batch_size", f"{base!r} is not a number of images", "the batch of that lr")
    if isinstance(rate, int | float):  # if it is missing, the task says so
        optimizer["lr"] = rate * batch_size / base
        log.info("learning rate %g x %d / %d = %g", rate, batch_size, base, optimizer["lr"])


def build_trainer(
    config: Mapping[str, Any], parts: Parts, folder: Path, allow: Collection[str] = (), *, evaluate_only: bool = False
) -> Trainer:
    """Lightning's Trainer with the config's arguments, our callbacks and loggers, accumulating as the batch sizes say.

    Raises:
        ConfigError: the global batch does not divide into what the devices take.
    """
    arguments = dict(config.get("trainer") or {})
    if arguments.get("precision") == "auto":
        arguments["precision"] = best_precision(arguments.get("accelerator", "auto"))
    _refuse_missing_devices(arguments)
    if "precision" in arguments:
        arguments["precision"] = _whole_name(arguments["precision"], arguments.get("accelerator", "auto"))
    callbacks = [make() for make in callbacks_of(config, allow).values()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Lightning would save and requeue by itself, inside a signal handler; `Preemption` and exit code 75 do it.
        arguments.setdefault("plugins", [SLURMEnvironment(auto_requeue=False)])
    arguments = trainer_arguments(arguments, parts.task, callbacks)
    given = {"num_sanity_val_steps": 0, **arguments, **processes.launched()}
    loggers = False if evaluate_only else make_loggers(config.get("logger"), folder, config, allow)
    with refusals.of_trainer(arguments):
        trainer = Trainer(
            **given,
            callbacks=default_callbacks(folder, callbacks, evaluate_only=evaluate_only),
            logger=loggers,
            default_root_dir=str(folder),
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
    try:
        trainer.accumulate_grad_batches = parts.data.accumulation(trainer.world_size)
    except ConfigError as error:
        raise together(error, parts.task.schedule, parts.data, trainer) from None
    return trainer


def callbacks_of(config: Mapping[str, Any], allow: Collection[str] = ()) -> dict[str, Callable[[], Callback]]:
    """The config's callbacks by name, each by the function that builds it."""

    def make(name: str, node: Any) -> Callback:
        found: Callback = build(_directed(node, f"callbacks.{name}"), Callback, where=f"callbacks.{name}", allow=allow)
        for kind, (problem, remedy) in NOT_HERE.items():
            if isinstance(found, kind):
                raise ConfigError(f"callbacks.{name}", problem, remedy)
        return found

    nodes = (config.get("callbacks") or {}).items()
    return {name: functools.partial(make, name, node) for name, node in nodes if node is not None}


def _refuse_missing_devices(arguments: Mapping[str, Any]) -> None:
    """Refuse an accelerator, an index or a precision that this machine does not have; say what keeps it from its GPU.

    Raises:
        ConfigError: at the key, with what there is.
    """
    name = arguments.get("accelerator", "auto")
    there = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}  # fmt: skip
    if not there.get(name, True):
        problem = f"{name!r} is not here: {unusable_gpu() or 'this torch sees no such device'}"
        raise ConfigError("trainer.accelerator", problem, "auto and cpu run anywhere")
    wanted = arguments.get("devices", "auto")
    if isinstance(wanted, str) and "," in wanted:
        wanted = [int(index) for index in wanted.split(",") if index.strip()]
    if isinstance(wanted, list) and _takes_processor(name):
        problem = f"{wanted} are indices of devices; a processor takes a number of processes"
        raise ConfigError("trainer.devices", problem, "write that; `vistrain doctor` says what there is")
    if name not in ("auto", "gpu", "cuda"):
        return
    if not torch.cuda.is_available():
        if reason := unusable_gpu():
            log.warning("%s: this run takes the processor", reason)
        return
    count = torch.cuda.device_count()
    missing = [index for index in wanted if index >= count] if isinstance(wanted, list) else []
    if missing:
        problem = f"there is no device {missing[0]}: this machine has {count}"
        raise ConfigError("trainer.devices", problem, f"write some of {list(range(count))}, or auto")
    if isinstance(wanted, int) and wanted > count:
        raise ConfigError("trainer.devices", f"{wanted} devices: this machine has {count}", f"write {count}, or auto")
    precision = str(arguments.get("precision"))
    if precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        problem = f"{torch.cuda.get_device_name()} has no bfloat16 arithmetic"
        raise ConfigError("trainer.precision", f"{precision!r}: {problem}", "use 16-mixed or 32-true")


def _takes_processor(accelerator: str) -> bool:
    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not there)


def _whole_name(precision: Any, accelerator: str) -> Any:
    """Lightning's older names of precisions by their new ones; on processors, which cast to bfloat16 alone, that."""
    name = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}.get(str(precision), precision)
    if name == "16-mixed" and _takes_processor(accelerator):
        log.warning("trainer.precision=%s: processors compute no float16 under autocast: bf16-mixed is taken", name)
        return "bf16-mixed"
    return name


def _directed(node: Any, where: str) -> Any:
    """A callback of Lightning's that monitors one of our numbers, told in which direction that is better.

    Their own default is `min` for all; ours (`callbacks.Checkpoints`) ask the metric themselves.

    Raises:
        ConfigError: no protocol of ours gives such a number.
    """
    name = str(node.get("type", "")) if isinstance(node, dict) else ""
    if name.rpartition(".")[2] not in ("EarlyStopping", "ModelCheckpoint") or not node.get("monitor") or "mode" in node:
        return node
    number = str(node["monitor"])
    known = metrics.unit_of(number.partition("/")[2]) if "/" in number else None
    if known is None and not number.rpartition("/")[2].startswith("loss"):
        raise ConfigError(f"{where}.mode", f"is missing: is {number} better when high or when low?", "write max or min")
    return {**node, "mode": "min" if known is None or known.lower_is_better else "max"}


def best_precision(accelerator: str) -> str:
    """`bf16-mixed` on accelerators that have bfloat16 arithmetic, else `32-true`."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def monitored(config: Mapping[str, Any], trainer: Trainer) -> dict[str, str]:
    """Dotted key of a callback -> the number that it waits for; none where nothing is evaluated."""
    return {
        f"callbacks.{name}.monitor": str(node["monitor"])
        for name, node in (config.get("callbacks") or {}).items()
        if isinstance(node, dict) and node.get("monitor") is not None and trainer.limit_val_batches != 0
    }
