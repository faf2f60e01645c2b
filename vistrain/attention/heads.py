"""Heads of tokens, for operators whose projections are of no common form."""

from __future__ import annotations

from torch import Tensor

from vistrain.errors import ConfigError


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, N, C]` -> `[B, heads, N, C / heads]`; a head is a run of neighbouring channels."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[B, heads, N, d]` -> `[B, N, heads * d]`; the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse channels that heads do not share evenly.

    Raises:
        ConfigError: `num_heads` does not divide `dim`.
    """
    if num_heads < 1 or dim % num_heads:
        raise ConfigError("num_heads", f"{dim} channels are not divisible by {num_heads} heads")
