"""Focus-DETR R50 against DINO R50 (detrex's, which it builds on): what the encoder saves, where the time goes.

    python tools/benchmark_focus_detr.py --output runs/benchmarks
    python tools/benchmark_focus_detr.py --height 256 --width 320 --train-height 256 --train-width 320     a quick look

Measures one image of 800x1333 in evaluation, part by part, in multiply-adds and in time; a training step, and in it the
share of making denoising queries and of matching; peak memory of both. Weights are random: the work does not depend on
them, since how many tokens are kept is decided by the image's size alone.

Multiply-adds are half of what torch's FlopCounterMode counts: convolutions, matrix products, attention. It does not see
the sampling of deformable attention, which is added: four neighbours for each channel of each sample, interpolation and
attention weight in one factor, and eight for these factors of each sample and head. Norms, activations, softmax,
sorting and gathering are in neither. The paper says 154 and 279 GFLOPs for whole models of R50 (means over 100 images).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarking import alternate, medians, peak_mib, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vistrain import config, run
from vistrain.detr import DenoisingQueries
from vistrain.layers import deformable
from vistrain.structures import LabelSpace

SIDES = {"DINO": "vistrain:det/dino_r50_4scale_12ep_detrex", "Focus-DETR": "vistrain:det/focus_detr"}
CLASSES = 80
# Modules and methods that the forward pass is split at; what none of them does is `tokens and heads`
MODULES = {"backbone": "backbone", "neck": "neck", "encoder": "encoder", "decoder": "decoder"}
METHODS = {"encode": "selector", "_select": "proposals"}
REST = "tokens and heads"


class Split:
    """Shares a growing number, such as a clock, out among parts that run one inside another.

    Args:
        read: the number now.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read, self.stack = read, [REST]
        self.parts: dict[str, float] = {REST: 0.0}
        self.last = read()

    def _book(self) -> None:
        now = self.read()
        self.parts[self.stack[-1]] = self.parts.get(self.stack[-1], 0.0) + now - self.last
        self.last = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose share, less that of parts inside it, belongs to `part`."""

        def run_it(*args: Any, **kwargs: Any) -> Any:
            self._book()
            self.stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._book()
                self.stack.pop()

        return run_it

    def finish(self) -> dict[str, float]:
        """What each part got."""
        self._book()
        return self.parts


@contextmanager
def splitting(model: nn.Module, split: Split) -> Iterator[None]:
    """Within the block, the model's forward pass is shared out."""
    with mock.patch.multiple(
        model,
        **{name: split.timed(part, getattr(model, name)) for name, part in METHODS.items()},
    ):
        modules = {part: model.get_submodule(path) for path, part in MODULES.items()}
        forwards = {part: module.forward for part, module in modules.items()}
        for part, module in modules.items():
            module.forward = split.timed(part, forwards[part])
        try:
            yield
        finally:
            for module in modules.values():
                del module.forward


def make(side: str) -> nn.Module:
    """A published model with random weights."""
    composed = config.compose([SIDES[side]], changes={"model": {"backbone": {"pretrained": False}}})
    labels = LabelSpace(tuple(f"class {i}" for i in range(CLASSES)), tuple(range(CLASSES)))
    torch.manual_seed(0)
    return run.build_model(composed, labels)


def make_batch(count: int, height: int, width: int, objects: int) -> dict[str, Any]:
    """A training batch of equal sizes, `objects` in each image."""
    torch.manual_seed(1)
    corners = torch.rand(count, objects, 2) * 0.6
    boxes = torch.cat((corners, corners + 0.05 + torch.rand(count, objects, 2) * 0.3), -1)
    pixels = boxes * torch.tensor([width, height, width, height])
    sizes = torch.tensor([[height, width]] * count)
    labels = torch.randint(CLASSES, (count, objects))
    images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
    target = [{"boxes": b, "labels": x} for b, x in zip(pixels, labels, strict=True)]
    return {"image": images, "size": sizes, "original_size": sizes, "id": list(range(count)), "target": target}


def count(model: nn.Module, images: Tensor) -> dict[str, float]:
    """10^9 multiply-adds of each part of a forward pass."""
    sampled = 0.0
    sample = deformable.deformable_sampling

    def counted(value: Tensor, shapes: Any, points: Tensor, weights: Tensor, core: str = "auto") -> Tensor:
        nonlocal sampled
        # Each sample of each head: four multiply-adds a channel, and eight operations for the four factors
        sampled += weights.numel() * (4 * value.shape[-1] + 8)
        return sample(value, shapes, points, weights, core)

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        split = Split(lambda: counter.get_total_flops() / 2 + sampled)
        with splitting(model, split), mock.patch.object(deformable, "deformable_sampling", counted):
            model(images)
    return {part: value / 1e9 for part, value in split.finish().items()}


