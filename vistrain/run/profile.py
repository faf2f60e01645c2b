"""What a network costs: parameters, multiply-adds, speed and memory, and which of its parts they are in.

Multiply-adds are counted by torch's `FlopCounterMode` on fake tensors, where nothing is computed: those of
convolutions, matrix products and fused attention. Fourier transforms, sampling, pooling, norms and activations are not
among them, as in most papers' counters. Papers write FLOPs for multiply-adds; here a multiply-add is two operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import timm
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vistrain.attention.base import paths_of
from vistrain.attention.neighborhood import by_definition
from vistrain.backbones import timm_body
from vistrain.backbones.timm_model import TimmModel
from vistrain.config import without_pretrained
from vistrain.config.builder import build
from vistrain.data import DataModule
from vistrain.devices import choose_device, on_meta
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.run import build_model
from vistrain.run.speed import Speed, measure, tensors
from vistrain.structures import LabelSpace

Size = tuple[int, ...]  # height and width, or depth, height and width
PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
CLASSES = 1000


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Attributes:
        name: its path.
        parameters: how many.
        multiply_adds: of one image.
        shape: of what it gives for one image (the first tensor), None where it gives none.
        share: of the forward pass's time, in 0..1; None where time was not measured.
    """

    name: str
    parameters: int
    multiply_adds: int
    shape: tuple[int, ...] | None = None
    share: float | None = None


