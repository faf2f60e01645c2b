"""Attention operators by the plain computation of their papers or authors' codes: what ours are measured against.

Each takes an operator of ours, whose weights it uses, tokens `[B, N, C]` and (H, W), and gives `[B, N, C]`: step by
step, weights of pairs of tokens written out, neighbours gathered, distances looked up pair by pair, as the description
of the operator says. `PLAIN` says which operator is measured against which. Tests hold both sides equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from attention_plain_near import (
    plain_aggregated,
    plain_halo,
    plain_neighborhood,
    plain_routing,
    plain_varied,
    plain_window,
)
from torch import Tensor
from torch.nn import functional as F

from vistrain import attention as of
from vistrain.attention.base import AttentionOperator
from vistrain.layers.windows import relative_position_bias, window_merge, window_partition

Size = tuple[int, ...]


def heads_of(operator: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[B, heads, N, d]`."""
    q, k, v = operator.qkv(x).unflatten(-1, (3, operator.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def joined(x: Tensor) -> Tensor:
    """`[B, heads, N, d]` -> `[B, N, C]`."""
    return x.transpose(1, 2).flatten(2)


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention with its weights written out."""
    return (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def by_offset(table: Tensor, grid: Size, size: Size) -> Tensor:
    """`[heads, 2h - 1, 2w - 1]` -> `[heads, N, N]`, looked up for the offset i - j of each pair of cells."""
    cells = torch.cartesian_prod(*(torch.arange(side) for side in size))
    step = cells[:, None] - cells
    rows, columns = ((step[..., a] + grid[a] - 1).clamp(0, 2 * grid[a] - 2) for a in (0, 1))
    return table[:, rows, columns]


def turned(x: Tensor, operator: Any, size: Size, tokens: Tensor) -> Tensor:
    """`[B, heads, N, d]` by rotary positions: pairs of channels as complex numbers."""
    angles = operator.angles(size, tokens)[:, ::2]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


# --- all pairs of tokens ---------------------------------------------------------------------------------------------


def plain_softmax(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Logits, softmax, sums (arXiv 1706.03762, equation 1)."""
    return operator.proj(joined(attended(*heads_of(operator, x))))


def plain_cosine(operator: Any, x: Tensor, size: Size) -> Tensor:
    """TransNeXt, sections 3.2 and 3.3."""
    q, k, v = heads_of(operator, x)
    q = (F.normalize(q, dim=-1) + operator.query_embedding) * F.softplus(operator.temperature) * math.log(x.shape[1])
    grid = (operator.cpb.grid, operator.cpb.grid)
    return operator.proj(joined((q @ F.normalize(k, dim=-1).mT + operator.cpb(size, size, grid)).softmax(-1) @ v))


def plain_gated_rotary(operator: Any, x: Tensor, size: Size) -> Tensor:
    """RALA's softmax form."""
    q, k, v, gate = operator.qkvo(x).chunk(4, -1)
    position = operator.lepe(v.mT.unflatten(2, size)).flatten(2).mT
    q, k, v = (part.unflatten(-1, (operator.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    q, k = (turned(part, operator, size, x) for part in (q, k))
    return operator.proj((joined(attended(q, k, v)) + position) * gate)


def plain_gaussian_mixture(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Powers of `exp(-distance^2 / 2)` for each Gaussian, head and pair."""
    q, k, v = heads_of(operator, x)
    return operator.proj(joined((q @ k.mT * operator.scale * mixture(operator.mask, size)).softmax(-1) @ v))


def mixture(mask: Any, size: Size) -> Tensor:
    """`[heads, N, N]`."""
    cells = torch.cartesian_prod(*(torch.arange(side) for side in size))
    g = torch.exp(-(cells[:, None] - cells).square().sum(-1).float() / 2)
    return (mask.alpha * g ** (1 / (mask.sigma.square() + 1e-5))).sum(0)


def plain_landmark(operator: Any, x: Tensor, size: Size) -> Tensor:
    """A softmax over all tokens of the own window and all landmarks, one in each window, and their product."""
    side = operator.window
    windows = window_partition(x.unflatten(1, size), side).unflatten(0, (len(x), -1))
    (q, k, v), (_, marks, _) = (
        heads_of(operator, windows.flatten(1, 2)),
        heads_of(operator, windows.mean(2) + operator.landmark),
    )
    count, length = windows.shape[1:3]
    logits = q @ k.mT * operator.scale
    window = torch.arange(count).repeat_interleave(length)
    own = window[:, None] == window
    far = (q @ marks.mT * operator.scale).masked_fill(window[:, None] == torch.arange(count), float("-inf"))
    near, far = torch.cat((logits.masked_fill(~own, float("-inf")), far), -1).softmax(-1).tensor_split([x.shape[1]], -1)
    inside = logits.unflatten(-1, (count, length)).softmax(-1).flatten(3)
    out = operator.proj(joined((near + inside * far.repeat_interleave(length, -1)) @ v))
    return window_merge(out.unflatten(1, (count, length)).flatten(0, 1), side, (size[0], size[1])).flatten(1, 2)


def plain_relative_convolution(operator: Any, x: Tensor, size: Size) -> Tensor:
    """CoAtNet's equation 3, the kernel looked up for each pair."""
    table = operator.kernel.T.unflatten(1, (2 * operator.grid[0] - 1, -1))
    return operator.proj(joined(attended(*heads_of(operator, x), by_offset(table, operator.grid, size))))


def plain_urpe(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Bias and factor looked up for each pair."""
    q, k, v = heads_of(operator, x)
    shape = (2 * operator.grid[0] - 1, -1)
    bias, factor = (
        by_offset(table.T.unflatten(1, shape), operator.grid, size) for table in (operator.rp_bias, operator.ur_rp_bias)
    )
    return operator.proj(joined(((q @ k.mT * operator.scale + bias).softmax(-1) * factor) @ v))


def plain_sea(operator: Any, x: Tensor, size: Size) -> Tensor:
    """A mask of all pairs, from the groups with the largest estimates; softmax, and the mean of all values."""
    q, k, v = heads_of(operator, x)
    scores = operator.scores(q, k, v)
    best = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(operator.top, -1).indices, True)
    seen = best[..., torch.arange(x.shape[1]) * operator.width // x.shape[1]]
    near = (q @ k.mT * operator.scale).masked_fill(~seen, float("-inf")).softmax(-1) @ v
    gate = torch.sigmoid(operator.gate(q))
    return operator.proj(joined(gate * near + (1 - gate) * v.mean(2, keepdim=True)))


def plain_softplus(operator: Any, x: Tensor, size: Size) -> Tensor:
    """LSSAR: softplus of scaled cosines, divided by their sum, `relu(n A - 1)^p`, divided by its sum."""
    q, k, v = heads_of(operator, x)
    tokens = x.shape[1]
    logits = math.log(q.shape[-1]) * math.log(tokens) * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT)
    weights = F.softplus(logits)
    weights = (tokens * weights / weights.sum(-1, keepdim=True) - 1).relu()
    weights = (weights / weights.amax(-1, keepdim=True)) ** operator.power
    return operator.proj(joined(weights / weights.sum(-1, keepdim=True) @ v))


def plain_strip(operator: Any, x: Tensor, size: Size) -> Tensor:
    """S2AFormer, of maps that `sr_ratio` divides."""
    source = x if operator.sr is None else operator.norm(operator.sr(x.mT.unflatten(2, size)).flatten(2).mT)
    parts = (operator.q(x), operator.k(source), operator.v(source))
    return operator.proj(joined(attended(*(p.unflatten(-1, (operator.num_heads, -1)).transpose(1, 2) for p in parts))))


def plain_hip(operator: Any, x: Tensor, size: Size) -> Tensor:
    """The blocks that the search finds as a mask of all pairs; of maps that blocks divide."""
    q, k, v = heads_of(operator, x)
    cut = (part.unflatten(2, (-1, operator.block)) for part in (q, k))
    chosen = operator.search(*cut, x.shape[1])
    blocks = chosen.shape[2]
    seen = torch.zeros(*chosen.shape[:3], blocks, dtype=torch.bool).scatter(-1, chosen, True)
    seen = seen.repeat_interleave(operator.block, 2).repeat_interleave(operator.block, 3)
    return operator.proj(joined((q @ k.mT * operator.scale).masked_fill(~seen, float("-inf")).softmax(-1) @ v))


def plain_lightning(operator: Any, x: Tensor, size: Size) -> Tensor:
    """`[(Q K^T) * M] V` of all pairs, as the authors' reference in torch."""
    q, k, v = (
        F.silu(layer(x)).unflatten(-1, (operator.num_heads, -1)).transpose(1, 2)
        for layer in (operator.q_proj, operator.k_proj, operator.v_proj)
    )
    since = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    decay = torch.exp(-operator.slopes[:, None, None] * since.abs())
    decay = decay if operator.bidirectional else decay.tril()
    out = joined((q @ k.mT * decay) @ v)
    return operator.o_proj(operator.norm(out) * torch.sigmoid(operator.output_gate(x)))


def plain_extractor(operator: Any, x: Tensor, size: Size) -> Tensor:
    """The kind HE: a weight for each pair of tokens and channel, by its lag; of maps no larger than the grid."""
    tokens = x.shape[1]
    lag = torch.arange(tokens)[:, None] - torch.arange(tokens) + operator.length - 1
    sums = torch.einsum("tjc,bjc->btc", operator.weight[lag], x)
    return operator.proj(sums / tokens**0.5 * operator.adjust(x))


# --- fewer ------------------------------------------------------------------------------------------------------------


def plain_aaren(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Token by token: the largest logit so far, the sum of weights, and of weighted values."""
    k, v = operator.qkv(x).unflatten(-1, (2, operator.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = (k * operator.to_q(operator.query).unflatten(0, (operator.num_heads, 1, -1))).sum(-1) * operator.scale
    ahead = operator.num_heads - operator.backwards

    def scan(logits: Tensor, v: Tensor) -> Tensor:
        largest, total, summed, out = logits[..., 0], torch.ones_like(logits[..., 0]), v[..., 0, :], [v[..., 0, :]]
        for logit, value in zip(logits.unbind(-1)[1:], v.unbind(-2)[1:], strict=True):
            now = torch.maximum(largest, logit)
            old, new = (largest - now).exp(), (logit - now).exp()
            total, summed, largest = total * old + new, summed * old[..., None] + value * new[..., None], now
            out.append(summed / total[..., None])
        return torch.stack(out, -2)

    both = [scan(logits[:, :ahead], v[:, :ahead])]
    if operator.backwards:
        both.append(scan(logits[:, ahead:].flip(2), v[:, ahead:].flip(2)).flip(2))
    return operator.proj(joined(torch.cat(both, 1)))


def plain_agent(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Both steps with their weights written out; biases interpolated."""
    q, k, v = operator.qkv(x).chunk(3, -1)
    detail = operator.dwc(v.mT.unflatten(2, size)).flatten(2).mT
    return operator.proj(through_agents(operator, q, k, v, size, size) + detail)


def plain_reduced_agent(operator: Any, x: Tensor, size: Size) -> Tensor:
    """The same for keys and values of a reduced map."""
    reduced = operator.sr(x.mT.unflatten(2, size))
    k, v = operator.kv(operator.norm(reduced.flatten(2).mT)).chunk(2, -1)
    wide = F.interpolate(v.mT.unflatten(2, reduced.shape[2:]), size, mode="bilinear")
    out = through_agents(operator, operator.q(x), k, v, size, tuple(reduced.shape[2:]))
    return operator.proj(out + operator.dwc(wide).flatten(2).mT)


def through_agents(operator: Any, q: Tensor, k: Tensor, v: Tensor, size: Size, keys: Size) -> Tensor:
    """`[B, N, C]`."""
    pooled = F.adaptive_avg_pool2d(q.mT.unflatten(2, size), operator.side).flatten(2).mT
    q, k, v, agents = (part.unflatten(-1, (operator.num_heads, -1)).transpose(1, 2) for part in (q, k, v, pooled))
    gathered = attended(agents, k, v, operator.key_bias(keys))
    return joined(attended(q, agents, gathered, operator.query_bias(size)))


def plain_axial(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Lines of each axis brought into the batch, and results added."""
    grid, total = x.unflatten(1, size), torch.zeros_like(x)
    for axis, line in enumerate(operator.lines, 1):
        lines = grid.transpose(axis, -2).contiguous()
        flat = lines.flatten(0, -3)
        k, v = line.to_kv(flat).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (line.num_heads, -1)).transpose(1, 2) for part in (line.to_q(flat), k, v))
        out = line.to_out(joined(attended(q, k, v))).view_as(lines).transpose(axis, -2)
        total = total + out.flatten(1, len(size))
    return total


def plain_combiner(operator: Any, x: Tensor, size: Size) -> Tensor:
    """The pattern `fixed`: one softmax of direct logits and of those of summaries; of maps that blocks divide."""
    block = operator.block or math.ceil(math.sqrt(x.shape[1]))
    q, k, v = (part.unflatten(2, (-1, block)) for part in heads_of(operator, x))
    q, blocks = q * operator.scale, q.shape[2]
    inside = torch.einsum("bhrd,bhrjd->bhrj", q.amax(3), k).softmax(-1)
    summary = torch.einsum("bhrj,bhrjd->bhrd", inside, v)
    direct, far = q @ k.mT, torch.einsum("bhrid,bhsd->bhris", q, k.amax(3))
    far = far.masked_fill(torch.eye(blocks, dtype=torch.bool)[:, None], float("-inf"))
    near, far = torch.cat((direct, far), -1).softmax(-1).split((block, blocks), -1)
    return operator.proj(joined((near @ v + torch.einsum("bhris,bhsd->bhrid", far, summary)).flatten(2, 3)))


def plain_gaussian_mixture_window(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Windows whose logits are multiplied by the mixture before biases are added."""
    windows = window_partition(x.unflatten(1, size), operator.window)
    q, k, v = heads_of(operator, windows)
    bias = relative_position_bias(operator.relative_position_bias_table, operator.index)
    logits = q @ k.mT * q.shape[-1] ** -0.5 * mixture(operator.mask, operator.window) + bias
    return window_merge(operator.proj(joined(logits.softmax(-1) @ v)), operator.window, size).flatten(1, 2)


def plain_hedgehog(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Feature maps and sums as einsums."""
    q, k, v = heads_of(operator, x)

    def features(x: Tensor, layer: Tensor) -> Tensor:
        projected = torch.einsum("hdf,bhnd->bhnf", layer, x)
        return torch.cat((projected.softmax(-1), (-projected).softmax(-1)), -1).clamp(min=1e-12)

    q, k = features(q, operator.map_q.layer), features(k, operator.map_k.layer)
    context = torch.einsum("bhnf,bhnd->bhfd", k, v)
    norm = torch.einsum("bhnf,bhf->bhn", q, k.sum(2))
    return operator.proj(joined(torch.einsum("bhnf,bhfd->bhnd", q, context) / norm[..., None]))


def plain_hyena(operator: Any, x: Tensor, size: Size) -> Tensor:
    """The standard form of two gates, on square maps of the grid: transforms of twice the side."""
    maps = operator.short_filter(operator.in_proj(x).mT.reshape(len(x), -1, *size))
    first, second, v = maps.chunk(3, 1)
    kernel, side = operator.filter_fn(size), 2 * size[0]
    spectrum = torch.fft.rfft2(kernel, s=(side, side)) / side
    v = v * second
    long = torch.fft.irfft2(torch.fft.rfft2(v, s=(side, side)) * spectrum, s=(side, side))[..., : size[0], : size[1]]
    out = (long + v * operator.filter_fn.bias[:, None, None]) * first
    return operator.out_proj(out.flatten(2).mT)


def plain_kernelized(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Keys' features times values and one, all features at once, through one Fourier transform."""
    q, k, v = heads_of(operator, x)

    def features(x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1) * x.shape[-1] ** 0.25
        rows = operator.weight
        return (
            torch.exp(torch.einsum("hmd,bhnd->bhnm", rows, x) - x.square().sum(-1, keepdim=True) / 2)
            * rows.shape[1] ** -0.5
        )

    q, k = features(q), features(k)
    products = torch.einsum("bhnm,bhnd->bhmdn", k, torch.cat((v, torch.ones_like(v[..., :1])), -1)).unflatten(-1, size)
    whole, lags = (2 * size[0], 2 * size[1]), []
    for side, cells in zip(size, operator.grid, strict=True):
        lags.append((cells - 1 - torch.arange(-side, side).roll(-side)).clamp(0, 2 * cells - 2))
    kernel = operator.rpe.exp()[:, lags[0][:, None], lags[1]]
    spectrum = torch.fft.rfft2(products, s=whole) * torch.fft.rfft2(kernel)[:, None, None]
    sums = torch.fft.irfft2(spectrum, s=whole)[..., : size[0], : size[1]].flatten(-2)
    mixed = torch.einsum("bhnm,bhmdn->bhnd", q, sums)
    return operator.proj(joined(mixed[..., :-1] / mixed[..., -1:]))


def plain_rank_augmented(operator: Any, x: Tensor, size: Size) -> Tensor:
    """RALA's equations 7 to 9."""
    q, k, v, gate = operator.qkvo(x).chunk(4, -1)
    position = operator.lepe(v.mT.unflatten(2, size)).flatten(2).mT
    q, k, v = (part.unflatten(-1, (operator.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    q, k, tokens = F.elu(q) + 1, F.elu(k) + 1, x.shape[1]
    share = (q.mean(2, keepdim=True) * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) * tokens
    k = k * share.mT
    norm = 1 / (q @ k.mean(2, keepdim=True).mT + 1e-6)
    context = (turned(k, operator, size, x).mT * tokens**-0.5) @ (v * tokens**-0.5)
    return operator.proj((joined(turned(q, operator, size, x) @ context * norm) + position) * gate)


def plain_clusters(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Routing: half of the heads in windows, half in clusters, whose results are scattered and averaged."""
    q, k, v = heads_of(operator, x)
    near, side = operator.local_heads, operator.window
    windows = window_partition(operator.qkv(x).unflatten(1, size), side)
    local = attended(*(part[:, :near] for part in heads_of_qkv(windows, operator.num_heads)))
    local = window_merge(joined(local), side, (size[0], size[1])).flatten(1, 2)
    q, k, v = (part[:, near:] for part in (q, k, v))
    means, share = operator.routing.kmeans.means, -(-x.shape[1] // operator.clusters)
    taken = []
    for part in (q, k):
        near_means = torch.einsum("bhnd,hcd->bhcn", F.normalize(part, dim=-1), means)
        index = near_means.topk(share, -1).indices.flatten(2)
        taken.append(index[..., None].expand(-1, -1, -1, q.shape[-1]))
    chosen = ((q, taken[0]), (k, taken[1]), (v, taken[1]))
    of_clusters = (part.gather(2, index).unflatten(2, (-1, share)) for part, index in chosen)
    out = attended(*of_clusters).flatten(2, 3)
    total = torch.zeros_like(q).scatter_add(2, taken[0], out)
    count = torch.zeros_like(q).scatter_add(2, taken[0], torch.ones_like(out))
    return operator.proj(torch.cat((local, joined(total / (count + 1e-5))), -1))


def heads_of_qkv(qkv: Tensor, heads: int) -> Tensor:
    """`[n, L, 3C]` -> `[3, n, heads, L, d]`."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def plain_sgconv(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Both directions padded to twice the tokens, added, and multiplied as spectra."""
    pieces, last, tokens = [], len(operator.kernel_list) - 1, x.shape[1]
    for index, weight in enumerate(operator.kernel_list):
        wide = F.interpolate(weight, scale_factor=float(2 ** max(0, index - 1)), mode="linear")
        pieces.append(wide * operator.multiplier ** (last - index))
    kernel = (torch.cat(pieces, -1) / operator.kernel_norm)[..., : operator.length]
    ahead, back = kernel.chunk(2)
    kernel = F.pad(ahead, (0, tokens)) + F.pad(back.flip(-1), (tokens, 0))
    maps = x.mT
    spectrum = torch.einsum("bcn,hcn->bhcn", torch.fft.rfft(maps, n=2 * tokens), torch.fft.rfft(kernel, n=2 * tokens))
    y = torch.fft.irfft(spectrum, n=2 * tokens)[..., :tokens] + torch.einsum("bcn,hc->bhcn", maps, operator.D)
    return operator.output_linear(F.gelu(y.flatten(1, 2)).mT)


def plain_softmax_free(operator: Any, x: Tensor, size: Size) -> Tensor:
    """SOFT: Newton's steps, and gradients through all of them."""
    q, v = (layer(x).unflatten(-1, (operator.num_heads, -1)).transpose(1, 2) for layer in (operator.q, operator.v))
    q = q * q.shape[-1] ** -0.25
    marks = operator.landmarks(q.mT.flatten(0, 1).unflatten(-1, size)).flatten(2).mT
    marks = F.gelu(operator.norm(marks)).unflatten(0, q.shape[:2])

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :] - 2 * (a @ b.mT)
        return torch.exp(-distance / 2)

    outer, inner = kernel(q, marks), kernel(marks, marks)
    inner = inner + 0.01 * torch.eye(inner.shape[-1])
    found = 1.8 / inner.abs().sum(-1).amax(-1)[..., None, None].detach() ** 2 * inner
    for _ in range(20):
        found = 2 * found - found @ inner @ found
    maps = v.permute(0, 3, 1, 2).flatten(0, 1).unflatten(2, size)
    detail = operator.conv(maps).flatten(2).unflatten(0, (len(x), -1)).permute(0, 2, 3, 1)
    return operator.proj(joined(outer @ found @ (outer.mT @ v) + detail))


def plain_transnormer(operator: Any, x: Tensor, size: Size) -> Tensor:
    """Angles of each token, head and channel; products as einsums."""
    q, k, v = heads_of(operator, x)
    places = torch.cartesian_prod(*(torch.arange(side) for side in size)).view(x.shape[1], -1)
    axis = torch.arange(q.shape[-1]) % len(size)
    angles = places[:, axis] * operator.theta[:, None]
    q, k = (torch.cat((part * angles.cos(), part * angles.sin()), -1) for part in (1 + F.elu(q), 1 + F.elu(k)))
    context = torch.einsum("bhnf,bhnd->bhfd", k, v) / x.shape[1]
    return operator.proj(joined(operator.norm(torch.einsum("bhnf,bhfd->bhnd", q, context))))


# Operators, and sides of the maps on which the benchmark holds both against each other: smaller for all pairs
PLAIN: dict[type[AttentionOperator], tuple[Callable[..., Tensor], int]] = {
    of.AarenAttention: (plain_aaren, 28),
    of.AgentAttention: (plain_agent, 56),
    of.AggregatedAttention: (plain_aggregated, 56),
    of.AxialAttention: (plain_axial, 56),
    of.BiLevelRoutingAttention: (plain_routing, 56),
    of.CombinerAttention: (plain_combiner, 56),
    of.CosineAttention: (plain_cosine, 28),
    of.DilatedNeighborhoodAttention: (plain_neighborhood, 56),
    of.ExtractorAttention: (plain_extractor, 28),
    of.GatedRotaryAttention: (plain_gated_rotary, 28),
    of.GaussianMixtureAttention: (plain_gaussian_mixture, 28),
    of.GaussianMixtureWindowAttention: (plain_gaussian_mixture_window, 56),
    of.HaloAttention: (plain_halo, 56),
    of.HedgehogAttention: (plain_hedgehog, 56),
    of.HiPAttention: (plain_hip, 28),
    of.HyenaAttention: (plain_hyena, 56),
    of.KernelizedAttention: (plain_kernelized, 56),
    of.LandmarkAttention: (plain_landmark, 28),
    of.LightningAttention: (plain_lightning, 28),
    of.NeighborhoodAttention: (plain_neighborhood, 56),
    of.RankAugmentedAttention: (plain_rank_augmented, 56),
    of.ReducedAgentAttention: (plain_reduced_agent, 56),
    of.RelativeConvolutionAttention: (plain_relative_convolution, 28),
    of.RoutingAttention: (plain_clusters, 56),
    of.SEAAttention: (plain_sea, 28),
    of.SGConv: (plain_sgconv, 56),
    of.ShiftedWindowAttention: (plain_window, 56),
    of.SoftmaxAttention: (plain_softmax, 28),
    of.SoftmaxFreeAttention: (plain_softmax_free, 56),
    of.SoftplusAttention: (plain_softplus, 28),
    of.StripSelfAttention: (plain_strip, 28),
    of.SubsampledAttention: (plain_softmax, 28),
    of.SwinWindowAttention: (plain_window, 56),
    of.TransNormerAttention: (plain_transnormer, 56),
    of.URPEAttention: (plain_urpe, 28),
    of.VariedSizeWindowAttention: (plain_varied, 56),
    of.WindowAttention: (plain_window, 56),
}
