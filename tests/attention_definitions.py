"""Attention operators as their papers define them: token by token, in loops, and slow. What ours must equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention.bilevel_routing import BiLevelRoutingAttention

Size = tuple[int, int]


def cells(size: Size) -> list[Size]:
    """(row, column) of each token of a map."""
    return [(y, x) for y in range(size[0]) for x in range(size[1])]


def heads_of(x: Tensor, count: int) -> Tensor:
    """`[N, C]` -> `[heads, N, C / heads]`."""
    return x.unflatten(1, (count, -1)).transpose(0, 1)


def one_by_one(definition: Callable[[Any, Tensor, Size], Tensor]) -> Callable[[Any, Tensor, Size], Tensor]:
    """A definition for one image `[N, C]`, for a batch `[B, N, C]`."""
    return lambda module, x, size: torch.stack([definition(module, image, size) for image in x])


# --- neighbourhoods --------------------------------------------------------------------------------------------------


def neighbours(token: int, length: int, kernel: int, dilation: int, stride: int = 1) -> list[int]:
    """The K tokens nearest to a token among those of its residue; ties do not arise, borders shift.

    With a stride, the nearest to the middle one of so many successive tokens.
    """
    group = list(range(token % dilation, length, dilation))
    place = group.index(token)
    place = min(place // stride * stride + stride // 2, len(group) - 1)
    first = min(max(place - kernel // 2, 0), len(group) - kernel)
    return group[first : first + kernel]


def neighborhood(
    q: Tensor, k: Tensor, v: Tensor, kernel: int, dilation: int, rpb: Tensor | None, stride: int = 1
) -> Tensor:
    """Queries, keys and values `[B, H, W, heads, D]` (NAT, section 3.1)."""
    out = torch.empty_like(q)
    height, width = q.shape[1:3]
    for y, x in cells((height, width)):
        shape = (kernel, dilation, stride)
        near = [(i, j) for i in neighbours(y, height, *shape) for j in neighbours(x, width, *shape)]
        rows, columns = zip(*near, strict=True)
        logits = torch.einsum("bhd,bnhd->bhn", q[:, y, x] * q.shape[-1] ** -0.5, k[:, rows, columns])
        steps = [((i - y) // dilation + kernel - 1, (j - x) // dilation + kernel - 1) for i, j in near]
        logits = logits if rpb is None else logits + torch.stack([rpb[:, a, b] for a, b in steps], -1)
        out[:, y, x] = torch.einsum("bhn,bnhd->bhd", logits.softmax(-1), v[:, rows, columns])
    return out


def neighborhood_module(module: Any, x: Tensor, size: Size) -> Tensor:
    """With its projections; maps smaller than a neighbourhood are padded with zeros."""
    least = module.kernel_size * module.dilation
    whole = max(size[0], least), max(size[1], least)
    padded = x.new_zeros(len(x), *whole, x.shape[2])
    padded[:, : size[0], : size[1]] = x.unflatten(1, size)
    q, k, v = module.qkv(padded).unflatten(-1, (3, module.num_heads, -1)).unbind(3)
    out = neighborhood(q, k, v, module.kernel_size, module.dilation, module.rpb, module.stride)
    return module.proj(out[:, : size[0], : size[1]].flatten(3).flatten(1, 2))


# --- shifted windows -------------------------------------------------------------------------------------------------


def swin_window(module: Any, x: Tensor, size: Size) -> Tensor:
    """One image `[N, C]` (Swin, section 3.2): tokens of one window of the rolled map attend to each other.

    Those that came around from the other end of the map are kept apart by -100, as in the authors' code.
    """
    side, shift = module.window[0], module.shift[0]
    q, k, v = module.qkv(x).unflatten(1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
    table = module.relative_position_bias_table
    out = torch.empty_like(q)
    for i, (y, z) in enumerate(cells(size)):
        place = [(y - shift) % size[0], (z - shift) % size[1]]
        mates, biases = [], []
        for j, (b, c) in enumerate(cells(size)):
            other = [(b - shift) % size[0], (c - shift) % size[1]]
            if [p // side for p in place] != [p // side for p in other]:
                continue
            dy, dx = (p % side - o % side + side - 1 for p, o in zip(place, other, strict=True))
            apart = (y < shift) != (b < shift) or (z < shift) != (c < shift)
            mates.append(j)
            biases.append(table[dy * (2 * side - 1) + dx] - 100 * apart)
        logits = torch.einsum("hd,hnd->hn", q[:, i], k[:, mates]) * q.shape[-1] ** -0.5 + torch.stack(biases, -1)
        out[:, i] = torch.einsum("hn,hnd->hd", logits.softmax(-1), v[:, mates])
    return module.proj(out.transpose(0, 1).flatten(1))


# --- bi-level routing ------------------------------------------------------------------------------------------------


def bilevel_routing(attention: BiLevelRoutingAttention, x: Tensor, size: Size) -> Tensor:
    """One image `[N, C]` (BiFormer, section 3.2): regions one after the other, tokens gathered by name."""
    (height, width), channels = size, x.shape[1]
    if attention.pad_projected:
        rows, columns = max(1, height // attention.n_win), max(1, width // attention.n_win)
    else:
        rows, columns = math.ceil(height / attention.n_win), math.ceil(width / attention.n_win)
    whole = math.ceil(height / rows) * rows, math.ceil(width / columns) * columns
    if not attention.pad_projected:
        whole = rows * attention.n_win, columns * attention.n_win
    padded = x.new_zeros(*whole, channels)
    padded[:height, :width] = x.unflatten(0, size)
    qkv = attention.qkv(padded)
    if attention.pad_projected:
        qkv[height:], qkv[:, width:] = 0, 0
    q, k, v = qkv.split([attention.qk_dim, attention.qk_dim, channels], -1)
    corners = [(y, z) for y in range(0, whole[0], rows) for z in range(0, whole[1], columns)]

    def tokens(t: Tensor, corner: Size) -> Tensor:
        return t[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns].flatten(0, 1)

    def mean(t: Tensor, corner: Size) -> Tensor:
        cut = t[:height, :width] if attention.pad_projected else t
        return tokens(cut, corner).mean(0)

    means = torch.stack([mean(k, corner) for corner in corners])
    out = torch.zeros_like(padded)
    for corner in corners:
        best = (means @ mean(q, corner)).topk(min(attention.topk, len(corners))).indices.tolist()
        keys, values = (torch.cat([tokens(t, corners[i]) for i in best]) for t in (k, v))
        mixed = []
        for heads in zip(*(t.chunk(attention.num_heads, -1) for t in (tokens(q, corner), keys, values)), strict=True):
            mixed.append((heads[0] @ heads[1].T * attention.scale).softmax(-1) @ heads[2])
        block = torch.cat(mixed, -1).view(rows, columns, channels)
        out[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = block
    if attention.lepe is not None:
        out = out + attention.lepe(v.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    return attention.proj(out)[:height, :width].flatten(0, 1)


# --- aggregated attention --------------------------------------------------------------------------------------------


def position_bias(cpb: Any, size: Size, keys: Size) -> Tensor:
    """`[heads, H * W, h * w]` (TransNeXt, section 3.2): a perceptron of log-spaced steps from key to query.

    A pooled key lies at the mean of the tokens that adaptive pooling makes it of. Steps are in eighths of the map in
    pretraining, and 7 of these are 1.
    """

    def step(token: int, key: int, side: int, count: int) -> float:
        first, last = key * side // count, math.ceil((key + 1) * side / count) - 1
        distance = (token - (first + last) / 2) * 8 / (cpb.pretrain_grid - 1)
        return math.copysign(math.log2(abs(distance) + 1) / math.log2(8), distance)

    steps = [
        [[step(y, b, size[0], keys[0]), step(x, c, size[1], keys[1])] for b, c in cells(keys)] for y, x in cells(size)
    ]
    distances = torch.tensor(steps, dtype=cpb.fc1.weight.dtype)
    return cpb.fc2(cpb.fc1(distances).relu()).permute(2, 0, 1)


def cosine(module: Any, x: Tensor, size: Size) -> Tensor:
    """One image `[N, C]` (TransNeXt, sections 3.2 and 3.3)."""
    q, k, v = (heads_of(t, module.num_heads) for t in module.qkv(x).chunk(3, -1))
    query = F.normalize(q, dim=-1) + module.query_embedding
    logits = query @ F.normalize(k, dim=-1).mT * F.softplus(module.temperature) * math.log(len(x))
    weights = (logits + position_bias(module.cpb, size, size)).softmax(-1)
    return module.proj((weights @ v).transpose(0, 1).flatten(1))


def aggregated(module: Any, x: Tensor, size: Size) -> Tensor:
    """One image `[N, C]` (TransNeXt, section 3.1): neighbours and pooled tokens in one softmax, token by token."""
    pooled_size = max(size[0] // module.sr_ratio, 1), max(size[1] // module.sr_ratio, 1)
    smooth = F.gelu(module.sr(x.T.unflatten(1, size)[None]))
    pooled = module.norm(F.adaptive_avg_pool2d(smooth, pooled_size)[0].flatten(1).T)
    q = F.normalize(heads_of(module.q(x), module.num_heads), dim=-1)
    k, v = (heads_of(t, module.num_heads) for t in module.kv(x).chunk(2, -1))
    pooled_k, pooled_v = (heads_of(t, module.num_heads) for t in module.kv(pooled).chunk(2, -1))
    k, pooled_k = F.normalize(k, dim=-1), F.normalize(pooled_k, dim=-1)
    bias, places = position_bias(module.cpb, size, pooled_size), cells(size)
    window, out = range(module.window_size), torch.empty_like(q)
    for i, (y, z) in enumerate(places):
        steps = [(y + a - module.window_size // 2, z + b - module.window_size // 2) for a in window for b in window]
        slots = [n for n, place in enumerate(steps) if place in places]  # neighbours beyond the border take no part
        near = [places.index(steps[n]) for n in slots]
        keys = len(near) + pooled_size[0] * pooled_size[1]
        scaled = (q[:, i] + module.query_embedding[:, 0]) * F.softplus(module.temperature[:, 0]) * math.log(keys)
        local = torch.einsum("hd,hnd->hn", scaled, k[:, near]) + module.relative_pos_bias_local[:, slots]
        pool = torch.einsum("hd,hnd->hn", scaled, pooled_k) + bias[:, i]
        local, pool = torch.cat((local, pool), -1).softmax(-1).split([len(near), len(pooled)], -1)
        learned = torch.einsum("hd,hdn->hn", q[:, i], module.learnable_tokens) + module.learnable_bias[:, 0]
        out[:, i] = torch.einsum("hn,hnd->hd", local + learned[:, slots], v[:, near])
        out[:, i] += torch.einsum("hn,hnd->hd", pool, pooled_v)
    return module.proj(out.transpose(0, 1).flatten(1))


# --- rotary positions, rank-augmented and not ------------------------------------------------------------------------


def rotated(vector: Tensor, place: Size) -> Tensor:
    """`[heads, D]` of the cell at (row, column): its first half turned by the row, its second by the column."""
    half = vector.shape[1] // 2
    speeds = 10000.0 ** -torch.linspace(0, 1, half // 2, dtype=vector.dtype)
    turned = vector.clone()
    for start, position in zip((0, half), place, strict=True):
        for pair, speed in enumerate(speeds):
            a, b = vector[:, start + 2 * pair], vector[:, start + 2 * pair + 1]
            cos, sin = (position * speed).cos(), (position * speed).sin()
            turned[:, start + 2 * pair], turned[:, start + 2 * pair + 1] = a * cos - b * sin, a * sin + b * cos
    return turned


def gated_rotary(module: Any, x: Tensor, size: Size, rank_augmented: bool = False) -> Tensor:
    """One image `[N, C]` (RALA, section 3.2): `proj((attend(q, k, v) + conv(v)) * o)`."""
    q, k, v, gate = module.qkvo(x).chunk(4, 1)
    position = module.lepe(v.T.unflatten(1, size)[None])[0].flatten(1).T
    q, k, v = (heads_of(part, module.num_heads) for part in (q, k, v))
    scale = q.shape[-1] ** -0.5
    if rank_augmented:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        share = torch.einsum("hd,hnd->hn", q.mean(1) * scale, k).softmax(-1)
        k = k * share[..., None] * k.shape[1]
    places = cells(size)
    keys = torch.stack([rotated(k[:, j], place) for j, place in enumerate(places)], 1)
    out = torch.empty_like(q)
    for i, place in enumerate(places):
        products = torch.einsum("hd,hnd->hn", rotated(q[:, i], place), keys)
        if rank_augmented:  # normalised by what is not turned
            total = torch.einsum("hd,hd->h", q[:, i], k.mean(1)) + 1e-6
            weights = products / len(places) / total[:, None]
        else:
            weights = (products * scale).softmax(-1)
        out[:, i] = torch.einsum("hn,hnd->hd", weights, v)
    return module.proj((out.transpose(0, 1).flatten(1) + position) * gate)


def rank_augmented(module: Any, x: Tensor, size: Size) -> Tensor:
    """See `gated_rotary`."""
    return gated_rotary(module, x, size, rank_augmented=True)


# --- strip self-attention --------------------------------------------------------------------------------------------


def strip(module: Any, x: Tensor, size: Size) -> Tensor:
    """One image `[N, C]` (S2AFormer): cell by cell, each attends to what patches of `sr_ratio` cells are reduced to."""
    side, grid = module.sr_ratio, x.unflatten(0, size)
    reduced = []
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            total = module.sr.bias.clone()
            for y, row in enumerate(grid[top : top + side]):
                for z, cell in enumerate(row[left : left + side]):
                    total = total + cell * module.sr.weight[:, 0, y, z]
            reduced.append(module.norm(total))
    keys = torch.stack(reduced)
    q, k, v = (heads_of(part, module.num_heads) for part in (module.q(x), module.k(keys), module.v(keys)))
    out = x.new_empty(module.num_heads, len(x), v.shape[-1])
    for i in range(len(x)):
        weights = (torch.einsum("hd,hnd->hn", q[:, i], k) * q.shape[-1] ** -0.5).softmax(-1)
        out[:, i] = torch.einsum("hn,hnd->hd", weights, v)
    return module.proj(out.transpose(0, 1).flatten(1))


# --- windows of varied size ------------------------------------------------------------------------------------------


def bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """`[H, W, D]` at a fractional place, zeros beyond the border."""
    found = torch.zeros_like(image[0, 0])
    for row in (int(y.floor()), int(y.floor()) + 1):
        for column in (int(x.floor()), int(x.floor()) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                found = found + (1 - (y - row).abs()) * (1 - (x - column).abs()) * image[row, column]
    return found


def varied_size_window(module: Any, x: Tensor, size: Size) -> Tensor:
    """One image `[N, C]` (VSA, section 3.2), window by window, head by head, key by key."""
    side, heads = module.window[0], module.num_heads
    missing = [-length % side for length in size]
    top, left = (n // 2 if module.dense else 0 for n in missing)
    whole = [length + n for length, n in zip(size, missing, strict=True)]

    def padded(tokens: Tensor) -> Tensor:
        image = tokens.new_zeros(*whole, tokens.shape[1])
        image[top : top + size[0], left : left + size[1]] = tokens.unflatten(0, size)
        return image

    image, (q, k, v) = padded(x), (padded(part).unflatten(2, (heads, -1)) for part in module.qkv(x).chunk(3, 1))
    counts = [max(length // side, 1) for length in size]
    divide_x, divide_y = counts if module.dense else counts[::-1]
    bias = module.relative_position_bias_table[module.index]  # [L, L, heads]
    out = torch.empty_like(q)
    inside = cells((side, side))
    for row, column in cells((whole[0] // side, whole[1] // side)):
        window = [(row * side + a, column * side + b) for a, b in inside]
        mean = F.leaky_relu(torch.stack([image[cell] for cell in window]).mean(0))
        offsets, scales = (f(mean).unflatten(0, (heads, 2)) for f in (module.sampling_offsets, module.sampling_scales))
        for head in range(heads):
            moved_x = offsets[head, 0] / divide_x * (whole[1] - 1) / 2
            moved_y = offsets[head, 1] / divide_y * (whole[0] - 1) / 2
            places = [
                (
                    y + (a - (side - 1) / 2) * scales[head, 1] + moved_y,
                    z + (b - (side - 1) / 2) * scales[head, 0] + moved_x,
                )
                for (y, z), (a, b) in zip(window, inside, strict=True)
            ]
            keys, values = (torch.stack([bilinear(m[:, :, head], *place) for place in places]) for m in (k, v))
            for i, cell in enumerate(window):
                logits = keys @ q[cell][head] * module.scale + bias[i, :, head]
                out[cell][head] = logits.softmax(0) @ values
    attended = out[top : top + size[0], left : left + size[1]].flatten(2).flatten(0, 1)
    return module.proj(attended)
