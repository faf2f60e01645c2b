"""Measures everything that matters on a GPU in eight minutes, the most important first.

    python tools/gpu_check.py --output runs/gpu                       # all parts
    python tools/gpu_check.py --output runs/gpu_parts --parts deformable tuning --minutes 3
    python tools/gpu_check.py --output runs/gpu_dry --dry             # everything in small, also on a CPU

Rows are appended to `gpu_check.jsonl` as they are measured, so several runs add up; `gpu_check.md` and `gpu_check.png`
show this run's. An error, or a measurement that no time is left for, is a row, too; the exit code is 1 if there was an
error. The part `card` is always measured. Needs torch, torchvision, timm and
scipy (Triton and matplotlib are used where they are there), no data and no network.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # from a checkout that is not installed
    sys.path.insert(0, str(ROOT))

from gpu_measuring import Check, difference, markdown, picture  # noqa: E402
from gpu_networks import classifier, detector, restorer, segmenter, volume  # noqa: E402

from vistrain.devices import triton_lacks, unusable_gpu  # noqa: E402
from vistrain.layers.deformable import deformable_sampling  # noqa: E402

STRIDES = (8, 16, 32, 64)
Run = Callable[[], object]


# ---------------------------------------------------------------- the card


def rates(check: Check) -> None:
    """The rate of bf16 matrix products, 8192 cubed on random numbers, and of copies, read and written bytes counted."""
    side, length = (64, 2**12) if check.dry else (8192, 2**30)
    a, b = (torch.randn(side, side, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    check.rates["matrix"] = 2 * side**3 / (check.milliseconds(lambda: a @ b) / 1000)
    check.record("card", f"bf16 matrix product, {side} cubed", tflops=check.rates["matrix"] / 1e12)
    source = torch.randint(256, (length,), device=check.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    check.rates["memory"] = 2 * length / (check.milliseconds(lambda: target.copy_(source)) / 1000)
    check.record("card", "copy in memory", gb_per_second=check.rates["memory"] / 1e9)


# ---------------------------------------------------------------- deformable attention


class Sampling:
    """Inputs of deformable sampling as the models have them: points near their queries' own places.

    Args:
        device, dtype: of the values; points and weights are float32 at least.
        batch, image, heads, depth: images of (height, width) pixels, heads of `depth` channels.
        queries: how many, or None for one for each token.
        points: on each level.
    """

    def __init__(
        self,
        device: torch.device,
        batch: int = 2,
        image: tuple[int, int] = (800, 1333),
        heads: int = 8,
        depth: int = 32,
        queries: int | None = None,
        points: int = 4,
        levels: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(0)
        exact = torch.promote_types(dtype, torch.float32)
        self.shapes = [(-(-image[0] // s), -(-image[1] // s)) for s in STRIDES[:levels]]
        tokens = sum(h * w for h, w in self.shapes)
        extents = torch.tensor([(w, h) for h, w in self.shapes], device=device)[:, None]
        if queries is None:
            grids = [
                torch.stack(torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")[::-1], -1)
                / torch.tensor([w, h])
                for h, w in self.shapes
            ]
            centre = torch.cat([grid.flatten(0, 1) for grid in grids]).to(device)[None, :, None, None, None]
        else:
            centre = torch.rand(batch, queries, 1, 1, 1, 2, device=device)
        shape = (batch, centre.shape[1], heads, levels, points)
        offsets = 2.5 * torch.randn(*shape, 2, device=device)
        value = torch.randn(batch, tokens, heads, depth, device=device).to(dtype)
        weights = torch.randn(shape, device=device).flatten(3).softmax(-1).view(shape)
        self.inputs = [
            x.detach().requires_grad_()
            for x in (value, (centre * extents - 0.5 + offsets).to(exact), weights.to(exact))
        ]
        self.gradient = torch.randn(batch, shape[1], heads * depth, device=device).to(dtype)

    def forward(self, function: Callable[..., Tensor], core: str) -> Tensor:
        """Without gradients."""
        value, points, weights = self.inputs
        with torch.no_grad():
            return function(value, self.shapes, points, weights, core)

    def training(self, function: Callable[..., Tensor], core: str) -> list[Tensor]:
        """Samples, and the gradients of values, points and weights."""
        value, points, weights = self.inputs
        out = function(value, self.shapes, points, weights, core)
        return [out.detach(), *torch.autograd.grad(out, self.inputs, self.gradient)]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for these shapes."""
    return torch.compile(function, dynamic=False)


