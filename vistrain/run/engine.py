"""From a composed config to a finished run: builds the parts in their order and hands them to Lightning's Trainer.

The order is the only logic here: the data's facts (labels, channels) build the network, the network's facts
(preprocessing) reach the transforms, and both are stored in every checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.optim import Optimizer

from vistrain import metrics, processes
from vistrain.callbacks import default_callbacks, make_loggers
from vistrain.checkpoints import load_weights
from vistrain.config import compose, to_yaml, without_pretrained
from vistrain.config.builder import build
from vistrain.data import DataModule
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.optim import ParameterGroups, Schedule
from vistrain.run import refusals
from vistrain.run.continued import Continued
from vistrain.run.folders import folder_of, run_folder
from vistrain.run.lock import held
from vistrain.run.networks import (
    build_model,
    load_checkpoint,
    load_named,
    load_whole,
    refuse_other_classes,
    section,
)
from vistrain.structures import Factory, LabelSpace, Preprocessing
from vistrain.tasks import Task
from vistrain.tasks.base.parallel import trainer_arguments
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

# What `--debug` changes: everything in this process, every operation checked, every step reported.
DEBUG = {"data": {"workers": 0}, "trainer": {"detect_anomaly": True, "log_every_n_steps": 1}}


@dataclass
class Parts:
    """What a config builds before anything runs."""

    data: DataModule
    model: Network
    task: Task


def fit(config: dict[str, Any], *, resume: Path | None = None, debug: bool = False, allow: Collection[str] = ()) -> int:
    """Train as the config says.

    Args:
        config: composed and resolved (see `vistrain.config.compose`).
        resume: run folder to continue from its `last.ckpt`, or None for a new run.
        debug: look for the operation that makes a NaN, no worker processes, a line for every step.
        allow: packages beyond the default ones whose classes the config may name.

    Returns:
        0; a run that does not finish raises.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    if config.get("stages"):
        return _fit_stages(config, resume, debug, allow)
    if debug:
        config = compose([], start=config, changes=DEBUG)
    if resume is not None:  # it may have been moved, or copied
        config = {**config, "run": {**config.get("run", {}), "folder": str(resume)}}
    with held(resume or folder_of(config)):
        _fit_in(run_folder(config, resume), config, resume, allow)
    return 0


def _fit_in(folder: Path, config: dict[str, Any], resume: Path | None, allow: Collection[str]) -> None:
    """Train in a folder that no other process writes to."""
    continued = Continued.read(folder, config) if resume is not None else None
    processes.refuse_waiting_alone(config["trainer"].get("num_nodes", 1) if config.get("trainer") else 1)
    seed_everything(config.get("seed", 0), workers=True, verbose=False)
    weights = config.get("run", {}).get("weights")
    # Weights that are about to be replaced need not be downloaded: every tensor comes from the file or the checkpoint.
    parts = build_parts(without_pretrained(config) if weights or resume else config, allow, stage="fit")
    parts.task.checkpoint_facts = {"config": dict(config)}  # as it was given: `pretrained` included
    if continued is not None:
        continued.refuse_misfit(parts.task, parts.data.labels, config.get("callbacks") or {}, allow)
    elif weights:
        load_named(parts.model, weights)
    checkpoint = None if continued is None else continued.path
    del continued  # the trainer reads it anew
    trainer = build_trainer(config, parts, folder, allow)
    _say_what_is_not_evaluated(trainer)
    parts.task.monitored = {
        f"callbacks.{name}.monitor": str(node["monitor"])
        for name, node in (config.get("callbacks") or {}).items()
        if isinstance(node, dict) and node.get("monitor") is not None and trainer.limit_val_batches != 0
    }
    with refusals.of_run(parts.task, parts.data, checkpoint):
        trainer.fit(parts.task, datamodule=parts.data, ckpt_path=str(checkpoint) if checkpoint else None)


def _say_what_is_not_evaluated(trainer: Trainer) -> None:
    """The last epoch may be the one that nobody looks at."""
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every and epochs is not None and epochs > 0 and trainer.max_steps == -1 and epochs % every:
        log.warning(
            "the last epoch is not evaluated: trainer.max_epochs=%d, trainer.check_val_every_n_epoch=%d", epochs, every
        )


def _fit_stages(config: dict[str, Any], resume: Path | None, debug: bool, allow: Collection[str]) -> int:
    """One run per stage, in `stage_1`, `stage_2` ... of the run folder; each starts from the last one's weights."""
    folder = resume or folder_of(config)
    with held(folder):
        _fit_stages_in(run_folder(config, resume) if resume is None else folder, config, resume, debug, allow)
    return 0


