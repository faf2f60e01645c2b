"""Segmentation networks against `transformers`' of the same weights, on the same 512x512 images, in turns.

    python tools/benchmark_segmentation.py --output runs/benchmarks
    python tools/benchmark_segmentation.py --only segformer_head --repeats 20

Checks first that both sides compute the same, then measures evaluation, a training step (losses, backward pass, AdamW)
and the peak memory of each side, in processor seconds of one thread, which other programs disturb least. Needs the
extra `bench`, which is transformers.
"""

from __future__ import annotations

import abc
import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarking import alternate, peak_mib, write
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone
from vistrain.layers.conv import resize
from vistrain.losses.class_maps import PixelCrossEntropy
from vistrain.segmentation import FCNHead, Mask2Former, SegFormerHead, SemanticSegmenter, UPerHead
from vistrain.structures import Factory, LabelSpace

SIDE, CLASSES = 512, 150  # ADE20K
LABELS = LabelSpace(tuple(f"class {i}" for i in range(CLASSES)), tuple(range(CLASSES)), ignore_index=255)
SWIN = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "drop_path_rate": 0.0}
# transformers' names -> ours, one after the other
SWIN_RULES = (
    (r"backbone\.swin\.embeddings\.patch_embeddings\.projection\.", "backbone.body.patch_embed.proj."),
    (r"backbone\.swin\.embeddings\.norm\.", "backbone.body.patch_embed.norm."),
    (r"backbone\.swin\.encoder\.layers\.0\.downsample\.", "backbone.body.layers.1.downsample."),
    (r"backbone\.swin\.encoder\.layers\.1\.downsample\.", "backbone.body.layers.2.downsample."),
    (r"backbone\.swin\.encoder\.layers\.2\.downsample\.", "backbone.body.layers.3.downsample."),
    (r"backbone\.swin\.encoder\.", "backbone.body."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"backbone\.hidden_states_norms\.stage1\.", "backbone.norms.0."),
    (r"backbone\.hidden_states_norms\.stage2\.", "backbone.norms.1."),
    (r"backbone\.hidden_states_norms\.stage3\.", "backbone.norms.2."),
    (r"backbone\.hidden_states_norms\.stage4\.", "backbone.norms.3."),
)
HEAD_RULES = (
    (r"\.batch_norm\.", ".bn."),
    (r"_head\.classifier\.", "_head.conv_seg."),
)
QUERY_RULES = (
    (r"^model\.pixel_level_module\.encoder\.", "backbone."),
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.input_projections\.", "pixel_decoder.input_proj."),
    (r"^pixel_decoder\.mask_projection\.", "pixel_decoder.mask_features."),
    (r"^pixel_decoder\.(adapter|layer)_1\.0\.", r"pixel_decoder.\1_1."),
    (r"^pixel_decoder\.(adapter|layer)_1\.1\.", r"pixel_decoder.\1_1.norm."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.fc([12])\.", r"\1.linear\2."),
    (r"^model\.transformer_module\.queries_embedder\.", "decoder.query_embed."),
    (r"^model\.transformer_module\.queries_features\.", "decoder.query_feat."),
    (r"^model\.transformer_module\.level_embed\.", "decoder.level_embed."),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "decoder.decoder_norm."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
     r"decoder.mask_embed.layers.\1."),
    (r"^model\.transformer_module\.decoder\.layers\.(\d)\.cross_attn\.",
     r"decoder.transformer_cross_attention_layers.\1.multihead_attn."),
    (r"^model\.transformer_module\.decoder\.layers\.(\d)\.cross_attn_layer_norm\.",
     r"decoder.transformer_cross_attention_layers.\1.norm."),
    (r"^model\.transformer_module\.decoder\.layers\.(\d)\.self_attn\.",
     r"decoder.transformer_self_attention_layers.\1.self_attn."),
    (r"^model\.transformer_module\.decoder\.layers\.(\d)\.self_attn_layer_norm\.",
     r"decoder.transformer_self_attention_layers.\1.norm."),
    (r"^model\.transformer_module\.decoder\.layers\.(\d)\.fc([12])\.",
     r"decoder.transformer_ffn_layers.\1.linear\2."),
    (r"^model\.transformer_module\.decoder\.layers\.(\d)\.final_layer_norm\.",
     r"decoder.transformer_ffn_layers.\1.norm."),
    (r"^class_predictor\.", "decoder.class_embed."),
)  # fmt: skip
SEGFORMER_RULES = (
    (r"linear_projections\.0\.", "linear_c1."),
    (r"linear_projections\.1\.", "linear_c2."),
    (r"linear_projections\.2\.", "linear_c3."),
    (r"linear_projections\.3\.", "linear_c4."),
    (r"linear_fuse\.", "linear_fuse.conv."),
    (r"batch_norm\.", "linear_fuse.bn."),
    (r"classifier\.", "linear_pred."),
)
MIT_RULES = (
    (r"^segformer\.stages\.0\.patch_embeddings\.", "backbone.body.stem."),
    (r"^segformer\.stages\.(\d)\.patch_embeddings\.", r"backbone.body.stages.\1.downsample."),
    (r"^segformer\.", "backbone.body."),
    (r"(stem|downsample)\.layer_norm\.", r"\1.norm."),
    (r"(stages\.\d)\.layer_norm\.", r"\1.norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.q_proj\.", ".attn.q."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attn.sr."),
    (r"\.attention\.sequence_reduction\.layer_norm\.", ".attn.norm."),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)
JOINED = (("attention.{}_proj.", "attn.qkv."), ("self_attn.{}_proj.", "self_attn.in_proj_"))
UNUSED = ("backbone.swin.layernorm.", "criterion.")


def converted(state: dict[str, Tensor], *tables: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """transformers' weights under our names; query, key and value projections become one."""
    ours = {}
    for key, value in state.items():
        for pattern, new in (rule for table in tables for rule in table):
            key = re.sub(pattern, new, key)
        if not key.startswith(UNUSED):
            ours[key] = value
    for theirs, new in JOINED:
        for key in [k for k in ours if theirs.format("q") in k]:
            parts = [ours.pop(key.replace(theirs.format("q"), theirs.format(x))) for x in "qkv"]
            ours[key.replace(theirs.format("q"), new)] = torch.cat(parts)
    return ours


def images(batch: int) -> dict[str, Any]:
    """A batch as our data modules give it, with class maps, and the pixels of some classes as masks."""
    sizes = torch.tensor([[SIDE, SIDE]] * batch)
    coarse = torch.randint(CLASSES, (batch, 1, 4, 4)).float()
    maps = F.interpolate(coarse, size=(SIDE, SIDE)).long()[:, 0]
    target = []
    for labels in maps:
        values = labels.unique()
        target.append({"label_map": labels, "labels": values, "masks": labels == values[:, None, None]})
    pixels = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
    return {"image": pixels, "size": sizes, "original_size": sizes, "id": list(range(batch)), "target": target}


class Side(abc.ABC):
    """One implementation.

    Attributes:
        model: it.
        optimizer: AdamW once it has trained.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None

    @abc.abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """What is compared."""

    @abc.abstractmethod
    def loss(self) -> Tensor:
        """Training loss."""

    def evaluate(self) -> tuple[Tensor, ...]:
        """Outputs without gradients, in evaluation mode."""
        self.model.eval()
        with torch.inference_mode():
            return self.outputs()

    def train_step(self) -> None:
        """Losses, backward pass, optimizer."""
        self.model.train()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


class Ours(Side):
    """A network of ours; class maps are compared at the image's size, or as they are.

    Args:
        model: it.
        batch: see `images`.
        coarse: whether the other side gives class maps as they are.
    """

    def __init__(self, model: Any, batch: dict[str, Any], coarse: bool = False) -> None:
        self.model, self.batch, self.coarse = model, batch, coarse
        self.normalised, _ = model.normalize(batch["image"], batch["size"])

    def outputs(self) -> tuple[Tensor, ...]:
        """See `Side`."""
        out = self.model(self.normalised)
        if isinstance(self.model, Mask2Former):
            return out["pred_logits"], out["pred_masks"]
        return (out if self.coarse else resize(out, (SIDE, SIDE)),)

    def loss(self) -> Tensor:
        """See `Side`."""
        return torch.stack(list(self.model.losses(self.batch).values())).sum()


class Theirs(Side):
    """A network of transformers.

    Args:
        model: it.
        batch: see `images`.
        normalised: its images `[B, 3, H, W]`.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Any], normalised: Tensor) -> None:
        self.model, self.batch, self.normalised = model, batch, normalised

    def outputs(self) -> tuple[Tensor, ...]:
        """See `Side`."""
        out = self.model(pixel_values=self.normalised)
        if type(self.model).__name__.startswith("Mask2Former"):
            return out.class_queries_logits, out.masks_queries_logits
        return (out.logits,)

    def loss(self) -> Tensor:
        """See `Side`."""
        target = self.batch["target"]
        if type(self.model).__name__.startswith("Mask2Former"):
            masks, labels = [t["masks"].float() for t in target], [t["labels"] for t in target]
            return self.model(pixel_values=self.normalised, mask_labels=masks, class_labels=labels).loss
        return self.model(pixel_values=self.normalised, labels=torch.stack([t["label_map"] for t in target])).loss


