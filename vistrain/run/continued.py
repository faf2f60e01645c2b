"""Going on with a run: what was is compared with what is asked, before anything is built, and after it.

What can change acts, and is said: how long, on what, what is logged, the numbers of the optimizer, the schedule. What
cannot is refused, with its key: the same weights and the same data order are what makes it that run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, WeightAveraging

from vistrain.checkpoints import load_file
from vistrain.checkpoints.schema import check_run
from vistrain.config import index
from vistrain.config.builder import class_named
from vistrain.errors import ConfigError, WeightsError
from vistrain.optim.settled import names_of
from vistrain.run.folders import differences
from vistrain.structures import LabelSpace
from vistrain.tasks import Task

# What decides which samples are trained on, and which are held out.
SPLITS = ("data.fold", "data.folds", "data.holdout", "data.patterns_seed", "data.scenes_seed", "data.shapes_seed",
          "data.textures_seed", "data.tumours_seed")  # fmt: skip
# What cannot change, and why.
FIXED = {
    "seed": "the order of the data depends on it",
    "task.type": "another task is another run",
    "data.type": "the run stands at a place in its own data",
    "data.train_on": "the run stands at a place in its own data",
    "data.batch_size": "steps and learning rate belong to it",
    **dict.fromkeys(SPLITS, "what was trained on would be evaluated"),
    "model.type": "the weights are of the other network",
    "optimizer.type": "its memory is of the other optimizer",
    "optimizer.amsgrad": "its memory has no such part",
    "optimizer.centered": "its memory has no such part",
}
STARTS = "it acts at the start alone, and the run has its weights"  # of backbones and teachers, wherever they stand
UNSAID = ("run", "reference", "stages")  # sections of which nothing acts on a run that goes on
SHOWN = 8  # changes that one line tells


@dataclass(frozen=True)
class Continued:
    """A run that goes on.

    Attributes:
        path: its checkpoint.
        content: of it, checked (see `checkpoints.schema`).
        changes: dotted keys at which what is asked differs from what was.
        said: lines about them, to be told once nothing is refused any more.
    """

    path: Path
    content: dict[str, Any]
    changes: tuple[str, ...]
    said: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> Continued:
        """Read `last.ckpt` of a run and compare its config with what is asked now.

        Raises:
            WeightsError: the checkpoint cannot be read or is damaged.
            ConfigError: something differs that cannot change.
        """
        path = folder / "last.ckpt"
        content = load_file(path)
        if not isinstance(content.get("vistrain"), dict):
            raise WeightsError(str(path), "not a checkpoint that vistrain wrote", "start a run from it: run.weights")
        check_run(content, path)
        was, asked = _comparable(content["vistrain"]["config"]), _comparable(config)
        changes = tuple(differences(was, asked))
        for key in changes:
            why = STARTS if key.startswith("model.") and key.endswith(".pretrained") else FIXED.get(key)
            if why:
                then, now = _value(was, key), _value(asked, key)
                raise ConfigError(key, f"was {then!r} and cannot become {now!r}: {why}", _anew(path))
        _refuse_less(content, asked)
        said = _left_undone(content, asked)
        if changes:
            told = [f"{key}: {_short(_value(was, key))} -> {_short(_value(asked, key))}" for key in changes[:SHOWN]]
            more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            said = (*said, f"goes on with changes: {', '.join(told)}{more}")
        return cls(path, content, changes, said)

    def refuse_misfit(
        self, task: Task, labels: LabelSpace, callbacks: Mapping[str, Any], allow: Collection[str]
    ) -> None:
        """Refuse parts that the checkpoint's do not fit into.

        Args:
            task: as it was built now.
            labels: of the data.
            callbacks: the config's section.
            allow: see `config.build`.

        Raises:
            ConfigError: with the keys that were changed; classes, weights, trained parameters or averaging differ.
        """
        self._refuse_labels(labels)
        own = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
        saved = {name: tuple(tensor.shape) for name, tensor in self.content["state_dict"].items()}
        wrong = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
        if wrong:
            raise self._changed(("model",), f"{len(wrong)} weights are others than the run's, such as {wrong[0]}")
        self._refuse_groups(task)
        self._refuse_averaging(callbacks, allow)

    def _refuse_labels(self, labels: LabelSpace) -> None:
        known = self.content["vistrain"]["labels"]
        if known is None:
            return
        then = LabelSpace.from_dict(known)
        if (then.names, then.ids, then.name) != (labels.names, labels.ids, labels.name):
            raise self._changed(("data",), _difference(labels, then))

    def _refuse_groups(self, task: Task) -> None:
        now = names_of(task.model, task.parameter_groups())
        saved = self.content["optimizer_states"][0]
        was = self.content["vistrain"].get("optimized")
        if was is None:  # of a version that did not say: the groups must be the same
            sizes = [len(group["params"]) for group in saved["param_groups"]]
            if sizes != [len(names) for names in now]:
                raise self._changed(
                    ("optimizer.groups", "model"), f"groups of {sizes} parameters became {list(map(len, now))}"
                )
            was = now
        before, after = set(chain.from_iterable(was)), set(chain.from_iterable(now))
        for names, verb in ((before - after, "no longer"), (after - before, "newly")):
            if names:
                raise self._changed(
                    ("model", "optimizer.groups"), f"{len(names)} parameters are {verb} trained, such as {min(names)}"
                )
        numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
        shapes = {name: tuple(p.shape) for name, p in task.model.named_parameters()}
        for name, number in zip(chain.from_iterable(was), numbers, strict=False):
            memory = saved["state"].get(number, {})
            for key in ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"):
                found = memory.get(key)
                if found is not None and tuple(found.shape) != shapes[name]:
                    wanted = list(shapes[name])
                    problem = f"is damaged: optimizer_states: {key} of {name} is {list(found.shape)}, not {wanted}"
                    raise WeightsError(str(self.path), problem, "take another checkpoint of the run")

    def _refuse_averaging(self, callbacks: Mapping[str, Any], allow: Collection[str]) -> None:
        """Without the average's callback, a run would go on from the average, and nobody would know."""
        averages = any(
            issubclass(class_named(str(node["type"]), Callback, f"callbacks.{name}", allow=allow), WeightAveraging)
            for name, node in callbacks.items()
            if isinstance(node, dict) and node.get("type")
        )
        if "current_model_state" in self.content and not averages:
            raise self._changed(("callbacks",), "the run averages its weights, and cannot go on without")

    def _changed(self, sections: tuple[str, ...], problem: str) -> ConfigError:
        """The error of parts that do not fit, at the first key of these sections that was changed."""
        keys = [key for section in sections for key in self.changes if key == section or key.startswith(f"{section}.")]
        others = f"; changed, too: {', '.join(keys[1:4])}" if keys[1:] else ""
        return ConfigError(keys[0] if keys else sections[0], f"{problem}{others}", _anew(self.path))


