"""Multi-scale deformable attention (Deformable-DETR, arXiv 2010.04159, section 4.1, equation 3).

Three cores compute the same sampling (they agree to 1e-5); `tools/benchmark_msda.py` measures them, and `choose_core`
holds the rule that came out of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError

CORES = ("auto", "grid_sample", "embedding_bag", "gather")
Shapes = Sequence[tuple[int, int]]


def choose_core(device: torch.device, needs_grad: bool) -> str:
    """Which core is fastest (`tools/benchmark_msda.py`).

    Eager: `embedding_bag` to evaluate on CPU, `grid_sample` otherwise. Under `torch.compile`, where inductor fuses the
    index arithmetic but has no good `grid_sample`: `embedding_bag` to evaluate, `gather` to train.
    """
    if torch.compiler.is_compiling():
        return "gather" if needs_grad else "embedding_bag"
    return "embedding_bag" if device.type == "cpu" and not needs_grad else "grid_sample"


def deformable_sampling(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, core: str = "auto"
) -> Tensor:
    """Weighted sum of bilinear samples over levels and points, per head; zero outside the maps.

    Args:
        value: `[B, N, H, D]`, N tokens of all levels (fine to coarse, each row-major), H heads of D channels.
        shapes: (height, width) of each of the L levels; their products sum to N.
        locations: `[B, Q, H, L, P, 2]`, (x, y) in 0..1 of each level's map (0 and 1 are its outer borders).
        weights: `[B, Q, H, L, P]`.
        core: one of `CORES`.

    Returns:
        `[B, Q, H * D]`.
    """
    if core == "auto":
        needs_grad = torch.is_grad_enabled() and (value.requires_grad or locations.requires_grad)
        core = choose_core(value.device, needs_grad)
    if core == "grid_sample":
        return _grid_sample(value, shapes, locations, weights)
    index, corner_weights = _corners(value.shape, shapes, locations, weights)
    rows = value.reshape(-1, value.shape[-1])
    if core == "embedding_bag":
        bags = index.shape[:3]
        index, corner_weights = index.flatten(0, 2).flatten(1), corner_weights.flatten(0, 2).flatten(1)
        out = F.embedding_bag(index, rows, per_sample_weights=corner_weights, mode="sum")
        return out.unflatten(0, bags).flatten(2)
    return _gather(rows, index, corner_weights)


def _grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, depth = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B * H, Q, L, P, 2]
    weights = weights.transpose(1, 2).flatten(0, 1)  # [B * H, Q, L, P]
    out = value.new_zeros(())
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], 1)):
        image = tokens.permute(0, 2, 3, 1).reshape(batch * heads, depth, *shapes[level])
        samples = F.grid_sample(image, grids[:, :, level], padding_mode="zeros", align_corners=False)
        # One level at a time: the samples of all levels at once would be the largest tensor of the network.
        out = out + (samples * weights[:, None, :, level]).sum(-1)  # [B * H, D, Q]
    return out.reshape(batch, heads * depth, queries).transpose(1, 2)


def _corners(value_shape: torch.Size, shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The four neighbours of every sampling point as rows of the table `value.reshape(B * N * H, D)`.

    Returns:
        index `[B, Q, H, L, P, 2, 2]` and weight of the same shape (corner y, corner x last), 0 outside the map.
    """
    batch, tokens, heads, _ = value_shape
    device = locations.device
    # int32 halves the traffic; the table would need 2 billion rows to overflow it.
    kind = torch.int32 if batch * tokens * heads < 2**31 else torch.int64
    extent = torch.tensor([(w, h) for h, w in shapes], device=device, dtype=locations.dtype)[:, None]  # [L, 1, 2]
    starts = torch.tensor([0, *[h * w for h, w in shapes]], device=device)[:-1].cumsum(0)
    pixels = locations * extent - 0.5
    low = pixels.floor()
    fraction = pixels - low
    inside_low = (low >= 0) & (low < extent)
    inside_high = (low >= -1) & (low < extent - 1)
    axis_weights = torch.stack(((1 - fraction) * inside_low, fraction * inside_high), -1)  # [..., xy, corner]
    # Clamped before the cast: far-away points would overflow integers. fmin and fmax also turn NaN into a valid row;
    # its weight stays NaN, so a diverged network gives NaN and not a crash.
    last, zero = extent - 1, extent.new_zeros(())
    cells = torch.stack((low.fmax(zero).fmin(last), (low + 1).fmax(zero).fmin(last)), -1).to(kind)
    corner_weights = (axis_weights[..., 1, :] * weights[..., None])[..., None] * axis_weights[..., 0, None, :]
    width = torch.tensor([w for _, w in shapes], device=device, dtype=kind)[:, None, None]
    images = torch.arange(batch, device=device, dtype=kind)[:, None] * tokens + starts.to(kind)  # [B, L]
    first = images[:, None, None] * heads + torch.arange(heads, device=device, dtype=kind)[:, None]  # [B, 1, H, L]
    row_start = (cells[..., 1, :] * width) * heads + first[..., None, None]
    index = row_start[..., None] + cells[..., 0, None, :] * heads
    return index, corner_weights


