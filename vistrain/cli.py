"""The command line: which commands there are, what the words mean, and how errors end. Imports no torch by itself."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vistrain import __version__, processes, streams
from vistrain.commands import (
    average,
    check,
    compare,
    completion,
    convert_weights,
    doctor,
    evaluate,
    explain,
    export,
    fit,
    folds,
    import_data,
    lr_range,
    predict,
    profile,
    report,
    reproduce,
    task_options,
    test,
)
from vistrain.commands import list as list_
from vistrain.errors import ConfigError, VistrainError, nearest
from vistrain.internals.argparse import commands_of, options_of

COMMANDS = (
    *(fit, folds, test, reproduce, predict, evaluate, report, compare, check, import_data, lr_range, profile, average),
    *(list_, explain, export, convert_weights, doctor, completion),
)
DESCRIPTION = "Trains, evaluates and reproduces dense-vision models."
EXAMPLES = """\
start here:
  vistrain fit --config vistrain:demo/detection            train a small network on generated images
  vistrain test --ckpt runs/detection/best.ckpt            evaluate it
  vistrain predict --ckpt runs/detection/best.ckpt --input photos/ --output out/
  vistrain list configs                                    what is shipped
  vistrain doctor                                          if anything does not work

Any key of a config can be changed on the command line: trainer.max_epochs=12 model.num_queries=900
`vistrain COMMAND --help` explains each command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `vistrain`; those of the process if None.

    Returns:
        Exit code: 0; 2 if the user has something to mend (said in one line on stderr); 3 if a result was not
        reproduced; 75 if told to stop (run it again); 130 if interrupted (see docs/running.md).

    Raises:
        Exception: a bug of vistrain, or of a class that the config names; a process then ends with code 1.
    """
    processes.wait_gently()  # before anything imports torch
    with streams.enduring() as output:
        arguments: argparse.Namespace | None = None
        try:
            refuse_no_folder()
            arguments = parse(sys.argv[1:] if argv is None else argv)
            allow_packages(vars(arguments).get("allow") or ())
            with processes.leaving_in_order():
                code: int = arguments.run(arguments)
            output.flush()
            if code == 0 and output.failure is not None and not output.was_cut_off and arguments.command != "fit":
                raise ConfigError("standard output", f"cannot be written ({output.failure.strerror})", "make room")
            return code
        except VistrainError as error:
            sys.stderr.write(f"vistrain: {error}\n")
            if arguments is not None and vars(arguments).get("debug"):
                traceback.print_exception(error)
            return 2
        except SystemExit as error:  # of argparse, or of a run that was told to stop
            if not processes.came_of_interrupt(error):
                if error.code == processes.REQUEUE and arguments is not None and arguments.command != "fit":
                    sys.stderr.write("vistrain: told to stop - run the same command again\n")
                return error.code if isinstance(error.code, int) else int(error.code is not None)
            return _interrupted(arguments)
        except BaseException as error:
            if not processes.came_of_interrupt(error):
                raise
            return _interrupted(arguments)


def refuse_no_folder() -> None:
    """Refuse to work in a folder that was deleted, in which libraries end the process with words of their own.

    Raises:
        ConfigError: it was.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the current folder", "is no longer there", "change into one that is") from error


def allow_packages(names: Sequence[str]) -> None:
    """Have packages that the user trusts found, in the current folder, too, as `python -m vistrain` looks there.

    Raises:
        ConfigError: there is no such package.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        if not name.isidentifier():
            raise ConfigError("--allow", f"{name!r} is no package", f"write {name.partition('.')[0] or 'its name'}")
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise ConfigError("--allow", f"no package {name!r} is found", "run where it lies, or set PYTHONPATH")


def _interrupted(arguments: argparse.Namespace | None) -> int:
    """Say how to go on after Ctrl-C."""
    hint = fit.how_to_resume(arguments) if arguments is not None and arguments.command == "fit" else ""
    sys.stderr.write(f"vistrain: interrupted{hint}\n")
    return processes.INTERRUPTED


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command; words like `key=value` become `overrides`, wherever they stand.

    Raises:
        ConfigError: a word is neither an option nor a change to the config.
        SystemExit: help was asked for, or argparse found something missing.
    """
    words = list(words)
    for i, word in enumerate(words):
        if word == "--print-config":  # its value is optional, and `key=value` must not be taken for one
            full = words[i + 1 : i + 2] == ["full"]
            words[i : i + 1 + full] = [f"--print-config={'full' if full else 'composed'}"]
    command = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser(command)
    foreign: dict[str, str] = {}
    made = commands_of(parser).get(command)
    if made is not None and task_options.takes_foreign(made, words):
        words, foreign = task_options.take_foreign(words, options_of(made))
    arguments, rest = parser.parse_known_args(words)
    arguments.parser, arguments.foreign = parser, foreign
    overrides = [word for word in rest if not word.startswith("-") and "=" in word]
    for word in rest:
        if word not in overrides or "overrides" not in arguments:
            raise _refusal(word, options_of(commands_of(parser)[arguments.command]), arguments.command)
    if "overrides" in arguments:
        arguments.overrides = overrides
    for name, value in list(vars(arguments).items()):
        setattr(arguments, name, _with_home(value))
    return arguments


def _with_home(value: Any) -> Any:
    """A path that begins with `~/` in full: after `--option=` and `key=` no shell writes it out."""
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    if not isinstance(value, str | Path) or not re.match(r"~[\w.-]*/", str(value)):
        return value
    return type(value)(os.path.expanduser(value))


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        command: the one whose options are declared, or `completion`, which asks for those of all: tasks have options,
            which are read from the index, and `vistrain --help` must be quick.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "vistrain", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"vistrain {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = name_of(module)
        made = commands.add_parser(
            name, help=module.SUMMARY, description=module.SUMMARY, usage=f"vistrain {name} {module.USAGE}",
            epilog=module.EXAMPLES, formatter_class=formatter, allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(run=module.run, **({"overrides": []} if module.CHANGES else {}))
        if command in (name, "completion"):
            module.options(made)
    return parser


def name_of(module: ModuleType) -> str:
    """What a command is called: as its file, with dashes."""
    return module.__name__.rpartition(".")[2].replace("_", "-")


def _refusal(word: str, options: Sequence[str], command: str) -> ConfigError:
    """What is said of a word that means nothing here."""
    from vistrain.config import index

    option = word.lstrip("-").partition("=")[0]
    if word.endswith((".yaml", ".yml")) or word.startswith("vistrain:"):
        return ConfigError(word, "stands alone", f"write --config {word}")
    if word.startswith("-") and ("." in option or option in index.SECTIONS):
        return ConfigError(
            word, "is not an option", f"a key of the config is changed by {option}=VALUE, without dashes"
        )
    return ConfigError(word, f"{command} does not take it", nearest(word, options))
