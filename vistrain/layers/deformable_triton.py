"""Multi-scale deformable sampling in Triton (Deformable-DETR, arXiv 2010.04159, equation 3); see `layers.deformable`.

A program computes a block of queries for one head of one image. It walks through their points, reads the four pixels
around each, all channels side by side, and sums in float32 (float64 for values of float64). Backwards, gradients of
points and weights are sums over channels inside a program; gradients of values are added atomically, so their last
digits depend on the order in which programs run.

Within one image, values and points count below 2^31. Written from the equation; the authors' kernels are in
github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/ops).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

# Elements of a block (a power of two; 2048 are 64 queries of 32 channels), the warps that share it, and how many points
# are unrolled. `tools/gpu_check.py` measures others.
Tile = tuple[int, int, int]
FORWARD_TILE: Tile = (2048, 4, 1)
BACKWARD_TILE: Tile = (1024, 4, 1)


def forward(value: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor, tile: Tile = FORWARD_TILE) -> Tensor:
    """Samples; arguments as of `layers.deformable.deformable_sampling`.

    Args:
        value: `[B, N, H, D]`.
        sizes: height and width of each level in turn.
        points, weights: float32; float64 where `value` is.
        tile: how the work is cut.

    Returns:
        `[B, Q, H * D]` of the type of `value`.
    """
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    batch, queries, heads = points.shape[:3]
    out = value.new_empty((batch, queries, heads * value.shape[3]))
    if out.numel():
        grid, options = _launch(value, points, tile)
        with torch.cuda.device_of(value):
            _forward[grid](value, _levels(tuple(sizes), value.device), points, weights, out, **options)
    return out


def backward(
    gradient: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    points: Tensor,
    weights: Tensor,
    tile: Tile = BACKWARD_TILE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `value`, `points` and `weights`, given that of the samples, `[B, Q, H * D]`."""
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    # Many small parts are added up: not in half precision
    of_value = torch.zeros(value.shape, dtype=points.dtype, device=value.device)
    of_points, of_weights = torch.empty_like(points), torch.empty_like(weights)
    if gradient.numel():
        grid, options = _launch(value, points, tile)
        levels = _levels(tuple(sizes), value.device)
        tensors = (gradient.contiguous(), value, levels, points, weights, of_value, of_points, of_weights)
        with torch.cuda.device_of(value):
            _backward[grid](*tensors, **options)
    return of_value.to(value.dtype), of_points, of_weights


