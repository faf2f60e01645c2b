"""Deformable-DETR R50 against `transformers`' DeformableDetrForObjectDetection: same weights, same inputs, in turns.

    python tools/benchmark_deformable_detr.py --output runs/benchmarks

Checks first that both compute the same detections and the same training loss, then measures evaluation, a training
step (losses, backward pass, AdamW) and the peak memory of each side. Needs the extra `bench`, which is transformers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarking import alternate, medians, peak_mib, write
from torch import Tensor, nn

from vistrain.backbones import Backbone
from vistrain.detection import DeformableDETR
from vistrain.layers.boxes import xyxy_to_cxcywh
from vistrain.losses import SetCriterion
from vistrain.structures import LabelSpace

# transformers' names -> ours
RULES = (
    (r"^model\.backbone\.model\.", "backbone.body."),
    (r"^model\.input_proj\.([0-2])\.", r"neck.convs.\1."),
    (r"^model\.input_proj\.3\.", "neck.extra_convs.0."),
    (r"^(neck\.\w+\.\d)\.0\.", r"\1.conv."),
    (r"^(neck\.\w+\.\d)\.1\.", r"\1.norm."),
    (r"^model\.query_position_embeddings\.", "query_embed."),
    (r"^model\.", ""),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.mlp\.fc([12])\.", r".linear\1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
)
CLASSES = 91


def converted(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights under our names; query, key and value projections become one."""
    ours = {}
    for key, value in state_dict.items():
        for pattern, new in RULES:
            key = re.sub(pattern, new, key)
        ours[key] = value
    for key in [k for k in ours if ".q_proj." in k]:
        parts = [ours.pop(key.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        ours[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return ours


def their_model(refine: bool) -> nn.Module:
    """`transformers`' model in the authors' configuration, all weights random and none at a special value."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = DeformableDetrConfig(
        num_labels=CLASSES,
        auxiliary_loss=True,
        class_cost=2,
        activation_dropout=0.1,  # the authors drop out in both of these places; here the defaults are 0
        attention_dropout=0.1,
        with_box_refine=refine,
    )
    model = DeformableDetrForObjectDetection(config)
    frozen = re.compile(r"^model\.backbone\.model\.(conv1|layer1)\.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen.match(name))  # its own rule does not recognise timm's ResNet
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name or "bbox_embed" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)  # they start at zero: sampling would be a grid
    return model


def our_model(refine: bool, state_dict: dict[str, Tensor]) -> DeformableDETR:
    """Ours with the same weights, frozen parts and loss weights."""
    labels = LabelSpace(tuple(f"class {i}" for i in range(CLASSES)), tuple(range(CLASSES)))
    backbone = Backbone("resnet50", strides=(8, 16, 32), freeze_at_stride=4, frozen_norm=True)
    model = DeformableDETR(backbone, labels, box_refinement=refine, criterion=SetCriterion(class_weight=1.0))
    model.load_state_dict(converted(state_dict))
    return model


def inputs(batch: int, height: int, width: int, objects: int = 8) -> dict[str, Any]:
    """One batch as our data modules give it."""
    sizes = torch.tensor([[height, width]] * batch)
    corners = torch.rand(batch, objects, 2) * 0.6
    boxes = torch.cat((corners, corners + 0.05 + torch.rand(batch, objects, 2) * 0.3), -1)
    pixels = boxes * torch.tensor([width, height, width, height])
    labels = torch.randint(CLASSES, (batch, objects))
    images = torch.randint(256, (batch, 3, height, width), dtype=torch.uint8)
    target = [{"boxes": b, "labels": x} for b, x in zip(pixels, labels, strict=True)]
    return {"image": images, "size": sizes, "original_size": sizes, "id": list(range(batch)), "target": target}


class Side:
    """One implementation: evaluation, and a training step with its own optimizer."""

    def __init__(self, name: str, model: nn.Module, images: Tensor, batch: dict[str, Any]) -> None:
        self.name, self.model, self.images, self.batch = name, model, images, batch
        size = batch["image"].shape[-2:]
        extent = torch.tensor([size[1], size[0], size[1], size[0]])
        self.mask = torch.zeros(len(images), *size, dtype=torch.bool)
        self.labels = [
            {"class_labels": t["labels"], "boxes": xyxy_to_cxcywh(t["boxes"]) / extent} for t in batch["target"]
        ]
        self.optimizer: torch.optim.Optimizer | None = None

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Logits `[B, Q, K]` and boxes `[B, Q, 4]`, from normalised images and a padding mask."""
        self.model.eval()
        with torch.no_grad():
            if self.name == "ours":
                out = self.model(self.images, self.mask)
                return out["pred_logits"], out["pred_boxes"]
            out = self.model(pixel_values=self.images, pixel_mask=(~self.mask).long())
            return out.logits, out.pred_boxes

    def loss(self) -> Tensor:
        """Total training loss of the batch."""
        if self.name == "ours":
            return torch.stack(list(self.model.losses(self.batch).values())).sum()
        mask = (~self.mask).long()
        return self.model(pixel_values=self.images, pixel_mask=mask, labels=self.labels).loss

    def train_step(self) -> None:
        """Losses, backward pass and optimizer."""
        self.model.train()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def make_sides(arguments: argparse.Namespace) -> dict[str, Side]:
    """Both sides with equal weights and inputs."""
    torch.manual_seed(0)
    batch = inputs(arguments.batch, arguments.height, arguments.width)
    theirs = their_model(arguments.refine)
    ours = our_model(arguments.refine, theirs.state_dict())
    normalised, _ = ours.normalize(batch["image"], batch["size"])
    return {
        "transformers": Side("transformers", theirs, normalised, batch),
        "ours": Side("ours", ours, normalised, batch),
    }


def check_equal(sides: dict[str, Side]) -> dict[str, float]:
    """Largest differences of outputs and loss; an AssertionError where they are not rounding."""
    (their_logits, their_boxes), (logits, boxes) = (sides[name].evaluate() for name in ("transformers", "ours"))
    with torch.no_grad():  # evaluation mode: dropout would differ
        their_loss, loss = (sides[name].loss().item() for name in ("transformers", "ours"))
    differences = {
        "logits": (logits - their_logits).abs().max().item(),
        "boxes": (boxes - their_boxes).abs().max().item(),
        "loss": abs(loss - their_loss) / abs(their_loss),
    }
    assert all(value < 1e-4 for value in differences.values()), differences
    return differences


def compiled(side: Side, train: bool) -> Side:
    """Ours, compiled: as a whole to evaluate; to train in the parts that the training room compiles."""
    twin = Side(side.name, side.model, side.images, side.batch)
    if train:
        for name in side.model.compiled_parts:
            side.model.get_submodule(name).compile()
    else:
        forward = torch.compile(side.model.forward)
        twin.model = _Compiled(side.model, forward)
    return twin


class _Compiled(nn.Module):
    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.call = model, call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model."""
        return self.call(*args, **kwargs)


def peak_memory(arguments: argparse.Namespace, side: str, mode: str) -> float:
    """MiB that a process needs for a side's work on top of model and inputs, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, mode]
    command += [f"--{name}={getattr(arguments, name)}" for name in ("batch", "height", "width", "threads")]
    command += ["--refine"] if arguments.refine else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(arguments: argparse.Namespace) -> None:
    """The other end of `peak_memory`."""
    name, mode = arguments.memory_of
    side = make_sides(arguments).pop(name)
    print(peak_mib(lambda: [side.evaluate() if mode == "evaluate" else side.train_step() for _ in range(2)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Checks, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--refine", action="store_true", help="the form with box refinement")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled figures out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--memory-of", nargs=2, metavar=("SIDE", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        measure_memory(arguments)
        return
    sides = make_sides(arguments)
    differences = check_equal(sides)
    print("largest differences:", json.dumps(differences))
    seconds: dict[str, dict[str, float]] = {}
    runs: dict[str, dict[str, Callable[[], object]]] = {
        "evaluation": {name: side.evaluate for name, side in sides.items()},
        "training step": {name: side.train_step for name, side in sides.items()},
    }
    for mode, functions in runs.items():
        seconds[mode] = medians(alternate(functions, arguments.repeats))
    if not arguments.no_compile:
        for mode, train in (("evaluation", False), ("training step", True)):
            twins = {"transformers": sides["transformers"], "ours": compiled(sides["ours"], train)}
            functions = {name: side.train_step if train else side.evaluate for name, side in twins.items()}
            seconds[f"{mode}, ours compiled"] = medians(alternate(functions, arguments.repeats, warm_up=2))
    ratios = {f"{mode}: speed": s["transformers"] / s["ours"] for mode, s in seconds.items()}
    memory = {}
    if not arguments.no_memory:
        for mode in ("evaluate", "train"):
            memory[mode] = {side: peak_memory(arguments, side, mode) for side in ("transformers", "ours")}
            ratios[f"peak memory to {mode}: share"] = memory[mode]["ours"] / memory[mode]["transformers"]
    for name, value in ratios.items():
        print(f"{name:45s} {value:.2f}")
    content = {
        "images": [arguments.batch, 3, arguments.height, arguments.width],
        "differences": differences,
        "seconds": seconds,
        "peak_memory_mib": memory,
        "ratios": ratios,
    }
    write(
        arguments.output, "deformable_detr", content, ratios, "Deformable-DETR R50 against transformers, float32, CPU"
    )


if __name__ == "__main__":
    main()
