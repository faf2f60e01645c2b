"""Projections into heads and out of them, which most operators share."""

from __future__ import annotations

from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator
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


class MultiHead(AttentionOperator):
    """An operator with one projection to queries, keys and values (`qkv`), and one of what heads gather (`proj`).

    Args:
        dim: channels C.
        num_heads: dividing C.
        qkv_bias: whether `qkv` has a bias.
        proj_bias: whether `proj` has one.
        proj_drop: dropout of the output.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    def __init__(
        self, dim: int, num_heads: int = 4, qkv_bias: bool = True, proj_bias: bool = True, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, N, C]` -> queries, keys and values, `[B, heads, N, d]` each."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def finish(self, x: Tensor) -> Tensor:
        """`[B, heads, N, d]` -> `[B, N, C]`."""
        return self.proj_drop(self.proj(merge_heads(x)))
