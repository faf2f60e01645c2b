"""Agent attention: a few agents, pooled from the queries, gather from all keys and are read by all queries.

Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874, section 3.2. Authors' code:
LeapLabTHU/Agent-Attention, no licence (agent_transformer/models/agent_deit.py, agent_pvt.py, agent_swin.py): nothing of
it is here, it is written from the paper's formulae and a description; parameters have its names.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator, Size
from vistrain.attention.heads import check_heads, merge_heads, split_heads
from vistrain.layers.biased_attention import biased_attention

FORMULA = "y = softmax(q A^T / sqrt(d) + B2) softmax(A k^T / sqrt(d) + B1) v + conv(v), A = pool(q)"
TABLE = 7  # cells along an axis of the tables that biases of agents are interpolated from


class AgentOperator(AttentionOperator):
    """What the forms share: agents, their biases, both steps of attention, and a convolution of the values.

    Args:
        dim: channels C.
        num_heads: dividing C.
        grid: (H, W) of the map that the biases are made for; at other sizes they are interpolated.
        key_grid: (H, W) of the keys' map at that size.
        agent_num: number of agents, pooled to a square of `int(sqrt(agent_num))` cells.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    growth = "N"
    oddities = "biases belong to the map that the model is built for, and are interpolated at others"

    an_bias: Tensor
    na_bias: Tensor
    ah_bias: Tensor
    aw_bias: Tensor
    ha_bias: Tensor
    wa_bias: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: Size,
        key_grid: Size,
        agent_num: int = 49,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.side = math.isqrt(agent_num)
        agents = self.side**2
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        shapes = {
            "an_bias": (num_heads, agents, TABLE, TABLE),
            "na_bias": (num_heads, agents, TABLE, TABLE),
            "ah_bias": (1, num_heads, agents, key_grid[0], 1),
            "aw_bias": (1, num_heads, agents, 1, key_grid[1]),
            "ha_bias": (1, num_heads, grid[0], 1, agents),
            "wa_bias": (1, num_heads, 1, grid[1], agents),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))

    def key_bias(self, size: Size) -> Tensor:
        """B1, of agents and keys: `[1, heads, agents, h * w]`, (h, w) = `size` of the keys' map."""
        return self._bias(self.an_bias, self.ah_bias, self.aw_bias, size)

    def query_bias(self, size: Size) -> Tensor:
        """B2, of queries and agents: `[1, heads, H * W, agents]`."""
        # Of rows and columns the agents are stored last
        return self._bias(self.na_bias, self.ha_bias.movedim(-1, 2), self.wa_bias.movedim(-1, 2), size).mT

    def _bias(self, table: Tensor, rows: Tensor, columns: Tensor, size: Size) -> Tensor:
        """`[1, heads, n, H * W]`, of `[heads, n, h, w]`, `[1, heads, n, h, 1]` and `[1, heads, n, 1, w]`."""
        bias = F.interpolate(table, size, mode="bilinear")
        heights, widths = _resized(rows[0].flatten(2), size[0]), _resized(columns[0].flatten(2), size[1])
        return (bias + heights[..., None] + widths[:, :, None]).flatten(2)[None]

    def attend(self, q: Tensor, agents: Tensor, k: Tensor, v: Tensor, key_bias: Tensor, query_bias: Tensor) -> Tensor:
        """Agents gather from the keys, and queries from agents.

        Args:
            q: `[B, N, C]`.
            agents: `[B, n, C]`.
            k, v: `[B, M, C]`.
            key_bias: `[1, heads, n, M]`.
            query_bias: `[1, heads, N, n]`.

        Returns:
            `[B, N, C]`.
        """
        q, agents, k, v = (split_heads(x, self.num_heads) for x in (q, agents, k, v))
        drop = self.attn_drop if self.training else 0.0
        gathered = biased_attention(agents, k, v, key_bias, dropout=drop)
        return merge_heads(biased_attention(q, agents, gathered, query_bias, dropout=drop))

    def pool(self, q: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, n, C]`."""
        return F.adaptive_avg_pool2d(q.mT.unflatten(2, size), self.side).flatten(2).mT


class AgentAttention(AgentOperator):
    """The form of Agent-DeiT and, inside a window, of Agent-Swin.

    Args:
        dim, num_heads, grid: see `AgentOperator`; for Agent-Swin the grid is a window.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        cls_token: whether a token that is no cell of the map stands before the others (DeiT).
        base: see `AgentOperator`.
    """

    formula = FORMULA
    cost = "4NC^2 + 4NnC, n = agent_num"
    sets_itself = ("key_grid",)

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        qkv_bias: bool = True,
        cls_token: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(dim, num_heads, grid, key_grid=grid, **base)
        self.cls_token = cls_token
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if cls_token:
            agents = self.side**2
            self.ac_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_heads, agents, 1), std=0.02))
            self.ca_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_heads, 1, agents), std=0.02))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend over the whole map.

        Args:
            x: `[B, H * W, C]`, or `[B, 1 + H * W, C]` with a `cls_token`.
            size: (H, W).

        Returns:
            The shape of `x`.
        """
        q, k, v = self.qkv(x).chunk(3, -1)
        key_bias, query_bias = self.key_bias(size), self.query_bias(size)
        if self.cls_token:
            key_bias = torch.cat((self.ac_bias, key_bias), -1)
            query_bias = torch.cat((self.ca_bias, query_bias), 2)
        extra = int(self.cls_token)
        out = self.attend(q, self.pool(q[:, extra:], size), k, v, key_bias, query_bias)
        detail = self.dwc(v[:, extra:].mT.unflatten(2, size)).flatten(2).mT
        out = torch.cat((out[:, :extra], out[:, extra:] + detail), 1) if extra else out + detail
        return self.proj_drop(self.proj(out))


class ReducedAgentAttention(AgentOperator):
    """The form of Agent-PVT: keys and values come from a map that a convolution has reduced.

    Args:
        dim, num_heads, grid: see `AgentOperator`.
        sr_ratio: cells by cells that become one of the reduced map.
        qkv_bias: whether projections to queries, keys and values have a bias.
        base: see `AgentOperator`.
    """

    formula = FORMULA
    cost = "2NC^2 + NC^2 (1 + 2 / sr_ratio^2) + 2NnC (1 + 1 / sr_ratio^2), n = agent_num"
    sizes = "at least sr_ratio along each axis"
    sets_itself = ("key_grid",)

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        sr_ratio: int = 2,
        qkv_bias: bool = True,
        **base: Any,
    ) -> None:
        keys = tuple(max(side // sr_ratio, 1) for side in grid)
        super().__init__(dim, num_heads, grid, key_grid=keys, **base)
        self.sr_ratio = sr_ratio
        self.q, self.kv = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
        if sr_ratio > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, sr_ratio, sr_ratio), nn.LayerNorm(dim)

    def fitting(self, size: Size) -> Size:
        """A cell of the reduced map at least."""
        return tuple(max(side, self.sr_ratio) for side in size)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W).

        Raises:
            DataError: a side is less than `sr_ratio`.
        """
        self.check_size(size)
        q, keys, reduced = self.q(x), x, size
        if self.sr_ratio > 1:
            keys = self.sr(x.mT.unflatten(2, size))
            reduced = (keys.shape[2], keys.shape[3])
            keys = self.norm(keys.flatten(2).mT)
        k, v = self.kv(keys).chunk(2, -1)
        out = self.attend(q, self.pool(q, size), k, v, self.key_bias(reduced), self.query_bias(size))
        values = v.mT.unflatten(2, reduced)
        if reduced != size:
            values = F.interpolate(values, size, mode="bilinear")
        return self.proj_drop(self.proj(out + self.dwc(values).flatten(2).mT))


def _resized(bias: Tensor, side: int) -> Tensor:
    """`[heads, agents, S]` -> `[heads, agents, side]`."""
    return bias if bias.shape[-1] == side else F.interpolate(bias, side, mode="linear")