def _fit_stages_in(
    folder: Path, config: dict[str, Any], resume: Path | None, debug: bool, allow: Collection[str]
) -> None:
    with whole_file(folder / "config.yaml") as path:
        path.write_text(to_yaml(config))
    weights = config.get("run", {}).get("weights")
    common = {key: value for key, value in config.items() if key != "stages"}
    folders = [folder / f"stage_{number}" for number in range(1, len(config["stages"]) + 1)]
    for own, following, changes in zip(folders, [*folders[1:], None], config["stages"], strict=True):
        is_done = resume is not None and following is not None and (following / "last.ckpt").is_file()
        if not is_done:
            run = {"run": {"folder": str(own), "weights": weights}}
            stage = compose([], start=compose([], start=common, changes=changes), changes=run)
            begun = resume is not None and (own / "last.ckpt").is_file()
            fit(stage, resume=own if begun else None, debug=debug, allow=allow)
        weights = str(own / "last.ckpt")


def test(
    config: dict[str, Any] | None = None,
    *,
    checkpoint: Path | None = None,
    overrides: Collection[str] = (),
    weights: str | None = None,
    allow: Collection[str] = (),
    analysis: Path | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint of ours, or a config with foreign weights, on the test split.

    Args:
        config: composed config; None takes the checkpoint's.
        checkpoint: a file that `fit` wrote.
        overrides: `dotted.key=value` changes to the checkpoint's config (other data, another batch size).
        weights: an official checkpoint for the config's network.
        allow: see `fit`.
        analysis: folder for what the task's `analyse` writes of the test; None: nothing.

    Returns:
        The numbers by name, such as `test/coco/AP`.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend; among it a checkpoint whose classes are
            not those of the data, and an analysis that the task does not have.
    """
    facts: dict[str, Any] = {}
    if checkpoint is not None:
        facts = load_checkpoint(checkpoint)
        config = compose([], overrides, start=facts["config"], changes=config)
    if config is None:
        raise ConfigError("test", "nothing to evaluate", "give --ckpt, or --config with --weights")
    weights = weights or config.get("run", {}).get("weights")
    replaced = checkpoint is not None or weights
    parts = build_parts(without_pretrained(config) if replaced else config, allow, stage="test")
    if checkpoint is not None:
        if facts["labels"] is not None:
            refuse_other_classes(checkpoint, LabelSpace.from_dict(facts["labels"]), parts.data.labels)
        load_weights(parts.model, facts["state_dict"], where=str(checkpoint))
        parts.data.preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    elif weights:
        load_whole(parts.model, weights)
    parts.task.analysis_folder = analysis
    folder = Path(checkpoint).parent if checkpoint is not None else run_folder(config, None)
    trainer = build_trainer(config, parts, folder, allow, evaluate_only=True)
    with refusals.of_run(parts.task, parts.data, None):
        trainer.test(parts.task, datamodule=parts.data, verbose=False)
    numbers = dict(parts.task.numbers)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"checkpoint": str(checkpoint or weights), "metrics": config.get("metrics"), "numbers": numbers}
        record |= parts.task.facts_of_test()
        with whole_file(folder / "test.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
    return numbers


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
    seed = config.get("seed", 0)
    data = build(section(config, "data"), DataModule, where="data", allow=allow, given={"seed": seed})
    if stage is not None:
        data.prepare_data()
        data.setup(stage)
    model = build_model(config, data.labels, data.channels, allow)
    data.preprocessing = model.preprocessing
    optimizer = dict(section(config, "optimizer"))
    groups = build(optimizer.pop("groups", {}), ParameterGroups, where="optimizer.groups", allow=allow)
    _scale_rate(optimizer, data.batch_size)
    schedule = config.get("schedule")
    given = {
        "model": model,
        "optimizer": build(optimizer, Factory[Optimizer], where="optimizer", allow=allow),
        "groups": groups,
        "schedule": build(schedule, Schedule, where="schedule", allow=allow) if schedule else None,
        "metrics": tuple(config.get("metrics") or ()),
        "seed": seed,
    }
    task: Task = build(section(config, "task"), Task, where="task", allow=allow, given=given)
    task.checkpoint_facts = {"config": dict(config)}
    return Parts(data, model, task)


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
    _refuse_missing_accelerator(arguments.get("accelerator", "auto"))
    callbacks = [
        build(_directed(node, f"callbacks.{name}"), Callback, where=f"callbacks.{name}", allow=allow)
        for name, node in (config.get("callbacks") or {}).items()
        if node is not None
    ]
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
    trainer.accumulate_grad_batches = parts.data.accumulation(trainer.world_size)
    return trainer


def _refuse_missing_accelerator(name: str) -> None:
    there = {"gpu": torch.cuda.is_available() or torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}  # fmt: skip
    if not there.get(name, True):
        raise ConfigError(
            "trainer.accelerator", f"{name!r} is not here", "`vistrain doctor` says why; auto and cpu run anywhere"
        )


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
