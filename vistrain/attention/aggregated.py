"""Aggregated attention: each token sees its neighbours in detail and the whole map pooled, in one softmax.

TransNeXt: Robust Foveal Visual Perception for Vision Transformers, arXiv 2311.17132, sections 3.1 to 3.3. Authors'
code: DaiShiResearch/TransNeXt, Apache-2.0 (classification/attention_native.py; segmentation/upernet/
transnext_native.py for maps of any size). Theirs copies keys and values once for each neighbour; here shifted views of
one padded map are multiplied.
"""

from __future__ import annotations

import functools
import math
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator
from vistrain.devices import upload
from vistrain.layers.biased_attention import biased_attention

Size = tuple[int, int]


class PositionBias(nn.Module):
    """Bias of each pair of query and pooled key, by a perceptron of their log-spaced distance (section 3.2).

    Args:
        num_heads: one bias for each.
        grid: side of the map, in cells, at the size that the model is built for.
        pretrain_grid: side of the map in pretraining; distances are measured in it.
        is_extrapolation: how other sizes are met: by asking the perceptron for their distances; otherwise biases of
            the grid are resized bilinearly, first over keys and then over queries.

    Raises:
        ValueError: the map in pretraining has no distances.
    """

    def __init__(self, num_heads: int, grid: int, pretrain_grid: int, is_extrapolation: bool) -> None:
        super().__init__()
        if grid < 1 or pretrain_grid < 2:
            raise ValueError("maps of one cell have no distances: img_size and pretrain_size must be at least 64")
        self.grid, self.pretrain_grid, self.is_extrapolation = grid, pretrain_grid, is_extrapolation
        self.fc1 = nn.Linear(2, 512)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(512, num_heads)

    def forward(self, size: Size, keys: Size, grid_keys: Size) -> Tensor:
        """Biases of a map.

        Args:
            size: (H, W) of the map.
            keys: (h, w) that it is pooled to.
            grid_keys: (h, w) that a map of the grid is pooled to.

        Returns:
            `[heads, H * W, h * w]`.
        """
        if self.is_extrapolation:
            return self._computed(size, keys).flatten(3).flatten(1, 2)
        bias = self._computed((self.grid, self.grid), grid_keys)
        if grid_keys != keys:
            resized = F.interpolate(bias.flatten(1, 2), keys, mode="bilinear")
            bias = resized.unflatten(1, (self.grid, self.grid))
        if (self.grid, self.grid) != size:
            resized = F.interpolate(bias.flatten(3).permute(0, 3, 1, 2), size, mode="bilinear")
            return resized.flatten(2).mT
        return bias.flatten(3).flatten(1, 2)

    def _computed(self, size: Size, keys: Size) -> Tensor:
        """`[heads, H, W, h, w]`; the perceptron sees each distance once."""
        axes = [_distances(side, count, self.pretrain_grid) for side, count in zip(size, keys, strict=True)]
        (y, rows), (x, columns) = ([upload(a, self.fc1.weight.device) for a in axis] for axis in axes)
        distances = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).to(self.fc1.weight.dtype)
        table = self.fc2(self.act(self.fc1(distances))).permute(2, 0, 1)
        bias = table.index_select(1, rows).index_select(2, columns)
        return bias.unflatten(2, (size[1], keys[1])).unflatten(1, (size[0], keys[0])).transpose(2, 3)


