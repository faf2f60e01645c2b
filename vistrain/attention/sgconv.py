"""SGConv: a convolution as long as the sequence, whose kernel is coarser and weaker the farther it reaches.

What Makes Convolutional Models Great on Long Sequence Modeling?, arXiv 2210.09298, section 3. Authors' code:
ctlllll/SGConv, no licence (gconv_standalone.py): nothing of it is here, it is written from the formulae.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator, Size


class SGConv(AttentionOperator):
    """A long convolution of each channel, a skip, GELU, and a linear layer.

    A kernel is the joined pieces `w_0, w_1, ...` of `kernel_dim` weights, each after the first twice as wide as the one
    before, and `1 / multiplier` as large. It is divided by the norm that it had before training.

    Args:
        dim: channels C.
        grid: of the map that the model is built for; its N cells are the longest reach.
        bidirectional: whether a token sees those after it, too (each direction has a kernel).
        kernel_dim: weights of a piece.
        n_scales: pieces; None for as many as N needs.
        channels: kernels for each channel, whose results the linear layer mixes.
        decay_min, decay_max: multipliers of the first and of the last channel.
        gated: the linear layer makes a gate, too (GLU).
        drop: dropout before the linear layer.
    """

    formula = "y = W GELU(K * x + D x), K = [w_0 m^(S-1), up(w_1) m^(S-2), ..., up(w_S-1)] / norm"
    cost = "NC^2 + 5NC log2(2N)"
    growth = "N log N"
    axes = (1, 2, 3)
    sizes = "any; beyond the grid's number of tokens the kernel ends"
    float32 = True
    oddities = "tokens are a sequence, row after row; the kernel's norm is remembered from before training"

    kernel_norm: Tensor
    multiplier: Tensor
    kernel_norm_initialized: Tensor

    def __init__(
        self,
        dim: int,
        grid: Size = (14, 14),
        bidirectional: bool = True,
        kernel_dim: int = 32,
        n_scales: int | None = None,
        channels: int = 1,
        decay_min: float = 2.0,
        decay_max: float = 2.0,
        gated: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.length, self.bidirectional, self.gated = math.prod(grid), bidirectional, gated
        self.causal = not bidirectional
        pieces = n_scales or 1 + max(0, math.ceil(math.log2(self.length / kernel_dim)))
        kernels = channels * (2 if bidirectional else 1)
        self.D = nn.Parameter(torch.randn(channels, dim))
        self.kernel_list = nn.ParameterList(torch.randn(kernels, dim, kernel_dim) for _ in range(pieces))
        self.output_linear = nn.Linear(dim * channels, 2 * dim if gated else dim)
        self.drop = nn.Dropout(drop)
        self.register_buffer("multiplier", torch.linspace(decay_min, decay_max, dim).view(1, -1, 1))
        self.register_buffer("kernel_norm", torch.ones(kernels, dim, 1))
        self.register_buffer("kernel_norm_initialized", torch.tensor(False))
        self._remember_norm()
        self.register_load_state_dict_post_hook(lambda module, _: module._remember_norm())

    def _remember_norm(self) -> None:
        """Weights that no forward pass was ever made with have none yet (authors' code sets it in the first one)."""
        if self.kernel_norm.is_meta or self.kernel_norm_initialized:
            return
        with torch.no_grad():
            self.kernel_norm.copy_(self._kernel().norm(dim=-1, keepdim=True))
            self.kernel_norm_initialized.fill_(True)

    def _kernel(self) -> Tensor:
        """`[kernels, C, L']`."""
        last = len(self.kernel_list) - 1
        pieces = []
        for index, weight in enumerate(self.kernel_list):
            wide = F.interpolate(weight, scale_factor=float(2 ** max(0, index - 1)), mode="linear")
            pieces.append(wide * self.multiplier ** (last - index))
        return torch.cat(pieces, -1)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        tokens = x.shape[1]
        whole = 2 * tokens
        kernel = (self._kernel()[..., : self.length] / self.kernel_norm)[..., :tokens]
        maps = x.mT
        if self.bidirectional:
            ahead, back = kernel.chunk(2)
            reach = kernel.shape[-1]
            kernel = F.pad(ahead, (0, whole - reach)) + F.pad(back.flip(-1), (whole - reach, 0))
        spectrum = torch.fft.rfft(maps, n=whole)[:, None] * torch.fft.rfft(kernel, n=whole)
        y = torch.fft.irfft(spectrum, n=whole)[..., :tokens] + maps[:, None] * self.D[..., None]
        y = self.output_linear(self.drop(F.gelu(y.flatten(1, 2).mT)))
        return F.glu(y) if self.gated else y

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        shown: dict[str, Any] = {"length": self.length, "bidirectional": self.bidirectional}
        return ", ".join(f"{key}={value}" for key, value in shown.items())
