"""Attention in windows of varied size: each head of a window learns where, and how large, its window of keys is.

VSA: Learning Varied-Size Window Attention in Vision Transformers, arXiv 2204.08446, section 3.2. Authors' code:
ViTAE-Transformer/ViTAE-VSA, no licence (Image-Classification/vitaev2_vsa/vsa.py; Object-Detection/mmdet/models/
backbones/vitaev2_vsa_modules/window.py): nothing of it is here, it is written from the paper and a description.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator
from vistrain.devices import upload
from vistrain.layers.biased_attention import biased_attention
from vistrain.layers.precision import at_least_float32
from vistrain.layers.windows import relative_position_bias, relative_position_index, window_merge, window_partition

Size = tuple[int, int]


class VariedSizeWindowAttention(AttentionOperator):
    """Queries of a window attend to as many keys, sampled evenly from a window that is moved and resized.

    Maps get zeros until windows tile them, after the projection to queries, keys and values. The authors' two files
    differ in where zeros are put and in what offsets are divided by, which `dense` chooses; they agree on square maps
    that windows tile.

    Args:
        dim: channels C of the input.
        num_heads: of the attention.
        out_dim: channels of the output; None is `dim`. Logits are scaled by `dim / num_heads`, faithfully even then.
        window_size: side of the square windows of queries.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        dense: zeros on all sides, and offsets along one axis divided by the number of windows along the other one, as
            in the authors' code for detection, faithfully; otherwise at the bottom and right, and along the same axis.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d) + b) v_j, j: M x M samples of a window, moved and resized"
    cost = "4NC^2 + 2NM^2C + 8NC"
    growth = "N"
    padding = "padded cells count; maps are padded with zeros until windows tile them"
    oddities = "classification and detection pad differently, and divide offsets by the other axis (dense)"

    index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        out_dim: int | None = None,
        window_size: int = 7,
        qkv_bias: bool = True,
        dense: bool = False,
    ) -> None:
        super().__init__()
        out_dim = out_dim or dim
        self.num_heads, self.dense = num_heads, dense
        self.window = (window_size, window_size)
        self.scale = (dim // num_heads) ** -0.5
        self.sampling_offsets = nn.Linear(dim, 2 * num_heads)
        self.sampling_scales = nn.Linear(dim, 2 * num_heads)
        self.qkv = nn.Linear(dim, 3 * out_dim, bias=qkv_bias)
        self.proj = nn.Linear(out_dim, out_dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_position_index(self.window), persistent=False)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend inside windows.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W).

        Returns:
            `[B, H * W, C']`.
        """
        (height, width), (h, w) = size, self.window
        bottom, right = -height % h, -width % w
        top, left = (bottom // 2, right // 2) if self.dense else (0, 0)
        grid = x.unflatten(1, size)
        qkv = self.qkv(grid)
        if bottom or right:  # padding by nothing copies
            grid, qkv = (F.pad(part, (0, 0, left, right - left, top, bottom - top)) for part in (grid, qkv))
        padded = (height + bottom, width + right)
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        sampled = self._sample(qkv[:, :, :, 1:], self._places(grid, size))
        q = window_partition(qkv[:, :, :, 0].flatten(3), self.window)
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        bias = relative_position_bias(self.relative_position_bias_table, self.index)[None]
        k, v = sampled.to(q.dtype)
        out = biased_attention(q, k, v, bias, self.scale).transpose(1, 2).flatten(2)
        out = window_merge(out, self.window, padded)[:, top : top + height, left : left + width]
        return self.proj(out).flatten(1, 2)

    def _places(self, x: Tensor, size: Size) -> Tensor:
        """Padded map `[B, H', W', C]` -> where keys are, `[B, heads, H', W', 2]` (x, y), corners at -1 and 1."""
        padded, (h, w) = (x.shape[1], x.shape[2]), self.window
        windows = (padded[0] // h, padded[1] // w)
        mean = F.leaky_relu(x.unflatten(2, (windows[1], w)).unflatten(1, (windows[0], h)).mean((2, 4)))
        offsets, scales = (
            at_least_float32(predict(mean)).unflatten(-1, (self.num_heads, 2)).permute(0, 3, 1, 2, 4)
            for predict in (self.sampling_offsets, self.sampling_scales)
        )  # [B, heads, rows, columns, 2]
        rows, columns = (max(side // step, 1) for side, step in zip(size, self.window, strict=True))
        offsets = offsets / upload([rows, columns] if self.dense else [columns, rows], offsets.device, offsets.dtype)
        axes = [torch.linspace(-1, 1, side, device=x.device, dtype=offsets.dtype) for side in padded]
        base = torch.stack((axes[1].expand(padded), axes[0][:, None].expand(padded)), -1)
        steps = [
            (torch.arange(n, device=x.device, dtype=offsets.dtype) - (n - 1) / 2) * (2 / max(side - 1, 1))
            for n, side in zip((h, w), padded, strict=True)
        ]
        inside = torch.stack((steps[1].expand(h, w), steps[0][:, None].expand(h, w)), -1)
        moved = inside[:, None] * scales[:, :, :, None, :, None] + offsets[:, :, :, None, :, None]
        return base + moved.flatten(4, 5).flatten(2, 3)  # moved: [B, heads, rows, h, columns, w, 2]

    def _sample(self, maps: Tensor, places: Tensor) -> Tensor:
        """Keys and values `[B, H', W', 2, heads, D]` -> sampled in windows `[2, B * N, heads, h * w, D]`."""
        batch, height, width = maps.shape[:3]
        images = maps.permute(0, 4, 3, 5, 1, 2).flatten(0, 1).flatten(1, 2)  # both at once: [B * heads, 2 D, H', W']
        sampled = F.grid_sample(
            at_least_float32(images), places.flatten(0, 1), padding_mode="zeros", align_corners=True
        )
        h, w = self.window
        cut = sampled.view(batch, self.num_heads, 2, -1, height // h, h, width // w, w)
        windows = cut.permute(2, 0, 4, 6, 1, 5, 7, 3)  # [2, B, rows, columns, heads, h, w, D], copied once
        return windows.flatten(5, 6).flatten(1, 3)