def deformable(check: Check) -> None:
    """The cores side by side at the encoder of 800x1333 and its decoder of 900 queries."""
    small: Mapping[str, Any] = {"batch": 1, "image": (32, 64), "heads": 2, "depth": 16} if check.dry else {}
    cores = [("grid_sample", "eager"), ("triton", "eager"), ("embedding_bag", "eager"), ("embedding_bag", "compiled")]
    cores += [("gather", "eager"), ("gather", "compiled")]
    for kind, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        for place, queries in (("encoder", None), ("decoder", 5 if check.dry else 900)):
            case = Sampling(check.device, queries=queries, dtype=dtype, **small)
            reference: list[Tensor] = []
            base: dict[str, float] = {}
            for core, how in cores:
                if core == "triton" and (triton_lacks() or not check.cuda):
                    continue
                if how == "compiled" and kind == "bf16":  # the same kernels behind a cast
                    continue
                run = functools.partial(_core, check, case, core, how, reference, base, f"{place}, {kind}")
                seconds = 30.0 if how == "compiled" else 6.0
                check.attempt("deformable cores", f"{place}, {kind}: {core}, {how}", run, seconds)


def _core(
    check: Check,
    case: Sampling,
    core: str,
    how: str,
    reference: list[Tensor],
    base: dict[str, float],
    place: str,
) -> None:
    function = compiled(deformable_sampling) if how == "compiled" else deformable_sampling
    case.forward(function, core)
    results = case.training(function, core)
    if not reference:
        reference += results
    found = [difference(a, b) for a, b in zip(results, reference, strict=True)]
    greatest = float((results[0].float() - reference[0].float()).abs().max())
    numbers = {
        "forward_ms": check.milliseconds(lambda: case.forward(function, core)),
        "training_ms": check.milliseconds(lambda: case.training(function, core)),
    }
    base.update({} if base else numbers)
    check.record(
        "deformable cores",
        f"{place}: {core}, {how}",
        **numbers,
        forward_ratio=base["forward_ms"] / numbers["forward_ms"],
        training_ratio=base["training_ms"] / numbers["training_ms"],
        peak_gib=check.peak_gib(lambda: case.training(function, core)),
        max_difference=greatest,
        **dict(zip(("output", "of_value", "of_points", "of_weights"), found, strict=True)),
    )


def exactness(check: Check) -> None:
    """The Triton core against the plain one in float64, at sizes that no model has."""
    if triton_lacks() or not check.cuda:
        check.record("exactness", "triton", left_out=triton_lacks() or "there is no CUDA device")
        return
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    for heads, depth, levels, points, queries, batch, count in (
        (8, 32, 4, 4, None, 2, 4), (1, 16, 1, 1, 7, 1, 2), (3, 20, 2, 3, 33, 2, 2), (4, 64, 3, 5, 1, 3, 2),
        (2, 128, 4, 8, 65, 1, 2), (8, 32, 4, 4, 0, 1, 1), (8, 32, 4, 4, 10, 0, 1),
    ):  # fmt: skip
        sizes = {"heads": heads, "depth": depth, "levels": levels, "points": points, "queries": queries}
        for dtype in kinds[:count]:  # each is two more kernels to compile
            name = f"{str(dtype).removeprefix('torch.')}, batch {batch}, {sizes}"
            run = functools.partial(
                _exact, check, name, Sampling(check.device, batch, (130, 201), dtype=dtype, **sizes)
            )
            check.attempt("exactness", name, run, 2)


def _exact(check: Check, name: str, case: Sampling) -> None:
    ours, again = (case.training(deformable_sampling, "triton") for _ in range(2))
    same = [a.equal(b) for a, b in zip(ours, again, strict=True)]
    case.inputs = [x.detach().double().requires_grad_() for x in case.inputs]
    case.gradient = case.gradient.double()
    exact = case.training(deformable_sampling, "grid_sample")
    names = ("output", "of_value", "of_points", "of_weights")
    found = {n: difference(a, b) for n, a, b in zip(names, ours, exact, strict=True)}
    check.record("exactness", name, **found, forward_repeats=same[0], gradients_repeat=all(same))


