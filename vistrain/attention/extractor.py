"""Extractors: sums of earlier tokens, weighted by how long ago they were, adjusted by the token itself.

Attention-free replacements of self-attention in text generators, arXiv 2308.07661, sections 2 and 3. No authors' code
is known, no licence; written from the paper's formulae.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator, Size


class ExtractorAttention(AttentionOperator):
    """`(sum_j W_{t-j} x_j) / sqrt(n) * (A x_t)`, then a projection; n tokens are summed over.

    Args:
        dim: channels C.
        grid: of the map that the model is built for; lags beyond its N have no weight.
        kind: `SHE` has a matrix for each lag, `HE` a weight for each lag and channel, `WE` one for each lag, `ME` none.
        bidirectional: whether later tokens count, too; False is as published, for text.
    """

    formula = "y_t = W_o((A x_t) * sum_j W_{t-j} x_j / sqrt(n)), W a matrix, a vector, a number, or 1"
    cost = "2NC^2 + 5NC log2(2N); SHE 2NC^2 + 4NC^2 more"
    growth = "N log N"
    axes = (1, 2, 3)
    sizes = "any; lags beyond the grid's number of tokens have no weight"
    float32 = True
    oddities = "tokens are a sequence, row after row"

    def __init__(
        self,
        dim: int,
        grid: Size = (14, 14),
        kind: Literal["SHE", "HE", "WE", "ME"] = "HE",
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.length, self.kind, self.bidirectional = math.prod(grid), kind, bidirectional
        self.causal = not bidirectional
        lags = 2 * self.length - 1 if bidirectional else self.length
        shape = {"SHE": (lags, dim, dim), "HE": (lags, dim), "WE": (lags, 1), "ME": ()}[kind]
        start = torch.randn(shape) * dim**-0.5 if kind == "SHE" else torch.randn(shape)
        self.weight = nn.Parameter(start) if kind != "ME" else None
        self.adjust, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        tokens = x.shape[1]
        if self.bidirectional:
            count: Tensor | int = tokens
        else:
            count = torch.arange(1, tokens + 1, device=x.device, dtype=x.dtype)[:, None]
        return self.proj(self._sums(x) / count**0.5 * self.adjust(x))

    def _sums(self, x: Tensor) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`, weighted by lag."""
        tokens = x.shape[1]
        if self.weight is None:
            return x.sum(1, keepdim=True).expand_as(x) if self.bidirectional else x.cumsum(1)
        # Transforms are along the last axis: they are slow across channels, the more so the longer they are
        whole, reach, weight = 2 * tokens, min(tokens, self.length), self.weight.movedim(0, -1)
        first = self.length - 1 if self.bidirectional else 0  # of lag 0
        earliest = first + 1 - reach if self.bidirectional else first
        back = weight[..., earliest:first]  # of lags below 0
        nothing = weight.new_zeros(*weight.shape[:-1], whole - reach - back.shape[-1])
        spectrum = torch.fft.rfft(torch.cat((weight[..., first : first + reach], nothing, back), -1))
        inputs = torch.fft.rfft(torch.cat((x.mT, torch.zeros_like(x.mT)), -1))
        mixed = torch.einsum("bcn,cdn->bdn", inputs, spectrum) if self.kind == "SHE" else inputs * spectrum
        return torch.fft.irfft(mixed, n=whole)[..., :tokens].mT
