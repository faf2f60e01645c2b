"""`vistrain evaluate`: numbers from predictions that lie in files, of whatever program."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistrain.commands import task_options
from vistrain.commands.shared import allow_option, composed, config_option, start_logging
from vistrain.commands.task_options import listed, option_of, room_of
from vistrain.errors import ConfigError

SUMMARY = "compute the numbers from a file of predictions, or a folder of them"
USAGE = "PREDICTIONS (--config FILE | OPTIONS of one task) [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain evaluate predictions.json --annotations instances_val2017.json
  vistrain evaluate predictions.json -c vistrain:det/deformable_detr_r50
  vistrain evaluate predictions.json --annotations instances_val2017.json --analysis out/ --images val2017/
  vistrain evaluate restored/ --truth Set5/ --protocol sr_luma --scale 4         a folder of restored pictures
  vistrain evaluate restored/ --truth Set5/ --protocol lpips --lpips alexnet.pth alex.pth

Without --config the task is the one that takes the options that are given.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", type=Path, help="a file or folder, as `vistrain predict` writes it"
    )
    config_option(parser)
    allow_option(parser)
    task_options.declare(parser, "evaluate")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate files."""
    given = {name: value for name, value in task_options.values(arguments, "evaluate").items() if value is not None}
    config = composed(arguments) if arguments.config else None
    if config is None and given and arguments.overrides:
        problem = f"{listed(given)} and a config exclude each other"
        raise ConfigError("evaluate", problem, f"leave out {arguments.overrides[0]}, or give --config FILE")
    name = _task_of(config) if config is not None else _task_for(given)
    start_logging()
    from rich.console import Console

    from vistrain.config.builder import build, class_named
    from vistrain.data import DataModule
    from vistrain.tasks import Task
    from vistrain.tasks.base.options import checked, keyword_hints

    task: type[Task] = class_named(name, Task, "task", allow=arguments.allow)
    options = checked(given, keyword_hints(task.evaluate_file))
    data = None if config is None else build(config.get("data"), DataModule, where="data", allow=arguments.allow)
    Console(markup=False).print(task.evaluate_file(arguments.predictions, data, **options))
    return 0


def _task_of(config: Mapping[str, Any]) -> str:
    """The task of a config; of one that holds data alone, the task whose room is called as that of the data.

    Raises:
        ConfigError: neither says it.
    """
    from vistrain.config import index

    node, data = config.get("task") or {}, config.get("data") or {}
    if "type" in node:
        return str(node["type"])
    entry = index.entry_of(str(data["type"]), "data") if "type" in data else None
    known = task_options.tasks("evaluate")
    fitting = [name for name, (path, _) in known.items() if entry and room_of(path) == room_of(entry["path"])]
    if not fitting:
        raise ConfigError("task.type", "is missing", "take it from a base; `vistrain list tasks` shows what there is")
    return fitting[0]


def _task_for(given: Mapping[str, Any]) -> str:
    """The one task that takes all options that are given.

    Raises:
        ConfigError: there is none, or there are several.
    """
    rooms: dict[str, tuple[str, list[str]]] = {}  # the first class of a room stands for it
    for name, (path, facts) in task_options.tasks("evaluate").items():
        if facts:
            rooms.setdefault(room_of(path), (name, list(facts)))
    takes = "; ".join(f"{room} takes {listed(names)}" for room, (_, names) in rooms.items())
    if not given:
        raise ConfigError("evaluate", "no truth to compare with", f"give the data's --config FILE, or options: {takes}")
    fitting = [room for room, (_, names) in rooms.items() if set(given) <= set(names)]
    if len(fitting) == 1:
        return rooms[fitting[0]][0]
    if fitting:
        problem = f"may be for {' or '.join(fitting)}"
        raise ConfigError(listed(given), problem, f"give more options, or --config FILE: {takes}")
    *others, last = given
    owners = [room for room, (_, names) in rooms.items() if last in names]
    if not owners:
        raise ConfigError(option_of(last), "is of no task known here", f"name it by --config FILE: {takes}")
    remedy = f"leave out {listed(others)}: {takes}"
    raise ConfigError(option_of(last), f"is for {' and '.join(owners)} alone", remedy)
