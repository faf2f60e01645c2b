"""Backbones: one contract for every timm family, strict names and weights."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from parity import fixtures
from torch import Tensor, nn

from vistrain.backbones import Backbone, DepthPyramid
from vistrain.backbones.resnet_keys import (
    CLASSIFIER,
    COUNTERS,
    DETECTRON2,
    detectron2_exports,
    detectron2_rules,
    torchvision_rules,
)
from vistrain.checkpoints import KeyMap, load_weights
from vistrain.devices import on_meta
from vistrain.errors import ConfigError, WeightsError
from vistrain.layers.norms import FrozenBatchNorm2d, LayerNorm2d, freeze_batch_norms
from vistrain.necks import ChannelMapper, SimplePyramid, default_neck

# Name, strides, timm's arguments that make it small. Chosen for how they differ: padded and unpadded convolutions,
# channels last, windows, one stride, 16 and coarser only, blocks that maps must divide into, one fixed size.
FAMILIES: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    ("resnet10t", (2, 4, 8, 16, 32), {}),
    ("convnext_atto", (4, 8, 16, 32), {"depths": (1, 1, 1, 1), "dims": (16, 16, 24, 32)}),
    ("swin_tiny_patch4_window7_224", (4, 8, 16, 32), {"depths": (2, 1, 1, 1), "embed_dim": 24}),
    ("test_vit", (16,), {}),
    ("efficientnet_b0", (4, 8, 16, 32), {}),
    ("mobilenetv3_small_050", (8, 16, 32), {}),
    ("davit_tiny", (4, 8, 16, 32), {"depths": (1, 1, 1, 1), "embed_dims": (24, 24, 48, 48), "num_heads": (1, 1, 2, 2)}),
    ("efficientvit_m0", (16, 32, 64), {}),
    ("shvit_s1", (16, 32, 64), {}),
    ("regnetx_002", (8, 16, 32), {}),
    ("pvt_v2_b0", (4, 8, 16, 32), {}),
    ("hrnet_w18_small", (4, 8, 16, 32), {}),
    ("maxvit_pico_rw_256", (4, 8, 16), {"img_size": 64}),
    ("test_vit_relpos", (16,), {}),
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "strides", "args"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_every_family_keeps_the_contract(name: str, strides: tuple[int, ...], args: dict[str, Any]) -> None:
    backbone = Backbone(name, strides=strides, args=args)
    assert backbone.strides == strides
    images = torch.randn(2, 3, 75, 109)

    maps = backbone(images)
    shapes = [(2, c, math.ceil(75 / s), math.ceil(109 / s)) for c, s in zip(backbone.channels, strides, strict=True)]
    assert [tuple(x.shape) for x in maps] == shapes
    sum((x * torch.randn_like(x)).mean() for x in maps).backward()  # type: ignore[union-attr]
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []

    backbone.eval()
    with torch.no_grad():
        expected = backbone(images[:1])
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(images[:1])
    assert all(x.isfinite().all() for x in half)
    assert [x.shape for x in half] == [x.shape for x in expected]

    other = Backbone(name, strides=strides, args=args).eval()
    load_weights(other, backbone.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(other(images[:1]), expected, strict=True))


@pytest.mark.parametrize(("name", "divisor"), [("inception_v3", 32), ("halonet_h1", 256)])
def test_unpadded_convolutions_and_blocks_give_aligned_maps(name: str, divisor: int) -> None:
    backbone = Backbone(name).eval()
    assert backbone.preprocessing.size_divisor == divisor
    with torch.no_grad():
        assert [x.shape[-2:] for x in backbone(torch.randn(1, 3, 75, 109))] == [(10, 14), (5, 7), (3, 4)]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "efficientnet_b0"])
def test_maps_and_names_are_timms(name: str) -> None:
    ours = Backbone(name, strides=(8, 16, 32)).eval()
    theirs = timm.create_model(name).eval()
    assert set(ours.body.state_dict()) <= set(theirs.state_dict())
    theirs.load_state_dict(theirs.state_dict() | ours.body.state_dict())
    images = torch.randn(1, 3, 224, 224)  # the size that timm's Swin is built for
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, indices=3, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(ours(images), expected, strict=True))


def test_resnets_see_images_unpadded() -> None:
    backbone = Backbone("resnet10t", strides=(32,)).eval()
    images = torch.randn(1, 3, 75, 109)
    with torch.no_grad():
        expected = backbone.body.forward_intermediates(images, indices=[4], intermediates_only=True)[0]
        assert torch.equal(backbone(images)[0], expected)
    assert backbone.preprocessing.size_divisor == 1


def test_preprocessing_comes_from_the_weights_tag() -> None:
    vit = Backbone("vit_tiny_patch16_224.augreg_in21k", strides=(16,)).preprocessing
    assert (vit.mean, vit.std, vit.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert (vit.input_size, vit.size_divisor, vit.channel_order) == ((224, 224), 16, "rgb")
    grey = Backbone("resnet10t", image_channels=1)
    assert len(grey.preprocessing.mean) == len(grey.preprocessing.std) == 1
    assert grey(torch.randn(1, 1, 64, 64))[0].shape == (1, 128, 8, 8)


def test_one_fixed_size_takes_smaller_images_and_says_when_they_are_larger() -> None:
    backbone = Backbone("test_vit_relpos", strides=(16,), args={"img_size": (64, 96)})
    assert backbone(torch.randn(1, 3, 40, 96))[0].shape[-2:] == (3, 6)
    with pytest.raises(ConfigError, match=r"args\.img_size: .* images of up to 64x96, this one is 65x96"):
        backbone(torch.randn(1, 3, 65, 96))


# --- what the user gets wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet500"}, r"name: no backbone 'resnet500' - did you mean 'resnet50'"),
        ({"name": "resnet50.tv_in2k"}, r"name: no weights 'tv_in2k' of resnet50 - there are .*resnet50\.tv_in1k"),
        ({"name": "resnet18", "strides": (8, 64)}, r"strides: resnet18 has no stride 64 - it has 2, 4, 8, 16, 32"),
        ({"name": "test_vit", "strides": (8,)}, r"strides: test_vit has no stride 8 - it has 16; .*SimplePyramid"),
        ({"name": "resnet18", "strides": (16, 8)}, r"strides: \[16, 8\] is not a list of ascending strides"),
        ({"name": "resnet18", "strides": ()}, r"strides: \[\] is not a list of ascending strides"),
        ({"name": "resnet18", "freeze_at_stride": 3}, r"freeze_at_stride: resnet18 has no stage of stride 3"),
        (
            {"name": "resnet18", "args": {"drop_path_rat": 0.1}},
            r"args\.drop_path_rat: timm's resnet18 has no such argument - did you mean 'drop_path_rate'",
        ),
        ({"name": "maxvit_pico_rw_256", "args": {"windw": 7}}, r"args\.windw: timm's maxvit_pico_rw_256 has no such"),
        ({"name": "resnet18", "args": {"out_indices": (1,)}}, r"args\.out_indices: .* - use `strides`"),
        (
            {"name": "resnet18", "args": {"drop_path_rate": "x"}},
            r"args\.drop_path_rate: 'x' is not a number of 0 to 1",
        ),
    ],
)
def test_mistakes_are_named_with_their_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Backbone(**arguments)


def test_a_family_that_swallows_unknown_arguments_is_checked_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swallowing(nn.Module):
        def __init__(self, drop_rate: float = 0.0, **kwargs: Any) -> None:
            super().__init__()

    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: Swallowing(**kwargs))
    with pytest.raises(ConfigError, match=r"args\.drop_rat: .* did you mean 'drop_rate'\?"):
        Backbone("resnet18", args={"drop_rat": 0.1})


def test_timms_arguments_arrive() -> None:
    def count(backbone: Backbone) -> int:
        return sum(type(module).__name__ == "DropPath" for module in backbone.modules())

    assert count(Backbone("resnet10t", args={"drop_path_rate": 0.2})) > count(Backbone("resnet10t")) == 0


# --- freezing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride", "frozen"),
    [
        ("resnet18", 2, {"conv1", "bn1"}),
        ("resnet18", 4, {"conv1", "bn1", "layer1"}),
        ("convnext_atto", 4, {"stem", "stages.0"}),
        ("test_vit", 16, {"cls_token", "pos_embed", "patch_embed", "blocks"}),
        ("swin_tiny_patch4_window7_224", 8, {"patch_embed", "layers.0", "layers.1"}),
        ("mobilenetv3_small_050", 4, {"conv_stem", "bn1", "blocks.0"}),
    ],
)
def test_freezing_ends_with_the_stage(name: str, stride: int, frozen: set[str]) -> None:
    strides = (16,) if name == "test_vit" else (8, 16)
    backbone = Backbone(name, strides=strides, freeze_at_stride=stride)
    for key, parameter in backbone.body.named_parameters():
        inside = any(f"{key}.".startswith(f"{prefix}.") for prefix in frozen)
        assert parameter.requires_grad != inside, key


def test_frozen_stages_stay_in_evaluation_mode() -> None:
    backbone = Backbone("resnet10t", freeze_at_stride=4).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("body.layer2") for key in changed)
    assert not any(key.startswith(("body.bn1", "body.conv1", "body.layer1")) for key in changed)
    assert backbone.body.layer2.training
    assert not backbone.body.layer1.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_frozen_batch_norm_equals_batch_norm_in_evaluation(dtype: torch.dtype, needs_grad: bool) -> None:
    norm = nn.BatchNorm2d(6, eps=1e-3).eval()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).uniform_(0.5, 2.0)
    frozen = FrozenBatchNorm2d.of(norm).train()
    assert set(frozen.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    assert list(frozen.parameters()) == []
    x = torch.randn(2, 6, 5, 7)
    given = x.to(dtype).requires_grad_(needs_grad)
    y = frozen(given)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), norm(x), rtol=0, atol=2e-6 if dtype == torch.float32 else 6e-2)
    if needs_grad:
        y.sum().backward()
        scale = norm.weight / (norm.running_var + 1e-3).sqrt()
        torch.testing.assert_close(given.grad.float(), scale[None, :, None, None].expand_as(x), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002"])  # the second has norm and activation in one layer
def test_frozen_norms_compute_the_same_and_keep_no_counters(name: str) -> None:
    plain = Backbone(name).eval()
    frozen = Backbone(name, frozen_norm=True)
    assert load_weights(frozen, plain.state_dict()).loaded == len(frozen.state_dict())
    assert not any("num_batches_tracked" in key or ".bn" in key for key, _ in frozen.named_parameters())
    images = torch.randn(1, 3, 64, 64)
    frozen.train()
    for ours, theirs in zip(frozen(images), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert isinstance(freeze_batch_norms(nn.BatchNorm2d(3)), FrozenBatchNorm2d)


def test_checkpointing_and_decay_lists_pass_through() -> None:
    backbone = Backbone("test_vit", strides=(16,))
    assert {"body.pos_embed", "body.cls_token"} <= backbone.no_weight_decay()
    assert all(name in dict(backbone.named_parameters()) for name in ("body.pos_embed", "body.cls_token"))
    images = torch.randn(1, 3, 48, 48)
    gradients = []
    for enable in (False, True):
        backbone.zero_grad()
        backbone.set_grad_checkpointing(enable)
        backbone(images)[0].square().mean().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


# --- weights ---------------------------------------------------------------------------------------------------------


def filled(name: str, **arguments: Any) -> dict[str, Tensor]:
    """A timm model's state dict with random statistics too."""
    state = timm.create_model(name, **arguments).state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def as_detectron2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `convert-torchvision-to-d2.py` writes it: the classifier becomes a part of the stem."""
    counted = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    classifier = {f"stem.{key}": counted.pop(key) for key in ("fc.weight", "fc.bias")}
    return DETECTRON2.export(counted) | classifier


@pytest.mark.parametrize(
    "write",
    [
        lambda state: state,
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 1},
        lambda state: {"model": as_detectron2(state)},
        lambda state: {key: value for key, value in state.items() if not key.startswith("fc.")},
    ],
    ids=["timm", "wrapped", "detectron2", "headless"],
)
def test_weights_from_a_local_file(tmp_path: Path, write: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    state = filled("resnet18", num_classes=7)
    torch.save(write(state), tmp_path / "w.pth")
    backbone = Backbone("resnet18", pretrained=str(tmp_path / "w.pth"), frozen_norm=True)
    ours = backbone.body.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.items())
    assert len(ours) == len([key for key in state if "num_batches" not in key and not key.startswith("fc.")])


def test_detectron2s_pickled_file(tmp_path: Path) -> None:
    state = filled("resnet18")
    arrays = {key: value.numpy() for key, value in as_detectron2(state).items()}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    backbone = Backbone("resnet18", pretrained=str(tmp_path / "R-18.pkl"))
    assert torch.equal(backbone.body.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])


def test_position_tables_resize_as_timm_does(tmp_path: Path) -> None:
    torch.save(filled("test_vit", img_size=96), tmp_path / "w.pth")
    backbone = Backbone("test_vit", pretrained=str(tmp_path / "w.pth"), strides=(16,))
    assert backbone.body.pos_embed.shape[1] == 101  # (160 / 16)^2 and a class token, from 37


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(filled("resnet10t"), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: does not fit ResNet.* missing: conv1\.weight"):
        Backbone("resnet18", pretrained=str(tmp_path / "w.pth"))
    with pytest.raises(WeightsError, match="no such file"):
        Backbone("resnet18", pretrained=str(tmp_path / "absent.pth"))


def test_weights_that_cannot_be_had_say_which_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("cannot find the requested files\nin the cache")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(WeightsError) as error:
        Backbone("resnet18.a1_in1k", pretrained=True)
    assert "timm/resnet18.a1_in1k is not in the cache" in str(error.value)
    assert "set `pretrained` to a file, or to false" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="No pretrained weights exist for halonet_h1"):
        Backbone("halonet_h1", pretrained=True)


def test_timms_own_weights_load_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    state = filled("resnet10t")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(state))
    backbone = Backbone("resnet10t.c3_in1k", pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in backbone.body.state_dict().items())
    del state["layer2.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"Missing key.*layer2\.0\.conv1\.weight"):
        Backbone("resnet10t.c3_in1k", pretrained=True)


@pytest.mark.parametrize("dilated", [False, True], ids=["plain", "DC5"])
def test_torchvisions_file_computes_what_torchvision_computes(tmp_path: Path, dilated: bool) -> None:
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, dilated]).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    strides, args = ((16,), {"output_stride": 16}) if dilated else ((32,), {})
    ours = Backbone("resnet50", pretrained=str(tmp_path / "w.pth"), strides=strides, args=args, frozen_norm=True).eval()
    images = torch.randn(1, 3, 75, 61)
    with torch.no_grad():
        expected = nn.Sequential(*list(theirs.children())[:-2])(images)
        torch.testing.assert_close(ours(images)[0], expected, rtol=1e-4, atol=1e-4)
    assert ours.channels == (2048,)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_detectron2_names_of_whole_resnets_go_there_and_back(name: str) -> None:
    with on_meta():
        state = Backbone(name, frozen_norm=True).state_dict()
    foreign_prefix, ours = "backbone.bottom_up.", "body."
    d2 = KeyMap(
        "detectron2",
        marker=r"res2\.0\.conv1\.norm\.weight$",
        rules=detectron2_rules(foreign_prefix, ours),
        drop=(*CLASSIFIER, *COUNTERS),
        exports=detectron2_exports(foreign_prefix, ours),
    )
    foreign = d2.export(state)
    assert "backbone.bottom_up.res2.0.shortcut.norm.running_var" in foreign
    assert "backbone.bottom_up.stem.conv1.norm.bias" in foreign
    assert not any("layer" in key or "downsample" in key or "bn" in key for key in foreign)
    assert list(d2.apply(foreign | {"backbone.bottom_up.stem.fc.weight": torch.ones(1)})) == list(state)


@pytest.mark.parametrize(
    ("file", "rules", "marker"),
    [
        ("deformable_detr_detrex", detectron2_rules("backbone.", "body."), r"^backbone\."),
        ("official_m2f_r50_ade20k", detectron2_rules("backbone.", "body."), r"^backbone\."),
        ("official_defdetr", torchvision_rules("backbone.0.body.", "body."), r"^backbone\."),
        ("official_dino", torchvision_rules("backbone.0.body.", "body."), r"^backbone\."),
        ("mmdet_retinanet_r50_fpn", torchvision_rules("backbone.", "body."), r"^backbone\."),
    ],
)
def test_official_key_lists_map_onto_our_resnet50(file: str, rules: tuple[tuple[str, str], ...], marker: str) -> None:
    place = fixtures.folder()
    if place is None or not (place / "dense" / "keys" / f"{file}.json").exists():
        pytest.skip(f"needs dense/keys/{file}.json of the parity fixtures")
    listed = json.loads((place / "dense" / "keys" / f"{file}.json").read_text())["state_dict"]
    with on_meta():
        foreign = {key: torch.empty(shape) for key, shape in listed.items() if key.startswith("backbone.")}
        ours = Backbone("resnet50", frozen_norm=True).state_dict()
    key_map = KeyMap(file, marker=marker, rules=rules, drop=COUNTERS)
    assert key_map.matches(foreign)
    mapped = {key: value.shape for key, value in key_map.apply(foreign).items()}
    assert mapped == {key: value.shape for key, value in ours.items()}


# --- one stride to many ----------------------------------------------------------------------------------------------


def test_simple_pyramid_gives_a_plain_vit_its_strides() -> None:
    backbone = Backbone("test_vit", strides=(16,))
    neck = SimplePyramid(backbone.channels, backbone.strides, num_levels=4, embed_dim=16, scales=(2.0, 1.0, 0.5))
    assert (neck.strides, neck.channels) == ((8, 16, 32, 64), (16,) * 4)
    levels = neck(backbone(torch.randn(1, 3, 75, 109)))
    assert [tuple(x.shape[-2:]) for x in levels] == [(10, 14), (5, 7), (3, 4), (2, 2)]
    sum(x.square().mean() for x in levels).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in [*neck.parameters(), *backbone.parameters()])
    assert SimplePyramid((8,), (16,), embed_dim=8).strides == (4, 8, 16, 32)
    with pytest.raises(ConfigError, match="no scale 3"):
        SimplePyramid((8,), (16,), embed_dim=8, scales=(3.0, 2.0, 1.0, 0.5))
    with pytest.raises(ConfigError, match="4 scales for 3 levels"):
        SimplePyramid((8,), (16,), num_levels=3)


def test_four_depths_of_a_plain_vit_are_four_levels(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 6, "num_heads": 2}
    backbone = DepthPyramid("vit_tiny_patch16_224", args=args)
    assert (backbone.strides, backbone.channels) == ((2, 4, 8, 16), (32,) * 4)
    given: dict[int, torch.Tensor] = {}
    for number, block in enumerate(backbone.body.blocks, 1):
        block.register_forward_hook(lambda _, __, out, number=number: given.update({number: out}))
    levels = backbone(torch.randn(2, 3, 50, 37))  # neither side a multiple of the patch
    assert [tuple(x.shape) for x in levels] == [(2, 32, 25, 19), (2, 32, 13, 10), (2, 32, 7, 5), (2, 32, 4, 3)]
    maps = {number: out[:, 1:].mT.unflatten(2, (7, 5)) for number, out in given.items()}
    assert torch.equal(levels[2], maps[4])
    assert torch.equal(levels[3], torch.nn.functional.max_pool2d(maps[6], 2, ceil_mode=True))
    assert torch.equal(levels[1], backbone.levels[1](maps[3])[..., :13, :10])
    sum(x.square().mean() for x in levels).backward()  # type: ignore[union-attr]
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    assert set(backbone.layers_above().values()) == set(range(1, 8))
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0, **args)
    torch.save(whole.state_dict(), tmp_path / "vit.pth")
    larger = DepthPyramid("vit_tiny_patch16_224", str(tmp_path / "vit.pth"), {**args, "img_size": 48})
    assert torch.equal(larger.body.blocks[5].mlp.fc1.weight, whole.blocks[5].mlp.fc1.weight)
    assert larger.body.pos_embed.shape == (1, 37, 32)
    for given_blocks in ((1, 2, 3, 7), (2, 2, 3, 4), (0, 1, 2, 3)):
        with pytest.raises(ConfigError, match=r"^blocks: .* are not four of 6 blocks"):
            DepthPyramid("vit_tiny_patch16_224", args=args, blocks=given_blocks)
    with pytest.raises(ConfigError, match=r"^name: resnet10t has maps of several strides"):
        DepthPyramid("resnet10t")


@pytest.mark.parametrize(
    ("wanted", "levels", "expected"),
    [((8, 16, 32), 4, (8, 16, 32, 64)), ((4, 8, 16, 32), 5, (4, 8, 16, 32, 64)), ((8, 16, 32), 2, (16, 32))],
)
def test_a_plain_model_gets_its_levels_without_being_told(
    wanted: tuple[int, ...], levels: int, expected: tuple[int, ...]
) -> None:
    backbone = Backbone("test_vit", strides=wanted, freeze_at_stride=2, frozen_norm=True)
    assert (backbone.strides, backbone.wanted_strides) == ((16,), wanted)
    assert all(p.requires_grad for p in backbone.parameters())  # no stage is as fine as stride 2
    neck = default_neck(backbone, levels)(
        channels=backbone.channels, strides=backbone.strides, num_levels=levels, embed_dim=16
    )
    assert neck.strides == expected


def test_the_default_neck_of_everything_else_is_a_channel_mapper() -> None:
    for backbone in (Backbone("resnet10t", strides=(32,)), Backbone("test_vit", strides=(16,))):
        assert default_neck(backbone, 4).target is ChannelMapper


def test_frozen_stages_of_norms_with_activations_inside() -> None:
    backbone = Backbone("mobilenetv3_small_050", strides=(8, 16), freeze_at_stride=2, frozen_norm=True).train()
    assert backbone(torch.randn(1, 3, 64, 64))[0].shape[-1] == 8
    assert not backbone.body.conv_stem.weight.requires_grad


def test_layer_norm_is_over_channels() -> None:
    x = torch.randn(2, 6, 3, 4) * 3 + 1
    y = LayerNorm2d(6)(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


def test_norms_of_fixed_statistics_learn_their_weights() -> None:
    backbone = Backbone("resnet18", frozen_norm="statistics", freeze_at_stride=4).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items() if "running" in name}
    sum(x.sum() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    after = backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    norm = backbone.body.layer2[0].bn1
    assert not norm.training
    assert norm.weight.grad is not None
    assert not backbone.body.layer1[0].bn1.weight.requires_grad
