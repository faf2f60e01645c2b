"""TransNormer's linear attention: no denominator, a norm of the output instead, positions as rotations.

The Devil in Linear Transformer, arXiv 2210.10340, section 4.1 (NormAttention); Linearized Relative Positional
Encoding, arXiv 2307.09270, section 3.3 (LRPE). Authors' code: OpenNLPLab/Transnormer and OpenNLPLab/Lrpe, Apache-2.0;
this is written from the papers' formulae.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import Size
from vistrain.attention.multi_head import MultiHeadAttention

THETA = 10000.0  # ratio of the longest to the shortest wave length


class TransNormerAttention(MultiHeadAttention):
    """`RMSNorm(sum_j sum_c phi(q_i)_c phi(k_j)_c cos(theta_c (p_i - p_j)) v_j)`, phi = 1 + elu.

    LRPE turns a channel's product by the angle between two places, at a learnt frequency. Channels of a head follow the
    axes of the map by turns.

    Args:
        dim: channels C.
        num_heads: dividing C.
        lrpe: whether positions are encoded.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
    """

    formula = "y = norm(sum_j (sum_c phi(q_i)_c phi(k_j)_c cos(theta_c (p_i - p_j))) v_j), phi = 1 + elu"
    cost = "4NC^2 + 8NCd, d = C / num_heads"
    growth = "N"
    axes = (1, 2, 3)
    float32 = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        lrpe: bool = True,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, proj_drop=proj_drop)
        self.norm = nn.RMSNorm(dim // num_heads, eps=1e-6)
        frequencies = THETA ** -torch.linspace(0, 1, dim // num_heads)
        self.theta = nn.Parameter(frequencies.repeat(num_heads, 1)) if lrpe else None

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, N, C]` -> `[B, N, C]`; N is the product of `size`."""
        q, k, v = self.heads(x)
        q, k = 1 + F.elu(q), 1 + F.elu(k)
        if self.theta is not None:
            sides = (torch.arange(side, device=x.device, dtype=self.theta.dtype) for side in size)
            places = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, -2)  # [N, axes]
            by_turns = places.repeat(1, -(-self.theta.shape[1] // len(size)))[:, : self.theta.shape[1]]
            angles = by_turns * self.theta[:, None]
            cos, sin = angles.cos(), angles.sin()
            q, k = torch.cat((q * cos, q * sin), -1), torch.cat((k * cos, k * sin), -1)
        return self.output(self.norm(q @ (k.mT @ (v / v.shape[2]))))
