"""Of the standard library: how `re` reads a regular expression, as a tree."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["CODES", "parsed", "parsed_replacement"]

_constants: Any = vars(re)["_constants"]
_parser: Any = vars(re)["_parser"]
CODES = _constants  # names of the nodes


def parsed(pattern: str) -> list[tuple[Any, Any]]:
    """The nodes of a regular expression, one after the other, as `(code, argument)`."""
    return list(_parser.parse(pattern))


def parsed_replacement(pattern: str, replacement: str) -> list[str | int]:
    """A replacement as texts and numbers of groups, in turn."""
    template: Any = _parser.parse_template(replacement, re.compile(pattern))
    if isinstance(template, tuple):  # before Python 3.12: groups by place, and texts with None for them
        groups, texts = template
        places = dict(groups)
        return [places[i] if text is None else text for i, text in enumerate(texts)]
    return [part for part in template if part != ""]
