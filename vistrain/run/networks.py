"""Networks of configs and checkpoints, and the weights that they get."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vistrain.backbones.create import check_arguments
from vistrain.checkpoints import load_file, load_weights
from vistrain.checkpoints.loading import LoadReport
from vistrain.checkpoints.schema import PREFIX, check_network
from vistrain.config import index, without_pretrained
from vistrain.config.builder import build, class_named
from vistrain.data import DataModule
from vistrain.devices import on_meta
from vistrain.errors import ConfigError, WeightsError
from vistrain.layers.low_rank import merged_low_rank
from vistrain.network import Network
from vistrain.structures import Channels, LabelSpace
from vistrain.tasks import Task


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section that must be there.

    Raises:
        ConfigError: it is not.
    """
    found = config.get(name)
    if not isinstance(found, dict):
        remedy = "take it from a base, such as `base: vistrain:det/_base_/coco_detection`"
        raise ConfigError(name, "this section is missing", remedy)
    return found


def task_class(config: Mapping[str, Any], allow: Collection[str] = ()) -> type[Task]:
    """The class of a config's task, unbuilt.

    Args:
        config: composed.
        allow: packages beyond the default ones whose classes the config may name.

    Raises:
        ConfigError: it names none, or one that is no task.
    """
    name = section(config, "task").get("type")
    if name is None:
        raise ConfigError("task.type", "is missing", "`vistrain list tasks` shows what there is")
    return class_named(name, Task, "task", allow=allow)


def build_model(
    config: Mapping[str, Any], labels: LabelSpace, channels: int = 3, allow: Collection[str] = ()
) -> Network:
    """Build the network alone, for a label space.

    Raises:
        ConfigError, WeightsError: something is the user's to mend.
    """
    facts = {LabelSpace: labels, Channels: channels}
    model: Network = build(section(config, "model"), Network, facts, "model", allow=allow)
    return model


def refuse_backbones(config: Mapping[str, Any]) -> None:
    """Refuse backbones' names and arguments that do not exist, before data are read or generated.

    Raises:
        ConfigError: at its dotted key.
    """
    for node in index.walk({"model": config.get("model")}):
        name, args = node.value.get("name"), node.value.get("args")
        known = node.entry["path"].startswith("vistrain.backbones.") and isinstance(name, str) and ":" not in name
        if known and isinstance(args, dict):
            try:
                check_arguments(str(name), args)
            except ConfigError as error:
                raise ConfigError(f"{node.where}.{error.where}", error.problem, error.remedy) from error


def pretrained_files(node: Any) -> Iterator[str]:
    """The files of pretrained weights that a network's config names, of backbones and teachers anywhere in it."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if key == "pretrained" and isinstance(value, str):
            yield value
        else:
            yield from pretrained_files(value)


def build_without_memory(config: dict[str, Any], allow: Collection[str] = ()) -> Network:
    """The network of a composed config on the meta device: names and shapes, no numbers.

    Args:
        config: composed.
        allow: see `fit`.

    Raises:
        ConfigError: something is the user's to mend.
    """
    data: DataModule = build(section(config, "data"), DataModule, where="data", allow=allow)
    with on_meta():
        return build_model(without_pretrained(config), data.labels, data.channels, allow)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint of ours carries: `state_dict`, `config`, `labels`, `preprocessing`, `evaluation`, `version`.

    Raises:
        WeightsError: it cannot be read, or another program wrote it.
    """
    path = Path(path).expanduser()
    content = load_file(path)
    facts = content.get("vistrain")
    if not isinstance(facts, dict):
        remedy = "give the network's config with --config and this file with --weights"
        raise WeightsError(str(path), "not a checkpoint that vistrain wrote", remedy)
    check_network(content, path)
    state = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items() if k.startswith(PREFIX)}
    return {**facts, "state_dict": merged_low_rank(state)}