def _launch(value: Tensor, points: Tensor, tile: Tile) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and the arguments of both kernels that are no tensors."""
    (_, tokens, heads, depth), (batch, queries, _, levels, count, _) = value.shape, points.shape
    width = triton.next_power_of_2(depth)
    rows = max(tile[0] // width, 1)
    blocks = triton.cdiv(queries, rows)
    sizes = {"HEADS": heads, "DEPTH": depth, "LEVELS": levels, "POINTS": count, "BLOCK_Q": rows, "BLOCK_D": width}
    sizes |= {"UNROLL": tile[2], "num_warps": tile[1]}
    options = {"queries": queries, "tokens": tokens, "blocks": blocks, **sizes}
    return (batch * blocks * heads,), options


@functools.lru_cache(maxsize=1024)
def _levels(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """`[L, 3]` int32: height, width and first token of each level. Kept: copying them would wait for the device."""
    rows, start = [], 0
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


@triton.jit
def _program(queries, blocks, HEADS: tl.constexpr, BLOCK_Q: tl.constexpr):  # type: ignore[no-untyped-def]
    """Queries of this program, whether they exist, its head and its image. Heads of a block run side by side."""
    program = tl.program_id(0)
    head = program % HEADS
    block = (program // HEADS) % blocks
    image = (program // (HEADS * blocks)).to(tl.int64)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return query, query < queries, head, image


@triton.jit
def _axis(pointer, mask, side):  # type: ignore[no-untyped-def]
    """Along an axis of cells 0 to `side` - 1: the cell below each point, and the share of the one above it."""
    place = tl.load(pointer, mask=mask, other=-2.0)
    place = tl.where(place == place, place, -2.0)  # a diverged network's points are nowhere
    place = tl.minimum(tl.maximum(place, -2.0), side + 1.0)  # what is farther outside would overflow the cells
    low = tl.floor(place)
    return low.to(tl.int32), place - low


@triton.jit
def _corner(row, column, height, width, start, channel, DEPTH: tl.constexpr, STRIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of the channels of cells, `[BLOCK_Q, BLOCK_D]`, and which of them exist."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    offsets = (start + row * width + column) * STRIDE
    return offsets[:, None] + channel[None, :], inside[:, None] & (channel < DEPTH)[None, :]


@triton.jit(do_not_specialize=["queries", "tokens", "blocks"])
def _forward(  # type: ignore[no-untyped-def]
    value,
    levels,
    points,
    weights,
    out,
    queries,
    tokens,
    blocks,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
):
    query, there, head, image = _program(queries, blocks, HEADS, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    exact = points.dtype.element_ty
    value += (image * tokens * HEADS + head) * DEPTH
    points += image * queries * (HEADS * LEVELS * POINTS * 2)
    weights += image * queries * (HEADS * LEVELS * POINTS)
    out += image * queries * (HEADS * DEPTH)
    first = (query * HEADS + head) * (LEVELS * POINTS)
    total = tl.zeros([BLOCK_Q, BLOCK_D], dtype=exact)
    for level in range(LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in tl.range(0, POINTS, loop_unroll_factor=UNROLL):
            place = first + level * POINTS + point
            column, right = _axis(points + 2 * place, there, width)
            row, lower = _axis(points + 2 * place + 1, there, height)
            weight = tl.load(weights + place, mask=there, other=0.0)
            o00, m00 = _corner(row, column, height, width, start, channel, DEPTH, HEADS * DEPTH)
            o01, m01 = _corner(row, column + 1, height, width, start, channel, DEPTH, HEADS * DEPTH)
            o10, m10 = _corner(row + 1, column, height, width, start, channel, DEPTH, HEADS * DEPTH)
            o11, m11 = _corner(row + 1, column + 1, height, width, start, channel, DEPTH, HEADS * DEPTH)
            v00 = tl.load(value + o00, mask=m00, other=0.0).to(exact)
            v01 = tl.load(value + o01, mask=m01, other=0.0).to(exact)
            v10 = tl.load(value + o10, mask=m10, other=0.0).to(exact)
            v11 = tl.load(value + o11, mask=m11, other=0.0).to(exact)
            above = weight * (1 - lower)
            below = weight * lower
            total += (above * (1 - right))[:, None] * v00 + (above * right)[:, None] * v01
            total += (below * (1 - right))[:, None] * v10 + (below * right)[:, None] * v11
    target = (query * HEADS + head)[:, None] * DEPTH + channel[None, :]
    tl.store(out + target, total.to(out.dtype.element_ty), mask=there[:, None] & (channel < DEPTH)[None, :])


@triton.jit(do_not_specialize=["queries", "tokens", "blocks"])
def _backward(  # type: ignore[no-untyped-def]
    gradient,
    value,
    levels,
    points,
    weights,
    of_value,
    of_points,
    of_weights,
    queries,
    tokens,
    blocks,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
):
    query, there, head, image = _program(queries, blocks, HEADS, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    exact = points.dtype.element_ty
    shift = (image * tokens * HEADS + head) * DEPTH
    value += shift
    of_value += shift
    samples = image * queries * (HEADS * LEVELS * POINTS)
    points += samples * 2
    of_points += samples * 2
    weights += samples
    of_weights += samples
    gradient += image * queries * (HEADS * DEPTH)
    source = (query * HEADS + head)[:, None] * DEPTH + channel[None, :]
    above = tl.load(gradient + source, mask=there[:, None] & (channel < DEPTH)[None, :], other=0.0).to(exact)
    first = (query * HEADS + head) * (LEVELS * POINTS)
    for level in range(LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in tl.range(0, POINTS, loop_unroll_factor=UNROLL):
            place = first + level * POINTS + point
            column, right = _axis(points + 2 * place, there, width)
            row, lower = _axis(points + 2 * place + 1, there, height)
            weight = tl.load(weights + place, mask=there, other=0.0)
            o00, m00 = _corner(row, column, height, width, start, channel, DEPTH, HEADS * DEPTH)
            o01, m01 = _corner(row, column + 1, height, width, start, channel, DEPTH, HEADS * DEPTH)
            o10, m10 = _corner(row + 1, column, height, width, start, channel, DEPTH, HEADS * DEPTH)
            o11, m11 = _corner(row + 1, column + 1, height, width, start, channel, DEPTH, HEADS * DEPTH)
            v00 = tl.load(value + o00, mask=m00, other=0.0).to(exact)
            v01 = tl.load(value + o01, mask=m01, other=0.0).to(exact)
            v10 = tl.load(value + o10, mask=m10, other=0.0).to(exact)
            v11 = tl.load(value + o11, mask=m11, other=0.0).to(exact)
            top = v00 + right[:, None] * (v01 - v00)
            bottom = v10 + right[:, None] * (v11 - v10)
            slope = (v01 - v00) + lower[:, None] * ((v11 - v10) - (v01 - v00))
            sample = top + lower[:, None] * (bottom - top)
            tl.store(of_weights + place, tl.sum(above * sample, 1), mask=there)
            tl.store(of_points + 2 * place, weight * tl.sum(above * slope, 1), mask=there)
            tl.store(of_points + 2 * place + 1, weight * tl.sum(above * (bottom - top), 1), mask=there)
            w0 = weight * (1 - lower)
            w1 = weight * lower
            tl.atomic_add(of_value + o00, (w0 * (1 - right))[:, None] * above, mask=m00, sem="relaxed")
            tl.atomic_add(of_value + o01, (w0 * right)[:, None] * above, mask=m01, sem="relaxed")
            tl.atomic_add(of_value + o10, (w1 * (1 - right))[:, None] * above, mask=m10, sem="relaxed")
            tl.atomic_add(of_value + o11, (w1 * right)[:, None] * above, mask=m11, sem="relaxed")
