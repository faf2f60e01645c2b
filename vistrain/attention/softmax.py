"""Softmax attention over the whole map: the yardstick.

Attention Is All You Need, arXiv 1706.03762, equation 1; on patches of images, arXiv 2010.11929. Authors' code:
google-research/vision_transformer, Apache-2.0. Computed by torch's fused kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention, attendable


class SoftmaxAttention(MultiHeadAttention):
    """Multi-head softmax attention of every token to every token; arguments as of `MultiHeadAttention`."""

    formula = "y = softmax(q k^T / sqrt(d)) v"
    cost = "4NC^2 + 2N^2C"
    axes = (1, 2, 3)
    takes_mask = True
    padding = "padded cells take no part, where the host says which they are"

    def forward(self, x: Tensor, size: Size, mask: Tensor | None = None) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`.

        Args:
            x: `[B, N, C]`.
            size: of the map; without positions, it changes nothing.
            mask: `[B, N]` bool, True where a token is real.
        """
        q, k, v = self.heads(x)
        seen = None if mask is None else attendable(mask)[:, None, None]
        drop = self.attn_drop if self.training else 0.0
        return self.output(F.scaled_dot_product_attention(q, k, v, seen, drop, scale=self.scale))

    def path(self, device: torch.device) -> str:
        """torch's fused kernel; which of its own torch takes depends on mask, type and device."""
        return "scaled_dot_product_attention"