@dataclass(frozen=True)
class Profile:
    """The findings of `profile`.

    Attributes:
        name: of the network.
        size: sides of the images: height and width, or depth, height and width.
        batch, device, precision, threads: that speed was measured with.
        parameters: how many; `trainable` of them learn.
        multiply_adds: of one image.
        attention: which computation runs in each kind of attention operator.
        forward, training: speed of an evaluation, and of a forward and backward pass; None if not measured.
        parts: in the order of the network.
    """

    name: str
    size: Size
    batch: int
    device: str
    precision: str
    threads: int
    parameters: int
    trainable: int
    multiply_adds: int
    attention: tuple[str, ...] = ()
    forward: Speed | None = None
    training: Speed | None = None
    parts: tuple[Part, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON, with `flops`, twice the multiply-adds."""
        return {**asdict(self), "flops": 2 * self.multiply_adds}

    def table(self) -> RenderableType:
        """What a terminal shows: print it with a Rich console."""
        return Group(_summary(self), _parts_table(self.parts))


def profile_backbone(
    name: str, size: int | Sequence[int] | None = None, args: Mapping[str, Any] | None = None, **options: Any
) -> Profile:
    """Profile a whole timm model or one of ours, with its head for 1000 classes and random weights.

    Args:
        name: timm's.
        size: sides of the images, or one for all; what it is evaluated at if None.
        args: of the model.
        options: of `profile`.

    Raises:
        ConfigError: no such name or argument, or a size that it cannot take (the error names sizes that it can).
    """
    labels, given = LabelSpace(tuple(map(str, range(CLASSES))), tuple(range(CLASSES))), dict(args or {})

    def make() -> nn.Module:
        body: nn.Module = TimmModel(name, labels, args=given).body
        return body

    with on_meta():
        whole = TimmModel(name, labels, args=given)
    wanted = whole.preprocessing.test_size or whole.preprocessing.input_size or (224, 224)
    return profile(make, name, sides(size, wanted), check=whole.check_size, **options)


def profile_config(
    config: dict[str, Any], size: int | Sequence[int] | None = None, allow: Collection[str] = (), **options: Any
) -> Profile:
    """Profile the network of a composed config, with random weights; without its losses.

    Args:
        config: composed; its data is asked for classes and channels alone.
        size: sides of the images, or one for all; the network's `measured_size` if None.
        allow: packages beyond the default ones whose classes the config may name.
        options: of `profile`.

    Raises:
        ConfigError, DataError: something is the user's to mend.
    """
    data: DataModule = build(config.get("data"), DataModule, where="data", allow=allow)
    plain = without_pretrained(config)

    def make() -> Network:
        return build_model(plain, data.labels, data.channels, allow)

    with on_meta():
        model = make()
    name = (config.get("run") or {}).get("name") or str(config["model"].get("type"))
    size = sides(size, model.measured_size)
    return profile(make, name, size, channels=model.channels, check=model.check_size, **options)


def profile(
    make: Callable[[], nn.Module],
    name: str,
    size: Size,
    channels: int = 3,
    batch: int = 1,
    device: str = "auto",
    precision: str = "32",
    repeats: int = 5,
    check: Callable[..., None] | None = None,
) -> Profile:
    """Count and measure a network.

    Args:
        make: builds it; called twice, once on the meta device.
        name: of it, for the report.
        size: sides of the images.
        channels: of the images.
        batch: images at a time.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: `32`, or `bf16` and `16` under autocast.
        repeats: passes of each kind, of which the median counts; 0 measures no speed.
        check: raises a ConfigError for sides that the network cannot take.

    Raises:
        ConfigError: an option is out of its range, or the network cannot take such images.
    """
    if precision not in PRECISIONS:
        raise ConfigError("--precision", f"{precision!r} is unknown", f"use one of {', '.join(PRECISIONS)}")
    if batch < 1 or repeats < 0 or min(size) < 1:
        raise ConfigError("profile", "batch and size are 1 or more, repeats 0 or more", "correct the option")
    if check is not None:
        _check(check, size)
    with on_meta():
        fake = make().eval()
    names, parameters = part_names(fake), [(p.numel(), p.requires_grad) for p in fake.parameters()]
    with _saying_sizes(name, size):
        multiply_adds, per_part, shapes = count(fake, size, channels, names)
    sizes = [sum(p.numel() for p in fake.get_submodule(part).parameters()) for part in names]
    chosen = choose_device(device)
    paths = paths_of(fake, chosen)
    speed: tuple[Speed | None, Speed | None, dict[str, float]] = None, None, {}
    if repeats:
        model = make().to(chosen)
        images = torch.randn(batch, channels, *size, device=chosen)
        try:
            speed = measure(model, images, PRECISIONS[precision], repeats, names)
        except torch.OutOfMemoryError as error:
            raise ConfigError("--batch", f"{batch} images of {_said(size)} do not fit", "use fewer") from error
    forward, training, shares = speed
    counted = zip(names, sizes, per_part, shapes, strict=True)
    return Profile(
        name, size, batch, str(chosen), precision, torch.get_num_threads(),
        sum(n for n, _ in parameters), sum(n for n, learns in parameters if learns), multiply_adds,
        tuple(paths), forward, training,
        tuple(Part(part, n, macs, shape, shares.get(part)) for part, n, macs, shape in counted),
    )  # fmt: skip


def count(
    model: nn.Module, size: Size, channels: int = 3, parts: Sequence[str] = ()
) -> tuple[int, list[int], list[tuple[int, ...] | None]]:
    """Multiply-adds of one image; nothing is computed.

    Args:
        model: on the meta device, which it leaves: it cannot be used afterwards. Not on fake tensors from the start,
            whose numbers cannot be read: timm's Swin reads some.
        size: sides of the image.
        channels: of the image.
        parts: paths of sub-modules.

    Returns:
        Those of the whole, and of each part; and the shapes that the parts give.
    """
    shapes: dict[str, tuple[int, ...] | None] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        # torch's counter fails on parameters that want a gradient where none is computed
        moved = model.to_empty(device="cpu").requires_grad_(False)
        hooks = [moved.get_submodule(p).register_forward_hook(_note_shape(shapes, p)) for p in parts]
        counter = FlopCounterMode(display=False)
        if isinstance(moved, Network) and type(moved).counted is not Network.counted:
            moved.forward = moved.counted  # called as it, so that the counter knows the parts by their paths
        # As products: torch 2.11 does not count what fuses them on processors
        with torch.no_grad(), by_definition(moved), sdpa_kernel(SDPBackend.MATH), counter:
            moved(torch.zeros(1, channels, *size))  # without padding, which a network may count token by token
        for hook in hooks:
            hook.remove()
    counts, root = counter.get_flop_counts(), type(model).__name__
    per_part = [sum(counts.get(f"{root}.{part}", {}).values()) // 2 for part in parts]
    return counter.get_total_flops() // 2, per_part, [shapes.get(part) for part in parts]


def counted(name: str, size: int, fused: bool = False, **arguments: Any) -> tuple[float, float]:
    """Parameters in millions, and multiply-adds of one image in 10^9, of a variant of ours; nothing is computed.

    On the meta device, which is several times as fast as `count` and does for models that read no numbers.

    Args:
        name: of the variant.
        size: side of the image in pixels.
        fused: count what is left when layers have been merged.
        arguments: of the model.
    """
    with on_meta():
        model: Any = timm.create_model(name, **arguments).eval().requires_grad_(False)
    with torch.device("meta"):
        model = model.fuse() if fused else model
        with by_definition(model), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2e9


def part_names(model: nn.Module) -> list[str]:
    """Paths of the parts that a table shows: the children, and inside of lists of stages each stage.

    A network that is a wrapper around one other is looked into.
    """
    prefix = ""
    while True:
        children = [(n, c) for n, c in model.named_children() if any(True for _ in c.parameters())]
        if len(children) != 1 or isinstance(model, nn.Sequential | nn.ModuleList):
            break
        prefix, model = f"{prefix}{children[0][0]}.", children[0][1]
    stages = [str(stage.get("module", "")) for stage in timm_body.stages(model)]
    found = []
    for name, child in children:
        inside = [n for n, c in child.named_children() if any(True for _ in c.parameters())]
        listed = isinstance(child, nn.Sequential | nn.ModuleList) and len(inside) > 1
        if listed and (any(stage.startswith(f"{name}.") for stage in stages) or (not stages and len(inside) <= 24)):
            found += [f"{prefix}{name}.{n}" for n in inside]
        else:
            found.append(f"{prefix}{name}")
    return found


def _note_shape(shapes: dict[str, tuple[int, ...] | None], part: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        shapes[part] = next((tuple(x.shape) for x in tensors(output)), None)

    return hook


# -- sizes


def sides(size: int | Sequence[int] | None, measured: Size) -> Size:
    """The sides that are asked for.

    Args:
        size: one for each side of the images, or one for all; None: those of `measured`.
        measured: sides that the network is measured with unless others are asked for; it takes as many.

    Raises:
        ConfigError: there are more of them, or fewer.
    """
    if size is None:
        return measured
    given = (size,) if isinstance(size, int) else tuple(size)
    if len(given) == 1:
        return given * len(measured)
    if len(given) != len(measured):
        named = "height and width" if len(measured) == 2 else "depth, height and width"
        raise ConfigError("--size", f"{len(given)} numbers", f"give one side, or {named}")
    return given


def _said(size: Size) -> str:
    return "x".join(map(str, size))


def _check(check: Callable[..., None], size: Size) -> None:
    try:
        check(*size)
    except ConfigError as error:
        raise ConfigError("--size", error.problem, "give one of these") from error


@contextlib.contextmanager
def _saying_sizes(name: str, size: Size) -> Iterator[None]:
    """What fails for a size is the size's fault: networks of configs may not say which sizes they take."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        said = " ".join(str(error).split())[:200]
        problem = f"{name} cannot take images of {_said(size)} ({said})"
        raise ConfigError("--size", problem, "try multiples of 32, or the size of its config") from error


# -- tables


def _summary(found: Profile) -> Table:
    table = Table(title=f"{found.name} at {_said(found.size)}", title_justify="left", show_header=False)
    frozen = "" if found.trainable == found.parameters else f", of which {found.trainable / 1e6:.2f} M learn"
    table.add_row("parameters", f"{found.parameters / 1e6:.2f} M{frozen}")
    table.add_row("multiply-adds of an image", f"{found.multiply_adds / 1e9:.2f} G ({_flops(found)} G FLOPs)")
    for path in found.attention:
        table.add_row("attention", path)
    where = f"batch {found.batch}, {found.device}, precision {found.precision}"
    where += f", {found.threads} threads" if found.device == "cpu" else ""
    for title, speed in (("forward", found.forward), ("forward and backward", found.training)):
        if speed is not None:
            memory = "" if speed.peak_bytes is None else f", {speed.peak_bytes / 2**20:,.0f} MiB beside the weights"
            table.add_row(title, f"{speed.images_per_second:,.1f} images/s{memory}")
    if found.forward is not None:
        table.add_row("measured with", where)
    return table


def _flops(found: Profile) -> str:
    return f"{2 * found.multiply_adds / 1e9:.2f}"


def _parts_table(parts: Sequence[Part]) -> Table:
    table = Table(title="parts", title_justify="left")
    table.add_column("part")
    timed = any(part.share is not None for part in parts)
    for title in ("parameters", "multiply-adds", "gives", *(("time",) if timed else ())):
        table.add_column(title, justify="right")
    for part in parts:
        shape = "-" if part.shape is None else " x ".join(map(str, part.shape[1:]))
        cells = [f"{part.parameters / 1e6:.3f} M", f"{part.multiply_adds / 1e9:.3f} G", shape]
        table.add_row(part.name, *cells, *([f"{part.share:.1%}" if part.share is not None else "-"] if timed else []))
    return table