class Head(Side):
    """A head alone, on maps.

    Args:
        model: it.
        maps: what it is given.
    """

    def __init__(self, model: nn.Module, maps: Sequence[Tensor]) -> None:
        self.model, self.maps = model, maps

    def outputs(self) -> tuple[Tensor, ...]:
        """See `Side`."""
        return (self.model(self.maps),)

    def loss(self) -> Tensor:
        """See `Side`."""
        return self.outputs()[0].square().mean()


def shaken(model: nn.Module) -> nn.Module:
    """Weights at which nothing is at a special value: norms that are not 1 and 0, sampling that is no grid."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "sampling_offsets" in name or "attention_weights" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def upernet(batch: int) -> dict[str, Side]:
    """UPerNet with Swin-T and the auxiliary head."""
    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = [f"stage{i}" for i in range(1, 5)]
    config = UperNetConfig(
        backbone_config=SwinConfig(**SWIN, out_features=stages), auxiliary_in_channels=384, num_labels=CLASSES
    )
    theirs = shaken(UperNetForSemanticSegmentation(config))
    ours = SemanticSegmenter(
        swin(),
        LABELS,
        Factory(UPerHead, dropout=0.0),
        auxiliary=Factory(FCNHead, embed_dim=256, stride=16, dropout=0.0),
        auxiliary_weight=0.4,
        loss=PixelCrossEntropy(over_all=False),
    )
    ours.load_state_dict(converted(theirs.state_dict(), SWIN_RULES, HEAD_RULES))
    return both(ours, theirs, batch)


def mask2former(batch: int) -> dict[str, Side]:
    """Mask2Former with Swin-T."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{i}" for i in range(1, 5)]
    config = Mask2FormerConfig(backbone_config=SwinConfig(**SWIN, out_features=stages), num_labels=CLASSES)
    theirs = shaken(Mask2FormerForUniversalSegmentation(config))
    ours = Mask2Former(swin(), LABELS)
    ours.load_state_dict(converted(theirs.state_dict(), QUERY_RULES, SWIN_RULES))
    return both(ours, theirs, batch)


