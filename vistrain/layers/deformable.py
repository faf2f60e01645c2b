"""Multi-scale deformable attention (Deformable-DETR, arXiv 2010.04159, section 4.1, equation 3).

Four cores compute the same sampling (they agree to 1e-5); `tools/benchmark_msda.py` and `tools/gpu_check.py` measure
them, and `choose_core` holds the rule that came out of it.

Authors' code: github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/ops).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.devices import say_without_triton, triton_serves, upload
from vistrain.errors import ConfigError
from vistrain.layers.precision import at_least_float32

CORES = ("auto", "grid_sample", "embedding_bag", "gather", "triton")
Shapes = Sequence[tuple[int, int]]
FEW_SUMS = 8192  # of 1024 queries with 8 heads


def choose_core(device: torch.device, needs_grad: bool, sums: int = 1 << 17, depth: int = 32) -> str:
    """Which core is fastest (`tools/benchmark_msda.py`, `tools/gpu_check.py`).

    On a CPU, to evaluate: `embedding_bag`. To train: eager, `embedding_bag` from heads of 16 channels on and
    `grid_sample` below; under `torch.compile` `gather`, whose samples are then never stored, but `embedding_bag` where
    wide heads ask for few sums, as a decoder's do. Elsewhere: `grid_sample`; under
    `torch.use_deterministic_algorithms` on CUDA `embedding_bag`, as its backward pass sorts; compiled `embedding_bag`
    to evaluate and `gather` to train, as inductor has no good `grid_sample`. `triton` is never chosen so far: it is to
    be asked for by name until it was measured on a card. While a network is exported: `grid_sample`, an operator of
    ONNX that holds few samples at a time.

    Args:
        device: of the values.
        needs_grad: whether gradients will be asked for.
        sums: how many there are: images, queries and heads multiplied.
        depth: channels of a head.
    """
    if torch.compiler.is_exporting():
        return "grid_sample"
    if device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return "embedding_bag"
    if torch.compiler.is_compiling():
        is_small = device.type == "cpu" and depth >= 32 and sums <= FEW_SUMS
        return "gather" if needs_grad and not is_small else "embedding_bag"
    if device.type == "cpu" and needs_grad and depth < 16:
        return "grid_sample"
    return "embedding_bag" if device.type == "cpu" else "grid_sample"


def deformable_sampling(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor, core: str = "auto") -> Tensor:
    """Weighted sum of bilinear samples over levels and points, per head; zero outside the maps.

    Computed in float32 at least, whatever the type of `value`: points decide which pixel is read, and bfloat16 has 8
    bits of them.

    Args:
        value: `[B, N, H, D]`, N tokens of all levels (fine to coarse, each row-major), H heads of D channels.
        shapes: (height, width) of each of the L levels; their products sum to N.
        points: `[B, Q, H, L, P, 2]`, (x, y) in pixels of each level's map; 0 is the centre of the first pixel.
        weights: `[B, Q, H, L, P]`.
        core: one of `CORES`. Where `triton` cannot run (without Triton, on a CPU, or where gradients must be
            deterministic) it is `auto`.

    Returns:
        `[B, Q, H * D]`, of the type of `value`.
    """
    if core == "auto" or (core == "triton" and not triton_serves(value.device)):
        needs_grad = torch.is_grad_enabled() and (value.requires_grad or points.requires_grad)
        core = choose_core(value.device, needs_grad, math.prod(points.shape[:3]), value.shape[-1])
    kind, points, weights = value.dtype, at_least_float32(points), at_least_float32(weights)
    if core == "triton":  # reads half types as they are
        return _triton(value, [side for shape in shapes for side in shape], points, weights)
    value = at_least_float32(value)
    if core == "grid_sample":
        return _grid_sample(value, shapes, points, weights).to(kind)
    index, corner_weights = _corners(value.shape, shapes, points, weights)
    rows = value.reshape(-1, value.shape[-1])
    if core == "embedding_bag":
        out = _bags(index, rows, corner_weights)
    else:
        out = (rows[index] * corner_weights[..., None]).sum(1)  # compiled, the samples are never stored
    return out.view(*points.shape[:2], -1).to(kind)


def _bags(index: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """`[N, K]` indices and weights of rows `[R, D]` -> weighted sums `[N, D]`."""
    if index.device.type != "cpu" or not rows.requires_grad:
        return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")
    sums = F.embedding_bag(index, rows.detach(), per_sample_weights=weights, mode="sum")
    return _GradientOfRows.apply(sums, rows, index, weights.detach())


class _GradientOfRows(torch.autograd.Function):
    """Adds to weighted sums `[N, D]`, which know their weights' gradient, that of the rows: a weighted sum as well, of
    the indices in order. It takes two thirds of the time of torch's own, and is equal to the last bit."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights)
        ctx.count = len(rows)
        return sums.view_as(sums)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        index, weights = ctx.saved_tensors
        ordered, place = index.flatten().sort()
        starts = torch.searchsorted(ordered, torch.arange(ctx.count, dtype=ordered.dtype))
        shares, bag = weights.flatten().index_select(0, place), place // index.shape[1]
        of_rows = F.embedding_bag(bag, gradient.contiguous(), starts, per_sample_weights=shares, mode="sum")
        return gradient, of_rows, None, None


# Operators of their own: `torch.compile` takes them as they are, and Triton is imported where they first run.
@torch.library.custom_op(
    "vistrain::deformable_sampling",
    mutates_args=(),
    schema="(Tensor value, SymInt[] sizes, Tensor points, Tensor weights) -> Tensor",
)
def _triton(value: Tensor, sizes: list[int], points: Tensor, weights: Tensor) -> Tensor:
    from vistrain.layers import deformable_triton

    return deformable_triton.forward(value, sizes, points, weights)


