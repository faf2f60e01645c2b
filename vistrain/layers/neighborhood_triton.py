"""Neighbourhood attention in Triton (2204.07143, section 3.1; 2209.15001, section 3); see `attention.neighborhood`.

A program computes a block of queries, one after the other in a row, for one head of one image. It walks through their
neighbours, one at a time, and keeps a running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) in float32
(float64 for values of float64); nothing of the size of the attention is stored. Backwards it walks again: the gradient
of a query is a sum inside a program, those of keys, values and biases are added atomically, so their last digits depend
on the order in which programs run.

Within one image, values count below 2^31. Written from the equations; the authors' kernels are in
github.com/SHI-Labs/NATTEN, MIT.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

BLOCK = 2048  # elements of a block, a power of two: 64 queries of 32 channels
WARPS = 4


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    rows: Sequence[int],
    columns: Sequence[int],
    form: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithms of the sums of exponentials.

    Args:
        q, k, v: `[B, H, W, heads, D]`.
        rpb: `[heads, 2 Kh - 1, 2 Kw - 1]`, or None.
        rows, columns: of each token along the axis its first neighbour and how many, in turn.
        form: Kh, Kw, and the dilations of rows and columns.
        scale: of the logits.

    Returns:
        `[B, H, W, heads, D]` and `[B, H, W, heads]`, both at least float32: gradients of half types would miss the
        digits that rounding takes off the former.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    exact = torch.promote_types(v.dtype, torch.float32)
    out, total = torch.empty_like(v, dtype=exact), v.new_empty(v.shape[:-1], dtype=exact)
    if out.numel():
        grid, options = _launch(v, rpb, form)
        bias = total if rpb is None else rpb.contiguous()  # any pointer, where there is none
        with torch.cuda.device_of(v):
            _forward[grid](q, k, v, bias, *_tables(rows, columns, v.device), out, total, scale, **options)
    return out, total


def backward(
    gradient: Tensor,
    given: Sequence[Tensor],
    out: Tensor,
    total: Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    form: Sequence[int],
    scale: float,
) -> list[Tensor]:
    """Gradients of what is given.

    Args:
        gradient: of `out`.
        given: q, k and v, and rpb if there is one.
        out, total: what `forward` gave.
        rows, columns, form, scale: see `forward`.
    """
    q, k, v, *more = (x.contiguous() for x in given)
    # Many small parts are added up: not in half precision
    sums = [torch.zeros(x.shape, dtype=total.dtype, device=x.device) for x in (k, v, *more)]
    of_q = torch.empty_like(q)
    if out.numel():
        rpb = more[0] if more else None
        grid, options = _launch(v, rpb, form)
        bias, of_bias = (total, total) if rpb is None else (rpb, sums[2])
        inputs = (gradient.contiguous(), q, k, v, bias, *_tables(rows, columns, v.device), out, total)
        with torch.cuda.device_of(v):
            _backward[grid](*inputs, of_q, *sums[:2], of_bias, scale, **options)
    else:
        of_q.zero_()
    return [of_q, *(x.to(y.dtype) for x, y in zip(sums, (k, v, *more), strict=True))]


def _launch(v: Tensor, rpb: Tensor | None, form: Sequence[int]) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and the arguments of both kernels that are no tensors."""
    batch, height, width, heads, depth = v.shape
    channels = triton.next_power_of_2(depth)
    queries = max(BLOCK // channels, 1)
    blocks = triton.cdiv(height * width, queries)
    options = {"tokens": height * width, "width": width, "blocks": blocks, "HEADS": heads, "DEPTH": depth}
    options |= dict(zip(("KH", "KW", "DH", "DW"), form, strict=True))
    options |= {"BIAS": rpb is not None, "BLOCK_Q": queries, "BLOCK_D": channels, "num_warps": WARPS}
    return (batch * blocks * heads,), options


def _tables(rows: Sequence[int], columns: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """`[L, 2]` int32 of both axes."""
    return _table(tuple(rows), device), _table(tuple(columns), device)


@functools.lru_cache(maxsize=512)
def _table(axis: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept: copying it would wait for the device."""
    return torch.tensor(axis, dtype=torch.int32, device=device)


@triton.jit
def _queries(  # type: ignore[no-untyped-def]
    rows,
    columns,
    tokens,
    width,
    blocks,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """This program's queries. Heads of a block run side by side.

    Returns its head; where its image and head begin; whether queries exist; where they lie among tokens and heads;
    their channels, and which of those exist; their first neighbour, how far below and to the right it is in steps of
    the dilation (negative, mostly), and how many neighbours there are down and across.
    """
    program = tl.program_id(0)
    head = program % HEADS
    block = program // HEADS % blocks
    image = (program // HEADS // blocks).to(tl.int64)
    query = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    there = query < tokens
    channel = tl.arange(0, BLOCK_D)
    shift = (image * tokens * HEADS + head) * DEPTH
    own = shift + query[:, None] * (HEADS * DEPTH) + channel[None, :]
    filled = there[:, None] & (channel < DEPTH)[None, :]
    row = query // width
    column = query % width
    top = tl.load(rows + 2 * row, mask=there, other=0)
    high = tl.load(rows + 2 * row + 1, mask=there, other=0)
    left = tl.load(columns + 2 * column, mask=there, other=0)
    wide = tl.load(columns + 2 * column + 1, mask=there, other=0)
    # Exact quotients: both are in the same group of the dilation
    down = (top - row) // DH
    right = (left - column) // DW
    line = image * tokens * HEADS + query * HEADS + head
    return head, shift, there, line, own, filled, top * width + left, down, right, high, wide


@triton.jit
def _neighbor(  # type: ignore[no-untyped-def]
    i,
    j,
    shift,
    first,
    high,
    wide,
    there,
    width,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Whether each query has a neighbour so many steps on, where its channels lie, and which of them exist."""
    channel = tl.arange(0, BLOCK_D)
    seen = there & (i < high) & (j < wide)
    token = first + i * DH * width + j * DW
    place = shift + token[:, None] * (HEADS * DEPTH) + channel[None, :]
    return seen, place, seen[:, None] & (channel < DEPTH)[None, :]


@triton.jit
def _bias(head, down, right, seen, KH: tl.constexpr, KW: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where in the table the bias of a step lies, and whether it has one."""
    row = down + KH - 1
    column = right + KW - 1
    has = seen & (row >= 0) & (row < 2 * KH - 1) & (column >= 0) & (column < 2 * KW - 1)
    return (head * (2 * KH - 1) + row) * (2 * KW - 1) + column, has


@triton.jit(do_not_specialize=["tokens", "width", "blocks"])
def _forward(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    rpb,
    rows,
    columns,
    out,
    total,
    scale,
    tokens,
    width,
    blocks,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head, shift, there, line, own, filled, first, down, right, high, wide = _queries(
        rows, columns, tokens, width, blocks, HEADS, DEPTH, DH, DW, BLOCK_Q, BLOCK_D
    )
    exact = total.dtype.element_ty
    asked = tl.load(q + own, mask=filled, other=0.0).to(exact) * scale
    most = tl.full([BLOCK_Q], float("-inf"), dtype=exact)
    summed = tl.zeros([BLOCK_Q], dtype=exact)
    mixed = tl.zeros([BLOCK_Q, BLOCK_D], dtype=exact)
    for i in range(KH):
        for j in range(KW):
            seen, place, read = _neighbor(i, j, shift, first, high, wide, there, width, HEADS, DEPTH, DH, DW, BLOCK_D)
            logit = tl.sum(asked * tl.load(k + place, mask=read, other=0.0).to(exact), 1)
            if BIAS:
                where, has = _bias(head, down + i, right + j, seen, KH, KW)
                logit += tl.load(rpb + where, mask=has, other=0.0).to(exact)
            logit = tl.where(seen, logit, float("-inf"))
            higher = tl.maximum(most, logit)
            base = tl.where(higher == float("-inf"), 0.0, higher)
            fading = tl.exp(most - base)
            share = tl.exp(logit - base)
            summed = summed * fading + share
            mixed = mixed * fading[:, None] + share[:, None] * tl.load(v + place, mask=read, other=0.0).to(exact)
            most = higher
    summed = tl.where(there, summed, 1.0)
    tl.store(out + own, mixed / summed[:, None], mask=filled)
    tl.store(total + line, most + tl.log(summed), mask=there)


@triton.jit(do_not_specialize=["tokens", "width", "blocks"])
def _backward(  # type: ignore[no-untyped-def]
    gradient,
    q,
    k,
    v,
    rpb,
    rows,
    columns,
    out,
    total,
    of_q,
    of_k,
    of_v,
    of_rpb,
    scale,
    tokens,
    width,
    blocks,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head, shift, there, line, own, filled, first, down, right, high, wide = _queries(
        rows, columns, tokens, width, blocks, HEADS, DEPTH, DH, DW, BLOCK_Q, BLOCK_D
    )
    exact = total.dtype.element_ty
    asked = tl.load(q + own, mask=filled, other=0.0).to(exact) * scale
    above = tl.load(gradient + own, mask=filled, other=0.0).to(exact)
    agreed = tl.sum(above * tl.load(out + own, mask=filled, other=0.0).to(exact), 1)
    spread = tl.load(total + line, mask=there, other=0.0)
    moved = tl.zeros([BLOCK_Q, BLOCK_D], dtype=exact)
    for i in range(KH):
        for j in range(KW):
            seen, place, read = _neighbor(i, j, shift, first, high, wide, there, width, HEADS, DEPTH, DH, DW, BLOCK_D)
            key = tl.load(k + place, mask=read, other=0.0).to(exact)
            logit = tl.sum(asked * key, 1)
            where, has = _bias(head, down + i, right + j, seen, KH, KW)
            if BIAS:
                logit += tl.load(rpb + where, mask=has, other=0.0).to(exact)
            share = tl.where(seen, tl.exp(logit - spread), 0.0)
            wanted = tl.sum(above * tl.load(v + place, mask=read, other=0.0).to(exact), 1)
            slope = share * (wanted - agreed)
            moved += slope[:, None] * key
            tl.atomic_add(of_v + place, share[:, None] * above, mask=read, sem="relaxed")
            tl.atomic_add(of_k + place, slope[:, None] * asked, mask=read, sem="relaxed")
            if BIAS:
                tl.atomic_add(of_rpb + where, slope, mask=has, sem="relaxed")
    tl.store(of_q + own, (moved * scale).to(of_q.dtype.element_ty), mask=filled)