class CosineAttention(AttentionOperator):
    """Attention over the whole map by length-scaled cosines, with a learnt query (sections 3.2 and 3.3).

    Logits grow with the logarithm of the number of keys, so that their softmax stays as sharp on larger maps.

    Args:
        dim: channels C.
        num_heads: dividing C.
        grid: see `PositionBias`; of two sides the longer one counts.
        pretrain_grid: see `PositionBias`; None is the grid, or 2 if that is less.
        is_extrapolation: see `PositionBias`.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "y = softmax(t log(N) (q / |q| + e) (k / |k|)^T + b) v"
    cost = "4NC^2 + 2N^2C"
    growth = "N^2"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, ...],
        pretrain_grid: int | None = None,
        is_extrapolation: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.temperature, self.query_embedding = _query_parameters(dim, num_heads)
        self.cpb = PositionBias(num_heads, *_grids(grid, pretrain_grid), is_extrapolation)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        q = (q + self.query_embedding) * F.softplus(self.temperature) * math.log(size[0] * size[1])
        bias = self.cpb(size, size, (self.cpb.grid, self.cpb.grid))
        x = biased_attention(q, k, v, bias, 1.0, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class AggregatedAttention(AttentionOperator):
    """Attention over neighbours and over the pooled map at once, and learnt weights of neighbours (section 3.1).

    Neighbours beyond the border take no part.

    Args:
        dim: channels C.
        num_heads: dividing C.
        grid: see `PositionBias`; of two sides the longer one counts.
        pretrain_grid: see `PositionBias`; None is the grid, or 2 if that is less.
        is_extrapolation: see `PositionBias`.
        window_size: side of the neighbourhood in cells, odd.
        sr_ratio: the map is pooled to `H // sr_ratio` x `W // sr_ratio` cells, of at least one.
        fixed_pool_size: side of the pooled map; None leaves it to `sr_ratio`.
        qkv_bias: whether projections to queries, keys and values have a bias.
        attn_drop, proj_drop: dropout of attention weights and of the output.
    """

    formula = "y_i = (softmax_j(t log(n_i) (q_i / |q_i| + e) (k_j / |k_j|) + b) + w_{j-i}) v_j, j: neighbours, pooled"
    cost = "5NC^2 + 3NK^2C + 2N^2C / sr_ratio^2"
    growth = "N^2"
    padding = "padded cells count; cells beyond the map take no part"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: int | tuple[int, ...],
        pretrain_grid: int | None = None,
        is_extrapolation: bool = False,
        window_size: int = 3,
        sr_ratio: int = 8,
        fixed_pool_size: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.sr_ratio = num_heads, window_size, sr_ratio
        self.fixed_pool_size = fixed_pool_size
        neighbours, features = window_size**2, dim // num_heads
        self.q, self.kv = nn.Linear(dim, dim, bias=qkv_bias), nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.temperature, self.query_embedding = _query_parameters(dim, num_heads)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(dim)
        self.cpb = PositionBias(num_heads, *_grids(grid, pretrain_grid), is_extrapolation)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(num_heads, neighbours))
        self.learnable_tokens = nn.Parameter(torch.empty(num_heads, features, neighbours))
        self.learnable_bias = nn.Parameter(torch.zeros(num_heads, 1, neighbours))
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        pooled_size = self._pooled(size)
        pooled = self.act(self.sr(x.mT.unflatten(2, size)))
        pooled = self.norm(F.adaptive_avg_pool2d(pooled, pooled_size).flatten(2).mT)
        q = F.normalize(self.q(x).unflatten(-1, (self.num_heads, -1)), dim=-1).transpose(1, 2)
        (k, v), (pooled_k, pooled_v) = self._keys_and_values(x), self._keys_and_values(pooled)

        outside = upload(_outside(size, self.window_size), x.device)
        keys = (~outside).sum(-1, keepdim=True) + math.prod(pooled_size)
        scaled = (q + self.query_embedding) * F.softplus(self.temperature) * keys.log()
        local = self._products(scaled, k, size) + self.relative_pos_bias_local[:, None]
        pool = scaled @ pooled_k.mT + self.cpb(size, pooled_size, self._pooled((self.cpb.grid, self.cpb.grid)))
        logits = torch.cat((local.masked_fill(outside, float("-inf")), pool), -1)
        weights = self.attn_drop(logits.softmax(-1))
        local, pool = weights.split((self.window_size**2, math.prod(pooled_size)), -1)
        local = local + q @ self.learnable_tokens + self.learnable_bias
        x = self._sums(local, v, size) + pool.to(pooled_v.dtype) @ pooled_v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def _pooled(self, size: Size) -> Size:
        if self.fixed_pool_size is not None:
            return (self.fixed_pool_size, self.fixed_pool_size)
        return (max(size[0] // self.sr_ratio, 1), max(size[1] // self.sr_ratio, 1))

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, N, C]` -> `[B, heads, N, D]` twice, keys of length 1."""
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.normalize(k, dim=-1), v

    def _products(self, q: Tensor, k: Tensor, size: Size) -> Tensor:
        """Queries and keys `[B, heads, H * W, D]` -> products with each neighbour `[B, heads, H * W, neighbours]`."""
        q = q.unflatten(2, size)
        return torch.stack([(q * shifted).sum(-1) for shifted in self._neighbours(k, size)], -1).flatten(2, 3)

    def _sums(self, weights: Tensor, v: Tensor, size: Size) -> Tensor:
        """Weights of neighbours and values `[B, heads, H * W, D]` -> sums of values `[B, heads, H * W, D]`."""
        each = weights.unflatten(2, size).unsqueeze(-1).unbind(-2)
        products = (weight * shifted for weight, shifted in zip(each, self._neighbours(v, size), strict=True))
        return functools.reduce(torch.add, products).flatten(2, 3)

    def _neighbours(self, x: Tensor, size: Size) -> list[Tensor]:
        """Views `[B, heads, H, W, D]` of tokens shifted by each step of the window, row by row; zeros come in."""
        reach, (height, width) = self.window_size // 2, size
        padded = F.pad(x.unflatten(2, size), (0, 0, reach, reach, reach, reach))
        steps = product(range(self.window_size), repeat=2)
        return [padded[:, :, i : i + height, j : j + width] for i, j in steps]


