"""Landmark attention: a token reaches the tokens of a far block through the landmark of the block.

Landmark Attention: Random-Access Infinite Context Length for Transformers, arXiv 2305.16300, section 3. Authors' code:
epfml/landmark-attention, Apache-2.0 (for text); written from the paper's formulae. Here blocks are windows of a map,
and a landmark is the mean of its window plus a learnt token, which is an interpretation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention
from vistrain.layers.windows import window_merge, window_partition


class LandmarkAttention(MultiHeadAttention):
    """Grouped softmax: a token's own window and the landmarks of the others share one.

    The weight of a landmark is dealt out to the tokens of its window by a softmax of theirs.

    Args:
        dim: channels C.
        num_heads: dividing C.
        window_size: cells of a window along an axis.
        top: windows that a token reaches beside its own, those of the largest landmarks; None for all.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "p(j|i) = P(j|i) in the own window, P(l_r|i) softmax_{j in r}(q_i k_j / sqrt(d)) in window r"
    cost = "4NC^2 + 2N^2C"
    growth = "N^2"
    sizes = "multiples of window_size"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        window_size: int = 7,
        top: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.window, self.top = (window_size, window_size), top
        self.landmark = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))

    def fitting(self, size: Size) -> Size:
        """The next multiples of the window."""
        return tuple(-(-side // step) * step for side, step in zip(size, self.window, strict=True))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W).

        Raises:
            DataError: windows do not tile the map.
        """
        self.check_size(size)
        batch = x.shape[0]
        windows = window_partition(x.unflatten(1, size), self.window).unflatten(0, (batch, -1))  # [B, R, L, C]
        marks = windows.mean(2) + self.landmark
        q, k, v = self.heads(windows.flatten(1, 2))
        _, mark_k, _ = self.heads(marks)
        count, length = windows.shape[1:3]
        logits = (q * self.scale) @ k.mT
        logits = logits.unflatten(-1, (count, length)).unflatten(2, (count, length))  # [B, h, R, L, R', L']
        marked = ((q * self.scale) @ mark_k.mT).unflatten(2, (count, length))  # [B, h, R, L, R']
        own = torch.eye(count, dtype=torch.bool, device=x.device)[:, None]
        marked = marked.masked_fill(own, float("-inf"))
        if self.top is not None and self.top < count - 1:
            least = marked.topk(self.top, -1).values[..., -1:]
            marked = marked.masked_fill(marked < least, float("-inf"))
        near = logits.diagonal(dim1=2, dim2=4).movedim(-1, 2)  # [B, h, R, L, L']
        joint = torch.cat((near, marked), -1).softmax(-1)
        near, far = joint.split((length, count), -1)
        weights = logits.softmax(-1) * far[..., None]
        mixed = weights.flatten(4).flatten(2, 3) @ v
        values = v.unflatten(2, (count, length))
        mixed = mixed + (near @ values).flatten(2, 3)
        out = self.output(mixed).unflatten(1, (count, length)).flatten(0, 1)
        return window_merge(out, self.window, (size[0], size[1])).flatten(1, 2)
