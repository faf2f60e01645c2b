"""Options that belong to tasks, not to commands: which there are, which tasks take them, and their values.

The index says of each task what its predictor takes, and what it evaluates files of predictions with: the help shows
that, and no command knows a task. What a task of a package under `--allow` takes is given as `--name value`, in YAML.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from vistrain.errors import ConfigError

TEXT = re.compile(r"\b(str|Path)\b")  # hints whose values are words as they stand: a folder may be called 2017
MANY = re.compile(r"^(Sequence|Collection|list|tuple)\b")
Facts = Mapping[str, Any]  # of an option: `hint`, `default`, `doc`


def declare(parser: argparse.ArgumentParser, command: str) -> None:
    """Declare the options that tasks have for a command (`predict`, `evaluate`)."""
    group = parser.add_argument_group("options of tasks")
    for name, takers in declared(command).items():
        many = all(MANY.match(facts["hint"]) for facts in takers.values())
        group.add_argument(
            option_of(name), dest=name, metavar=_metavar(name, takers), nargs="+" if many else None, help=_help(takers)
        )
    parser.set_defaults(foreign={})


def declared(command: str) -> dict[str, dict[str, Facts]]:
    """Of each option its facts by the tasks that take it."""
    found: dict[str, dict[str, Facts]] = {}
    for path, options in tasks(command).values():
        for name, facts in options.items():
            found.setdefault(name, {}).setdefault(room_of(path), facts)
    return found


def tasks(command: str) -> dict[str, tuple[str, dict[str, Facts]]]:
    """Of each task's class, as a config names it, its path and its options for a command."""
    from vistrain.config import index

    entries = {name: entry for name, entry in index.load("classes").items() if entry["kind"] == "task"}
    return {name: (entry["path"], entry.get(command, {})) for name, entry in entries.items()}


def room_of(path: str) -> str:
    """What a task or data module is for, which its room is called after: `vistrain.tasks.NAME.task.Class`."""
    return path.split(".")[2]


def option_of(name: str) -> str:
    """A parameter's name as an option."""
    return f"--{name.replace('_', '-')}"


def takes_foreign(parser: argparse.ArgumentParser, words: Collection[str]) -> bool:
    """Whether words may hold options of foreign tasks: the command has options of tasks, and a package is allowed."""
    is_allowed = any(word.partition("=")[0] == "--allow" for word in words)
    return is_allowed and parser.get_default("foreign") is not None


def take_foreign(words: Sequence[str], known: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Split `--name value` and `--name=value` of options that a command has not from the words that it has.

    Args:
        words: of the command line.
        known: options of the command.

    Raises:
        ConfigError: an option has no value.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option in known:
            rest.append(word)
            continue
        if not equals:
            value = next(remaining, "")
        if not value:
            raise ConfigError(option, "needs a value", f"write {option} VALUE")
        found[option.lstrip("-").replace("-", "_")] = value
    return rest, found


def values(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """The values of all options of tasks by name, of YAML; None for those that are not given.

    Raises:
        ConfigError: one is not YAML.
    """
    found: dict[str, Any] = {}
    for name, takers in declared(command).items():
        given = vars(arguments)[name]
        is_text = any(TEXT.search(facts["hint"]) for facts in takers.values())
        found[name] = given if given is None or is_text else _parse(name, given)
    return {**found, **{name: _parse(name, word) for name, word in arguments.foreign.items()}}


def listed(names: Iterable[str]) -> str:
    """Options by name, for a line."""
    return ", ".join(map(option_of, names))


def _parse(name: str, given: str | list[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]  # comes with omegaconf

    if isinstance(given, list):
        return [_parse(name, word) for word in given]
    try:
        part: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={given}"]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(option_of(name), f"value is not YAML: {str(error).splitlines()[0]}", "quote it") from None
    return part["value"]


def _metavar(name: str, takers: Mapping[str, Facts]) -> str:
    hints = [facts["hint"] for facts in takers.values()]
    return "PATH" if all("Path" in hint for hint in hints) else name.upper()


def _help(takers: Mapping[str, Facts]) -> str:
    """What an option means to each task: tasks that say the same stand together."""
    meanings: dict[str, list[str]] = {}
    for task, facts in takers.items():
        default = facts.get("default")
        is_said = default not in (None, [], "")
        meaning = facts["doc"].rstrip(".") + (f" (default: {default})" if is_said else "")
        meanings.setdefault(meaning, []).append(task)
    return "; ".join(f"{', '.join(names)}: {meaning}" for meaning, names in meanings.items()).replace("%", "%%")