# Elements of a block, warps, points unrolled; float32 takes those of the first line
TILES = (
    *((512, 2, 1), (1024, 2, 1), (1024, 4, 1), (2048, 4, 1)),
    *((512, 1, 1), (1024, 4, 4), (2048, 8, 1), (4096, 8, 1)),
)


def tuning(check: Check) -> None:
    """Blocks and warps of the Triton kernels; what is fastest stands in `layers.deformable_triton`."""
    if triton_lacks() or not check.cuda:
        check.record("tuning", "triton", left_out=triton_lacks() or "there is no CUDA device")
        return
    from vistrain.layers import deformable_triton as kernels

    for kind, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        for place, queries in (("encoder", None), ("decoder", 900)):
            case = Sampling(check.device, queries=queries, dtype=dtype)
            value, points, weights = (x.detach() for x in case.inputs)
            sizes = [side for shape in case.shapes for side in shape]
            for tile in TILES if kind == "bf16" else TILES[:4]:
                forward = functools.partial(kernels.forward, value, sizes, points, weights, tile)
                backward = functools.partial(kernels.backward, case.gradient, value, sizes, points, weights, tile)
                forward(), backward()
                check.record(
                    "tuning",
                    f"{place}, {kind}: block {tile[0]}, {tile[1]} warps, {tile[2]} unrolled",
                    forward_ms=check.milliseconds(forward, 0.1),
                    backward_ms=check.milliseconds(backward, 0.1),
                )


# ---------------------------------------------------------------- operators


def operators(check: Check) -> None:
    """Neighbourhoods, shifted windows and routing: forms of each side by side."""
    for name, make in (("neighbourhoods", neighbourhoods), ("shifted windows", windows), ("routing", routing)):
        shapes = (1, 14, 2, 8) if check.dry else (64, 56, 4, 32)
        torch.manual_seed(0)
        try:
            tensors, forms = make(check, *shapes)
        except Exception as error:
            check.record("operators", name, error=f"{type(error).__name__}: {error}"[:300])
            continue
        reference: list[Tensor] = []
        for form, run in forms.items():
            work = functools.partial(_operator, check, f"{name}: {form}", run, tensors, reference)
            check.attempt("operators", f"{name}: {form}", work, 25 if "compiled" in form else 5)


def _operator(
    check: Check, name: str, run: Callable[..., Tensor], tensors: Sequence[Tensor], reference: list[Tensor]
) -> None:
    def training() -> list[Tensor]:
        out = run(*tensors)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), tensors)]

    def forward() -> None:
        with torch.no_grad():
            run(*tensors)

    with check.half():
        results = training()
        forward()
        if not reference:
            reference += results
        check.record(
            "operators",
            name,
            forward_ms=check.milliseconds(forward),
            training_ms=check.milliseconds(training),
            peak_gib=check.peak_gib(training),
            output=difference(results[0], reference[0]),
            gradients=max(difference(a, b) for a, b in zip(results[1:], reference[1:], strict=True)),
        )


Forms = tuple[list[Tensor], dict[str, Callable[..., Tensor]]]


