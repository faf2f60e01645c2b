"""Heads of semantic segmentation against mmsegmentation and the authors' codes: weights, logits, losses, labels."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import assert_losses, assert_outputs
from parity.filled import MMResNet, filled, shapes_of
from parity.models import contiguous
from vistrain.checkpoints import KeyMap, load_weights
from vistrain.devices import on_meta
from vistrain.necks import FPN
from vistrain.segmentation import (
    DAFormerHead,
    FCNHead,
    FPNHead,
    SegFormerHead,
    SemanticSegmenter,
    UPerHead,
    VWCityHead,
    VWHead,
)
from vistrain.structures import Factory

STRIDES = (4, 8, 16, 32)


def channels(fixture: dict[str, Any]) -> tuple[int, ...]:
    """Of the maps in a fixture."""
    maps = fixture["inputs"]["features"]
    return tuple(x.shape[1] for x in (maps[0] if isinstance(maps[0], list) else maps))


def assert_head(head: Any, fixture: dict[str, Any]) -> None:
    """Loads a fixture's weights strictly, but for what its head is known not to use, and compares logits."""
    unused = KeyMap("mmsegmentation", r"", drop=tuple(f"^{pattern}" for pattern in head.unused))
    load_weights(head.eval(), fixture["state_dict"], key_maps=[unused])
    maps, logits = fixture["inputs"]["features"], fixture["outputs"]["logits"]
    cases = zip(maps, logits, strict=True) if isinstance(maps[0], list) else [(maps, logits)]
    with torch.no_grad():
        for features, theirs in cases:
            assert_outputs(head(features), theirs)


def width(state: dict[str, Tensor]) -> dict[str, int]:
    """Sizes that a classifier's shape tells."""
    classes, embed_dim = state["conv_seg.weight"].shape[:2]
    return {"num_classes": classes, "embed_dim": embed_dim}


def number(text: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", text)
    assert found, name
    return int(found[1])


@pytest.mark.parametrize("name", fixtures.names("dense/upernet*.pt") or ["dense/upernet_head.pt"])
def test_upernet(name: str) -> None:
    fixture = fixtures.load(name)
    state = fixture["state_dict"]
    scales = re.search(r"pool_scales=\(([\d, ]+)\)", fixture["constructor"])
    pool_scales = tuple(map(int, scales[1].split(","))) if scales else (1, 2, 3, 6)
    assert_head(UPerHead(channels(fixture), STRIDES, pool_scales=pool_scales, **width(state)), fixture)


def test_fcn() -> None:
    fixture = fixtures.load("dense/fcn_aux_head.pt")
    assert_head(FCNHead(channels(fixture), STRIDES, stride=16, **width(fixture["state_dict"])), fixture)


def test_semantic_fpn() -> None:
    fixture = fixtures.load("dense/semantic_fpn_head.pt")
    assert_head(FPNHead(channels(fixture), STRIDES, **width(fixture["state_dict"])), fixture)


def test_fpn_neck() -> None:
    fixture = fixtures.load("dense/mmseg_fpn_neck.pt")
    neck = FPN(channels(fixture), STRIDES, embed_dim=16)
    neck.load_state_dict(fixture["state_dict"])
    with torch.no_grad():
        assert_outputs(neck(fixture["inputs"]["features"]), fixture["outputs"]["logits"])


def test_segformer() -> None:
    fixture = fixtures.load("dense/segformer_head.pt")
    classes, embed_dim = fixture["state_dict"]["linear_pred.weight"].shape[:2]
    assert_head(SegFormerHead(channels(fixture), STRIDES, classes, embed_dim), fixture)


def test_daformer() -> None:
    fixture = fixtures.load("dense/daformer_head.pt")
    assert_head(DAFormerHead(channels(fixture), STRIDES, **width(fixture["state_dict"])), fixture)


@pytest.mark.parametrize(
    "name", fixtures.names("dense/vwformer*.pt") or ["dense/vwformer_head.pt", "dense/vwformer_head_nosc_4heads.pt"]
)
def test_vwformer(name: str) -> None:
    fixture = fixtures.load(name)
    state, text = fixture["state_dict"], fixture["constructor"]
    kind = VWCityHead if "attn.0.in_proj_weight" in state else VWHead
    arguments = {"num_heads": number(text, "nheads"), "short_cut": "short_cut=True" in text}
    assert_head(kind(channels(fixture), STRIDES, **width(state), **arguments), fixture)


FULL_SIZE: dict[str, Any] = {
    "mmseg_uper_head_swin_t": lambda: UPerHead((96, 192, 384, 768), STRIDES, 150),
    "mmseg_fpn_head": lambda: FPNHead((256,) * 4, STRIDES, 150),
    "mmseg_segformer_head_b2": lambda: SegFormerHead((64, 128, 320, 512), STRIDES, 150, 768),
    "official_vw_city_head_convnext_t": lambda: VWCityHead((96, 192, 384, 768), STRIDES, 19),
    "official_vw_head_convnext_t_ade": lambda: VWHead((96, 192, 384, 768), STRIDES, 150),
    "official_vw_head_swin_l_ade": lambda: VWHead((192, 384, 768, 1536), STRIDES, 150),
}


@pytest.mark.parametrize("name", list(FULL_SIZE))
def test_names_and_shapes_of_full_size(name: str) -> None:
    theirs = fixtures.load(f"dense/keys/{name}.json")["state_dict"]
    with on_meta():
        ours = FULL_SIZE[name]()
    unused = [re.compile(pattern) for pattern in ours.unused]
    expected = {key: shape for key, shape in theirs.items() if not any(p.match(key) for p in unused)}
    assert {key: list(shape) for key, shape in shapes_of(ours).items()} == expected


def test_segmenter_whole_and_sliding_and_its_loss() -> None:
    fixture = fixtures.load("dense/mmseg_semfpn_segmentor.pt")
    inputs, theirs = fixture["inputs"], fixture["outputs"]
    labels = contiguous(5)
    height, width = inputs["ori_shape"][:2]
    batch = {
        "image": inputs["img"],
        "size": torch.tensor([inputs["img"].shape[2:]]),
        "original_size": torch.tensor([[height, width]]),
        "id": ["0"],
        "target": [{"label_map": inputs["gt"][0, 0]}],
    }
    for mode, window in (("whole", {}), ("slide", {"window": (64, 64), "window_stride": (42, 42)})):
        model = SemanticSegmenter(
            MMResNet(deep_stem=True),
            labels,
            Factory(FPNHead, embed_dim=12),
            neck=Factory(FPN, embed_dim=16),
            **window,
        ).eval()
        state = filled(shapes_of(model))
        assert set(state) == set(fixture["keys"])
        load_weights(model, state)
        logits = model.image_logits(batch)[0]
        probability = nn.functional.interpolate(logits[None], (height, width), mode="bilinear").softmax(1)
        found = model.predict(batch)[0].semantic
        assert_outputs(probability[..., ::3, ::3], theirs[mode]["prob"])
        assert torch.equal(found, theirs[mode]["pred"].long())
    assert_losses(model.losses(batch), {"loss_seg": fixture["losses"]["decode.loss_seg"]})
