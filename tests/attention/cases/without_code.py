"""Operators that no authors' code was there for, by their formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
from attention_contract import Case
from torch import Tensor
from torch.nn import functional as F

from vistrain.attention import (
    AarenAttention,
    CombinerAttention,
    ExtractorAttention,
    HiPAttention,
    KernelizedAttention,
    LandmarkAttention,
    RelativeConvolutionAttention,
    SEAAttention,
    SoftplusAttention,
    SubsampledAttention,
)

Size = tuple[int, ...]


def heads_of(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[heads, N, d]` of one image."""
    q, k, v = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(1, 2, 0, 3)
    return q, k, v


def of_heads(function: Any) -> Any:
    """A definition for one head `(module, h, q, k, v, size) -> [N, d]`, for a batch."""

    def definition(module: Any, x: Tensor, size: Size) -> Tensor:
        images = []
        for image in x:
            parts = heads_of(module, image)
            heads = [function(module, h, *(part[h] for part in parts), size) for h in range(module.num_heads)]
            images.append(module.proj(torch.cat(heads, -1)))
        return torch.stack(images)

    return definition


def softmax(module: Any, h: int, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
    return (q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v


def offsets(table: Tensor, grid: Size, size: Size) -> Tensor:
    """`[N, N]`: the entry of a table `[2h - 1, 2w - 1]` for the offset i - j of each pair."""
    cells = torch.cartesian_prod(*(torch.arange(side) for side in size))
    step = cells[:, None] - cells
    rows, columns = ((step[..., a] + grid[a] - 1).clamp(0, 2 * grid[a] - 2) for a in (0, 1))
    return table[rows, columns]


def kernelized(module: Any, h: int, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
    def phi(x: Tensor) -> Tensor:
        x = x / x.norm(dim=1, keepdim=True) * x.shape[1] ** 0.25
        return (x @ module.weight[h].T - x.square().sum(1, keepdim=True) / 2).exp()

    flipped = module.rpe[h].flip(0, 1)  # b is of j - i
    weights = phi(q) @ phi(k).T * offsets(flipped, module.grid, size).exp()
    return weights / weights.sum(1, keepdim=True) @ v


def relative_convolution(module: Any, h: int, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
    table = module.kernel[:, h].unflatten(0, (2 * module.grid[0] - 1, 2 * module.grid[1] - 1))
    kernel, logits = offsets(table, module.grid, size), q @ k.T / q.shape[1] ** 0.5
    return (logits + kernel).softmax(-1) @ v if module.form == "pre" else (logits.softmax(-1) + kernel) @ v


def softplus(module: Any, h: int, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
    rows = []
    for i in range(len(q)):
        seen = i + 1 if module.causal else len(q)
        cosines = F.normalize(k[:seen], dim=1) @ F.normalize(q[i], dim=0)
        weights = F.softplus(math.log(q.shape[1]) * math.log(seen) * cosines)
        weights = weights / weights.sum()
        if module.power:
            offset = 0 if module.causal and i < 3 else 1
            weights = (weights * seen - offset).relu() ** module.power
            weights = weights / weights.sum() if weights.sum() > 0 else weights
        rows.append(weights @ v[:seen])
    return torch.stack(rows)


def spans(module: Any, i: int, size: Size) -> tuple[list[int], list[list[int]]]:
    """Tokens that token i sees directly, and the spans of the others."""
    tokens = math.prod(size)
    if module.pattern == "fixed":
        block = module.block or math.ceil(math.sqrt(tokens))
        blocks = [list(range(a, min(a + block, tokens))) for a in range(0, tokens, block)]
        return blocks[i // block], [b for b in blocks if i not in b]
    if module.pattern == "log":
        found = []
        width = 1
        while width < tokens:
            beside = (i // width) ^ 1
            found.append([j for j in range(beside * width, (beside + 1) * width) if j < tokens])
            width *= 2
        return [i], [span for span in found if span]
    row, width = i // size[1], size[1]
    columns = [[y * width + x for y in range(size[0]) if y != row] for x in range(width)]
    return list(range(row * width, (row + 1) * width)), [c for c in columns if c]


def combiner(module: Any, h: int, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
    rows, scale = [], q.shape[1] ** -0.5
    for i in range(len(q)):
        direct, far = spans(module, i, size)
        logits, values = [k[direct] @ q[i] * scale], [v[direct]]
        for span in far:
            logits.append((k[span].amax(0) @ q[i])[None] * scale)
            inside = (k[span] @ q[span].amax(0) * scale).softmax(0)
            values.append(inside[None] @ v[span])
        rows.append(torch.cat(logits).softmax(0) @ torch.cat(values))
    return torch.stack(rows)


def extractor(module: Any, x: Tensor, size: Size) -> Tensor:
    tokens = x.shape[1]
    total = torch.zeros_like(x)
    for t in range(tokens):
        seen = range(tokens) if module.bidirectional else range(t + 1)
        for j in seen:
            lag = t - j
            if module.weight is None:
                total[:, t] += x[:, j]
            elif abs(lag) < module.length:
                weight = module.weight[lag + (module.length - 1 if module.bidirectional else 0)]
                total[:, t] += x[:, j] @ weight if weight.dim() == 2 else x[:, j] * weight
        total[:, t] /= len(seen) ** 0.5
    return module.proj(total * module.adjust(x))


def sea(module: Any, x: Tensor, size: Size) -> Tensor:
    q, k, v = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    tokens = x.shape[1]
    scores = module.scores(q, k, v)
    group = torch.tensor([j * module.width // tokens for j in range(tokens)])
    out = torch.empty_like(v)
    for b in range(x.shape[0]):
        for h in range(module.num_heads):
            for i in range(tokens):
                ranked = [g for g in scores[b, h, i].argsort(descending=True).tolist() if (group == g).any()]
                seen = torch.isin(group, torch.tensor(ranked[: module.top]))
                near = (k[b, h][seen] @ q[b, h, i] * module.scale).softmax(0) @ v[b, h][seen]
                gate = torch.sigmoid(module.gate(q[b, h, i]))
                out[b, h, i] = gate * near + (1 - gate) * v[b, h].mean(0)
    return module.proj(out.transpose(1, 2).flatten(2))


def aaren(module: Any, x: Tensor, size: Size) -> Tensor:
    k, v = module.qkv(x).unflatten(-1, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q = module.to_q(module.query).unflatten(0, (module.num_heads, -1))
    out = torch.empty_like(v)
    for h in range(module.num_heads):
        logits = k[:, h] @ q[h] * module.scale
        for t in range(x.shape[1]):
            seen = slice(t, None) if h >= module.num_heads - module.backwards else slice(t + 1)
            out[:, h, t] = (logits[:, seen].softmax(1)[:, :, None] * v[:, h, seen]).sum(1)
    return module.proj(out.transpose(1, 2).flatten(2))


def hip(module: Any, h: int, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
    tokens, block, out = len(q), module.block, torch.empty_like(q)
    blocks = -(-tokens // block)
    for first in range(0, tokens, block):
        asking = q[first : first + block]
        ranges = [(a, blocks) for a in range(blocks)]
        width = 1
        while width * module.top < blocks:
            width *= 2
        ranges = [(a, min(a + width, blocks)) for a in range(0, blocks, width)]
        while width > 1:
            width //= 2
            halves = [(a, min(a + width, blocks)) for a, _ in ranges]
            halves += [(a + width, min(a + 2 * width, blocks)) for a, _ in ranges if a + width < blocks]
            middles = [(a * block + min(b * block, tokens)) // 2 for a, b in halves]
            scores = (asking @ k[middles].T).amax(0)
            ranges = [halves[i] for i in scores.argsort(descending=True)[: module.top].tolist()]
        seen = [j for a, _ in ranges for j in range(a * block, min((a + 1) * block, tokens))]
        out[first : first + block] = (asking @ k[seen].T / q.shape[1] ** 0.5).softmax(-1) @ v[seen]
    return out


def landmark(module: Any, x: Tensor, size: Size) -> Tensor:
    side, images = module.window[0], []
    cell = torch.arange(math.prod(size))
    window = (cell // size[1] // side) * size[1] + cell % size[1] // side
    names = window.unique()
    for image in x:
        marks = torch.stack([image[window == name].mean(0) for name in names]) + module.landmark
        (q, k, v), (_, mark_k, _) = heads_of(module, image), heads_of(module, marks)
        out = torch.empty_like(q)
        for h in range(module.num_heads):
            for i in range(len(image)):
                own = window == window[i]
                others = [r for r, name in enumerate(names) if name != window[i]]
                marked = mark_k[h, others] @ q[h, i] * module.scale
                if module.top is not None:
                    best = marked.argsort(descending=True)[: module.top]
                    others, marked = [others[r] for r in best], marked[best]
                joint = torch.cat((k[h, own] @ q[h, i] * module.scale, marked)).softmax(0)
                near, far = joint[: own.sum()], joint[own.sum() :]
                out[h, i] = near @ v[h, own]
                for weight, r in zip(far, others, strict=True):
                    there = window == names[r]
                    out[h, i] += weight * ((k[h, there] @ q[h, i] * module.scale).softmax(0) @ v[h, there])
        images.append(module.proj(out.transpose(0, 1).flatten(1)))
    return torch.stack(images)


SMALL = {"dim": 8, "num_heads": 2}
GRID = {**SMALL, "grid": (8, 8)}
LAGS: dict[str, Any] = {"dim": 8, "grid": (6, 6)}
FEW: tuple[Size, ...] = ((6, 6), (5, 8), (3, 2))
TILED: dict[str, Any] = {"sizes": ((8, 8), (4, 12), (4, 4)), "refused": ((7, 9), (3, 2))}
KINDS = ("SHE", "HE", "WE", "ME")
CASES = [
    Case("kernelized", KernelizedAttention, GRID, of_heads(kernelized)),
    Case("subsampled", SubsampledAttention, SMALL, of_heads(softmax)),
    Case("subsampled_near", SubsampledAttention, {**SMALL, "reach": 9}, of_heads(softmax)),
    Case("combiner_fixed", CombinerAttention, SMALL, of_heads(combiner), sizes=(*FEW, (4, 1))),
    Case("combiner_log", CombinerAttention, {**SMALL, "pattern": "log"}, of_heads(combiner), sizes=(*FEW, (8, 2))),
    Case("combiner_axial", CombinerAttention, {**SMALL, "pattern": "axial"}, of_heads(combiner), sizes=(*FEW, (1, 5))),
    *(Case(f"extractor_{kind}", ExtractorAttention, {**LAGS, "kind": kind}, extractor, sizes=FEW) for kind in KINDS),
    *(
        Case(
            f"extractor_{k}_causal",
            ExtractorAttention,
            {**LAGS, "kind": k, "bidirectional": False},
            extractor,
            sizes=FEW,
        )
        for k in KINDS
    ),
    Case("softplus", SoftplusAttention, SMALL, of_heads(softplus), sizes=FEW),
    Case("softplus_causal", SoftplusAttention, {**SMALL, "sees_later": False}, of_heads(softplus), sizes=FEW),
    Case("softplus_plain", SoftplusAttention, {**SMALL, "power": 0.0}, of_heads(softplus), sizes=FEW),
    Case("sea", SEAAttention, {**SMALL, "width": 8, "top": 3}, sea, sizes=FEW),
    Case("aaren", AarenAttention, SMALL, aaren, sizes=FEW),
    Case("aaren_causal", AarenAttention, {**SMALL, "both_ways": False}, aaren, sizes=FEW),
    Case("hip", HiPAttention, {**SMALL, "block": 4, "top": 2}, of_heads(hip), bf16=1.0),  # rounding changes its choice
    Case("relative_convolution", RelativeConvolutionAttention, GRID, of_heads(relative_convolution)),
    Case(
        "relative_convolution_post",
        RelativeConvolutionAttention,
        {**GRID, "form": "post"},
        of_heads(relative_convolution),
    ),
    Case("landmark", LandmarkAttention, {**SMALL, "window_size": 4}, landmark, **TILED),
    Case("landmark_top", LandmarkAttention, {**SMALL, "window_size": 4, "top": 1}, landmark, bf16=1.0, **TILED),
]
