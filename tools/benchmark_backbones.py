"""Backbones of ours: their operators against the authors' formulation, and whole models beside Swin-T.

    python tools/benchmark_backbones.py --output runs/benchmarks
    python tools/benchmark_backbones.py --models --output runs/benchmarks        whole models too: minutes on a CPU
    python tools/benchmark_backbones.py --models --no-operators --threads 2      whole models alone, on two cores

The authors' formulation is written here from the papers, step by step as their codes take them, with the same weights;
that both sides compute the same is checked first. A training step of an operator is forward and backward. With one
thread, which is the default, it is the processor's time that counts.

A whole model is held against Swin-T by time, by the memory of a training step, and by multiply-adds: `times its share`
is how many times longer it takes than Swin-T would for as many multiply-adds (torch counts none for HorNet's FFTs).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from benchmarking import alternate, medians, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import vistrain.backbones  # noqa: F401 - registers
from vistrain.attention.aggregated import AggregatedAttention
from vistrain.attention.bilevel_routing import BiLevelRoutingAttention
from vistrain.attention.neighborhood import NeighborhoodAttention
from vistrain.backbones.cswin import CSWinBlock

NEIGHBOUR = "swin_tiny_patch4_window7_224"
MODELS = ("cswin_tiny", "biformer_tiny", "dinat_tiny", "transnext_tiny", "hornet_tiny_7x7", "hornet_tiny_gf")


def clock() -> Callable[[], float]:
    """Processor time where one thread computes."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


# --- the authors' formulations ---------------------------------------------------------------------------------------


