"""Transformer blocks whose keys have no bias of their own, as BEiT's: names of weights that CAE and VideoMAE share.

The names are those of microsoft/unilm's BEiT (MIT); nothing else of it is here.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

NORM = partial(nn.LayerNorm, eps=1e-6)


def refuse_uneven_heads(dim: int, heads: int) -> None:
    """Refuse heads that do not share a width; the builder says of which key.

    Raises:
        ValueError: they do not divide it.
    """
    if heads < 1 or dim % heads:
        raise ValueError(f"{dim} channels are not divisible by {heads} heads")


class BiasedAttention(nn.Module):
    """Self-attention `[B, n, D]` -> `[B, n, D]`.

    Args:
        dim: D.
        heads: they share D.

    Raises:
        ValueError: they do not divide it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        refuse_uneven_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BiasedCrossAttention(nn.Module):
    """Attention of `[B, n, D]` to `[B, m, D]`, whose keys and values may differ.

    Args:
        dim, heads: see `BiasedAttention`.

    Raises:
        ValueError: see `BiasedAttention`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        refuse_uneven_heads(dim, heads)
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`[B, n, D]` of queries `[B, n, D]`, and `[B, m, D]` of each of the two others."""
        rows = (
            F.linear(x, self.q.weight, self.q_bias),
            self.k(keys),
            F.linear(values, self.v.weight, self.v_bias),
        )
        q, k, v = (row.unflatten(-1, (self.heads, -1)).transpose(1, 2) for row in rows)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BiasedBlock(nn.Module):
    """A block before whose parts stands a norm.

    Args:
        dim: D of the tokens `[B, n, D]`.
        heads: of the attention.
        mlp_ratio: how many times wider the hidden layer is.
        scale: first value of a learned scale of each part; None: there is none.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, scale: float | None = None) -> None:
        super().__init__()
        self.norm1, self.attn = NORM(dim), BiasedAttention(dim, heads)
        self.norm2, self.mlp = NORM(dim), Mlp(dim, int(dim * mlp_ratio))
        for name in ("gamma_1", "gamma_2"):
            self.register_parameter(name, None if scale is None else nn.Parameter(torch.full((dim,), scale)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        attended = self.attn(self.norm1(x))
        x = x + (attended if self.gamma_1 is None else self.gamma_1 * attended)
        changed = self.mlp(self.norm2(x))
        return x + (changed if self.gamma_2 is None else self.gamma_2 * changed)
