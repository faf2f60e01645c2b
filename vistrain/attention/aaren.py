"""Aaren: attention of one learnt query over all tokens so far, as a scan.

Attention as an RNN, arXiv 2405.13956, section 3. No authors' code is known, no licence; written from the
paper's formulae.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention


class AarenAttention(MultiHeadAttention):
    """`o_t = sum_{j <= t} exp(s_j) v_j / sum_{j <= t} exp(s_j)`, `s_j = q k_j / sqrt(d)`, q a learnt token.

    Computed by the associative scan of the paper, in log2 N steps, each with the largest logit so far.

    Args:
        dim: channels C.
        num_heads: dividing C.
        both_ways: whether half of the heads read from the last token on; False is as published, for streams.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y_t = softmax_{j <= t}(q k_j / sqrt(d)) v_j, q learnt"
    cost = "4NC^2 + 5NC log2 N"
    growth = "N log N"
    axes = (1, 2, 3)
    oddities = "tokens are a sequence, row after row; their queries are not used"

    def __init__(
        self, dim: int, num_heads: int = 4, both_ways: bool = True, qkv_bias: bool = True, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.qkv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.backwards = num_heads // 2 if both_ways else 0
        self.causal = not self.backwards

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        k, v = self.qkv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.to_q(self.query).unflatten(0, (self.num_heads, 1, -1))
        logits = (k * q).sum(-1) * self.scale
        ahead = self.num_heads - self.backwards
        mixed = prefix_attention(logits[:, :ahead], v[:, :ahead])
        if self.backwards:
            after = prefix_attention(logits[:, ahead:].flip(2), v[:, ahead:].flip(2)).flip(2)
            mixed = torch.cat((mixed, after), 1)
        return self.output(mixed)


def prefix_attention(logits: Tensor, v: Tensor) -> Tensor:
    """Softmax-weighted sums of all values so far (section 3.2, with Hillis and Steele's scan).

    Args:
        logits: `[..., N]`.
        v: `[..., N, d]`.

    Returns:
        `[..., N, d]`.
    """
    largest, total, summed = logits, torch.ones_like(logits), v
    step, tokens = 1, logits.shape[-1]
    while step < tokens:
        before = F.pad(largest[..., :-step], (step, 0), value=float("-inf"))
        now = torch.maximum(largest, before)
        ours, theirs = (largest - now).exp(), (before - now).exp()
        total = total * ours + F.pad(total[..., :-step], (step, 0)) * theirs
        summed = summed * ours[..., None] + F.pad(summed[..., :-step, :], (0, 0, step, 0)) * theirs[..., None]
        largest, step = now, 2 * step
    return summed / total[..., None]
