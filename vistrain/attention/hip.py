"""HiP: each block of queries finds its best blocks of keys by a tree search, and attends to these alone.

A Training-free Sub-quadratic Cost Transformer Model Serving Framework with Hierarchically Pruned Attention,
arXiv 2406.09827, section 3. Authors' code: DeepAuto-AI/hip-attention (Triton), FSL, no licence for
code like this: nothing of it is here, it is written from the paper. Here a token sees both sides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention


class HiPAttention(MultiHeadAttention):
    """Block-sparse softmax attention; the choice of blocks has no parameters and no gradient.

    The search halves ranges of key blocks: of both halves of each range that is left, those `top` remain whose middle
    token has the largest logit with any query of the block.

    Args:
        dim: channels C.
        num_heads: dividing C.
        block: tokens of a block of queries and of a block of keys.
        top: blocks of keys that a block of queries attends to; as many as there are is dense attention.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d)) v_j, j in the blocks of keys that a tree search finds for i's block"
    cost = "4NC^2 + 2NtbC + 2NtC log2(N / (tb)), t = top, b = block"
    growth = "N log N"
    axes = (1, 2, 3)
    oddities = "tokens are a sequence, row after row"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        block: int = 16,
        top: int = 8,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.block, self.top = block, top

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        q, k, v = self.heads(x)
        tokens, blocks = x.shape[1], -(-x.shape[1] // self.block)
        if blocks <= self.top:
            return self.output(F.scaled_dot_product_attention(q, k, v))
        q, k, v = (F.pad(part, (0, 0, 0, blocks * self.block - tokens)) for part in (q, k, v))
        q, k, v = (part.unflatten(2, (blocks, self.block)) for part in (q, k, v))
        with torch.no_grad():
            chosen = self.search(q, k, tokens)  # [B, heads, blocks, top]
        taken_k, taken_v = (_take(part, chosen).flatten(3, 4) for part in (k, v))
        place = chosen[..., None] * self.block + torch.arange(self.block, device=x.device)
        real = (place < tokens).flatten(3)[:, :, :, None]
        mixed = F.scaled_dot_product_attention(q, taken_k, taken_v, real)
        return self.output(mixed.flatten(2, 3)[:, :, :tokens])

    def search(self, q: Tensor, k: Tensor, tokens: int) -> Tensor:
        """The best blocks of keys for each block of queries.

        Args:
            q, k: `[B, heads, blocks, block, d]`, more blocks than `top`.
            tokens: N, of which the last block may have fewer.

        Returns:
            `[B, heads, blocks, top]` int64, different blocks of keys.
        """
        batch, heads, blocks = q.shape[:3]
        absent = torch.arange(blocks * self.block, device=q.device).unflatten(0, (blocks, -1)) >= tokens
        keys = k.flatten(2, 3)
        levels = math.ceil(math.log2(blocks / self.top))
        width = 2**levels  # of the first ranges, in blocks; there are at most `top` of them
        count = -(-blocks // width)
        start = torch.arange(self.top, device=q.device) * width
        start = start.expand(batch, heads, blocks, -1)
        alive = start < count * width
        for _ in range(levels):
            width //= 2
            start = torch.cat((start, start + width), -1)
            alive = torch.cat((alive, alive), -1) & (start < blocks)
            last = (start + width).clamp(max=blocks) * self.block
            middle = ((start * self.block + last.clamp(max=tokens)) // 2).clamp(0, tokens - 1)
            asked = _take(keys, middle)  # [B, heads, blocks, 2 top, d]
            logits = (q @ asked.mT).masked_fill(absent[..., None], float("-inf")).amax(3)
            best = logits.masked_fill(~alive, float("-inf")).topk(self.top, -1).indices
            start, alive = start.gather(-1, best), alive.gather(-1, best)
        return start


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `[B, heads, M, ...]` at `[B, heads, n, t]` -> `[B, heads, n, t, ...]`."""
    flat = x.flatten(0, 1)
    base = torch.arange(flat.shape[0], device=x.device).view(*x.shape[:2], 1, 1) * flat.shape[1]
    return flat.flatten(0, 1).index_select(0, (index + base).flatten()).unflatten(0, index.shape)