def _grids(grid: int | tuple[int, ...], pretrain_grid: int | None) -> tuple[int, int]:
    """Sides of the two maps of `PositionBias`; in pretraining it is by default the same, and has two cells at least."""
    side = grid if isinstance(grid, int) else max(grid)
    return side, max(side, 2) if pretrain_grid is None else pretrain_grid


def _query_parameters(dim: int, num_heads: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The temperature, whose softplus starts at 1 / 0.24, and the learnt query."""
    temperature = torch.full((num_heads, 1, 1), math.log(math.expm1(1 / 0.24)))
    query = nn.init.trunc_normal_(torch.empty(num_heads, 1, dim // num_heads), std=0.02)
    return nn.Parameter(temperature), nn.Parameter(query)


@functools.lru_cache(maxsize=512)
def _distances(side: int, keys: int, pretrain: int) -> tuple[np.ndarray, np.ndarray]:
    """The different distances along an axis, and which of them is each query's to each key (`[side * keys]`).

    A pooled key lies at the mean of its bin. Distances are in eighths of the pretraining map, on a logarithmic scale
    on which 7 of them are 1 (Swin V2, equation 5).
    """
    bins = np.arange(keys)
    first, last = bins * side // keys, -(-(bins + 1) * side // keys) - 1
    distance = (np.arange(side)[:, None] - (first + last) / 2) * 8 / (pretrain - 1)
    values, index = np.unique(np.sign(distance) * np.log2(np.abs(distance) + 1) / 3, return_inverse=True)
    return values.astype(np.float32), index.reshape(-1)


@functools.lru_cache(maxsize=64)
def _outside(size: Size, window: int) -> np.ndarray:
    """`[H * W, window ** 2]` bool, which neighbours lie beyond the border."""
    steps = np.arange(window) - window // 2
    rows, columns = (
        (np.arange(side)[:, None] + steps < 0) | (np.arange(side)[:, None] + steps >= side) for side in size
    )
    return (rows[:, None, :, None] | columns[None, :, None, :]).reshape(size[0] * size[1], -1)
