"""Networks as files that other programs run: ONNX, and `torch.export`'s programs."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vistrain.data.base.transform import EvalTransform
from vistrain.errors import ConfigError, DataError
from vistrain.internals.torch import tree_leaves
from vistrain.layers.deformable import MSDeformAttn
from vistrain.network import Network
from vistrain.regular_files import refuse_to_replace
from vistrain.run.exported_example import SIZES, write_facts
from vistrain.run.exported_runtime import INSTALL, reason, refuse_missing_runtime, runtime_of
from vistrain.run.networks import task_class
from vistrain.structures import Preprocessing
from vistrain.tasks.base.predictor import evaluation_transform
from vistrain.writing import whole_file

log = logging.getLogger(__name__)

SUFFIXES = (".onnx", ".pt2")
OLDEST_OPSET = 18  # what torch.onnx writes at least
PICTURES = ((480, 640), (641, 427))  # what evaluation makes of these sides says whether sides are free
CLOSE = {"float32": 1e-3, "float16": 0.1}  # of outputs, as a share of the largest
ENOUGH = 0.9  # of the objects of a network that its file must find alike: of nearly equal scores either may be the last


@dataclass(frozen=True)
class Form:
    """What a file of a network is like.

    Attributes:
        size: sides of the images, pixels, that it was traced at.
        is_free: whether it takes other sides, too.
        precision: of weights and arithmetic: `float32` or `float16`; inputs and outputs are float32.
        opset: of ONNX; None: of no ONNX, or torch's choice.
        sampling: how deformable attention samples: `grid_sample` or `gather`.
        of_one: whether it takes one image at a time, and its sizes, see `Exported`.
    """

    size: tuple[int, ...]
    is_free: bool
    precision: str = "float32"
    opset: int | None = None
    sampling: str = "grid_sample"
    of_one: bool = False


class Traced(nn.Module):
    """What is written: normalised float32 images in, float32 tensors (and whole numbers) out, in one flat tuple.

    Args:
        network: in evaluation mode.
        halved: its weights are made float16.
    """

    def __init__(self, network: Network, halved: bool) -> None:
        super().__init__()
        self.network = network.half() if halved else network
        self.halved = halved

    def forward(self, images: Tensor, *sizes: Tensor) -> tuple[Tensor, ...]:
        """`[B, C, *S]` -> the leaves of `Network.exported`."""
        found = self.network.exported(images.half() if self.halved else images, *sizes)
        return tuple(leaf.float() if leaf.is_floating_point() else leaf for leaf in tree_leaves(found))


def export_network(
    model: Network,
    facts: Mapping[str, Any],
    output: Path,
    size: Sequence[int] | None = None,
    opset: int | None = None,
    half: bool = False,
    sampling: str = "grid_sample",
    allow: Collection[str] = (),
) -> list[str]:
    """Write a network as a file that other programs run, and beside it what they must know of it: a JSON file, and an
    example in Python.

    Args:
        model: the network, which may be changed; low-rank weights are merged where checkpoints are loaded.
        facts: of it, see `networks.load` and `networks.load_official`.
        output: its suffix decides: `.onnx`, or `.pt2` for `torch.export.load`.
        size: sides of all images, pixels; None: free where evaluation's sizes differ and the network allows it.
        opset: of ONNX; None: torch's.
        half: weights and arithmetic in float16.
        sampling: see `Form`.
        allow: packages beyond the default ones whose classes the config may name.

    Returns:
        Lines that say what was written, and how it is to be used.

    Raises:
        ConfigError: the network cannot be exported, or not so; a package is missing.
        DataError: the files cannot be written.
    """
    refuse_form(output, opset, half)
    described = model.exported_facts()
    transform = evaluation_transform(facts, Preprocessing.from_dict(facts["preprocessing"]), allow)
    for module in model.modules():
        if isinstance(module, MSDeformAttn):
            module.core = sampling
    sides, varies = sizes_of(model, transform) if size is None else ([tuple(size)], False)
    if size is not None:
        _refuse_size(model, sides[0])
    precision = "float16" if half else "float32"
    # Of ONNX the graph is converted: networks mix precisions by autocast, which their weights alone know nothing of.
    traced = Traced(model, halved=half and output.suffix == ".pt2").eval()
    program, form = _traced(
        traced,
        sides,
        varies,
        Form(sides[0], varies, precision, opset, sampling, described.of_one),
        output.suffix == ".pt2" or not _runs(),
    )
    names = list(described.outputs)
    if len(program.graph_signature.user_outputs) != len(names):
        counts = f"{len(program.graph_signature.user_outputs)} tensors, {len(names)} names"
        raise RuntimeError(f"{type(model).__name__}.exported_facts: {counts}")
    form = _write(program, output, names, form)
    try:
        compared = _compared(traced, output, sides, form)
    except (ConfigError, DataError) as error:
        if not form.is_free:
            raise
        log.warning("%s: sides are fixed at those of the first size", error.problem)
        program, form = _traced(traced, sides, False, form)
        form = _write(program, output, names, form)
        compared = _compared(traced, output, sides, form)
    told = [f"{output}: {', '.join(names)} of images {_shape(model, form)}, {form.precision}"]
    if form.opset is not None:
        told[0] += f", opset {form.opset}"
    told += compared
    task = task_class(facts["config"], allow).__name__
    return [*told, *write_facts(output, model, described, transform, {**facts, "task": task}, asdict(form))]


def sizes_of(model: Network, transform: EvalTransform | None) -> tuple[list[tuple[int, ...]], bool]:
    """Sides of images as evaluation gives them to a network: to trace it with, and one more to try; whether they
    differ."""
    channels, divisor = model.channels, model.preprocessing.size_divisor
    if model.exported_size is not None:
        return [model.exported_size], False
    if transform is None:  # pictures as they are
        return [(48, 64), (61, 45)], True
    found = []
    for height, width in PICTURES:
        shape = transform(np.zeros((height, width, channels), np.uint8)).shape[:2]
        found.append(tuple(-(-side // divisor) * divisor for side in shape))
    return (found, True) if found[0] != found[1] else (found[:1], False)


def _traced(
    traced: Traced, sides: Sequence[tuple[int, ...]], varies: bool, form: Form, checked: bool = True
) -> tuple[ExportedProgram, Form]:
    """The program, with free sides if it can have them: checked at others, or left to the comparison of the file, which
    holds none of the program's assertions about sides."""
    if varies:
        try:
            program = _program(traced, form, free=True)
            if checked:
                _refuse_other_output(program, traced, sides[1], form)
        except Exception as error:
            log.warning(
                "sides cannot be left free (%s): they are fixed at those of the first size",
                reason(error),
            )
        else:
            return program, form
    try:
        return _program(traced, form, free=False), replace(form, is_free=False)
    except Exception as error:
        name = type(traced.network).__name__
        raise ConfigError("export", f"{name} cannot be exported: {reason(error)}", "try another --size") from error


