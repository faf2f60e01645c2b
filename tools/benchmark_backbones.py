"""Backbones of ours: their operators against the authors' formulation, and whole models beside Swin-T.

    python tools/benchmark_backbones.py --write                           operators; their table of docs/backbones.md
    python tools/benchmark_backbones.py --only LSNet VSA                  some of them
    python tools/benchmark_backbones.py --models --no-operators --write   whole models, and theirs: minutes on a CPU

The authors' formulation is written here from the papers, step by step as their codes take them, with the same weights;
that both sides compute the same is checked first. A training step of an operator is forward and backward. With one
thread, which is the default, it is the processor's time that counts.

A whole model is held against Swin-T by time, by the memory of a training step, and by multiply-adds: `times its share`
is how many times longer it takes than Swin-T would for as many multiply-adds; torch counts none for Fourier transforms.
Memory is what torch allocates at once in a step, on top of the model.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from attention_plain_near import plain_aggregated, plain_neighborhood, plain_routing, plain_varied
from benchmarking import allocated_mib, alternate, machine, ratio, write
from torch import Tensor, nn
from torch.nn import functional as F

import vistrain.backbones  # noqa: F401 - registers
from vistrain.attention.aggregated import AggregatedAttention
from vistrain.attention.bilevel_routing import BiLevelRoutingAttention
from vistrain.attention.neighborhood import NeighborhoodAttention
from vistrain.attention.varied_size_window import VariedSizeWindowAttention
from vistrain.backbones.affnet import AdaptiveFrequencyFilter
from vistrain.backbones.attnet import ATConv
from vistrain.backbones.cswin import CSWinBlock
from vistrain.backbones.favit import FactorizationAttention, WindowedKeys
from vistrain.backbones.lsnet import LSConv
from vistrain.backbones.spartan import CMixer
from vistrain.run.profile import counted

NEIGHBOUR = "swin_tiny_patch4_window7_224"
# Of each family the variant nearest to Swin-T's size
MODELS = (
    "cswin_tiny", "biformer_small", "dinat_tiny", "dinat_s_tiny", "transnext_tiny", "hornet_tiny_7x7", "hornet_tiny_gf",
    "casvit_t", "lsnet_b", "ffnet_2", "attnet_t2", "vitaev2_vsa_small", "swin_vsa_tiny", "l2vit_tiny", "ravlt_s",
    "favit_b2", "spartan_s", "unireplknet_t", "affnet", "ppma_small", "sgformer_s", "moat0", "s2aformer",
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
KINDS = ("forward", "training step")
LEAST = 1.5  # seconds that both sides of a ratio are run for: a small map takes a thousandth


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


def plain_lsconv(module: LSConv, x: Tensor) -> Tensor:
    """Nine copies of the neighbours, times kernels that are repeated for each group of channels."""
    kernels = module.lkp(x).unflatten(1, (-1, 9)).flatten(3)  # [B, G, 9, N]
    cells = F.unfold(x, 3, padding=1).unflatten(1, (x.shape[1], 9))
    mixed = (cells * kernels.repeat(1, x.shape[1] // kernels.shape[1], 1, 1)).sum(2)
    return module.bn(mixed.unflatten(2, x.shape[2:])) + x


def plain_atconv(module: ATConv, x: Tensor) -> Tensor:
    """The whole map projected, then pooled."""
    side = module.kernel_size
    kernels = module.kernel_gen(F.gelu(F.adaptive_avg_pool1d(module.kernel_proj(x).flatten(2), side**2)))
    kernels = kernels - module.difference_control.sigmoid()[:, None] * kernels.mean(-1, keepdim=True)
    moved = module.x_proj(x).reshape(1, -1, *x.shape[2:])
    moved = F.conv2d(moved, kernels.reshape(-1, 1, side, side), padding=side // 2, groups=moved.shape[1])
    return module.proj(moved.view_as(x))


def plain_filter(module: AdaptiveFrequencyFilter, x: Tensor) -> Tensor:
    """Four einsums a layer on the real and imaginary parts."""
    spectrum = torch.fft.rfft2(x, norm="ortho")
    real, imaginary = (part.unflatten(1, (module.w1.shape[1], -1)) for part in (spectrum.real, spectrum.imag))
    for weight, bias, act in ((module.w1, module.b1, F.silu), (module.w2, module.b2, lambda y: y)):
        products = [[torch.einsum("bkihw,kio->bkohw", part, w) for w in weight] for part in (real, imaginary)]
        real, imaginary = (
            act(products[0][0] - products[1][1] + bias[0, :, :, None, None]),
            act(products[1][0] + products[0][1] + bias[1, :, :, None, None]),
        )
    mask = torch.view_as_complex(F.softshrink(torch.stack((real, imaginary), -1), module.threshold))
    return torch.fft.irfft2(spectrum * mask.flatten(1, 2), x.shape[2:], norm="ortho") + x


def plain_windowed(keys: WindowedKeys, x: Tensor) -> tuple[Tensor, Tensor]:
    """Windows copied out, and pooled adaptively."""
    extent = keys.dilation * 6 + 1
    x = F.pad(x, (0, -x.shape[3] % extent, 0, -x.shape[2] % extent), mode="reflect")
    batch, heads = len(x), keys.num_heads
    windows = F.unfold(x, 7, keys.dilation, stride=extent).view(
        batch, heads, -1, 49, x.shape[2] * x.shape[3] // extent**2
    )
    windows = windows.permute(0, 1, 3, 4, 2).contiguous()
    pooled = F.adaptive_avg_pool2d(windows.flatten(3), (49, windows.shape[4]))
    k, v = keys.kv(keys.fc(pooled)).chunk(2, -1)
    grid = v.transpose(2, 3).reshape(batch, -1, 7, 7)
    return k, v + keys.local(grid).view(batch, heads, -1, 49).transpose(2, 3)


def plain_factorization(module: FactorizationAttention, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits written out for each group."""
    first, rest = module.q(x).tensor_split([module.groups[0]], -1)
    shares = [channels // module.num_heads for channels in module.groups[1:]]
    others = rest.unflatten(-1, (module.num_heads, -1)).transpose(1, 2).split(shares, -1)
    grid = x.mT.unflatten(2, size)
    maps = module.kv(grid[:, module.groups[0] :]).split(module.groups[1:], 1)
    parts = [(first[:, None], *module.pooled(grid[:, : module.groups[0]]))]
    parts += [(q, *plain_windowed(keys, of)) for q, keys, of in zip(others, module.windowed, maps, strict=True)]
    out = [(q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v for q, k, v in parts]
    return module.proj(torch.cat([part.transpose(1, 2).flatten(2) for part in out], -1))


def plain_cmixer(module: CMixer, x: Tensor) -> Tensor:
    """Pairs of channels turned as complex numbers, last in copies of the maps."""
    largest = x.argmax(1, keepdim=True)
    theta, weight = F.gelu(module.theta(x)), module.proj(x)
    feature = weight * theta + weight.gather(1, largest) * theta.gather(1, largest)
    pairs = feature.permute(0, 2, 3, 1).unflatten(3, (-1, 2)).contiguous()
    turned = torch.view_as_real(torch.view_as_complex(module.complex) * torch.view_as_complex(pairs))
    turned = turned.flatten(3).permute(0, 3, 1, 2).contiguous()
    return module.proj_out(module.attn(F.gelu(module.conv(turned))))


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
    maps: list[tuple[str, nn.Module, Callable[..., Tensor], int, int]] = []
    for i, dim in enumerate((128, 256, 384)):
        maps.append((f"LSNet-B stage {i + 1}", LSConv(dim), plain_lsconv, dim, 28 // 2**i))
    for i, dim in enumerate((64, 128, 288, 512)):
        maps.append((f"AttNet-T2 stage {i + 1}", ATConv(dim), plain_atconv, dim, 56 // 2**i))
    for i, dim in enumerate((128, 256, 320)):
        maps.append((f"AFFNet stage {i + 2}", AdaptiveFrequencyFilter(dim), plain_filter, dim, 28 // 2**i))
    for i, (dim, expand) in enumerate(((32, 4), (64, 4), (128, 2), (256, 2))):
        maps.append((f"SpaRTAN-S stage {i + 1}", CMixer(dim, expand, i > 1), plain_cmixer, dim, 64 // 2**i))
    for name, module, plain, dim, side in maps:
        x = torch.randn(batch, dim, side, side)
        found[name] = (module.eval(), module, partial(plain, module), x)
    tokens: list[tuple[str, nn.Module, Callable[..., Tensor], int, int]] = []
    for i, dim in enumerate((64, 128, 256, 512)):
        groups, varied = FactorizationAttention(dim, 2**i, 8 // 2**i), VariedSizeWindowAttention(dim, dim // 32)
        tokens.append((f"FaViT-B2 stage {i + 1}", groups, plain_factorization, dim, 56 // 2**i))
        tokens.append((f"VSA stage {i + 1}", varied, plain_varied, dim, 56 // 2**i))
    for name, module, plain, dim, side in tokens:
        x, size = torch.randn(batch, side * side, dim), (side, side)
        found[name] = (module, partial(module, size=size), partial(plain, module, size=size), x)
    return found


def measure_operators(batch: int, repeats: int, only: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Ratios plain / ours, of forward, training step, and a training step's memory: above 1 ours is better."""
    results = {}
    for name, (module, ours, plain, x) in operators(batch).items():
        if only and not name.startswith(tuple(only)):
            continue
        with torch.no_grad():
            torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=1e-4)

        def step(compute: Callable[[Tensor], Tensor], module: nn.Module = module, x: Tensor = x) -> None:
            module.zero_grad()
            compute(x.detach().requires_grad_()).square().sum().backward()

        def infer(compute: Callable[[Tensor], Tensor], x: Tensor = x) -> None:
            with torch.no_grad():
                compute(x)

        results[name] = {}
        for kind, run in zip(KINDS, (infer, step), strict=True):
            sides = {"ours": partial(run, ours), "plain": partial(run, plain)}
            once = alternate(sides, 1, clock=clock())
            enough = max(repeats, math.ceil(LEAST / sum(map(sum, once.values()))))
            results[name][kind] = ratio(alternate(sides, enough, 0, clock()), "plain", "ours")
        needed = [allocated_mib(partial(step, compute)) for compute in (plain, ours)]
        results[name]["memory"] = needed[0] / needed[1]
        print(f"{name:28}" + "".join(f"  {kind} {times:.2f}x" for kind, times in results[name].items()), flush=True)
    return results


def operators_table(found: dict[str, dict[str, float]]) -> str:
    """Of each family the least and the largest ratio over its stages, as Markdown."""
    lines = ["| operator | forward | training step | memory of a step |\n|---|---|---|---|\n"]
    families: dict[str, list[dict[str, float]]] = {}
    for name, row in found.items():
        families.setdefault(name.partition(" stage ")[0], []).append(row)
    for family, rows in families.items():
        ranges = [(min(row[kind] for row in rows), max(row[kind] for row in rows)) for kind in (*KINDS, "memory")]
        cells = " | ".join(f"{low:.2f} to {high:.2f}" for low, high in ranges)
        lines.append(f"| {family} | {cells} |\n")
    return "".join(lines)


# --- whole models ----------------------------------------------------------------------------------------------------


def measure_models(names: list[str], batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Images per second of forward and training step, and the memory of a step; the last row is Swin-T's.

    Swin-T takes its turn after each run of each model: what else the machine does hits both alike, and the median of
    their ratios is what counts. Speeds are these ratios times Swin-T's median.
    """
    results: dict[str, dict[str, float]] = {}
    images = torch.randn(batch, 3, 224, 224)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        model.train()(images).square().mean().backward()

    def infer(model: nn.Module) -> None:
        with torch.no_grad():
            model.eval()(images)

    swin, of_swin = timm.create_model(NEIGHBOUR), {kind: [] for kind in KINDS}
    for name in names:
        model = timm.create_model(name)
        results[name] = row = {"gmacs": counted(name, 224)[1], "peak_mb": allocated_mib(partial(step, model))}
        for kind, run in zip(KINDS, (infer, step), strict=True):
            times = alternate({name: partial(run, model), NEIGHBOUR: partial(run, swin)}, repeats, 0, clock())
            row[f"{kind} / Swin-T's"] = ratio(times, NEIGHBOUR, name)
            of_swin[kind] += times[NEIGHBOUR]
        print(f"{name:20}" + "".join(f"  {key} {value:.2f}" for key, value in row.items()), flush=True)
    results[NEIGHBOUR] = {"gmacs": counted(NEIGHBOUR, 224)[1], "peak_mb": allocated_mib(partial(step, swin))}
    for row in results.values():
        for kind, seconds in of_swin.items():
            speed = row.setdefault(f"{kind} / Swin-T's", 1.0)
            row[f"{kind} images/s"] = speed * batch / statistics.median(seconds)
            row[f"{kind}, times its share"] = results[NEIGHBOUR]["gmacs"] / row["gmacs"] / speed
    return results


def models_table(found: dict[str, dict[str, float]]) -> str:
    """As Markdown."""
    columns = [
        "multiply-adds, 10^9",
        "forward, images/s",
        "share",
        "training, images/s",
        "share",
        "memory of a step, MiB",
    ]
    lines = [f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}\n"]
    for name, row in found.items():
        speeds = [x for k in KINDS for x in (f"{row[f'{k} images/s']:.1f}", f"{row[f'{k}, times its share']:.2f}")]
        lines.append(f"| `{name}` | {row['gmacs']:.2f} | {' | '.join(speeds)} | {row['peak_mb']:.0f} |\n")
    return "".join(lines)


def write_table(kind: str, table: str, batch: int) -> None:
    """Replaces the table of docs/backbones.md between the marks of this kind."""
    where = machine()
    threads = "one thread, processor time" if where["threads"] == 1 else f"{where['threads']} threads"
    said = f"{where['cpu']}, float32, {threads}, batches of {batch}, torch {where['torch']}, {where['date']}.\n\n"
    page, begin, end = (
        PAGE.read_text(),
        f"<!-- {kind}: written by tools/benchmark_backbones.py -->\n",
        f"<!-- end of {kind} -->",
    )
    before, rest = page.split(begin)
    PAGE.write_text(before + begin + said + table + end + rest.split(end, 1)[1])


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15, help="of operators")
    parser.add_argument("--model-repeats", type=int, default=3, help="of whole models")
    parser.add_argument("--names", nargs="+", default=MODELS, metavar="NAME", help="which whole models")
    parser.add_argument("--only", nargs="+", metavar="OPERATOR", help="operators whose names begin so")
    parser.add_argument("--no-operators", action="store_true", help="leave out the operators")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", action="store_true", help=f"whole models beside {NEIGHBOUR}")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/backbones.md")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    content: dict[str, Any] = {}
    bars: dict[str, float] = {}
    title = "Operators: authors' formulation / ours, seconds"
    if not arguments.no_operators:
        ratios = measure_operators(arguments.batch, arguments.repeats, arguments.only)
        content["operators, plain / ours"] = ratios
        bars = {f"{name}, {kind}": row[kind] for name, row in ratios.items() for kind in KINDS}
        if arguments.write:
            write_table("operators", operators_table(ratios), arguments.batch)
    if arguments.models:
        content["models"] = found = measure_models(arguments.names, arguments.batch, arguments.model_repeats)
        if arguments.write:
            write_table("models", models_table(found), arguments.batch)
        if not bars:
            title = "Whole models: images per second, ours / Swin-T's"
            ends = " / Swin-T's"
            bars = {f"{n}, {k.removesuffix(ends)}": v for n, row in found.items() for k, v in row.items() if ends in k}
    if bars:
        write(arguments.output, "backbones", content, bars, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