def timed_parts(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Seconds of processor time of each part of a forward pass."""
    split = Split(time.process_time)
    with torch.no_grad(), splitting(model, split):
        model(images)
    return split.finish()


class Trained:
    """A model in training: steps with AdamW."""

    def __init__(self, side: str, batch: dict[str, Any]) -> None:
        self.model, self.batch = make(side).train(), batch
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(wanted, lr=1e-6)

    def step(self) -> None:
        """Losses, backward pass and optimizer."""
        self.optimizer.zero_grad()
        torch.stack(list(self.model.losses(self.batch).values())).sum().backward()
        self.optimizer.step()

    def split_step(self) -> dict[str, float]:
        """Seconds of processor time of a step: making denoising queries and their mask, matching, and all else."""
        model, split = self.model, Split(time.process_time)
        made = {"denoising": split.timed("denoising", model.denoising)}
        made["matcher"] = split.timed("matching", model.matcher)
        masks = split.timed("denoising", DenoisingQueries.attn_mask)
        with mock.patch.multiple(model, **made), mock.patch.object(DenoisingQueries, "attn_mask", masks):
            self.step()
        parts = split.finish()
        return {"everything else": parts.pop(REST), **parts}


def measure_training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a training step, with and without denoising, and the shares of denoising and matching."""
    sizes = (arguments.batch, arguments.train_height, arguments.train_width, arguments.objects)
    trained = Trained("Focus-DETR", make_batch(*sizes))
    trained.step()
    parts = [trained.split_step() for _ in range(arguments.repeats)]
    middle = {name: sorted(p[name] for p in parts)[len(parts) // 2] for name in parts[0]}
    whole = sum(middle.values())
    shares = {name: middle[name] / whole for name in ("denoising", "matching")}
    with mock.patch.object(trained.model.denoising, "number", 0):
        without = medians(alternate({"step": trained.step}, arguments.repeats, clock=time.process_time))["step"]
    return {
        "images": list(sizes[:3]),
        "objects": arguments.objects,
        "queries": trained.model.tgt_embed.num_embeddings,
        "seconds": {**middle, "step": whole, "step without denoising": without},
        "shares": {**shares, "denoising and matching": sum(shares.values())},
    }


def memory(arguments: argparse.Namespace, side: str, mode: str) -> float:
    """MiB of peak memory, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, mode]
    names = ("batch", "height", "width", "train_height", "train_width", "objects", "threads")
    command += [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(arguments: argparse.Namespace) -> None:
    """The other end of `memory`."""
    side, mode = arguments.memory_of
    if mode == "train":
        sizes = (arguments.batch, arguments.train_height, arguments.train_width, arguments.objects)
        print(peak_mib(Trained(side, make_batch(*sizes)).step))
        return
    model, images = make(side).eval(), torch.rand(1, 3, arguments.height, arguments.width)
    with torch.no_grad():
        print(peak_mib(lambda: model(images)))


def measure_evaluation(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Multiply-adds and seconds of each part, for both models."""
    images = torch.rand(1, 3, arguments.height, arguments.width)
    # Without gradients: torch's counter fails on parameters that want one where none is computed
    models = {side: make(side).eval().requires_grad_(False) for side in SIDES}
    work = {side: count(model, images) for side, model in models.items()}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for step in range(arguments.repeats + 1):  # in turns; the first is a warm-up
        for side, model in models.items():
            parts = timed_parts(model, images)
            if step:
                runs[side].append(parts)
    middle = {
        side: {part: sorted(p[part] for p in parts)[len(parts) // 2] for part in parts[0]}
        for side, parts in runs.items()
    }
    return work, middle


def encoder_of(parts: dict[str, float]) -> float:
    """The encoder with what chooses its tokens."""
    return parts["encoder"] + parts["selector"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--train-height", type=int, default=800)
    parser.add_argument("--train-width", type=int, default=1333)
    parser.add_argument("--batch", type=int, default=2, help="of the training step")
    parser.add_argument("--objects", type=int, default=8, help="in each image; COCO has 7.3")
    parser.add_argument("--threads", type=int, default=1, help="processor time means time of one thread")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-train", action="store_true", help="leave training out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        measure_memory(arguments)
        return
    work, seconds = measure_evaluation(arguments)
    ratios = {}
    for what, table in (("multiply-adds", work), ("time", seconds)):
        ours, theirs = table["Focus-DETR"], table["DINO"]
        ratios[f"encoder and selector, {what}"] = encoder_of(ours) / encoder_of(theirs)
        ratios[f"whole model, {what}"] = sum(ours.values()) / sum(theirs.values())
    content: dict[str, Any] = {
        "images": [1, 3, arguments.height, arguments.width],
        "multiply_adds_1e9": work,
        "seconds": seconds,
    }
    if not arguments.no_memory:
        modes = ["evaluate"] + ([] if arguments.no_train else ["train"])
        content["peak_memory_mib"] = {m: {side: memory(arguments, side, m) for side in SIDES} for m in modes}
        for mode, values in content["peak_memory_mib"].items():
            ratios[f"peak memory to {mode}"] = values["Focus-DETR"] / values["DINO"]
    if not arguments.no_train:
        content["training"] = measure_training(arguments)
        ratios["denoising and matching, share of a training step"] = content["training"]["shares"][
            "denoising and matching"
        ]
    for side in SIDES:
        total, whole = sum(work[side].values()), sum(seconds[side].values())
        print(f"{side}: {total:.1f} G multiply-adds, {whole:.2f} s")
        for part, value in work[side].items():
            print(f"  {part:18s} {value:7.1f} G  {seconds[side][part]:7.3f} s  {seconds[side][part] / whole:5.1%}")
    for name, value in ratios.items():
        print(f"{name:50s} {value:.3f}")
    if "training" in content:
        print("training step:", json.dumps(content["training"]))
    title = "Focus-DETR R50: shares of DINO's R50, float32, CPU"
    write(arguments.output, "focus_detr", {**content, "ratios": ratios}, ratios, title)


if __name__ == "__main__":
    main()