def _gather(rows: Tensor, index: Tensor, corner_weights: Tensor) -> Tensor:
    samples = rows[index.long()]  # [B, Q, H, L, P, 2, 2, D]; compiled, it is never stored
    out = (samples * corner_weights[..., None]).sum((3, 4, 5, 6))
    return out.flatten(2)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with the official parameter names.

    Args:
        embed_dim: C, divisible by `num_heads`.
        num_heads, num_levels, num_points: H, L, P; P points on each level for every head.
        core: one of `CORES`; `auto` follows `choose_core`.

    Raises:
        ConfigError: `embed_dim` is not divisible by `num_heads`, or the core is unknown.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4, core: str = "auto"
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError("model.embed_dim", f"{embed_dim} is not divisible by {num_heads} heads")
        if core not in CORES:
            raise ConfigError("model.sampling_core", f"no core {core!r}", f"one of {', '.join(CORES)}")
        self.num_heads, self.num_levels, self.num_points, self.core = num_heads, num_levels, num_points, core
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look into evenly spread directions, point p at distance p + 1 (official `_reset_parameters`)."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto the unit square
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        grid = directions[:, None, None] * distances[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query: Tensor, reference_points: Tensor, tokens: Tensor, shapes: Shapes, padding_mask: Tensor | None
    ) -> Tensor:
        """Attend from each query to `num_levels * num_points` learned places.

        Args:
            query: `[B, Q, C]`, position encoding included.
            reference_points: `[B, Q, L, 2]` (x, y) or `[B, Q, L, 4]` (cx, cy, w, h), in 0..1 of the padded maps.
            tokens: `[B, N, C]`, what is sampled.
            shapes: (height, width) of each level.
            padding_mask: `[B, N]` bool, True on padding, or None.

        Returns:
            `[B, Q, C]`.
        """
        batch, queries, _ = query.shape
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        points = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*points, 2)
        weights = self.attention_weights(query).view(batch, queries, self.num_heads, -1)
        # Locations decide which pixel is read: bfloat16 has 8 bits of them, so sampling is at least float32.
        with torch.autocast(query.device.type, enabled=False):
            at_least = torch.promote_types(value.dtype, torch.float32)
            weights = weights.to(at_least).softmax(-1).view(points)
            locations = self._locations(reference_points.to(at_least), offsets.to(at_least), shapes)
            out = deformable_sampling(value.to(at_least), shapes, locations, weights, self.core)
        return self.output_proj(out.to(value.dtype))

    def _locations(self, reference_points: Tensor, offsets: Tensor, shapes: Shapes) -> Tensor:
        reference = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            extent = torch.tensor([(w, h) for h, w in shapes], device=offsets.device, dtype=offsets.dtype)
            return reference + offsets / extent[:, None]
        return reference[..., :2] + offsets / self.num_points * reference[..., 2:] * 0.5
