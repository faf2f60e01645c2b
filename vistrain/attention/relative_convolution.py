"""Relative convolutional attention: one softmax, or one sum, of attention and of a convolution as large as the map.

CoAtNet: Marrying Convolution and Attention for All Data Sizes, arXiv 2106.04803, section 2.1, equation 3. No authors'
code is known, no licence; written from the paper's formulae.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention
from vistrain.attention.urpe import spread


class RelativeConvolutionAttention(MultiHeadAttention):
    """Weights that depend on content, and on the offset of two cells, as a convolution's do.

    Args:
        dim: channels C.
        num_heads: dividing C; each has a kernel.
        grid: of the map that the model is built for; offsets beyond its own take those at the border.
        form: `pre` adds the kernel to the logits, `post` to the weights.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "pre: y_i = softmax_j(q_i k_j / sqrt(d) + w_{i-j}) v_j; post: y_i = (softmax_j(...) + w_{i-j}) v_j"
    cost = "4NC^2 + 2N^2C"
    growth = "N^2"
    sizes = "any; offsets beyond the grid's count as its largest"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        form: Literal["pre", "post"] = "pre",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.grid, self.form = grid, form
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.kernel = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets, num_heads), std=0.02))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.heads(x)
        kernel = spread(self.kernel, self.grid, size).to(q.dtype)[None]
        drop = self.attn_drop if self.training else 0.0
        if self.form == "pre":
            return self.output(F.scaled_dot_product_attention(q, k, v, kernel, drop))
        return self.output(F.scaled_dot_product_attention(q, k, v, None, drop) + kernel @ v)