def segformer_head(batch: int) -> dict[str, Side]:
    """SegFormer's head alone, of B0's widths."""
    from transformers import SegformerConfig
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    widths, strides = (32, 64, 160, 256), (4, 8, 16, 32)
    theirs = shaken(SegformerDecodeHead(SegformerConfig(num_labels=CLASSES, classifier_dropout_prob=0.0)))
    ours = SegFormerHead(widths, strides, CLASSES, dropout=0.0)
    ours.load_state_dict(converted(theirs.state_dict(), SEGFORMER_RULES))
    maps = [torch.randn(batch, c, SIDE // s, SIDE // s) for c, s in zip(widths, strides, strict=True)]
    return {"transformers": Head(theirs, maps), "ours": Head(ours, maps)}


def segformer(batch: int) -> dict[str, Side]:
    """SegFormer-B0."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    plain = {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0, "num_labels": CLASSES}
    theirs = shaken(SegformerForSemanticSegmentation(SegformerConfig(**plain)))
    backbone = Backbone("mit_b0", strides=(4, 8, 16, 32), args={"drop_path_rate": 0.0})
    head = Factory(SegFormerHead, embed_dim=256, dropout=0.0)
    ours = SemanticSegmenter(backbone, LABELS, head, loss=PixelCrossEntropy(over_all=False))
    heads = [(rf"^decode_head\.{pattern}", f"decode_head.{name}") for pattern, name in SEGFORMER_RULES]
    state = converted(theirs.state_dict(), MIT_RULES, heads)
    for key in [key for key in state if ".attention.k_proj." in key]:
        both_parts = [state.pop(key), state.pop(key.replace("k_proj", "v_proj"))]
        state[key.replace("attention.k_proj", "attn.kv")] = torch.cat(both_parts)
    ours.load_state_dict(state)
    return both(ours, theirs, batch)


def swin() -> Backbone:
    """Swin-T as dense predictors have it."""
    return Backbone(
        "swin_tiny_patch4_window7_224", strides=(4, 8, 16, 32), output_norm_eps=1e-5, args={"always_partition": True}
    )


def both(ours: Any, theirs: nn.Module, batch: int) -> dict[str, Side]:
    """Both sides on one batch."""
    side = Ours(ours, images(batch), type(theirs).__name__.startswith("Segformer"))
    return {"transformers": Theirs(theirs, side.batch, side.normalised), "ours": side}


MODELS: dict[str, Callable[[int], dict[str, Side]]] = {
    "upernet": upernet,
    "mask2former": mask2former,
    "segformer": segformer,
    "segformer_head": segformer_head,
}
# Largest difference of the loss; Mask2Former's is on points that each side draws.
LOSS_TOLERANCE = {"mask2former": 0.05}


def check_equal(name: str, sides: dict[str, Side]) -> dict[str, float]:
    """Largest differences of outputs and loss, as shares of theirs; an AssertionError where they are not rounding."""
    theirs, ours = (sides[side].evaluate() for side in ("transformers", "ours"))
    outputs = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        their_loss, loss = (sides[side].loss().item() for side in ("transformers", "ours"))
    found = {"outputs": outputs, "loss": abs(loss - their_loss) / abs(their_loss)}
    assert outputs < 1e-3, found
    assert found["loss"] < LOSS_TOLERANCE.get(name, 1e-4), found
    return found


def peak_memory(name: str, side: str, mode: str, batch: int) -> float:
    """MiB that a process needs for a side's work on top of model and inputs, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, side, mode, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(name: str, side: str, mode: str, batch: int) -> None:
    """The other end of `peak_memory`."""
    torch.manual_seed(0)
    one = MODELS[name](batch).pop(side)
    print(peak_mib(lambda: [one.evaluate() if mode == "evaluation" else one.train_step() for _ in range(2)]))


def main(argv: Sequence[str] | None = None) -> None:
    """Checks, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=2, help="images of a training step; evaluation looks at one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.memory_of:
        measure_memory(*arguments.memory_of, arguments.batch)
        return
    modes = {"evaluation": 1} if arguments.no_training else {"evaluation": 1, "training step": arguments.batch}
    content: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for name in arguments.only:
        for mode, batch in modes.items():
            torch.manual_seed(0)
            sides = MODELS[name](batch)
            key = f"{name}, {mode}"
            content[key] = {"images": [batch, 3, SIDE, SIDE]}
            if mode == "evaluation":
                content[key]["differences"] = check_equal(name, sides)
            runs: dict[str, Callable[[], object]] = {
                side: one.evaluate if mode == "evaluation" else one.train_step for side, one in sides.items()
            }
            # The least of several: what disturbs a run only adds to it.
            seconds = {s: min(t) for s, t in alternate(runs, arguments.repeats, clock=time.process_time).items()}
            content[key]["seconds"] = seconds
            ratios[f"{key}: speed"] = seconds["transformers"] / seconds["ours"]
            if not arguments.no_memory:
                memory = {side: peak_memory(name, side, mode, batch) for side in sides}
                content[key]["peak_memory_mib"] = memory
                ratios[f"{key}: share of memory"] = memory["ours"] / memory["transformers"]
            print(key, content[key], flush=True)
    for key, value in ratios.items():
        print(f"{key:45s} {value:.2f}")
    write(arguments.output, "segmentation", {**content, "ratios": ratios}, ratios, "Segmentation against transformers")


if __name__ == "__main__":
    main()
