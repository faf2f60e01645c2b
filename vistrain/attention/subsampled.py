"""Stochastically subsampled attention: in training a random share of the keys, afterwards all of them.

The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles, arXiv 2306.01705, section 3. Authors'
code: shamim-hussain/ssa (its page alone could be read; its licence is not stated); written from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention
from vistrain.errors import ConfigError


class SubsampledAttention(MultiHeadAttention):
    """Softmax attention that in each training step sees a new sample of pairs of tokens.

    Args:
        dim: channels C.
        num_heads: dividing C.
        share: of the pairs that a training step computes, more than 0 and up to 1.
        reach: None samples keys, the same for all queries (unbiased). A number is locally biased: tokens are shuffled
            by up to so many places, the order is cut into blocks at a random place, and tokens attend within blocks.
        dense_after: share of training after which attention is dense, as in evaluation.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d)) v_j, j in a random sample while training, all j afterwards"
    cost = "4NC^2 + 2N^2C; in training 4NC^2 + 2N^2C * share"
    growth = "N^2"
    axes = (1, 2, 3)
    needs = "a last part of training with dense attention (dense_after)"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        share: float = 0.25,
        reach: int | None = None,
        dense_after: float = 0.9,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        if not 0 < share <= 1:
            raise ConfigError("share", f"{share:g} is no share of the pairs", "give a number above 0 and up to 1")
        self.share, self.reach, self.dense_after = share, reach, dense_after
        self.dense = False

    def at_progress(self, share: float) -> None:
        """Attention becomes dense near the end."""
        self.dense = share >= self.dense_after

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        q, k, v = self.heads(x)
        drop = self.attn_drop if self.training else 0.0
        tokens = x.shape[1]
        if not self.training or self.dense or self.share >= 1:
            return self.output(F.scaled_dot_product_attention(q, k, v, None, drop))
        if self.reach is None:
            kept = torch.randperm(tokens, device=x.device)[: max(1, round(tokens * self.share))]
            return self.output(F.scaled_dot_product_attention(q, k[:, :, kept], v[:, :, kept], None, drop))
        block = max(1, round(tokens * self.share))
        places = torch.arange(tokens, device=x.device) + torch.rand(tokens, device=x.device) * self.reach
        order = places.argsort()
        start = int(torch.randint(block, (), device="cpu"))
        parts = [order[:start], *order[start:].split(block)]
        mixed = [
            F.scaled_dot_product_attention(q[:, :, part], k[:, :, part], v[:, :, part], None, drop)
            for part in parts
            if len(part)
        ]
        return self.output(torch.cat(mixed, 2).index_select(2, order.argsort()))
