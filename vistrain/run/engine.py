"""From a composed config to a finished run: the parts are handed to Lightning's Trainer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from vistrain import processes
from vistrain.callbacks.records import KeepRecords
from vistrain.checkpoints import load_weights, locate
from vistrain.config import compose, to_yaml, without_pretrained
from vistrain.errors import ConfigError, DataError, VistrainError
from vistrain.network import Network
from vistrain.run import refusals
from vistrain.run.continued import Continued
from vistrain.run.folders import folder_of, run_folder
from vistrain.run.lock import held
from vistrain.run.networks import load, load_checkpoint, load_named, load_whole, refuse_other_classes
from vistrain.run.parts import build_parts, build_trainer, monitored, stage_configs
from vistrain.run.rehearsal import refuse_ahead
from vistrain.run.run_page import write_report
from vistrain.structures import LabelSpace, Preprocessing
from vistrain.tasks.base.ahead import together
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

# What `--debug` changes: everything in this process, every operation checked, every step reported.
DEBUG = {"data": {"workers": 0}, "trainer": {"detect_anomaly": True, "log_every_n_steps": 1}}


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
        folder = run_folder(config, resume, lambda: refuse_ahead(config, allow))
        _fit_in(folder, config, resume, allow)
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
    if continued is None and weights:
        load_named(parts.model, weights)
        parts.task.checkpoint_facts["weights"] = locate(weights).identity()
    parts.task.groups.prepare(parts.model)
    if continued is not None:
        continued.refuse_misfit(parts.task, parts.data.labels, config.get("callbacks") or {}, allow)
    checkpoint, said = (None, ()) if continued is None else (continued.path, continued.said)
    del continued  # the trainer reads it anew
    trainer = build_trainer(config, parts, folder, allow)
    for line in said:
        log.info("%s", line)
    parts.task.monitored = monitored(config, trainer)
    try:
        with refusals.of_run(parts.task, parts.data, checkpoint):
            trainer.fit(parts.task, datamodule=parts.data, ckpt_path=str(checkpoint) if checkpoint else None)
    except (ConfigError, DataError) as error:
        if parts.task.began:
            raise
        raise together(error, parts.task.schedule, parts.data, trainer) from error
    if trainer.is_global_zero:
        _report(folder)


def _report(folder: Path) -> None:
    """The run's page; without it the run is poorer, not broken."""
    try:
        page, _ = write_report(folder)
    except VistrainError as error:
        log.warning("the report could not be written: %s", error)
    else:
        log.info("report: %s", page)


def _fit_stages(config: dict[str, Any], resume: Path | None, debug: bool, allow: Collection[str]) -> int:
    """One run per stage, in `stage_1`, `stage_2` ... of the run folder; each starts from the last one's weights."""
    folder, stages = resume or folder_of(config), stage_configs(config)
    with held(folder):
        if resume is None:
            refuse_ahead(config, allow)  # nobody wants to hear of the last one when the first is trained
            run_folder(config, None)
        with whole_file(folder / "config.yaml") as path:
            path.write_text(to_yaml(config))
        weights = config.get("run", {}).get("weights")
        folders = [folder / f"stage_{number}" for number in range(1, len(stages) + 1)]
        for own, following, stage in zip(folders, [*folders[1:], None], stages, strict=True):
            is_done = resume is not None and following is not None and (following / "last.ckpt").is_file()
            if not is_done:
                begun = resume is not None and (own / "last.ckpt").is_file()
                stage = compose([], start=stage, changes={"run": {"folder": str(own), "weights": weights}})
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
    records: Path | None = None,
    others: Sequence[Path] = (),
    folder: Path | None = None,
    prepare: Callable[[Network], None] | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint of ours, or a config with foreign weights, on the test split.

    Args:
        config: composed config; None takes the checkpoint's.
        checkpoint: a file that `fit` wrote.
        overrides: `dotted.key=value` changes to the checkpoint's config (other data, another batch size).
        weights: an official checkpoint for the config's network.
        allow: see `fit`.
        analysis: folder for what the task's `analyse` writes of the test; None: nothing.
        records: file for the records of each metric, JSON, of which a metric makes its numbers; None: none.
        others: further checkpoints, with whose networks that of the first is averaged.
        folder: for `test.json`; None: that of the checkpoint, or of the run.
        prepare: called with the network when it has its weights.

    Returns:
        The numbers by name, such as `test/coco/AP`.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend; among it a checkpoint whose classes are
            not those of the data, and an analysis that the task does not have.
    """
    facts: dict[str, Any] = {}
    if analysis is not None and analysis.exists() and not analysis.is_dir():
        raise ConfigError("--analysis", f"{analysis} is no folder", "name one; it is made if it is not there")
    if checkpoint is not None:
        facts = load_checkpoint(checkpoint)
        config = compose([], overrides, start=facts["config"], changes=config)
    if config is None:
        raise ConfigError("test", "nothing to evaluate", "give --ckpt, or --config with --weights")
    if (config.get("trainer") or {}).get("limit_test_batches") == 0:
        raise ConfigError("trainer.limit_test_batches", "0: nothing would be tested", "remove the key")
    weights = weights or config.get("run", {}).get("weights")
    replaced = checkpoint is not None or weights
    parts = build_parts(without_pretrained(config) if replaced else config, allow, stage="test")
    if checkpoint is not None:
        if facts["labels"] is not None:
            refuse_other_classes(checkpoint, LabelSpace.from_dict(facts["labels"]), parts.data.labels)
        load_weights(parts.model, facts["state_dict"], where=str(checkpoint))
        parts.data.preprocessing = Preprocessing.from_dict(facts["preprocessing"])
        if others:
            loaded = [load(other, allow) for other in others]
            for file, (_, known) in zip(others, loaded, strict=True):
                for key in ("labels", "evaluation"):
                    if known[key] != facts[key]:
                        raise ConfigError("--ckpt", f"{file} has other {key} than {checkpoint}", "average of one kind")
            parts.model.average_with([model for model, _ in loaded])
    elif weights:
        load_whole(parts.model, weights)
    if prepare is not None:
        prepare(parts.model)
    parts.task.analysis_folder = analysis
    reported = folder is None
    if folder is None:
        folder = Path(checkpoint).parent if checkpoint is not None else run_folder(config, None)
    trainer = build_trainer(config, parts, folder, allow, evaluate_only=True)
    if records is not None:
        trainer.callbacks.append(KeepRecords(records))  # type: ignore[attr-defined]  # Lightning hides the list
    with refusals.of_run(parts.task, parts.data, None):
        trainer.test(parts.task, datamodule=parts.data, verbose=False)
    numbers = dict(parts.task.numbers)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        record = {"checkpoint": str(checkpoint or weights), "metrics": config.get("metrics"), "numbers": numbers}
        if checkpoint is None and weights:
            record["weights"] = locate(weights).identity()
        images = {"from": parts.data.place("test"), "of": len(parts.data.watched["test"])}
        record["images"] = {**images, "tested": parts.task.tested.samples, "digest": parts.task.tested.digest}
        record["changes"] = list(overrides)
        if not numbers:
            log.warning("no number was computed: the config names no metrics")
        record |= parts.task.facts_of_test()
        record["halves"] = parts.task.tested.halves
        with whole_file(folder / "test.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
        if reported and checkpoint is not None and (folder / "config.yaml").is_file():
            _report(folder)
    return numbers
