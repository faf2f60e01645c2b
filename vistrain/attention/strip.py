"""Strip self-attention: queries and keys of few channels, keys and values of a reduced map.

S2AFormer: Strip Self-Attention for Efficient Vision Transformer, arXiv 2505.22195. The authors have published no code
(so no licence of theirs applies), and what could be read of the paper leaves numbers open: these are arguments here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator

Size = tuple[int, int]


class StripSelfAttention(AttentionOperator):
    """Softmax attention whose logits cost a share of the channels and of the cells.

    Interpretation: maps are reduced by a convolution of each channel and a layer norm, after zeros at the bottom and
    right until it divides them.

    Args:
        dim: channels C.
        num_heads: dividing C and the channels of queries and keys.
        sr_ratio: interpretation: cells by cells that become one key; 1 leaves the map as it is.
        qk_ratio: interpretation: channels of queries and keys by C.
        qkv_bias: interpretation: whether projections to queries, keys and values have a bias.
    """

    formula = "y = softmax(q k^T / sqrt(d)) v, q and k of few channels, k and v of a map reduced sr_ratio times"
    cost = "(1 + qk_ratio)NC^2 (1 + 1 / sr_ratio^2) + (1 + qk_ratio)N^2C / sr_ratio^2"
    growth = "N^2"

    def __init__(
        self, dim: int, num_heads: int, sr_ratio: int = 1, qk_ratio: float = 0.5, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        narrow = int(dim * qk_ratio)
        self.q, self.k = nn.Linear(dim, narrow, bias=qkv_bias), nn.Linear(dim, narrow, bias=qkv_bias)
        self.v, self.proj = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio, groups=dim) if sr_ratio > 1 else None
        self.norm = nn.LayerNorm(dim) if sr_ratio > 1 else nn.Identity()

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend to the reduced map.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W).

        Returns:
            `[B, H * W, C]`.
        """
        source = x
        if self.sr is not None:
            grid = F.pad(x.mT.unflatten(2, size), (0, -size[1] % self.sr_ratio, 0, -size[0] % self.sr_ratio))
            source = self.norm(self.sr(grid).flatten(2).mT)
        parts = (self.q(x), self.k(source), self.v(source))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if self.multiplies_plainly(x.device):
            mixed = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1).to(v.dtype) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def multiplies_plainly(self, device: torch.device) -> bool:
        """Torch's fused kernel for processors takes no queries narrower than values, and falls back to slower steps."""
        return device.type == "cpu" and self.q.out_features != self.v.out_features

    def path(self, device: torch.device) -> str:
        """See `multiplies_plainly`."""
        return "products" if self.multiplies_plainly(device) else "scaled_dot_product_attention"
