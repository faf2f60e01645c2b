"""Rank-augmented linear attention, with rotary positions, a convolution of the values and a gate.

Breaking the Low-Rank Dilemma of Linear Attention, arXiv 2411.07635, section 3. Authors' code: qhfan/RALA, no licence
(classfication/RALA.py): nothing of it is here, it is written from the paper's formulae and a description.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator
from vistrain.layers.rotary import rotary_angles, rotate, turns

Size = tuple[int, int]


class GatedRotaryAttention(AttentionOperator):
    """`proj((attend(q, k, v) + conv(v)) * o)`: softmax attention with rotary positions, gated by a projection o.

    The first half of a head's channels is turned by a cell's row, the second by its column. The gate has no
    activation, faithfully.

    Args:
        dim: channels C.
        num_heads: dividing C; a head has a multiple of 4 channels.
    """

    formula = "y = (softmax(R(q) R(k)^T / sqrt(d)) v + DWConv(v)) * o"
    cost = "5NC^2 + 2N^2C"
    oddities = "the gate has no activation"

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkvo = nn.Linear(dim, 4 * dim)
        self.lepe = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend over the whole map.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W).

        Returns:
            `[B, H * W, C]`.
        """
        q, k, v, gate = self.qkvo(x).chunk(4, -1)
        position = self.lepe(v.mT.unflatten(2, size)).flatten(2).mT
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = self.attend(q, k, v, self.angles(size, x)).transpose(1, 2).flatten(2)
        return self.proj((attended + position) * gate)

    def angles(self, size: Size, x: Tensor) -> Tensor:
        """`[H * W, C / heads]`, see `layers.rotary`."""
        half = x.shape[-1] // self.num_heads // 2
        rows, columns = (rotary_angles(torch.arange(side, device=x.device), half) for side in size)
        by_row = rows[:, None].expand(-1, size[1], -1)
        return torch.cat((by_row, columns.expand(size[0], -1, -1)), -1).flatten(0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
        """`[B, heads, N, D]` each -> `[B, heads, N, D]`."""
        turn = turns(angles, q.dtype)
        return F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v)


class RankAugmentedAttention(GatedRotaryAttention):
    """Linear attention whose keys weigh as much as the mean query attends to them (section 3.2, equations 7 to 9).

    Weights are normalised without positions, faithfully: queries and keys are turned for the products alone.

    Args:
        dim, num_heads: see `GatedRotaryAttention`.
    """

    formula = "y = (R(q) (R(a k)^T v) / (q sum(a k)) + DWConv(v)) * o, a = N softmax(mean(q) k^T / sqrt(d)), q, k > 0"
    cost = "5NC^2 + 2NC^2/h"
    growth = "N"
    oddities = "weights are normalised by queries and keys that are not turned; the gate has no activation"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
        """`[B, heads, N, D]` each -> `[B, heads, N, D]`."""
        q, k = F.elu(q) + 1, F.elu(k) + 1
        tokens = k.shape[2]
        share = (q.mean(2, keepdim=True) @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        k = k * (share.mT * tokens)
        norm = 1 / (q @ k.mean(2, keepdim=True).mT + 1e-6)
        turn = turns(angles, q.dtype)
        context = rotate(k, turn).mT @ (v / tokens)
        return rotate(q, turn) @ context * norm
