"""Self-attention among queries.

DETR (arXiv 2005.12872, appendix A.3). Authors' code: github.com/facebookresearch/detr, Apache-2.0 (models/
transformer.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError


class QuerySelfAttention(nn.Module):
    """Multi-head self-attention whose queries and keys carry a position and whose values do not (DETR).

    Parameter names are those of `torch.nn.MultiheadAttention`; this one needs two matrix products where that one needs
    three, and never materialises the attention weights.

    Args:
        embed_dim: C, divisible by `num_heads`.
        num_heads: number of heads.
        dropout: on the attention weights.

    Raises:
        ConfigError: `embed_dim` is not divisible by `num_heads`.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError("model.embed_dim", f"{embed_dim} is not divisible by {num_heads} heads")
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: `[B, Q, C]`.
            position: `[B, Q, C]`, added to queries and keys.
            attn_mask: `[Q, Q]` bool, True where a query (row) must not see a key (column); or None.

        Returns:
            `[B, Q, C]`.
        """
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query, key = F.linear(x + position, weight[: 2 * width], bias[: 2 * width]).chunk(2, -1)
        value = F.linear(x, weight[2 * width :], bias[2 * width :])
        query, key, value = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        visible = None if attn_mask is None else ~attn_mask
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))
