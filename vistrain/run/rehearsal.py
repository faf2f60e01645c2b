"""What `fit` would refuse of a config, all of it at once, and nothing is trained.

`vistrain check` says it beside what it finds in the files; `fit` asks where it would have to refuse a folder, or train
for hours before it comes to the stage that is wrong.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import nn

from vistrain import processes
from vistrain.callbacks import Unreadable, check_loggers
from vistrain.checkpoints import refuse_unreadable
from vistrain.config import without_pretrained
from vistrain.data import DataModule
from vistrain.data.base.module import Loader
from vistrain.devices import on_meta
from vistrain.errors import ConfigError, DataError, VistrainError
from vistrain.internals.lightning import take_in
from vistrain.network import Network
from vistrain.run import refusals
from vistrain.run.networks import build_model, load_named, pretrained_files
from vistrain.run.parts import (
    Parts,
    build_task,
    build_trainer,
    callbacks_of,
    data_of,
    monitored,
    parts_of_task,
    refuse_before_writing,
    stage_configs,
)
from vistrain.structures import LabelSpace
from vistrain.tasks.base.ahead import (
    refuse_longer_schedule,
    refuse_missing_numbers,
    refuse_other_targets,
    together,
)
from vistrain.tasks.base.parallel import refuse_to_spread

Made = TypeVar("Made")


@dataclass
class Refusals:
    """Errors of ours, in the order in which they came, each once.

    Attributes:
        found: message -> the error.
        before: in front of the place of each, for one stage of several.
    """

    found: dict[str, VistrainError] = field(default_factory=dict)
    before: str = ""

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, an error of ours ends the block, and is kept."""
        try:
            yield
        except VistrainError as error:
            self.add([error])

    def add(self, errors: Iterable[VistrainError]) -> None:
        """Keep some."""
        for error in errors:
            if str(error) not in self.found:
                named = type(error)(self.before + error.where, error.problem, error.remedy)
                self.found.setdefault(str(named), named)

    def result(self, make: Callable[[], Made]) -> Made | None:
        """What a function makes; None: it refused."""
        with self.heard():
            return make()
        return None

    def concern(self, key: str) -> bool:
        """Whether something was refused at a dotted key, or below it."""
        places = [error.where.removeprefix(self.before) for error in self.found.values()]
        return any(place == key or place.startswith((f"{key}.", f"{key}[")) for place in places)


def refuse_ahead(config: dict[str, Any], allow: Collection[str] = ()) -> None:
    """Refuse what a run of a config would refuse before its first step, or before the first one of a later stage.

    Raises:
        ConfigError, DataError, WeightsError: the first of it.
    """
    heard = Refusals()
    rehearse(config, heard, allow=allow)
    for error in heard.found.values():
        raise error


def rehearse(
    config: dict[str, Any], heard: Refusals, data: DataModule | None = None, allow: Collection[str] = ()
) -> None:
    """Build all that a run consists of, and ask all that is asked before its first step.

    A network is built without memory for its weights, unless `run.weights` are to be loaded, or data to be written;
    pretrained weights are not fetched, of files of them only the beginning is read; loggers are not begun. Devices and
    packages are those of this machine.

    Args:
        config: composed; with stages, that of each is looked at.
        heard: gets what is refused. What stands in a section of which something is refused already is not built.
        data: built of the config; it is of no use for a run any more. None builds it.
        allow: packages beyond the default ones whose classes the config may name.
    """
    if not config.get("stages"):
        _rehearse(config, heard, data, allow)
    elif not heard.concern("stages") and (stages := heard.result(lambda: stage_configs(config))):
        outer = heard.before
        stages[1:] = map(without_pretrained, stages[1:])  # these go on from the weights of the one before
        for number, stage in enumerate([] if heard.found else stages):  # before data are written for any
            heard.before = f"{outer}stages[{number}]: "
            with heard.heard():
                refuse_before_writing(stage, data_of(stage, allow), allow)
        for number, stage in enumerate(stages):
            heard.before = f"{outer}stages[{number}]: "
            rehearse(stage, heard, None, allow)
        heard.before = outer