def _anew(path: Path) -> str:
    return f"leave it as it was, or start another run from these weights: run.weights={path} run.folder=ANOTHER"


def _refuse_less(content: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a run that would end before the place where it stands.

    Raises:
        ConfigError: `trainer.max_epochs` or `trainer.max_steps` is less than what is done.
    """
    trainer, progress = asked.get("trainer") or {}, content["vistrain"]["progress"]
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    done = progress["epoch"] + (progress["consumed"] > 0)
    if epochs is not None and 0 <= epochs < done:
        begun = "begun" if progress["consumed"] else "done"
        raise ConfigError("trainer.max_epochs", f"{epochs}, but {done} epochs are {begun}", f"give {done} or more")
    if 0 <= steps < content["global_step"]:
        raise ConfigError("trainer.max_steps", f"{steps}, but {content['global_step']} steps are done", "give more")


def _left_undone(content: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, ...]:
    """A line where nothing is left to train."""
    epochs, progress = (asked.get("trainer") or {}).get("max_epochs"), content["vistrain"]["progress"]
    if progress["consumed"] or epochs != progress["epoch"]:
        return ()
    line = f"all {epochs} epochs are done; only an evaluation may be left - raise trainer.max_epochs to go on"
    return (line,)


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with all defaults, without what does not count, in plain lists."""
    return {key: _plain(value) for key, value in index.complete(config).items() if key not in UNSAID}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _difference(labels: LabelSpace, then: LabelSpace) -> str:
    """Where classes differ from a run's, in words: the first place, or an id, or their name."""
    counts = f"{len(labels.names)} classes, but the run has {len(then.names)}"
    for place, (new, old) in enumerate(zip_longest(labels.names, then.names)):
        if new != old:
            said = "none" if new is None else repr(new), "none" if old is None else repr(old)
            found = f"class {place + 1} is {said[0]}, but the run's is {said[1]}"
            return found if len(labels.names) == len(then.names) else f"{counts}; {found}"
    for name, number, was in zip(labels.names, labels.ids, then.ids, strict=True):
        if number != was:
            return f"class {name!r} has the id {number}, but the run's has {was}"
    return f"the classes are {labels.name!r}, but the run's are {then.name!r}"