def stripes_of(x: Tensor, height: int, width: int) -> Tensor:
    """`[B, C, H, W]` -> `[B * N, C, h, w]`, copied."""
    batch, channels, rows, columns = x.shape
    x = x.view(batch, channels, rows // height, height, columns // width, width)
    return x.permute(0, 2, 4, 1, 3, 5).contiguous().view(-1, channels, height, width)


def plain_cswin(block: CSWinBlock, x: Tensor) -> Tensor:
    """A block that cuts q, k and v of each half of the channels one by one, and writes its logits out."""
    rows, columns = x.shape[1:3]
    qkv = block.qkv(block.norm1(x)).permute(0, 3, 1, 2).chunk(3, 1)
    parts = []
    for i, attn in enumerate(block.attns):
        h, w = attn.stripe[0] or rows, attn.stripe[1] or columns
        q, k, v = (stripes_of(t.chunk(len(block.attns), 1)[i].contiguous(), h, w) for t in qkv)
        position = attn.get_v(v)
        heads = (t.view(len(t), attn.num_heads, -1, h * w).transpose(2, 3).contiguous() for t in (q, k, v))
        one, two, three = heads
        weights = (one * one.shape[-1] ** -0.5 @ two.transpose(2, 3)).softmax(-1)
        mixed = (weights @ three).transpose(2, 3).reshape(v.shape) + position
        mixed = mixed.view(len(x), rows // h, columns // w, -1, h, w).permute(0, 1, 4, 2, 5, 3)
        parts.append(mixed.reshape(len(x), rows, columns, -1))
    x = x + block.proj(torch.cat(parts, -1))
    return x + block.mlp(block.norm2(x))


def plain_routing(attention: BiLevelRoutingAttention, x: Tensor, size: tuple[int, int]) -> Tensor:
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


def plain_neighborhood(attention: NeighborhoodAttention, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Keys and values gathered for each query, K * K copies of both, as natten's plain torch form does."""
    kernel, step = attention.kernel_size, attention.dilation
    axes = []
    for side in size:
        token = torch.arange(side)
        place, count = token // step, (side - token % step + step - 1) // step
        first = torch.minimum((place - kernel // 2).clamp(min=0), count - kernel)
        member = first[:, None] + torch.arange(kernel)
        axes.append((member * step + (token % step)[:, None], member - place[:, None] + kernel - 1))
    (rows, dy), (columns, dx) = axes
    tokens = (rows[:, None, :, None] * size[1] + columns[None, :, None, :]).flatten()
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    keys, values = (t[:, :, tokens].unflatten(2, (len(tokens) // kernel**2, kernel**2)) for t in (k, v))
    bias = attention.rpb[:, dy[:, None, :, None], dx[None, :, None, :]].flatten(3).flatten(1, 2)
    logits = ((q * attention.scale)[..., None, :] @ keys.transpose(3, 4)).squeeze(3) + bias
    mixed = (logits.softmax(-1)[..., None, :] @ values).squeeze(3)
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def plain_aggregated(attention: AggregatedAttention, x: Tensor, size: tuple[int, int]) -> Tensor:
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


# --- operators -------------------------------------------------------------------------------------------------------


def operators(
    batch: int,
) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]]:
    """By name: the module, ours and the plain formulation as functions of an input, and the input."""
    found: dict[str, Any] = {}
    for stage, (dim, heads, split) in enumerate(((64, 2, 1), (128, 4, 2), (256, 8, 7), (512, 16, None))):
        block = CSWinBlock(dim, heads, split)
        side = 56 // 2**stage
        x = torch.randn(batch, side, side, dim)
        found[f"CSWin-T stage {stage + 1}"] = (block, block, lambda x, b=block: plain_cswin(b, x), x)
    for stage, (dim, topk) in enumerate(((64, 1), (128, 4), (256, 16))):
        routed = BiLevelRoutingAttention(dim, dim // 32, topk=topk)
        size = (56 // 2**stage,) * 2
        x = torch.randn(batch, size[0] * size[1], dim)
        found[f"BiFormer-T stage {stage + 1}"] = (
            routed,
            lambda x, r=routed, s=size: r(x, s),
            lambda x, r=routed, s=size: plain_routing(r, x, s),
            x,
        )
    for stage, dim in enumerate((64, 128, 256, 512)):
        size = (56 // 2**stage,) * 2
        for dilation in (1, 8 // 2**stage) if stage < 3 else (1,):
            near = NeighborhoodAttention(dim, dim // 32, dilation=dilation)
            x = torch.randn(batch, size[0] * size[1], dim)
            name = f"DiNAT-T stage {stage + 1}" + (f", dilation {dilation}" if dilation > 1 else "")
            found[name] = (
                near,
                lambda x, n=near, s=size: n(x, s),
                lambda x, n=near, s=size: plain_neighborhood(n, x, s),
                x,
            )
    for stage, dim in enumerate((72, 144, 288)):
        side = 56 // 2**stage
        both = AggregatedAttention(dim, dim // 24, side, side, sr_ratio=8 // 2**stage)
        x = torch.randn(batch, side * side, dim)
        found[f"TransNeXt-T stage {stage + 1}"] = (
            both,
            lambda x, a=both, s=(side, side): a(x, s),
            lambda x, a=both, s=(side, side): plain_aggregated(a, x, s),
            x,
        )
    return found


def measure_operators(batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Ratios plain / ours, forward and training step: above 1 ours is faster."""
    results = {}
    for name, (module, ours, plain, x) in operators(batch).items():
        with torch.no_grad():
            torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-4)

        def step(compute: Callable[[Tensor], Tensor], module: nn.Module = module, x: Tensor = x) -> None:
            module.zero_grad()
            compute(x.detach().requires_grad_()).square().sum().backward()

        def infer(compute: Callable[[Tensor], Tensor], x: Tensor = x) -> None:
            with torch.no_grad():
                compute(x)

        results[name] = {}
        for kind, run in (("forward", infer), ("training step", step)):
            sides = {"ours": partial(run, ours), "plain": partial(run, plain)}
            seconds = medians(alternate(sides, repeats, clock=clock()))
            results[name][kind] = seconds["plain"] / seconds["ours"]
        print(f"{name:20}" + "".join(f"  {kind} {ratio:.2f}x" for kind, ratio in results[name].items()))
    return results


# --- whole models ----------------------------------------------------------------------------------------------------


def measure_models(names: list[str], batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Images per second of forward and training step, and the peak memory of a process that does a step."""
    results: dict[str, dict[str, float]] = {}
    images = torch.randn(batch, 3, 224, 224)
    neighbour = timm.create_model(NEIGHBOUR)
    swin = {"gmacs": gmacs(neighbour), "peak_mb": peak(NEIGHBOUR, batch)}
    for name in names:
        model = timm.create_model(name)

        def step(model: nn.Module) -> None:
            model.zero_grad()
            model.train()(images).square().mean().backward()

        def infer(model: nn.Module) -> None:
            with torch.no_grad():
                model.eval()(images)

        row = {"gmacs": gmacs(model), "peak_mb": peak(name, batch)}
        share = row["gmacs"] / swin["gmacs"]
        for kind, run in (("forward", infer), ("training step", step)):
            sides = {"ours": partial(run, model), "swin": partial(run, neighbour)}
            seconds = medians(alternate(sides, repeats, clock=clock()))
            row[f"{kind} images/s"] = batch / seconds["ours"]
            row[f"{kind} / Swin-T's"] = seconds["swin"] / seconds["ours"]
            row[f"{kind}, times its share"] = seconds["ours"] / seconds["swin"] / share
            swin.setdefault(f"{kind} images/s", batch / seconds["swin"])
        results[name] = row
        print(f"{name:20}" + "".join(f"  {key} {value:.2f}" for key, value in row.items()), flush=True)
    print(f"{NEIGHBOUR:20}" + "".join(f"  {key} {value:.2f}" for key, value in swin.items()))
    return {**results, NEIGHBOUR: swin}


def gmacs(model: nn.Module) -> float:
    """Multiply-adds of one image of 224 pixels, in 10^9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.randn(1, 3, 224, 224))
    return counter.get_total_flops() / 2e9


def peak(name: str, batch: int) -> float:
    """Megabytes that one training step needs at the most, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(batch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def step_memory(name: str, batch: int) -> float:
    """Megabytes of a training step above those of the model itself; Linux only."""
    model, images = timm.create_model(name), torch.randn(batch, 3, 224, 224)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    status = Path("/proc/self/status")

    def kilobytes(key: str) -> int:
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{key}:")))

    before = kilobytes("VmRSS")
    model(images).square().mean().backward()
    return (kilobytes("VmHWM") - before) / 1024


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15, help="of operators")
    parser.add_argument("--model-repeats", type=int, default=3, help="of whole models")
    parser.add_argument("--names", nargs="+", default=MODELS, metavar="NAME", help="which whole models")
    parser.add_argument("--no-operators", action="store_true", help="leave out the operators")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", action="store_true", help=f"whole models beside {NEIGHBOUR}")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--peak", metavar="NAME", help=argparse.SUPPRESS)  # a process of its own for memory
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.peak:
        print(step_memory(arguments.peak, arguments.batch))
        return 0
    content: dict[str, Any] = {}
    bars: dict[str, float] = {}
    title = "Operators: authors' formulation / ours, seconds"
    if not arguments.no_operators:
        ratios = measure_operators(arguments.batch, arguments.repeats)
        content["operators, plain / ours"] = ratios
        bars = {f"{name}, {kind}": ratio for name, row in ratios.items() for kind, ratio in row.items()}
    if arguments.models:
        content["models"] = found = measure_models(arguments.names, arguments.batch, arguments.model_repeats)
        if not bars:
            title = "Whole models: images per second, ours / Swin-T's"
            ends = " / Swin-T's"
            bars = {f"{n}, {k.removesuffix(ends)}": v for n, row in found.items() for k, v in row.items() if ends in k}
    if bars:
        write(arguments.output, "backbones", content, bars, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