def _rehearse(config: dict[str, Any], heard: Refusals, data: DataModule | None, allow: Collection[str]) -> None:
    if not heard.concern("trainer"):
        nodes = (config.get("trainer") or {}).get("num_nodes", 1)
        with heard.heard():
            processes.refuse_waiting_alone(nodes)
    if not heard.concern("model") and not (config.get("run") or {}).get("weights"):
        for file in pretrained_files(config.get("model")):
            with heard.heard():
                refuse_unreadable(file)
    if data is None and not heard.concern("data"):
        data = heard.result(lambda: data_of(config, allow))
    with heard.heard():
        if data is not None:
            if not heard.found:
                refuse_before_writing(config, data, allow)
            if not (heard.found and data.unwritten):
                data.prepare_data()
                data.setup("fit")
    labels = None if data is None else heard.result(lambda: data.labels)
    made: dict[str, Any] = {}
    for name, make in parts_of_task(config, 1 if data is None else data.batch_size, allow).items():
        if not heard.concern(name):
            with heard.heard():
                made[name] = make()
    tolerated = Unreadable().limit
    for name, make in callbacks_of(config, allow).items():
        if not heard.concern(f"callbacks.{name}"):
            callback = heard.result(make)
            tolerated = callback.limit if isinstance(callback, Unreadable) else tolerated
    if data is not None:
        data.max_unreadable = tolerated
    with tempfile.TemporaryDirectory() as folder:
        if not heard.concern("logger"):
            heard.result(lambda: check_loggers(config.get("logger"), folder, allow))
        if data is None or labels is None or heard.concern("model"):
            return
        model = heard.result(lambda: _network(config, labels, data.channels, allow))
        if model is None or len(made) < 3 or heard.concern("task"):
            return
        data.preprocessing = model.preprocessing
        task = heard.result(lambda: build_task(config, model, made, allow))
        if task is None or heard.concern("trainer") or data.unwritten:
            return
        parts = Parts(data, model, task)
        config = {**config, "callbacks": {}} if heard.concern("callbacks") else config
        trainer = heard.result(lambda: build_trainer(config, parts, Path(folder), allow, evaluate_only=True))
        if trainer is not None:
            _ask(config, heard, parts, trainer)


def _network(config: dict[str, Any], labels: LabelSpace, channels: int, allow: Collection[str]) -> Network:
    """The network: in memory if weights go into it, else of the sizes alone."""
    weights = config.get("run", {}).get("weights")
    with nullcontext() if weights else on_meta():
        model = build_model(without_pretrained(config), labels, channels, allow)
    if weights:
        load_named(model, weights)
    return model


def _ask(config: Mapping[str, Any], heard: Refusals, parts: Parts, trainer: Trainer) -> None:
    """What is asked between the first process's start and the first step."""
    task, data = parts.task, parts.data
    take_in(trainer, task, data)
    with heard.heard():
        task.evaluators["val"] = task.build_metrics("val")
        refuse_missing_numbers(monitored(config, trainer), task.evaluators, type(task))
    with heard.heard():
        refuse_to_spread(task)
    with heard.heard():
        task.groups.prepare(task.model)
        groups = task.parameter_groups()
        task.optimizer([{**group, "params": list(map(_stand_in, group["params"]))} for group in groups])

    def training_batches() -> Loader:
        with _all_of(parts, trainer):
            return data.train_dataloader()

    if heard.result(training_batches) is None or heard.result(data.val_dataloader) is None:
        return
    data.workers = 0  # what comes reads no more than a batch
    with heard.heard(), _all_of(parts, trainer), refusals.of_run(task, data, None):
        total, per_epoch = task.length_of_run()
        task.schedule.factor(0, total, per_epoch)
        refuse_longer_schedule(task.schedule, trainer, total, per_epoch)
    training = data.train_dataloader()
    for loader in (training, data.val_dataloader()):
        with heard.heard(), refusals.of_run(task, data, None):
            batch = next(iter(loader))
            if loader is training:
                refuse_other_targets(parts.model, data, batch)


@contextmanager
def _all_of(parts: Parts, trainer: Trainer) -> Iterator[None]:
    """Inside, what is refused of a small set is refused with all that goes with it."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise together(error, parts.task.schedule, parts.data, trainer) from error


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the same shape and kind of number that takes no memory: optimizers look at these."""
    number = torch.zeros((), dtype=parameter.dtype)
    return nn.Parameter(number.expand(parameter.shape), requires_grad=parameter.requires_grad)
