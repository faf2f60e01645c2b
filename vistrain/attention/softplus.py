"""Softplus attention with re-weighting: weights of length-scaled softplus, sharpened by a power.

Softplus Attention with Re-weighting Boosts Length Extrapolation in Large Language Models, arXiv 2501.13428, sections 2
and 3. Authors' code: iminfine/freeatten (could not be read), no licence; written from the paper's formulae.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention

OFFSET_ROWS = 3  # first rows of causal weights that keep what is below the mean


class SoftplusAttention(MultiHeadAttention):
    """`A = softplus(log d log n q k)`, q and k of length 1, divided by its sum; `relu(n A - 1)^p`, divided again.

    Args:
        dim: channels C.
        num_heads: dividing C.
        power: p; 0 leaves the second step out (LSSA without re-weighting).
        sees_later: whether a token sees those after it; False is as published, for text, n then counts those before.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "y = norm(relu(n A - 1)^p) v, A = norm(softplus(log d log n q k^T)), |q| = |k| = 1, norm: sums to 1"
    cost = "4NC^2 + 2N^2C"
    growth = "N^2"
    axes = (1, 2, 3)
    float32 = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        power: float = 15.0,
        sees_later: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.power, self.causal = power, not sees_later

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        q, k, v = self.heads(x)
        tokens = x.shape[1]
        count = torch.full((tokens, 1), float(tokens), device=x.device, dtype=q.dtype)
        if self.causal:
            count = torch.arange(1, tokens + 1, device=x.device, dtype=q.dtype)[:, None]
        scale = math.log(q.shape[-1]) * count.log()
        weights = F.softplus(scale * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT))
        if self.causal:
            weights = weights.tril()
        weights = weights / weights.sum(-1, keepdim=True)
        if self.power:
            above = (count > OFFSET_ROWS).to(q.dtype) if self.causal else 1.0
            weights = (weights * count - above).relu()
            # By the largest first: a power of 15 would overflow, and cancels
            weights = (weights / weights.amax(-1, keepdim=True).clamp(min=1e-12)) ** self.power
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
        return self.output(F.dropout(weights, self.attn_drop, self.training).to(v.dtype) @ v)
