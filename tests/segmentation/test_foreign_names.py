"""Whole segmenters from others' files: names of the authors' codes and of Hugging Face's `transformers`, written here
by rules of their own, give back every tensor."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from parity.models import contiguous
from torch import Tensor

from vistrain.backbones import Backbone
from vistrain.checkpoints import load_weights
from vistrain.errors import WeightsError
from vistrain.segmentation import FCNHead, SegFormerHead, SemanticSegmenter, UPerHead
from vistrain.structures import Factory

Weights = dict[str, Tensor]
SEGFORMER: dict[str, Any] = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "depths": (1, 2, 1, 1)}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 64}
CONVNEXT: dict[str, Any] = {"dims": (4, 4, 8, 8), "depths": (1, 2, 1, 1)}


def segmenter(name: str, args: dict[str, Any], head: Any, **more: Any) -> SemanticSegmenter:
    torch.manual_seed(0)
    backbone = Backbone(name, strides=(4, 8, 16, 32), args=args, **more)
    return SemanticSegmenter(backbone, contiguous(3), head, auxiliary=Factory(FCNHead, embed_dim=4))


def renamed(weights: Weights, *rules: tuple[str, Any]) -> Weights:
    for pattern, replacement in rules:
        weights = {re.sub(pattern, replacement, key): value for key, value in weights.items()}
    return weights


def one_more(before: str, after: str) -> Any:
    return lambda match: f"{before}{int(match[1]) + 1}{after}"


def segformer(weights: Weights) -> Weights:
    weights = renamed(
        weights,
        (r"^backbone\.body\.stem\.", "backbone.patch_embed1."),
        (r"^backbone\.body\.stages\.(\d)\.downsample\.", one_more("backbone.patch_embed", ".")),
        (r"^backbone\.body\.stages\.(\d)\.blocks\.", one_more("backbone.block", ".")),
        (r"^backbone\.body\.stages\.(\d)\.norm\.", one_more("backbone.norm", ".")),
        (r"\.dwconv\.", ".dwconv.dwconv."),
    )
    return {**weights, "decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)}


def transformers(weights: Weights) -> Weights:
    weights = {k: v for k, v in weights.items() if not k.startswith("auxiliary")}
    apart = {}
    for key, value in weights.items():
        if ".attn.kv." in key:
            for name, part in zip(("key", "value"), value.chunk(2), strict=True):
                apart[key.replace(".attn.kv.", f".attn.{name}.")] = part
        else:
            apart[key] = value
    encoder = "segformer.encoder"
    return renamed(
        apart,
        (r"^backbone\.body\.stem\.norm\.", f"{encoder}.patch_embeddings.0.layer_norm."),
        (r"^backbone\.body\.stem\.", f"{encoder}.patch_embeddings.0."),
        (r"^backbone\.body\.stages\.(\d)\.downsample\.norm\.", rf"{encoder}.patch_embeddings.\1.layer_norm."),
        (r"^backbone\.body\.stages\.(\d)\.downsample\.", rf"{encoder}.patch_embeddings.\1."),
        (r"^backbone\.body\.stages\.(\d)\.blocks\.", rf"{encoder}.block.\1."),
        (r"^backbone\.body\.stages\.(\d)\.norm\.", rf"{encoder}.layer_norm.\1."),
        (r"\.norm([12])\.", r".layer_norm_\1."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.attn\.q\.", ".attention.self.query."),
        (r"\.attn\.norm\.", ".attention.self.layer_norm."),
        (r"\.attn\.", ".attention.self."),
        (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
        (r"\.dwconv\.", ".dwconv.dwconv."),
        (r"linear_c(\d)", lambda match: f"linear_c.{int(match[1]) - 1}"),
        (r"linear_fuse\.conv\.", "linear_fuse."),
        (r"linear_fuse\.bn\.", "batch_norm."),
        (r"linear_pred\.", "classifier."),
    )


def swin(weights: Weights) -> Weights:
    tables = {"backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4)}
    return tables | renamed(
        weights,
        (r"^backbone\.norms\.", "backbone.norm"),
        (r"^backbone\.body\.", "backbone."),
        (r"^backbone\.layers\.(\d)\.downsample\.", lambda m: f"backbone.layers.{int(m[1]) - 1}.downsample."),
    )


def convnext(weights: Weights) -> Weights:
    return renamed(
        weights,
        (r"^backbone\.norms\.", "backbone.norm"),
        (r"^backbone\.body\.stem\.", "backbone.downsample_layers.0."),
        (r"^backbone\.body\.stages\.(\d)\.downsample\.", r"backbone.downsample_layers.\1."),
        (r"^backbone\.body\.stages\.(\d)\.blocks\.", r"backbone.stages.\1."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    )


CASES: dict[str, Any] = {
    "segformer": ("mit_b0", SEGFORMER, {}, Factory(SegFormerHead, embed_dim=8), segformer),
    "swin": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        {"output_norm_eps": 1e-5},
        Factory(UPerHead, embed_dim=4),
        swin,
    ),
    "convnext": ("convnext_tiny", CONVNEXT, {"output_norm_eps": 1e-6}, Factory(UPerHead, embed_dim=4), convnext),
    "resnet": (
        "resnet10t",
        {"stem_width": 4, "channels": [4, 4, 8, 8]},
        {},
        Factory(UPerHead, embed_dim=4),
        lambda weights: renamed(weights, (r"^backbone\.body\.", "backbone.")),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_authors_files_load_strictly(name: str) -> None:
    backbone, args, more, head, write = CASES[name]
    model, other = (segmenter(backbone, args, head, **more) for _ in "12")
    state = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}
    model.load_state_dict(state)
    theirs = write(state)
    assert not any(key.startswith("backbone.body.") for key in theirs)
    load_weights(other, theirs, key_maps=other.key_maps)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    load_weights(other, state, key_maps=other.key_maps)  # and our own
    theirs.pop(next(key for key in theirs if key.startswith("decode_head.") and key.endswith("bn.weight")))
    with pytest.raises(WeightsError, match="missing"):
        load_weights(other, theirs, key_maps=other.key_maps)


def test_transformers_files_load_strictly() -> None:
    backbone, args, _, head, _ = CASES["segformer"]
    model = SemanticSegmenter(Backbone(backbone, strides=(4, 8, 16, 32), args=args), contiguous(3), head)
    state = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}
    theirs = transformers(state)
    assert "segformer.encoder.block.1.1.attention.self.key.weight" in theirs
    assert "decode_head.linear_c.3.proj.weight" in theirs
    report = load_weights(model, theirs, key_maps=model.key_maps)
    assert report.key_map == "transformers"
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    theirs.pop("segformer.encoder.block.1.1.attention.self.key.weight")
    with pytest.raises(WeightsError, match=r"missing.*attn\.kv\.weight"):
        load_weights(model, theirs, key_maps=model.key_maps)