def _refuse_other_output(program: ExportedProgram, traced: Traced, size: tuple[int, ...], form: Form) -> None:
    """Raise `ValueError` where a program computes something else at sides that it was not traced at."""
    if traced.halved:
        return  # processors have few operators of these: the written file is compared
    inputs = _noise(traced, 1, size, form, torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, wanted = program.module()(*inputs), traced(*inputs)
    if form.of_one:
        alike, count, _ = _alike(got, wanted, CLOSE[form.precision])
        differs = alike < ENOUGH * count
    else:
        pairs = zip(got, wanted, strict=True)
        differs = any(a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)
    if differs:
        raise ValueError(f"at {'x'.join(map(str, size))} pixels something else comes out")


def _noise(
    traced: Traced, batch: int, size: tuple[int, ...], form: Form, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """What a file takes: images of noise and, with one, its sizes, as if a little of it were padding."""
    images = torch.randn(batch, traced.network.channels, *size, generator=generator)
    if not form.of_one:
        return (images,)
    own = torch.tensor([[max(1, side - 5) for side in size]])
    return images, own, 2 * own


def _alike(got: Sequence[Tensor], wanted: Sequence[Tensor], close: float) -> tuple[int, int, float]:
    """Of the objects that a network finds: how many its file finds alike, how many there are, and how far the former
    are apart at most, as a share of each output's largest number."""
    scales = [want.abs().amax().clamp(min=1e-6) if want.is_floating_point() and len(want) else 1 for want in wanted]
    rows = []
    for found in (wanted, got):
        parts = [x[:, None].flatten(1) / scale for x, scale in zip(found, scales, strict=True)]
        rows.append(torch.cat(parts, 1))
    if not min(map(len, rows)):
        return 0, len(rows[0]), 0.0
    nearest = torch.cdist(rows[0], rows[1], p=torch.inf).amin(1)
    nearest = nearest[nearest <= close]
    return len(nearest), len(rows[0]), float(nearest.max()) if len(nearest) else 0.0


def _program(traced: Traced, form: Form, free: bool) -> ExportedProgram:
    """Traced without computing anything; batches are of any size, unless they are of one."""
    inputs = _noise(traced, 1 if form.of_one else 2, form.size, form, torch.Generator().manual_seed(0))
    _, *sizes = inputs
    divisor = traced.network.preprocessing.size_divisor
    dims: dict[int, Any] = {} if form.of_one else {0: Dim.DYNAMIC}
    for axis in range(len(form.size)) if free else ():
        dims[axis + 2] = divisor * Dim(f"side{axis}", min=1) if divisor > 1 else Dim.DYNAMIC
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            traced, inputs, dynamic_shapes=(dims, (None,) * len(sizes)) if sizes else (dims,), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip


def _write(program: ExportedProgram, output: Path, names: Sequence[str], form: Form) -> Form:
    if output.suffix == ".pt2":
        with whole_file(output) as path, open(path, "wb") as file:
            torch.export.save(program, file)
        return form
    for name in ("onnx_ir", "onnxscript"):  # which say what they could not simplify
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=form.opset,
                input_names=["images", *SIZES] if form.of_one else ["images"], output_names=list(names),
            )  # fmt: skip
        except Exception as error:
            raise ConfigError("export", f"ONNX cannot say it: {reason(error)}", "try a .pt2 file") from error
    assert made is not None
    with whole_file(output) as path:
        if form.precision == "float16":
            import onnx
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(made.model_proto, keep_io_types=True), path)
        else:
            made.save(path, external_data=False)
    return replace(form, opset=made.model.opset_imports[""])