def load(path: str | Path, allow: Collection[str] = ()) -> tuple[Network, dict[str, Any]]:
    """Rebuild the network of a checkpoint from the checkpoint alone, in evaluation mode.

    Returns:
        The network and what `load_checkpoint` says.

    Raises:
        ConfigError, WeightsError: something is the user's to mend.
    """
    facts = load_checkpoint(Path(path))
    labels = LabelSpace((), ()) if facts["labels"] is None else LabelSpace.from_dict(facts["labels"])
    model = build_model(without_pretrained(facts["config"]), labels, facts.get("channels", 3), allow)
    load_weights(model, facts["state_dict"], where=str(path))
    return model.eval(), facts


def load_official(
    config: dict[str, Any], weights: str | Path | None = None, allow: Collection[str] = ()
) -> tuple[Network, dict[str, Any]]:
    """The network of a composed config with official weights, in evaluation mode, and facts as `load` gives them.

    Args:
        config: composed.
        weights: an official checkpoint; None takes `run.weights`, and without it the network is as it is built.
        allow: see `fit`.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    data: DataModule = build(section(config, "data"), DataModule, where="data", allow=allow)
    weights = weights or config.get("run", {}).get("weights")
    model = build_model(without_pretrained(config) if weights else config, data.labels, data.channels, allow)
    if weights:
        load_whole(model, weights)
    data.preprocessing = model.preprocessing
    transform = data.eval_transform
    facts = {
        "config": config,
        "labels": None if model.labels is None else model.labels.to_dict(),
        "preprocessing": model.preprocessing.to_dict(),
        "evaluation": None if transform is None else transform.to_node(),
    }
    return model.eval(), facts


def load_named(model: Network, weights: str | Path) -> LoadReport:
    """Load a file under any of the network's namings; what depends on the classes or the scale may keep its own values,
    and first layers for other image channels and Swin's tables for other windows are adapted.

    Returns:
        What was loaded, left out and adapted.

    Raises:
        WeightsError: the file cannot be read, or does not fit.
    """
    return load_weights(
        model,
        weights,
        key_maps=model.key_maps,
        class_layers=model.class_layers,
        scale_layers=model.scale_layers,
        input_layers=model.input_layers,
        resize_tables=True,
        labels=model.labels,
    )


def load_whole(model: Network, weights: str | Path) -> None:
    """As `load_named`, where nothing may be left out or adapted, since nothing will be trained.

    Raises:
        WeightsError: something was, too.
    """
    report = load_named(model, weights)
    remedy = "take the config that it was trained with, or fine-tune with run.weights"
    if report.left_out:
        what = "another scale" if model.scale_layers else "other classes"
        raise WeightsError(str(weights), f"is for {what}: {report.left_out[0]}", remedy)
    if report.adapted:
        raise WeightsError(str(weights), f"is for other image channels or windows: {report.adapted[0]}", remedy)


def refuse_other_classes(path: Path, trained: LabelSpace, data: LabelSpace) -> None:
    """Refuse to evaluate what was trained for other classes than the data has.

    Raises:
        WeightsError: the classes, or their numbers, differ.
    """
    if (trained.names, trained.ids, trained.name) == (data.names, data.ids, data.name):
        return
    missing = [name for name in trained.names if name not in data.names][:3]
    remedy = "evaluate on data of the same classes, or fine-tune with run.weights"
    if sorted(trained.names) == sorted(data.names) and trained.name == data.name:
        pairs = list(zip(trained.names, data.names, trained.ids, data.ids, strict=True))
        number, (one, other, *ids) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1] or p[2] != p[3])
        problem = f"the same classes in another order: class {number} was {one}, and is {other} in the data"
        if one == other:
            problem = f"classes of other ids: {one} had the id {ids[0]}, and has {ids[1]} in the data"
        raise WeightsError(str(path), f"it was trained on {problem}", remedy)
    raise WeightsError(
        str(path),
        f"it was trained on {len(trained.names)} classes ({trained.name}), "
        f"the data has {len(data.names)} ({data.name})"
        + (f"; not in the data: {', '.join(missing)}" if missing else ""),
        remedy,
    )
