"""Stochastic depth.

Written from the paper (arXiv 1603.09382), with the interface of timm's (github.com/huggingface/pytorch-image-models,
Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leaves a residual branch out for some samples of a batch while training (stochastic depth, arXiv 1603.09382).

    Args:
        rate: probability of leaving it out, in 0..1; what stays is scaled by `1 / (1 - rate)`.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ...]` -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (keep / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.rate}"
