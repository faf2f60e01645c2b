"""Operators by name, with their arguments checked: what a host network's `attention` may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vistrain.attention.base import AttentionOperator, Size
from vistrain.by_name import Choice as Choice
from vistrain.by_name import Chosen, NamedParts
from vistrain.errors import ConfigError

FACTS = ("dim", "grid", "layer", "layers")  # what a host gives, and nobody else; a user may say num_heads


class ChosenOperator(Chosen[AttentionOperator]):
    """An operator and what a user says of its arguments, checked."""

    def build(
        self, dim: int, num_heads: int, grid: Size, layer: int, layers: int, where: str = "args.attention"
    ) -> AttentionOperator:
        """The operator for one block of a host.

        Args:
            dim, num_heads, grid, layer, layers: what the host gives, see `AttentionOperator`; it gets those that it
                takes.
            where: dotted key, for messages.

        Raises:
            ConfigError: it cannot be made so.
        """
        facts = {"dim": dim, "num_heads": num_heads, "grid": grid, "layer": layer, "layers": layers}
        return self.made(facts, where)


_OPERATORS: NamedParts[AttentionOperator] = NamedParts(
    room=__name__.rpartition(".")[0],
    base=AttentionOperator,
    what="attention operator",
    listed="attention",
    facts=lambda cls: FACTS,
    suffix="Attention",
)
operators = _OPERATORS.classes
names = _OPERATORS.names
short_name = _OPERATORS.short_name


def choose(
    attention: Choice | Sequence[Choice],
    arguments: Mapping[str, Any] | None,
    stages: int,
    where: str = "args.attention",
) -> list[ChosenOperator]:
    """The operator of each stage; arguments as of `NamedParts.choose`, but that every stage has one.

    Raises:
        ConfigError: a name or an argument does not exist, or there are not as many as stages.
    """
    found = []
    for chosen in _OPERATORS.choose(attention, arguments, stages, where):
        if chosen is None:
            raise ConfigError(where, "null names no attention operator", "write a name, or one for each stage")
        found.append(ChosenOperator(chosen.cls, chosen.arguments, chosen.places))
    return found
