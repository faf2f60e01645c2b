"""Lightning attention: linear attention whose weights decay with distance, computed block by block.

Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention, arXiv 2405.17381, section 3;
Lightning Attention-2, arXiv 2401.04658, algorithm 1; TransNormerLLM, arXiv 2307.14995, section 3 (slopes, gate).
Authors' code: OpenNLPLab/lightning-attention, MIT (examples/module/tnl_attn.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator, Size
from vistrain.attention.heads import check_heads, merge_heads, split_heads

BLOCK = 64  # tokens; products within a block cost as much as those with the state at about the channels of a head


class LightningAttention(AttentionOperator):
    """`sum_j lambda^|i - j| (q_i k_j) v_j`, then a norm, a gate and a projection.

    Args:
        dim: channels C.
        num_heads: dividing C; each has a rate of decay.
        bidirectional: whether a token sees those after it, too; False is as published, for text.
        layer, layers: which of how many blocks it stands in: decay is slower in later ones.
        bias: whether projections have one.
        block: tokens that are multiplied as one matrix.
    """

    formula = "y = W_o(norm([(q k^T) * M] v) * sigmoid(W_b W_a x)), M_ij = lambda^|i - j|, q, k, v = SiLU(W x)"
    cost = "4NC^2 + 2NC(d + block) + 2NCd, d = C / num_heads"
    growth = "N"
    axes = (1, 2, 3)
    oddities = "tokens are a sequence, row after row: distance is along it"
    slopes: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        bidirectional: bool = True,
        layer: int = 0,
        layers: int = 1,
        bias: bool = False,
        block: int = BLOCK,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.bidirectional, self.block = num_heads, bidirectional, block
        self.causal = not bidirectional
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=bias) for _ in "qkvo")
        self.norm = nn.LayerNorm(dim)
        self.output_gate = nn.Sequential(
            nn.Linear(dim, dim // num_heads, bias=bias), nn.Linear(dim // num_heads, dim, bias=bias)
        )
        share = 1 - layer / (layers - 1) + 1e-5 if layers > 1 else 1 + 1e-5
        self.register_buffer("slopes", torch.tensor(alibi_slopes(num_heads)) * share, persistent=False)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        q, k, v = (split_heads(F.silu(p(x)), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        slopes = self.slopes
        out = decayed_attention(q, k, v, slopes, self.block)
        if self.bidirectional:
            after = decayed_attention(q.flip(2), k.flip(2), v.flip(2), slopes, self.block).flip(2)
            out = out + after - (q * k).sum(-1, keepdim=True) * v  # a token itself is in both
        return self.o_proj(self.norm(merge_heads(out)) * torch.sigmoid(self.output_gate(x)))


def alibi_slopes(heads: int) -> list[float]:
    """The slopes of ALiBi (arXiv 2108.12409): powers of `2^(-8 / heads)`; otherwise, every second of the next power."""
    if math.log2(heads).is_integer():
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return alibi_slopes(below) + alibi_slopes(2 * below)[0::2][: heads - below]


def decayed_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, block: int = BLOCK) -> Tensor:
    """`sum_{j <= i} exp(-slope (i - j)) (q_i k_j) v_j` in time and memory linear in N.

    Within a block weights are multiplied out; what came before is a matrix of keys and values for each block.

    Args:
        q, k: `[B, heads, N, d]`.
        v: `[B, heads, N, e]`.
        slopes: `[heads]`, not negative.
        block: tokens of a block.

    Returns:
        `[B, heads, N, e]`.
    """
    tokens = q.shape[2]
    block = min(block, tokens)
    q, k, v = (F.pad(x, (0, 0, 0, -tokens % block)).unflatten(2, (-1, block)) for x in (q, k, v))
    place = torch.arange(block, device=q.device, dtype=slopes.dtype)
    since = place[:, None] - place
    decay = torch.exp(-slopes[:, None, None] * since.clamp(min=0)).tril().to(q.dtype)[:, None]
    fall, rise = (
        torch.exp(-slopes[:, None] * steps)[:, None, :, None].to(q.dtype) for steps in (place + 1, block - 1 - place)
    )
    out = ((q @ k.mT) * decay) @ v
    if q.shape[2] > 1:
        states = (k * rise).mT @ v  # [B, heads, blocks, d, e], of each block alone, at its last token
        whole = torch.exp(-slopes * block).to(q.dtype)[:, None, None]
        before, sums = torch.zeros_like(states[:, :, 0]), []
        for state in states.unbind(2):
            sums.append(before)
            before = before * whole + state
        out = out + (q * fall) @ torch.stack(sums, 2)
    return out.flatten(2, 3)[:, :, :tokens]