def _compared(traced: Traced, output: Path, sides: Sequence[tuple[int, ...]], form: Form) -> list[str]:
    """What the written file computes beside what the network does, at each of the sizes, in batches of one and two if
    it can.

    Raises:
        ConfigError: something else, where sides are free.
        DataError: it does not run.
    """
    if output.suffix == ".onnx" and not _runs():
        return [f"not compared with the network: onnxruntime is not installed ({INSTALL})"]
    run, worst, alike, count = runtime_of(output, trusted=True), 0.0, 0, 0
    generator = torch.Generator().manual_seed(0)
    for batch, size in zip((1, 2), sides if form.is_free else [form.size] * 2, strict=True):
        inputs = _noise(traced, 1 if form.of_one else batch, size, form, generator)
        with torch.no_grad():
            wanted, found = traced(*inputs), run(*inputs)
        if form.of_one:
            same, there, far = _alike(found, wanted, CLOSE[form.precision])
            alike, count, worst = alike + same, count + there, max(worst, far)
            continue
        for got, want in zip(found, wanted, strict=True):
            if got.shape != want.shape:
                raise ConfigError(str(output), f"gives {list(got.shape)} for {list(want.shape)}", "give --size")
            worst = max(worst, float((got - want).abs().max() / want.abs().max().clamp(min=1e-6)))
    if not worst <= CLOSE[form.precision] or alike < ENOUGH * count:
        problem = f"{worst:.1g} of the largest output off the network's"
        if form.of_one:
            problem = f"far from the network, as {count - alike} of {count} objects on noise are not the same"
        if form.is_free and form.precision == "float32":
            raise ConfigError(str(output), problem, "give --size")
        log.warning("%s is %s: measure it", output, problem)
    if form.of_one and not count:
        return ["on noise the network finds no objects to compare: measure the file"]
    objects = f"finds {alike} of the network's {count} objects, and " if form.of_one else ""
    return [f"on noise it {objects}differs from the network by {worst:.1g} of the largest output"]


def refuse_form(output: Path, opset: int | None = None, half: bool = False) -> None:
    """Refuse a file that cannot be written, before a network is loaded.

    Raises:
        ConfigError: another suffix, an unknown opset, or a package is missing.
        DataError: nothing can be written there.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(
            "--output", f"{output} has another suffix than {' or '.join(SUFFIXES)}", "which kind of file?"
        )
    if output.is_dir():
        raise ConfigError("--output", f"{output} is a folder", "name a file in it")
    refuse_to_replace(output)
    probe = output.with_name(f".{output.name}.try")
    with whole_file(probe) as path:  # before minutes are spent
        path.touch()
    probe.unlink()
    if output.suffix == ".onnx":
        _refuse_opset(opset)
        if half:  # its converter comes with it
            refuse_missing_runtime()
    elif opset is not None:
        raise ConfigError("--opset", f"{output.suffix} files have none", "leave it out, or write an .onnx file")


def _refuse_opset(opset: int | None) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError("export", f"{' and '.join(missing)} not installed", INSTALL)
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ConfigError("--opset", f"{opset} is not known here", f"{OLDEST_OPSET} to {newest}")


def _refuse_size(model: Network, size: tuple[int, ...]) -> None:
    divisor, dims = model.preprocessing.size_divisor, len(model.measured_size)
    if len(size) != dims or min(size) < 1:
        raise ConfigError("--size", f"{' '.join(map(str, size))}: {dims} sides in pixels are wanted")
    if any(side % divisor for side in size):
        raise ConfigError("--size", f"{' '.join(map(str, size))}", f"multiples of {divisor}")
    if (model.exported_size is not None and size != model.exported_size and dims == 3) or dims == 2:
        model.check_size(*size)


def _shape(model: Network, form: Form) -> str:
    sides: Mapping[int, str] = dict(enumerate(map(str, form.size)))
    if form.is_free:
        sides = dict(enumerate(("height", "width", "depth")[: len(form.size)]))
    return f"[{1 if form.of_one else 'batch'}, {model.channels}, {', '.join(sides.values())}]"


def _runs() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None
