"""From a composed config to a finished run: builds the parts in their order and hands them to Lightning's Trainer.

The order is the only logic here: the data's facts (labels, channels) build the network, the network's facts
(preprocessing) reach the transforms, and both are stored in every checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.optim import Optimizer

from vistrain import processes
from vistrain.callbacks import default_callbacks, make_loggers
from vistrain.checkpoints import load_weights
from vistrain.config import compose, to_yaml, without_pretrained
from vistrain.config.builder import build
from vistrain.data import DataModule
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.optim import ParameterGroups, Schedule
from vistrain.run.folders import run_folder
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
    folder = run_folder(config, resume)
    seed_everything(config.get("seed", 0), workers=True, verbose=False)
    weights = config.get("run", {}).get("weights")
    # Weights that are about to be replaced need not be downloaded: every tensor comes from the file or the checkpoint.
    parts = build_parts(without_pretrained(config) if weights or resume else config, allow, stage="fit")
    parts.task.checkpoint_facts = {"config": dict(config)}  # as it was given: `pretrained` included
    if weights and resume is None:
        load_named(parts.model, weights)
    trainer = build_trainer(config, parts, folder, allow)
    with _naming_dead_workers(parts.data):
        trainer.fit(parts.task, datamodule=parts.data, ckpt_path=str(resume / "last.ckpt") if resume else None)
    return 0


def _fit_stages(config: dict[str, Any], resume: Path | None, debug: bool, allow: Collection[str]) -> int:
    """One run per stage, in `stage_1`, `stage_2` ... of the run folder; each starts from the last one's weights."""
    folder = resume or run_folder(config, None)
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
    return 0


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
    with _naming_dead_workers(parts.data):
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
    callbacks = [
        build(node, Callback, where=f"callbacks.{name}", allow=allow)
        for name, node in (config.get("callbacks") or {}).items()
        if node is not None
    ]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # Lightning would save and requeue by itself, inside a signal handler; `Preemption` and exit code 75 do it.
        arguments.setdefault("plugins", [SLURMEnvironment(auto_requeue=False)])
    arguments = trainer_arguments(arguments, parts.task, callbacks)
    trainer = Trainer(
        **{"num_sanity_val_steps": 0, **arguments, **processes.launched()},
        callbacks=default_callbacks(folder, callbacks, evaluate_only=evaluate_only),
        logger=False if evaluate_only else make_loggers(config.get("logger"), folder, config, allow),
        default_root_dir=str(folder),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.accumulate_grad_batches = parts.data.accumulation(trainer.world_size)
    return trainer


def best_precision(accelerator: str) -> str:
    """`bf16-mixed` on accelerators that have bfloat16 arithmetic, else `32-true`."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


@contextmanager
def _naming_dead_workers(data: DataModule) -> Iterator[None]:
    """Torch reports a dead data worker by its number, wherever the main process happens to be."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        reason = data.explain(error)
        if reason is None:
            raise
        raise reason from error