@torch.library.custom_op(
    "vistrain::deformable_sampling_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor value, SymInt[] sizes, Tensor points, Tensor weights) -> (Tensor, Tensor, Tensor)",
)
def _triton_backward(
    gradient: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from vistrain.layers import deformable_triton

    return deformable_triton.backward(gradient, value, sizes, points, weights)


@_triton.register_fake
def _(value: Tensor, sizes: list[int], points: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty((points.shape[0], points.shape[1], value.shape[2] * value.shape[3]))


@_triton_backward.register_fake
def _(
    gradient: Tensor, value: Tensor, sizes: list[int], points: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(points), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, points, weights = inputs
    ctx.save_for_backward(value, points, weights)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, points, weights = ctx.saved_tensors
    of_value, of_points, of_weights = _triton_backward(gradient, value, ctx.sizes, points, weights)
    return of_value, None, of_points, of_weights


_triton.register_autograd(_gradients, setup_context=_keep)


def _grid_sample(value: Tensor, shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, depth = value.shape
    queries = points.shape[1]
    scale = 2 / _extents(shapes, points)
    grids = torch.addcmul(scale / 2 - 1, points, scale).transpose(1, 2).flatten(0, 1)  # [B * H, Q, L, P, 2]
    weights = weights.transpose(1, 2).flatten(0, 1)  # [B * H, Q, L, P]
    out = value.new_zeros(())
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], 1)):
        image = tokens.permute(0, 2, 3, 1).reshape(batch * heads, depth, *shapes[level])
        samples = F.grid_sample(image, grids[:, :, level], padding_mode="zeros", align_corners=False)
        # One level at a time: the samples of all levels at once would be the largest tensor of the network.
        out = out + (samples * weights[:, None, :, level]).sum(-1)  # [B * H, D, Q]
    return out.reshape(batch, heads * depth, queries).transpose(1, 2)


def _corners(value_shape: torch.Size, shapes: Shapes, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The four neighbours of every sampling point as rows of the table `value.reshape(B * N * H, D)`.

    Returns:
        index and weight, both `[B * Q * H, 4 * L * P]`; the weight is 0 outside the map.
    """
    batch, tokens, heads, _ = value_shape
    # int32 halves the traffic; the table would need 2 billion rows to overflow it. Operators of ONNX want int64.
    is_short = not torch.compiler.is_exporting() and batch * tokens * heads < 2**31
    kind = torch.int32 if is_short else torch.int64
    device, repeats = points.device, points.shape[-2]
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    width, start = (
        upload([n * heads for n in numbers for _ in range(repeats)], device, kind)  # [L * P]
        for numbers in ([w for _, w in shapes], starts)
    )
    last = (_extents(shapes, points) - 1).expand(-1, repeats, -1).flatten(0, 1)  # [L * P, 2]
    x, y = points.flatten(3, 4).unbind(-1)
    columns, x_weights = _neighbours(x, last[:, 0])  # [B, Q, H, 2, L * P]
    rows, y_weights = _neighbours(y, last[:, 1])
    head = torch.arange(heads, device=device, dtype=kind)[:, None]
    image = torch.arange(batch, device=device, dtype=kind)[:, None, None, None] * (tokens * heads)
    rows = rows.to(kind) * width + (image + (head + start))[:, :, :, None]
    index = rows[..., None, :] + (columns.to(kind) * heads)[..., None, :, :]
    corner_weights = (y_weights * weights.flatten(3)[..., None, :])[..., None, :] * x_weights[..., None, :, :]
    return index.flatten(3).flatten(0, 2), corner_weights.flatten(3).flatten(0, 2)


def _neighbours(position: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper neighbour of positions `[B, Q, H, K]` on an axis of cells 0 to `last` `[K]`.

    Returns:
        cells (clamped to the axis) and weights (0 where clamped), both `[B, Q, H, 2, K]`.
    """
    # A diverged network must give NaN and not a crash: its value and attention weights still do.
    position = position.nan_to_num(nan=-2.0)
    low = position.floor()
    high = low + 1
    fraction = position - low
    zero = torch.zeros_like(last)
    cells = (torch.clamp(low, zero, last), torch.clamp(high, zero, last))
    weights = (torch.where(cells[0] == low, 1 - fraction, 0.0), torch.where(cells[1] == high, fraction, 0.0))
    return torch.stack(cells, -2), torch.stack(weights, -2)


def _extents(shapes: Shapes, like: Tensor) -> Tensor:
    """`[L, 1, 2]` (width, height) of the levels."""
    return upload([(w, h) for h, w in shapes], like.device, like.dtype)[:, None]


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
        if core == "triton":
            say_without_triton("deformable attention uses a plain core")
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
        with torch.autocast(query.device.type, enabled=False):
            at_least = torch.promote_types(value.dtype, torch.float32)
            weights = weights.to(at_least).softmax(-1).view(points)
            pixels = self._points(reference_points.to(at_least), offsets.to(at_least), shapes)
            out = deformable_sampling(value, shapes, pixels, weights, self.core)
        return self.output_proj(out)

    def _points(self, reference_points: Tensor, offsets: Tensor, shapes: Shapes) -> Tensor:
        """Sampling points in pixels of each level; offsets are in pixels, or in parts of a reference box."""
        extents = _extents(shapes, offsets)
        centre = reference_points[:, :, None, :, None, :2] * extents - 0.5
        if reference_points.shape[-1] == 2:
            return centre + offsets
        size = reference_points[:, :, None, :, None, 2:] * extents
        return torch.addcmul(centre, offsets, size * (0.5 / self.num_points))
