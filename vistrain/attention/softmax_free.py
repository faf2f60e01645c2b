"""SOFT: attention by a Gaussian kernel of queries, low-rank through a few landmarks, without a softmax.

SOFT: Softmax-free Transformer with Linear Complexity, arXiv 2110.11945, section 3; Softmax-free Linear Transformers,
arXiv 2207.03341, section 3.3 (normalised). Authors' code: fudan-zvg/SOFT, MIT (models/softmax_free_transformer.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator, Growth, Size
from vistrain.attention.heads import check_heads, merge_heads, split_heads

LANDMARKS = 7  # along an axis, in all published models
STEPS = 20  # of Newton's method
RIDGE = 0.01
LARGEST = 1.01  # norm of what the start leaves of the identity, in the normalised form
HALVINGS = 8  # 2 / 2^8 is less than LARGEST - 1: no start needs more


class SoftmaxFreeAttention(AttentionOperator):
    """`K(q, l) K(l, l)^-1 K(l, q) v`, K a Gaussian kernel, l landmarks that a strided convolution makes of the queries.

    Queries are keys. The inverse is Newton's, after 20 steps; its gradient is that of an inverse (section 3.3), which
    does not go through the steps.

    Args:
        dim: channels C.
        num_heads: dividing C.
        grid: (H, W) of the map that the model is built for.
        ratio: cells by cells that make a landmark; None gives the grid about 7 x 7 of them, as published.
        conv_size: cells of the convolution of values along an axis, odd.
        normalized: divide kernels by the square roots of their row sums (SOFT++).
        alone: with `normalized`, Newton's start is chosen for each image. False is as published: by the largest sum of
            the whole batch, on which an image's result then depends.
        qkv_bias: whether projections to queries and values have a bias.
        proj_drop: dropout of the output.
    """

    formula = "y = K(q, l) K(l, l)^-1 K(l, q) v + conv(v), K(a, b) = exp(-|a - b|^2 / 2), l = conv(q)"
    cost = "3NC^2 + 2NnC + 40n^3, n = N / ratio^2 landmarks"
    growth: Growth = "N"  # built for the map, the number of landmarks does not grow
    sizes = "at least ratio along each axis"
    float32 = True
    oddities = "normalised: the inverse is not normalised but multiplied by what normalises; its start is the batch's"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        grid: Size = (14, 14),
        ratio: int | None = None,
        conv_size: int = 3,
        normalized: bool = False,
        alone: bool = False,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if ratio is None:
            ratio = max(1, min(grid) // LANDMARKS)
        else:
            self.growth = "N^2"
        self.num_heads, self.ratio, self.normalized, self.alone = num_heads, ratio, normalized, alone
        features = dim // num_heads
        self.q, self.v = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, dim, bias=qkv_bias)
        self.landmarks = nn.Conv2d(features, features, ratio, ratio, bias=False)
        self.norm = nn.LayerNorm(features)
        self.conv = nn.Conv2d(num_heads, num_heads, conv_size, padding=conv_size // 2, groups=num_heads, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def fitting(self, size: Size) -> Size:
        """A landmark at least."""
        return tuple(max(side, self.ratio) for side in size)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W).

        Raises:
            DataError: a side is less than `ratio`.
        """
        self.check_size(size)
        q, v = split_heads(self.q(x), self.num_heads), split_heads(self.v(x), self.num_heads)
        q = q * q.shape[-1] ** -0.25
        landmarks = self.landmarks(q.flatten(0, 1).mT.unflatten(2, size)).flatten(2).mT
        landmarks = F.gelu(self.norm(landmarks)).unflatten(0, q.shape[:2])
        outer, inner = _gaussian(q, landmarks), _gaussian(landmarks, landmarks)
        inverse = self._normalized_inverse(inner) if self.normalized else _inverse(inner)
        values = v.permute(0, 3, 1, 2)
        detail = self.conv(values.flatten(0, 1).unflatten(2, size)).flatten(2).unflatten(0, values.shape[:2])
        out = outer @ (inverse @ (outer.mT @ v)) + detail.permute(0, 2, 3, 1)
        return self.proj_drop(self.proj(merge_heads(out)))

    def _normalized_inverse(self, kernel: Tensor) -> Tensor:
        """`[B, heads, n, n]` -> the same. Newton's start is halved until it leaves little enough of the identity."""
        over = (1, 2, 3) if self.alone else (0, 1, 2, 3)
        fixed = kernel.detach()
        sums = fixed.abs().sum(-1, keepdim=True)
        alpha = 2 / sums.amax(over, keepdim=True).square()
        square, eye = fixed @ fixed, torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
        for _ in range(HALVINGS):
            left = (eye - alpha * square).abs().sum(-2, keepdim=True).amax(over, keepdim=True)
            alpha = torch.where(left > LARGEST, alpha / 2, alpha)
        scale = kernel.sum(-1, keepdim=True).rsqrt()
        return scale * _newton(kernel, alpha) * scale.mT


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """`[..., N, d]`, `[..., n, d]` -> `[..., N, n]`."""
    lengths = a.square().sum(-1, keepdim=True) + b.square().sum(-1, keepdim=True).mT
    return torch.exp(a @ b.mT - lengths / 2)


def _inverse(kernel: Tensor) -> Tensor:
    """Of a kernel `[..., n, n]` with a small ridge."""
    ridge = RIDGE * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    kernel = kernel + ridge
    largest = kernel.detach().abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
    return _newton(kernel, 0.9 * 2 / largest.square())


def _newton(kernel: Tensor, alpha: Tensor) -> Tensor:
    """20 steps to the inverse from `alpha * kernel`; the gradient is an inverse's, `-V^T g V^T`."""
    fixed = kernel.detach()
    found = alpha * fixed
    for _ in range(STEPS):
        found = 2 * found - found @ fixed @ found
    return found - found @ (kernel - fixed) @ found if kernel.requires_grad else found
