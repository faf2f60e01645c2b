"""Combiner: full attention whose far tokens are reached through summaries of spans, as conditional expectations.

Combiner: Full Attention Transformer with Sparse Computation Cost, arXiv 2107.05768, sections 3 and 4. Authors' code:
google-research/combiner, Apache-2.0 (JAX, causal). Here a token sees both sides; spans are mirrored accordingly, which
is an interpretation.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention.base import Growth, Size
from vistrain.attention.multi_head import MultiHeadAttention


class CombinerAttention(MultiHeadAttention):
    """`p(j | i)` directly for some tokens, `p(span | i) p(j | span)` for the others: every token has a weight.

    Keys and queries of a span are the largest of its tokens', channel by channel. `fixed`: a token's own block is
    direct, each other block a span. `log`: spans of 1, 2, 4, ... tokens, the next to blocks that the token is in.
    `axial`: its own row is direct, and each column without that row a span.

    Args:
        dim: channels C.
        num_heads: dividing C.
        pattern: see above.
        block: tokens of a block of `fixed`; None is about sqrt(N).
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y_i = sum_{j direct} p(j|i) v_j + sum_r p(S_r|i) sum_{j in S_r} p(j|S_r) v_j"
    cost = "4NC^2 + 2NC(2 sqrt(N) + 1) fixed and axial, 4NC^2 + 5NC log2 N log"
    growth: Growth = "N sqrt N"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        pattern: Literal["fixed", "log", "axial"] = "fixed",
        block: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.pattern, self.block = pattern, block
        if pattern == "log":
            self.growth = "N log N"

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.heads(x)
        q = q * self.scale
        if self.pattern == "axial":
            return self.output(_axial(*(part.unflatten(2, size) for part in (q, k, v))).flatten(2, 3))
        if self.pattern == "log":
            return self.output(_log(q, k, v))
        return self.output(_fixed(q, k, v, self.block or math.ceil(math.sqrt(x.shape[1]))))


def _fixed(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """`[B, heads, N, d]` each, queries scaled -> the same."""
    tokens, missing = q.shape[2], -q.shape[2] % block
    if missing:  # padding by nothing copies
        q, k, v = (F.pad(part, (0, 0, 0, missing)) for part in (q, k, v))
    q, k, v = (part.unflatten(2, (-1, block)) for part in (q, k, v))
    blocks = q.shape[2]
    absent = (torch.arange(blocks * block, device=q.device) >= tokens).unflatten(0, (blocks, block))
    far_off = torch.finfo(q.dtype).min / 4  # finite, so that a row of nothing else gives no NaN

    def without(x: Tensor, hidden: Tensor) -> Tensor:
        return x.masked_fill(hidden, far_off) if missing else x

    span_q, span_k = (without(part, absent[..., None]).amax(3) for part in (q, k))
    inside = without(span_q[..., None, :] @ k.mT, absent[:, None]).softmax(-1)
    span_v = (inside @ v)[:, :, :, 0]
    own = without(q @ k.mT, absent[:, None])
    same = torch.eye(blocks, dtype=torch.bool, device=q.device)[:, None]
    others = (q.flatten(2, 3) @ span_k.mT).unflatten(2, (blocks, block)).masked_fill(same, far_off)
    weights = torch.cat((own, others), -1).softmax(-1)
    near, far = weights.split((block, blocks), -1)
    out = near @ v + (far.flatten(2, 3) @ span_v).unflatten(2, (blocks, block))
    return out.flatten(2, 3)[:, :, :tokens]


def _log(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[B, heads, N, d]` each, queries scaled -> the same. The block beside each block that a token is in is a span."""
    tokens = q.shape[2]
    levels = max(0, math.ceil(math.log2(tokens)))
    whole = 2**levels
    q, k, v = (F.pad(part, (0, 0, 0, whole - tokens)) for part in (q, k, v))
    far_off = torch.finfo(q.dtype).min / 4
    logits, values = [(q * k).sum(-1, keepdim=True)], [v]
    span_q, span_k = q, k
    empty = absent = torch.arange(whole, device=q.device) >= tokens
    for level in range(levels):
        width = 2**level
        if level:  # an empty span beside one that is not must not be the larger
            span_q, span_k = (
                part.masked_fill(empty[:, None], far_off).unflatten(2, (-1, 2)).amax(3) for part in (span_q, span_k)
            )
            empty = empty.unflatten(0, (-1, 2)).all(1)
            span_q, span_k = (part.masked_fill(empty[:, None], 0) for part in (span_q, span_k))
        keys, kept = k.unflatten(2, (-1, width)), v.unflatten(2, (-1, width))
        inside = (keys @ span_q[..., None]).masked_fill(absent.unflatten(0, (-1, width))[..., None], far_off).softmax(3)
        beside_v = (inside * kept).sum(3).unflatten(2, (-1, 2)).flip(3).flatten(2, 3)
        beside_k = span_k.unflatten(2, (-1, 2)).flip(3).flatten(2, 3)
        nothing = empty.unflatten(0, (-1, 2)).flip(1).flatten()[:, None]
        seen = (q.unflatten(2, (-1, width)) * beside_k[:, :, :, None]).sum(-1)
        logits.append(seen.masked_fill(nothing, far_off).flatten(2)[..., None])
        values.append(beside_v[:, :, :, None].expand(-1, -1, -1, width, -1).flatten(2, 3))
    weights = torch.cat(logits, -1).softmax(-1)
    out = torch.zeros_like(v)
    for weight, value in zip(weights.unbind(-1), values, strict=True):
        out = out + weight[..., None] * value
    return out[:, :, :tokens]


def _axial(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[B, heads, H, W, d]` each, queries scaled -> the same."""
    direct = q @ k.mT
    if q.shape[2] == 1:
        return direct.softmax(-1) @ v
    span_q, span_k = _without_own(q), _without_own(k)
    own = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
    columns_q, columns_k, columns_v = (part.transpose(2, 3) for part in (span_q, k, v))
    inside = (columns_q @ columns_k.mT).masked_fill(own, float("-inf")).softmax(-1)
    span_v = (inside @ columns_v).transpose(2, 3)
    weights = torch.cat((direct, q @ span_k.mT), -1).softmax(-1)
    near, far = weights.chunk(2, -1)
    return near @ v + far @ span_v


def _without_own(x: Tensor) -> Tensor:
    """`[B, heads, H, W, d]` -> the largest of each column without the row itself."""
    first, second = x.topk(2, 2).values.unbind(2)
    own = torch.arange(x.shape[2], device=x.device)[:, None, None] == x.argmax(2, keepdim=True)
    return torch.where(own, second[:, :, None], first[:, :, None])
