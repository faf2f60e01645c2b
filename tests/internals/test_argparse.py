"""What `internals.argparse` relies on."""

from __future__ import annotations

import argparse

import pytest

from vistrain.internals.argparse import commands_of, options_of


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("tool")
    commands = made.add_subparsers(dest="command")
    fit = commands.add_parser("fit", add_help=False)
    fit.add_argument("-c", "--config")
    fit.add_argument("--hidden", help=argparse.SUPPRESS)
    fit.add_argument("folder")
    commands.add_parser("test")
    return made


def test_the_private_names_exist(parser):
    assert isinstance(parser._actions, list)
    assert any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)


def test_commands_and_options(parser):
    assert list(commands_of(parser)) == ["fit", "test"]
    assert options_of(commands_of(parser)["fit"]) == ["-c", "--config"]
    assert options_of(commands_of(parser)["test"]) == ["-h", "--help"]
    assert commands_of(commands_of(parser)["fit"]) == {}