def neighbourhoods(check: Check, batch: int, side: int, heads: int, depth: int) -> Forms:
    """7 x 7 neighbourhoods: dense under a mask, ours in tiles and in Triton, FlexAttention."""
    from vistrain.attention.neighborhood import neighborhood_attention, neighborhood_mask

    shape = (batch, side, side, heads, depth)
    tensors = [torch.randn(shape, device=check.device, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    mask = neighborhood_mask((side, side), 7).to(check.device)

    def ours(q: Tensor, k: Tensor, v: Tensor, tile: int | None = None) -> Tensor:
        return neighborhood_attention(q, k, v, 7, tile=tile)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).unflatten(1, (side, side))

    forms: dict[str, Callable[..., Tensor]] = {"dense under a mask": dense, "tiles": ours}
    forms |= {f"tiles of {n}": functools.partial(ours, tile=n) for n in (4, 14)}
    forms["tiles, compiled"] = compiled(ours)
    if check.cuda and not triton_lacks():
        forms["triton"] = functools.partial(neighborhood_attention, kernel_size=7, core="triton")
    if check.cuda:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return mask[q, k]

        blocks = create_block_mask(near, None, None, side * side, side * side, device=str(check.device))
        fast = torch.compile(flex_attention, dynamic=False)

        def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
            return fast(q, k, v, block_mask=blocks).transpose(1, 2).unflatten(1, (side, side))

        forms["flex attention, compiled"] = flex
    return tensors, forms


def windows(check: Check, batch: int, side: int, heads: int, depth: int) -> Forms:
    """Shifted 7 x 7 windows of a map, projections included: ours eager and compiled."""
    from vistrain.attention.window import SwinWindowAttention

    module = SwinWindowAttention(heads * depth, 7, heads, shift=3).to(check.device)
    x = torch.randn(batch, side * side, heads * depth, device=check.device).requires_grad_()

    def ours(x: Tensor) -> Tensor:
        return module(x, (side, side))

    return [x], {"ours": ours, "ours, compiled": compiled(ours)}


def routing(check: Check, batch: int, side: int, heads: int, depth: int) -> Forms:
    """BiFormer's routing on a map, projections included: ours eager and compiled."""
    from vistrain.attention import BiLevelRoutingAttention

    module = BiLevelRoutingAttention(heads * depth, heads, topk=4).to(check.device)
    x = torch.randn(batch, side * side, heads * depth, device=check.device).requires_grad_()

    def ours(x: Tensor) -> Tensor:
        return module(x, (side, side))

    return [x], {"ours": ours, "ours, compiled": compiled(ours)}


# ---------------------------------------------------------------- all of it


# A model of each family of ours, about the size of Swin-T where there is one; the first are published in detectors, too
FAMILIES = (
    *("resnet50", "nat_tiny", "dinat_tiny", "cswin_tiny", "biformer_tiny", "transnext_tiny", "hornet_tiny_7x7"),
    *("unireplknet_t", "dinat_s_tiny", "moat0", "mit_b2", "vitaev2_vsa_small", "swin_vsa_tiny", "sgformer_s"),
    *("agent_swin_tiny", "agent_deit_tiny", "agent_pvt_tiny", "ravlt_t", "favit_b2", "l2vit_tiny", "soft_tiny"),
    *("casvit_t", "lsnet_b", "ffnet_2", "attnet_t1", "affnet", "ppma_tiny", "spartan_s", "s2aformer"),
    *("attention_vit_tiny", "attention_pyramid_tiny", "module_resnet50"),
)


def plan(check: Check) -> list[tuple[str, str, Run, float]]:
    """Part, name, work and expected seconds, the most important first."""

    def simple(name: str, work: Callable[[Check], None], seconds: float) -> tuple[str, str, Run, float]:
        return name, name, functools.partial(work, check), seconds

    def classify(name: str, batch: int, how: str, seconds: float, part: str) -> tuple[str, str, Run, float]:
        return part, f"{name}, {how}", functools.partial(classifier, check, part, name, batch, how), seconds

    def detect(kind: str, core: str, how: str, seconds: float, part: str = "detection") -> tuple[str, str, Run, float]:
        return part, f"{kind}, {core}, {how}", functools.partial(detector, check, kind, core, 8, how), seconds

    work = [
        simple("card", rates, 10),
        simple("exactness", exactness, 20),
        simple("deformable", deformable, 10),
        simple("tuning", tuning, 60),
        detect("DeformableDETR", "triton", "eager", 20),
        detect("DINO", "triton", "eager", 20),
        detect("FocusDETR", "triton", "eager", 20),
        detect("DeformableDETR", "grid_sample", "eager", 20),
        classify("vit_base_patch16_224", 256, "eager", 15, "classification"),
        classify("swin_tiny_patch4_window7_224", 256, "eager", 15, "classification"),
        classify("vit_base_patch16_224", 256, "compiled", 50, "classification"),
        classify("swin_tiny_patch4_window7_224", 256, "compiled", 70, "classification"),
        simple("operators", operators, 10),
    ]
    for kind in ("UPerNet", "Mask2Former"):
        work.append(("segmentation", f"{kind}, eager", functools.partial(segmenter, check, kind, 8, "eager"), 15))
    work.append(("volumes", "3-D U-Net, eager", functools.partial(volume, check, 2, "eager"), 15))
    work += [classify(name, 128, "eager", 12, "backbones") for name in FAMILIES[:8]]
    work.append(("restoration", "HAT, eager", functools.partial(restorer, check, 8, "eager"), 15))
    work.append(detect("DeformableDETR", "triton", "compiled", 90, "detection_compiled"))
    work.append(classify("resnet50", 128, "compiled", 40, "backbones"))
    work.append(detect("DINO", "triton", "compiled", 90, "detection_compiled"))
    work.append(("volumes", "3-D U-Net, compiled", functools.partial(volume, check, 2, "compiled"), 40))
    for kind in ("UPerNet", "Mask2Former"):
        work.append(("segmentation", f"{kind}, compiled", functools.partial(segmenter, check, kind, 8, "compiled"), 60))
    work += [classify(name, 128, "eager", 12, "backbones") for name in FAMILIES[8:]]
    return work


def draw(check: Check) -> None:
    """Writes the picture of the rows."""
    good = [row for row in check.rows if "error" not in row and "left_out" not in row]
    bars = {
        "Deformable cores, forward and backward: speed over the first": [
            (row["name"], row["training_ratio"]) for row in good if row["part"] == "deformable cores"
        ],
        "Training step: share of the measured bf16 matrix rate": [
            (row["name"], row["share_of_matrix_rate"]) for row in good if row.get("share_of_matrix_rate")
        ],
        "Training step: images per second": [
            (row["name"], row["step_images_per_s"]) for row in good if "step_images_per_s" in row
        ],
        "Operators, forward and backward: milliseconds": [
            (row["name"], row["training_ms"]) for row in good if row["part"] == "operators"
        ],
    }
    picture(check.folder / "gpu_check.png", bars)


def main(argv: Sequence[str] | None = None) -> Check:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu"), help="rows are added there, table and picture are of this run"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="what does not fit is left out, and said")
    parser.add_argument("--parts", nargs="+", help="beside card, some of: exactness, deformable, tuning, detection ...")
    parser.add_argument("--device", help="cuda (the default), cuda:1, cpu; a dry run takes the CPU unless told")
    parser.add_argument("--dry", action="store_true", help="everything in small, once, to see that it runs")
    arguments = parser.parse_args(argv)
    try:
        device = torch.device(arguments.device or ("cpu" if arguments.dry else "cuda"))
    except RuntimeError:
        parser.error(f"--device {arguments.device} names no device: give cuda, cuda:1 or cpu")
    if device.type != "cuda" and device != torch.device("cpu"):
        parser.error(f"--device {arguments.device} is not measured here: give cuda, cuda:1 or cpu")
    if not 0 < arguments.minutes < math.inf:
        parser.error(f"--minutes {arguments.minutes} is no time: give a number above 0")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            seen = unusable_gpu() or f"this torch sees {torch.cuda.device_count()} CUDA device(s)"
            parser.error(f"there is no {device}: {seen}; --dry --device cpu runs anywhere")
        torch.cuda.set_device(device)
        if not torch.cuda.is_bf16_supported():
            parser.error(f"{torch.cuda.get_device_name(device)} has no bf16, in which everything here is measured")
    try:
        check = Check(arguments.output, device, arguments.minutes, arguments.dry)
    except OSError as error:
        parser.error(
            f"--output {arguments.output} cannot be written ({error.filename}: {error.strerror}): name another"
        )
    work = plan(check)
    names = list(dict.fromkeys(part for part, *_ in work))
    unknown = set(arguments.parts or ()) - set(names)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    print(check.machine, flush=True)
    done: set[str] = set()
    try:
        # What would be compiled runs as it is when dry.
        with torch.compiler.set_stance("force_eager") if check.dry else contextlib.nullcontext():
            for part, name, run, seconds in work:
                wanted = part in (arguments.parts or names) or part == "card"
                if wanted and not (check.dry and part == "backbones" and part in done):
                    check.attempt(part, name, run, seconds)
                    done.add(part)
                    (check.folder / "gpu_check.md").write_text(markdown(check))
        draw(check)
    except OSError as error:  # measurements keep theirs as rows: this one is of writing
        sys.exit(f"{check.folder}: {error.strerror or error}: what was written until then stands")
    except KeyboardInterrupt:
        print("stopped: rows and table hold what was measured until then", file=sys.stderr)
        sys.exit(130)
    print(markdown(check))
    return check


if __name__ == "__main__":
    sys.exit(any("error" in row for row in main().rows))
