"""Values of segmenters' parts that mean nothing are refused where they are given, with their key."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parity.models import FourMaps, TinyBackbone, contiguous
from torch import nn

from vistrain.attention.choice import choose
from vistrain.attention.window import WindowAttention
from vistrain.backbones.create import create
from vistrain.config.builder import build
from vistrain.data import MaskFolders, MaskSplit
from vistrain.data.segmentation.label_files import read_classes
from vistrain.errors import ConfigError, DataError, first_line
from vistrain.losses import (
    Charbonnier,
    MaskCriterion,
    PixelCrossEntropy,
    PixelDice,
    PixelFocal,
    PixelLosses,
    SetCriterion,
)
from vistrain.matching import HungarianMatcher, MaskMatcher
from vistrain.pretraining.croco import PlacedAttention, PlacedCrossAttention
from vistrain.pretraining.token_blocks import BiasedAttention, BiasedCrossAttention
from vistrain.segmentation import BEVANet, Mask2Former, MaskedDecoder, SemanticSegmenter, UPerHead, WNet
from vistrain.segmentation.daformer import DAFormerHead
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.unet import UNet3d
from vistrain.structures import Channels, Factory, Preprocessing
from vistrain.tasks.segmentation.evaluate import evaluate_masks


def backbone() -> TinyBackbone:
    maps = FourMaps([4, 6, 8, 10])
    return TinyBackbone(maps, (4, 6, 8, 10), (4, 8, 16, 32), Preprocessing((0.5,) * 3, (0.2,) * 3))


def segmenter(**arguments: Any) -> SemanticSegmenter:
    return SemanticSegmenter(backbone(), contiguous(3), Factory(UPerHead, embed_dim=8), **arguments)


def classifier(**arguments: Any) -> Mask2Former:
    return Mask2Former(backbone(), contiguous(3), **arguments)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: segmenter(loss=PixelCrossEntropy([1.0, 2.0])), "model.loss.class_weights: 2 weights for 3 classes"),
        (lambda: segmenter(loss=PixelLosses([PixelFocal(class_weights=[1.0])])), "1 weights for 3 classes"),
        (lambda: PixelCrossEntropy([0.0, 0.0, 0.0]), "class_weights: all are 0: nothing would be learned"),
        (lambda: PixelFocal(class_weights=[-1.0, 1.0]), "class_weights: -1 teaches the opposite"),
        (lambda: PixelDice(weight=-1.0), "weight: -1 teaches the opposite"),
        (lambda: segmenter(loss=PixelDice(weight=0.0)), "model.loss.weight: is 0: nothing would be learned"),
        (lambda: PixelLosses([PixelDice(weight=0.0)]), "losses: all weigh 0"),
        (lambda: segmenter(auxiliary_weight=-0.4), "auxiliary_weight: -0.4 teaches the opposite"),
        (lambda: MaskCriterion(dice_weight=-5.0), "dice_weight: -5 teaches the opposite"),
        (lambda: MaskCriterion(0.0, 0.0, 0.0), "class_weight: is 0, and so are mask_weight, dice_weight"),
        (lambda: SetCriterion(giou_weight=math.nan), "giou_weight: nan teaches the opposite or nothing"),
        (lambda: HungarianMatcher(box_cost=-5.0), "box_cost: -5 teaches the opposite"),
        (lambda: MaskMatcher(0.0, 0.0, 0.0), "class_cost: is 0, and so are mask_cost, dice_cost"),
        (lambda: Charbonnier(weight=-1.0), "weight: -1 teaches the opposite"),
        (lambda: PixelLosses([]), "model.loss.losses: no losses to add"),
        (lambda: segmenter(scales=(1e9,)), "model.scales: [1000000000.0] are no scales - give numbers above 0"),
        (lambda: MaskCriterion(num_points=-4), "model.criterion.num_points: -4 is too small"),
        (lambda: classifier(object_threshold=7.0), "model.object_threshold: 7.0 is not in 0..1"),
        (lambda: classifier(overlap_threshold=-1.0), "model.overlap_threshold: -1.0 is not in 0..1"),
        (lambda: classifier(detections_per_image=-5), "model.detections_per_image: -5 is too small"),
        (
            lambda: classifier(decoder=Factory(MaskedDecoder, num_queries=0)),
            "model.decoder.num_queries: 0 is too small",
        ),
        (lambda: classifier(decoder=Factory(MaskedDecoder, num_heads=5)), "channels are not divisible by 5 heads"),
        (lambda: classifier(outputs=("panoptic", "panoptic")), "model.outputs: ['panoptic', 'panoptic'] repeats one"),
        (lambda: classifier(size_divisor=0), "model.size_divisor: 0 is too small"),
        (lambda: segmenter(window_batch=0), "model.window_batch: 0 is too small"),
        (lambda: BEVANet(contiguous(3), blocks=(2,)), "model.blocks: [2] - 5 numbers above 0"),
        (lambda: WNet(contiguous(3), widths=()), "model.widths: [] - the channels of each level"),
        (lambda: MaskCriterion(oversample_ratio=0.0), "model.criterion.oversample_ratio: 0.0 is not 1 or more"),
        (lambda: MaskCriterion(importance_ratio=7.0), "model.criterion.importance_ratio: 7.0 is not in 0..1"),
        (
            lambda: DAFormerHead((4, 6), (4, 8), 3, embed_dim=8, dilations=()),
            "dilations: [] - whole numbers above 0, one at least",
        ),
        (lambda: UNet3d(1, 2, (4, 4), ((1, 1, 1), (2, 0, 2))), "model.network.strides: [[1, 1, 1], [2, 0, 2]] - whole"),
        (lambda: UNet3d(1, 2, (4, 0)), "model.network.widths: [4, 0] - whole numbers of 1 or more"),
        (lambda: UNet3d(1, 2, ()), "model.network.widths: [] - whole numbers of 1 or more"),
        (lambda: WindowAttention(8, window_size=0), "window_size: 0 is too small"),
    ],
)
def test_numbers_that_mean_nothing(made: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made()
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            "agent",
            {"agent_num": -1},
            "attention_args.agent_num: -1 is too small - give a whole number of 1 or more",
        ),
        ("nat", {"kernel_size": 0}, "args.attention_args.kernel_size: 0 is too small"),
        ("window", {"attn_drop": 1.5}, "args.attention_args.attn_drop: 1.5 is no share that is dropped"),
        ("window", {"qk_scale": -2.0}, "args.attention_args.qk_scale: -2 is negative"),
        ("cosine", {"pretrain_grid": -1}, "args.attention_args.pretrain_grid"),
    ],
)
def test_operators_values_that_mean_nothing(name: str, arguments: dict[str, Any], said: str) -> None:
    name = {"nat": "NeighborhoodAttention", "cosine": "CosineAttention"}.get(name, name)
    with pytest.raises(ConfigError) as refused:
        choose(name, arguments, 1)
    assert said in str(refused.value)


def test_a_part_is_refused_at_the_key_that_is_to_blame() -> None:
    """Words of other libraries stand behind the key, and what its default is."""
    head = build({"type": "segmentation.UPerHead", "dropout": 7.0}, Factory[DecodeHead], where="model.head")
    with pytest.raises(ConfigError) as refused:
        SemanticSegmenter(backbone(), contiguous(3), head)
    assert str(refused.value).startswith("model.head.dropout: UPerHead cannot be made with 7.0: ")
    assert "its default, 0.1, can be" in str(refused.value)
    head = build({"type": "segmentation.UPerHead", "num_classes": 5}, Factory[DecodeHead], where="model.head")
    with pytest.raises(ConfigError, match=r"model\.head\.num_classes: is not set by hand"):
        SemanticSegmenter(backbone(), contiguous(3), head)
    with pytest.raises(ConfigError, match=r"args\.layers: .*resnet18 cannot be built with"):
        create("resnet18", False, {"layers": [1]}, 3)


@pytest.mark.parametrize("head", [{"type": "segmentation.UPerHead"}, {"type": "segmentation.SegFormerHead"}])
def test_a_width_of_zero_is_refused_when_it_is_built(head: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    """torch makes it with a warning, and the images fail in it."""
    made = build({**head, "embed_dim": 0}, Factory[DecodeHead], where="model.head")
    said = r"model\.head\.embed_dim: \w+ cannot be made with 0: a width in it is 0: its [\w.]+ has no elements, \["
    with pytest.raises(ConfigError, match=said):
        SemanticSegmenter(backbone(), contiguous(3), made)
    assert not [w for w in recwarn if "zero-element" in str(w.message)]
    node = {"type": "backbones.Backbone", "name": "resnet10t", "args": {"channels": [0, 8, 8, 8]}}
    with pytest.raises(ConfigError, match=r"model\.args\.channels: \[0, 8, 8, 8\] is not whole numbers of 1 or more"):
        build({**node, "pretrained": False}, nn.Module, {Channels: 3}, "model")


def test_values_that_no_label_file_holds(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("99999999999999999999 a\n1 b\n")
    with pytest.raises(DataError, match="99999999999999999999 is no value of a label file"):
        read_classes(classes)
    classes.write_text("a\nb\n")
    with pytest.raises(DataError, match="-3 is no value of a label file"):
        read_classes(classes, first_value=-3)
    classes.write_text("-1 void\n0 road\n")
    with pytest.raises(DataError, match="-1 is no value of a label file"):
        read_classes(classes)
    classes.write_text("0 road 128 64 128\n1 sky 70 -130 180\n")
    with pytest.raises(DataError, match=r"'sky' has the colour \[70, -130, 180\]"):
        read_classes(classes)


def test_predictions_that_are_no_folder(tmp_path: Path) -> None:
    data = MaskFolders(MaskSplit("a", "b"), MaskSplit("a", "b"), ("x", "y"), root=str(tmp_path))
    with pytest.raises(DataError, match="nowhere: is no folder of predictions"):
        evaluate_masks(tmp_path / "nowhere", data)


@pytest.mark.parametrize("part", [BiasedAttention, BiasedCrossAttention, PlacedAttention, PlacedCrossAttention])
@pytest.mark.parametrize("heads", [0, -1, 3])
def test_heads_that_do_not_share_a_width_are_refused_when_they_are_built(part: Callable[..., Any], heads: int) -> None:
    with pytest.raises(ValueError, match=rf"8 channels are not divisible by {heads} heads"):
        part(8, heads)


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda: list(zip([1], [], strict=True)), "lists of different lengths that belong together"),
        (lambda: math.isqrt(-1), "a negative number where a square is needed"),
        (lambda: 1 // 0, "a division by 0"),
        (lambda: 1 % 0, "a division by 0"),
        (lambda: [1][3], "a list of another length than is needed"),
        (lambda: len(5), "one value where a list is needed"),  # type: ignore[arg-type]
        (lambda: int("x"), "invalid literal for int() with base 10: 'x'"),
    ],
)
def test_words_of_python_become_ours(fails: Callable[[], Any], said: str) -> None:
    with pytest.raises(Exception) as refused:  # noqa: PT011 - whatever Python raises
        fails()
    assert first_line(refused.value) == said
