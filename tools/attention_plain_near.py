"""Attention to windows, neighbours and regions by plain computation; see `attention_plain`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.layers.windows import relative_position_bias, shifted_window_mask, window_merge, window_partition


def plain_window(operator: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Roll, cut, products, softmax, join, roll back."""
    shift = operator.shift[0]
    grid = x.unflatten(1, size)
    grid = grid.roll((-shift, -shift), (1, 2)) if shift else grid
    windows = window_partition(grid, operator.window)
    q, k, v = operator.qkv(windows).unflatten(2, (3, operator.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q * q.shape[-1] ** -0.5 @ k.mT
    logits = logits + relative_position_bias(operator.relative_position_bias_table, operator.index)
    if shift:
        mask = shifted_window_mask(size, operator.window, operator.shift)
        logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = window_merge(operator.proj(mixed), operator.window, size)
    return (out.roll((shift, shift), (1, 2)) if shift else out).flatten(1, 2)


def plain_halo(operator: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Keys and values unfolded block by block; distances looked up pair by pair."""
    block, halo, window, heads = operator.block, operator.halo, operator.window, operator.num_heads
    qkv = operator.qkv(x).mT.unflatten(2, size)
    q, kv = qkv.split([x.shape[2], 2 * x.shape[2]], 1)
    q = F.unfold(q, block, stride=block).unflatten(1, (heads, -1, block**2)).permute(0, 4, 1, 3, 2).flatten(0, 1)
    kv = F.unfold(kv, window, padding=halo, stride=block).unflatten(1, (2, heads, -1, window**2))
    k, v = kv.permute(1, 0, 5, 2, 4, 3).flatten(1, 2)
    steps = torch.arange(window) - torch.arange(block)[:, None] + block - 1
    rows, columns = operator.relative[:, steps]
    relative = (rows[:, None, :, None] + columns[None, :, None]).flatten(2, 3).flatten(0, 1)  # [b * b, w * w, d]
    q = q * operator.scale
    logits = q @ k.mT + (q[..., None, :] @ relative.mT)[..., 0, :]
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return operator.proj(window_merge(mixed, (block, block), size)).flatten(1, 2)


def plain_neighborhood(operator: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Keys and values gathered for each query, as the definition says."""
    kernel, step, axes = operator.kernel_size, operator.dilation, []
    for side in size:
        token = torch.arange(side)
        place, count = token // step, (side - token % step + step - 1) // step
        member = torch.minimum((place - kernel // 2).clamp(min=0), count - kernel)[:, None] + torch.arange(kernel)
        axes.append((member * step + (token % step)[:, None], member - place[:, None] + kernel - 1))
    (rows, dy), (columns, dx) = axes
    tokens = (rows[:, None, :, None] * size[1] + columns[None, :, None, :]).flatten()
    q, k, v = operator.qkv(x).unflatten(-1, (3, operator.num_heads, -1)).permute(2, 0, 3, 1, 4)
    keys, values = (t[:, :, tokens].unflatten(2, (len(tokens) // kernel**2, kernel**2)) for t in (k, v))
    bias = operator.rpb[:, dy[:, None, :, None], dx[None, :, None, :]].flatten(3).flatten(1, 2)
    logits = ((q * operator.scale)[..., None, :] @ keys.mT).squeeze(3) + bias
    return operator.proj((logits.softmax(-1)[..., None, :] @ values).squeeze(3).transpose(1, 2).flatten(2))


def plain_routing(attention: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Keys and values gathered element by element from a table of regions by regions."""
    n, dim, heads = attention.n_win, x.shape[2], attention.num_heads
    h, w = size[0] // n, size[1] // n
    regions = x.view(len(x), n, h, n, w, dim).transpose(2, 3).reshape(len(x), n * n, h * w, dim)
    qkv = attention.qkv(regions)
    q, kv = qkv[..., :dim], qkv[..., dim:]
    logits = q.mean(2).detach() * attention.scale @ kv[..., :dim].mean(2).detach().transpose(1, 2)
    index = logits.topk(attention.topk).indices
    table = kv[:, None].expand(-1, n * n, -1, -1, -1)
    chosen = table.gather(2, index[..., None, None].expand(-1, -1, -1, h * w, 2 * dim)).flatten(2, 3)
    k, v = chosen.chunk(2, -1)
    one, two, three = (t.unflatten(-1, (heads, -1)).transpose(2, 3).contiguous() for t in (q, k, v))
    mixed = ((one * attention.scale @ two.transpose(3, 4)).softmax(-1) @ three).transpose(2, 3).flatten(3)

    def joined(t: Tensor) -> Tensor:
        return t.view(len(x), n, n, h, w, dim).transpose(2, 3).reshape(len(x), *size, dim)

    values = joined(kv[..., dim:]).permute(0, 3, 1, 2).contiguous()
    return attention.proj(joined(mixed) + attention.lepe(values).permute(0, 2, 3, 1)).flatten(1, 2)


def plain_aggregated(attention: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Keys and values of neighbours unfolded, nine copies of both."""
    heads, window = attention.num_heads, attention.window_size
    q = F.normalize(attention.q(x).unflatten(2, (heads, -1)), dim=-1).transpose(1, 2)
    k, v = attention.kv(x).chunk(2, -1)
    k = F.normalize(k.unflatten(2, (heads, -1)), dim=-1).flatten(2)
    unfolded = F.unfold(torch.cat((k, v), -1).mT.unflatten(2, size), window, padding=window // 2)
    unfolded = unfolded.unflatten(1, (2 * heads, -1, window**2)).permute(0, 1, 4, 2, 3)
    near_k, near_v = unfolded.chunk(2, 1)
    cells = F.unfold(torch.ones(1, 1, *size), window, padding=window // 2)[0].mT
    pooled_size = (size[0] // attention.sr_ratio, size[1] // attention.sr_ratio)
    pooled = F.adaptive_avg_pool2d(attention.act(attention.sr(x.mT.unflatten(2, size))), pooled_size)
    pooled = attention.norm(pooled.flatten(2).mT)
    far_k, far_v = attention.kv(pooled).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    length = (cells.sum(1, keepdim=True) + len(pooled[0])).log()
    scaled = (q + attention.query_embedding) * F.softplus(attention.temperature) * length
    near = (scaled[..., None, :] @ near_k).squeeze(3) + attention.relative_pos_bias_local[:, None]
    bias = attention.cpb(size, pooled_size, pooled_size)
    far = scaled @ F.normalize(far_k, dim=-1).mT + bias
    weights = torch.cat((near.masked_fill(cells == 0, float("-inf")), far), -1).softmax(-1)
    near, far = weights.split((window**2, len(pooled[0])), -1)
    near = near + q @ attention.learnable_tokens + attention.learnable_bias
    mixed = (near[..., None, :] @ near_v.mT).squeeze(3) + far @ far_v
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def plain_varied(module: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    """1x1 convolutions, keys and values sampled one after the other, logits written out; maps that windows tile."""
    heads, (h, w), (rows, columns) = module.num_heads, module.window, size
    counts = (rows // h, columns // w)
    grid = x.mT.reshape(*x.mT.shape[:2], *size)

    def conv(layer: nn.Linear, maps: Tensor) -> Tensor:
        return F.conv2d(maps, layer.weight[:, :, None, None], layer.bias)

    mean = F.leaky_relu(F.avg_pool2d(grid, module.window))
    offsets, scales = (
        conv(layer, mean).reshape(-1, 2, counts[0], 1, counts[1], 1)
        for layer in (module.sampling_offsets, module.sampling_scales)
    )
    offsets = torch.stack((offsets[:, 0] / counts[1], offsets[:, 1] / counts[0]), 1)
    sides = [torch.linspace(-1, 1, side) for side in (columns, rows)]
    steps = [(torch.arange(n) - (n - 1) / 2) * (2 / (side - 1)) for n, side in ((w, columns), (h, rows))]
    base = torch.stack(torch.meshgrid(*sides, indexing="xy")).view(2, counts[0], h, counts[1], w)
    inside = torch.stack(torch.meshgrid(*steps, indexing="xy")).view(2, 1, h, 1, w)
    places = (base + inside * scales + offsets).permute(0, 2, 3, 4, 5, 1).reshape(-1, *size, 2)
    qkv = conv(module.qkv, grid).unflatten(1, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    q, k, v = qkv.chunk(3)
    k, v = (F.grid_sample(part, places, padding_mode="zeros", align_corners=True) for part in (k, v))

    def cut(maps: Tensor) -> Tensor:
        maps = maps.reshape(len(x), heads, -1, counts[0], h, counts[1], w)
        return maps.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, heads, h * w, maps.shape[2])

    q, k, v = cut(q), cut(k), cut(v)
    logits = q @ k.mT * module.scale + relative_position_bias(module.relative_position_bias_table, module.index)
    mixed = (logits.softmax(-1) @ v).view(len(x), *counts, heads, h, w, -1).permute(0, 3, 6, 1, 4, 2, 5)
    return conv(module.proj, mixed.reshape(len(x), -1, *size)).flatten(2).mT
