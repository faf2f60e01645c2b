"""Of argparse: which commands and options a parser has, which it tells to nobody but its own help."""

from __future__ import annotations

import argparse


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of the commands, by name; empty if it has none."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Options that its help shows, long and short, as they are written (`--config`, `-c`)."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [option for action in shown for option in action.option_strings]
