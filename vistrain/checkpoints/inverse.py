"""Renaming rules read backwards: from what `re.sub` makes of a name to the name."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vistrain.internals.patterns import CODES, parsed, parsed_replacement

Rule = tuple[str, str]
_MOST = 1000  # names that are tried for one


class NoInverse(ValueError):
    """A rule forgets something, so that nothing can be said of what it was applied to."""


@dataclass(frozen=True)
class _Backwards:
    """A rule read backwards: `pattern` finds what it may have made, `replacement` (a template) is what was there."""

    pattern: re.Pattern[str]
    replacement: str


def original(name: str, rules: Sequence[Rule]) -> str:
    """The name that rules, applied with `re.sub` one after the other, turn into this one.

    Where several names would, the one is taken of which the rules say most: whose replacements matched the longest
    texts. Optional parts of a pattern are left out, of alternatives outside groups that the replacement names the first
    is taken.

    Raises:
        NoInverse: a rule cannot be read backwards, or no name gives this one.
    """
    backwards = _all_backwards(tuple(rules))
    found: dict[str, int] = {}
    tried = 0

    def search(so_far: str, left: int, said: int) -> None:
        nonlocal tried
        while left and not backwards[left - 1].pattern.search(so_far):
            left -= 1
        if left and tried < _MOST:
            rule = backwards[left - 1]
            length = sum(match.end() - match.start() for match in rule.pattern.finditer(so_far))
            search(rule.pattern.sub(rule.replacement, so_far), left - 1, said + length)
            search(so_far, left - 1, said)
            return
        tried += 1
        if _applied(so_far, rules) == name:
            found.setdefault(so_far, said)

    search(name, len(backwards), 0)
    if not found:
        raise NoInverse(f"nothing becomes '{name}'")
    return max(found, key=found.__getitem__)


@functools.cache
def _all_backwards(rules: tuple[Rule, ...]) -> tuple[_Backwards, ...]:
    return tuple(backwards(*rule) for rule in rules)


def _applied(name: str, rules: Sequence[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def backwards(pattern: str, replacement: str) -> _Backwards:
    """One rule read backwards.

    Raises:
        NoInverse: the pattern matches texts of many kinds outside the groups that the replacement names.
    """
    nodes, template = parsed(pattern), parsed_replacement(pattern, replacement)
    kept = {part for part in template if isinstance(part, int)}
    texts = dict(_groups(nodes))
    start = [node for node in nodes[:1] if node[0] is CODES.AT]
    end: list[Any] = []
    while len(nodes) > len(start) and nodes[-1][0] in (CODES.AT, CODES.ASSERT, CODES.ASSERT_NOT):
        end.insert(0, nodes.pop())
    there = "".join(re.escape(part) if isinstance(part, str) else f"({texts[part]})" for part in template)
    numbers = {group: 1 + i for i, group in enumerate(p for p in template if isinstance(p, int))}
    before = "".join(_made(node, kept, numbers) for node in nodes[len(start) :])
    return _Backwards(re.compile(_source(start) + there + _source(end)), before)


def _groups(nodes: Sequence[Any]) -> list[tuple[int, str]]:
    """Numbers of the groups of an expression, and what stands in each."""
    found = []
    for code, argument in nodes:
        if code is CODES.SUBPATTERN:
            number, _, _, inner = argument
            found += ([] if number is None else [(number, _source(inner))]) + _groups(inner)
        elif code in (CODES.MAX_REPEAT, CODES.MIN_REPEAT):
            found += _groups(argument[2])
        elif code is CODES.BRANCH:
            found += [group for inner in argument[1] for group in _groups(inner)]
    return found


def _made(node: Any, kept: set[Any], numbers: dict[int, int]) -> str:
    """What to write, in a template, for a node of a pattern."""
    code, argument = node
    if code is CODES.LITERAL:
        return chr(argument).replace("\\", "\\\\")
    if code is CODES.SUBPATTERN:
        number, _, _, inner = argument
        if number in kept:
            return rf"\g<{numbers[number]}>"
        return "".join(_made(item, kept, numbers) for item in inner)
    if code is CODES.BRANCH:
        return "".join(_made(item, kept, numbers) for item in argument[1][0])
    if code in (CODES.MAX_REPEAT, CODES.MIN_REPEAT) and argument[0] == argument[1]:
        return "".join(_made(item, kept, numbers) for item in argument[2]) * argument[0]
    if code in (CODES.MAX_REPEAT, CODES.MIN_REPEAT) and argument[0] == 0:
        return ""
    if code in (CODES.AT, CODES.ASSERT_NOT):
        return ""
    raise NoInverse(f"what '{_source([node])}' stands for is forgotten")


_CATEGORIES = {
    CODES.CATEGORY_DIGIT: r"\d", CODES.CATEGORY_WORD: r"\w", CODES.CATEGORY_SPACE: r"\s",
    CODES.CATEGORY_NOT_DIGIT: r"\D", CODES.CATEGORY_NOT_WORD: r"\W", CODES.CATEGORY_NOT_SPACE: r"\S",
}  # fmt: skip
_PLACES = {CODES.AT_BEGINNING: "^", CODES.AT_END: "$", CODES.AT_BOUNDARY: r"\b"}


def _source(nodes: Sequence[Any]) -> str:
    """The expression of some nodes; its groups have no numbers."""
    return "".join(_source_of(code, argument) for code, argument in nodes)


def _source_of(code: Any, argument: Any) -> str:
    if code is CODES.LITERAL:
        return re.escape(chr(argument))
    if code is CODES.NOT_LITERAL:
        return f"[^{re.escape(chr(argument))}]"
    if code is CODES.ANY:
        return "."
    if code is CODES.AT:
        return _PLACES[argument]
    if code is CODES.IN:
        return f"[{''.join(_in_set(*item) for item in argument)}]"
    if code is CODES.BRANCH:
        return f"(?:{'|'.join(_source(inner) for inner in argument[1])})"
    if code is CODES.SUBPATTERN:
        return f"(?:{_source(argument[3])})"
    if code in (CODES.ASSERT, CODES.ASSERT_NOT):
        sign = "=" if code is CODES.ASSERT else "!"
        return f"(?{'<' if argument[0] < 0 else ''}{sign}{_source(argument[1])})"
    if code in (CODES.MAX_REPEAT, CODES.MIN_REPEAT):
        least, most, inner = argument
        most = "" if most is CODES.MAXREPEAT else most
        return f"(?:{_source(inner)}){{{least},{most}}}" + ("?" if code is CODES.MIN_REPEAT else "")
    raise NoInverse(f"{code} is not read backwards")


def _in_set(code: Any, argument: Any) -> str:
    if code is CODES.NEGATE:
        return "^"
    if code is CODES.RANGE:
        return "-".join(re.escape(chr(end)) for end in argument)
    return _CATEGORIES[argument] if code is CODES.CATEGORY else re.escape(chr(argument))
