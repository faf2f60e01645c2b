"""Networks of medical papers, and what U-Nets may hold: their blocks, heads and the names of others' weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.models import contiguous

from vistrain.attention.base import operators_of
from vistrain.attention.choice import operators
from vistrain.backbones import Backbone
from vistrain.checkpoints import load_weights, with_channels
from vistrain.config import compose
from vistrain.errors import ConfigError, WeightsError
from vistrain.run.networks import build_without_memory, load_named, load_whole
from vistrain.segmentation import (
    AGUNet,
    AttentionBlock,
    DAUNet,
    FCNHead,
    MultiScaleAttention,
    SemanticSegmenter,
    SliceEncoder,
    Slices,
    UNet2d,
    UNet3d,
    UNetHead,
    VolumeSegmenter,
)
from vistrain.segmentation.unet_keys import nnunet_names
from vistrain.structures import Factory

CLASSES = contiguous(3)
IN_THREE_AXES: list[Any] = [name for name, cls in operators().items() if 3 in cls.axes]


def trained(model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The losses of a batch; every parameter gets a gradient."""
    losses = model.train().losses(batch)
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    return losses


def volumes(channels: int, *size: int) -> dict[str, Any]:
    """A batch of two volumes with labels."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn((2, channels, *size), generator=generator),
        "size": torch.tensor([size, size]),
        "original_size": torch.tensor([size, size]),
        "target": [{"label_map": torch.randint(3, size, generator=generator)} for _ in range(2)],
        "id": ["a", "b"],
    }


def test_the_pages_config_puts_an_operator_into_a_u_net_of_volumes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "attention.md").read_text()
    (tmp_path / "volumes.yaml").write_text(re.search(r"```yaml\n# volumes.yaml\n(.*?)```", page, re.S)[1])
    model = build_without_memory(compose([tmp_path / "volumes.yaml"]))
    assert [type(operator).__name__ for operator in operators_of(model)] == ["AxialAttention"] * 2
    assert {operator.axes for operator in operators_of(model)} == {(3,)}


@pytest.mark.parametrize("name", [*IN_THREE_AXES, {"name": "axial", "axes": 3}])
def test_operators_of_three_axes_are_blocks_of_a_u_net(name: Any) -> None:
    torch.manual_seed(0)
    block = Factory(AttentionBlock, operator=name, num_heads=2)
    network = UNet3d(1, 2, widths=(4, 8), depths=(1, 1), attention=block, patch=(8, 8, 4)).eval()
    images = torch.randn(2, 1, 8, 8, 4)
    with torch.no_grad():
        found = network(images)
        plain = UNet3d(1, 2, widths=(4, 8), depths=(1, 1)).eval()
        plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
        assert found.shape == (2, 2, 8, 8, 4)
        assert found.isfinite().all()
        assert (found - plain(images)).abs().max() > 1e-6
        torch.testing.assert_close(network(images[1:]), found[1:], rtol=0, atol=1e-4)


def test_operators_of_other_axes_and_levels_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"ShiftedWindowAttention takes no maps of 3 axes.*SoftmaxAttention"):
        UNet3d(1, 2, widths=(4, 8), attention=Factory(AttentionBlock, operator="shifted_window"))
    with pytest.raises(ConfigError, match=r"attended.*\[3\], and there are 2 levels"):
        UNet3d(1, 2, widths=(4, 8), attention=Factory(AttentionBlock, operator="softmax"), attended=(3,))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", [UNet3d, UNet2d])
def test_weights_of_nnunet_load_under_their_names(kind: Any, residual: bool) -> None:
    model = kind(2, 3, widths=(4, 6, 8), residual=residual)
    backwards = (
        (r"body.stem.", "encoder.stem.convs.0."),
        (r"body.up.", "decoder.transpconvs."),
        (r"body.heads.", "decoder.seg_layers."),
    )
    theirs = {}
    for name, value in model.state_dict().items():
        for ours, official in backwards:
            name = name.replace(ours, official)
        parts = name.split(".")
        if parts[:2] == ["body", "encoder"] and residual:
            inner = {"convs": lambda p: [f"conv{int(p[5]) + 1}"], "shortcut": lambda _: ["skip", "1"]}[parts[4]](parts)
            parts = ["encoder", "stages", parts[2], "blocks", parts[3], *inner, *parts[-2:]]
        elif parts[:2] == ["body", "encoder"]:
            parts = ["encoder", "stages", parts[2], "0", "convs", *parts[3:]]
        elif parts[:2] == ["body", "decoder"]:
            parts = ["decoder", "stages", parts[2], "convs", *parts[3:]]
        if "stages" in parts or "stem" in parts:
            parts[-2] = ("conv", "norm")[int(parts[-2])]
            spelt = [*parts[:-2], "all_modules", str(int(parts[-2] == "norm")), parts[-1]]
            theirs[".".join(spelt)] = value
        theirs[".".join(parts)] = value
    theirs |= {f"decoder.{name}": value for name, value in theirs.items() if name.startswith("encoder.")}
    other = kind(2, 3, widths=(4, 6, 8), residual=residual)
    assert load_weights(other, theirs, key_maps=other.key_maps).key_map == "nnU-Net"
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    (naming,) = other.key_maps
    written = naming.export(other.state_dict())
    assert written.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in written.items())


def test_names_of_nnunet() -> None:
    """As its networks of version 0.4.4 print them, of which those of one tensor must agree."""
    naming = nnunet_names([(1, 1), (1, 1), (2, 2)])
    for theirs, ours in {
        "encoder.stem.convs.0.conv.weight": "body.stem.0.weight",
        "encoder.stages.1.blocks.2.conv2.norm.bias": "body.encoder.1.2.convs.1.1.bias",
        "encoder.stages.1.blocks.0.skip.1.conv.weight": "body.encoder.1.0.shortcut.0.weight",
        "encoder.stages.1.blocks.0.skip.0.norm.weight": "body.encoder.1.0.shortcut.1.weight",
        "encoder.stages.2.0.convs.1.conv.bias": "body.encoder.2.1.0.bias",
        "decoder.stages.0.convs.0.norm.weight": "body.decoder.0.0.1.weight",
        "decoder.transpconvs.1.weight": "body.up.1.weight",
        "decoder.seg_layers.1.bias": "body.heads.1.bias",
        "decoder.encoder.stem.convs.0.conv.weight": "body.stem.0.weight",
        "encoder.stem.convs.0.all_modules.0.weight": "body.stem.0.weight",
        "decoder.encoder.stages.2.0.convs.1.all_modules.1.bias": "body.encoder.2.1.1.bias",
    }.items():
        assert naming.apply({theirs: torch.ones(1)}).keys() == {ours}, theirs
    ones = {"body.encoder.1.0.shortcut.0.weight": torch.ones(1), "body.encoder.2.0.shortcut.0.weight": torch.ones(1)}
    written = naming.export(ones)
    assert len(written) == 8
    assert {"encoder.stages.1.blocks.0.skip.0.conv.weight", "encoder.stages.2.blocks.0.skip.1.conv.weight"} < set(
        written
    )
    with pytest.raises(WeightsError, match="differs"):
        naming.apply(
            {"encoder.stem.convs.0.conv.bias": torch.ones(1), "encoder.stem.convs.0.all_modules.0.bias": -torch.ones(1)}
        )


@pytest.mark.parametrize(
    "network",
    [
        Factory(AGUNet, widths=(4, 6, 8)),
        Factory(AGUNet, widths=(4, 8), pyramid=False, deep=False),
        Factory(DAUNet, widths=(4, 6, 8), guided=True),
        Factory(DAUNet, widths=(4, 8), guided=False),
    ],
)
def test_attention_u_nets_train_and_predict(network: Factory[Any]) -> None:
    torch.manual_seed(0)
    model = VolumeSegmenter(CLASSES, network, channels=2)
    batch = volumes(2, 16, 16, 8)
    losses = trained(model, batch)
    assert len(losses) == (1 if network.arguments.get("deep") is False or len(network.arguments["widths"]) < 3 else 2)
    assert [x.semantic.shape for x in model.eval().predict(batch)] == [(16, 16, 8)] * 2


def test_axes_of_few_cells_are_not_halved() -> None:
    """A map of 4 cells or fewer along an axis keeps them, as the authors' encoder does; the decoder follows."""
    for kind in (AGUNet, DAUNet):
        network = kind(1, 2, widths=(4, 6, 8)).eval()
        assert network(torch.randn(1, 1, 16, 8, 4)).shape == (1, 2, 16, 8, 4)


@pytest.mark.parametrize(
    "head",
    [
        {"widths": (16, 8)},
        {"widths": (16, 8, 8), "whole": True, "residual": True, "reduction": 4, "dilations": (1, 2), "pyramid_dim": 8},
    ],
)
def test_a_u_net_on_any_backbone_of_slices_and_of_pictures(head: dict[str, Any]) -> None:
    torch.manual_seed(0)
    facts = {"name": "resnet10t", "strides": (2, 4, 8)}
    network = Factory(SliceEncoder, backbone=Factory(Backbone, **facts), head=Factory(UNetHead, **head))
    model = VolumeSegmenter(CLASSES, Factory(Slices, network=network), channels=4)
    batch = volumes(4, 2, 32, 32)
    trained(model, batch)
    assert model.network.divisors == (1, 8, 8)
    assert [x.semantic.shape for x in model.eval().predict(batch)] == [(2, 32, 32)] * 2

    pictures = SemanticSegmenter(Backbone(**facts), CLASSES, Factory(UNetHead, **head)).eval()
    logits = pictures(torch.randn(1, 3, 64, 48))
    assert logits.shape == ((1, 3, 64, 48) if head.get("whole") else (1, 3, 32, 24))


def test_a_u_net_head_has_a_width_for_each_step() -> None:
    with pytest.raises(ConfigError, match=r"2 widths for 3 steps between maps of strides \[4, 8, 16\]"):
        UNetHead((8, 8, 8), (4, 8, 16), 2, widths=(8, 8), whole=True)


def test_guided_attention_trains_on_images_of_any_size() -> None:
    torch.manual_seed(0)
    model = MultiScaleAttention(Backbone("resnet10t", strides=(4, 8, 16, 32)), CLASSES, embed_dim=8)
    size = (20, 28)
    batch = {
        "image": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8),
        "size": torch.tensor([size, size]),
        "original_size": torch.tensor([[40, 56], [20, 28]]),
        "target": [{"label_map": torch.randint(3, size)} for _ in range(2)],
        "id": ["a", "b"],
    }
    losses = trained(model, batch)
    assert set(losses) == {"loss_seg", "loss_vectors", "loss_reconstruction"}
    assert [tuple(x.semantic.shape) for x in model.eval().predict(batch)] == [(40, 56), (20, 28)]
    with pytest.raises(ConfigError, match=r"strides.*3 maps"):
        MultiScaleAttention(Backbone("resnet10t", strides=(4, 8, 16)), CLASSES)


@pytest.mark.parametrize(
    ("network", "adapted"),
    [
        (Factory(AGUNet, widths=(4, 6, 8)), ["encoder.0.block.0.weight", "encoder.1.pyramid.weight"]),
        (Factory(UNet3d, widths=(4, 8)), ["body.encoder.0.0.0.weight"]),
        (Factory(UNet3d, widths=(4, 8), residual=True), ["body.stem.0.weight"]),
        (Factory(Slices, network=Factory(UNet2d, widths=(4, 8))), ["network.body.encoder.0.0.0.weight"]),
    ],
)
def test_weights_for_other_channels_and_classes_start_a_run(network: Factory[Any], adapted: list[str]) -> None:
    """Of one channel repeated on four, the adapted network finds what the first did, up to its class layers."""
    torch.manual_seed(0)
    one, four = (VolumeSegmenter(contiguous(k), network, channels=c) for k, c in ((2, 1), (3, 4)))
    report = load_named(four, dict(one.state_dict()))
    assert [change.name for change in report.adapted] == [f"network.{name}" for name in adapted]
    assert "1 channels of the file repeated to 4" in str(report)
    assert report.left_out
    assert all(re.search(r"heads\.\d+\.(weight|bias)$", item.name) for item in report.left_out)
    same = VolumeSegmenter(contiguous(2), network, channels=4)
    load_named(same, dict(one.state_dict()))
    images = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        expected, found = (model.eval()(x) for model, x in ((one, images), (same, images.expand(-1, 4, -1, -1, -1))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    back = VolumeSegmenter(contiguous(2), network, channels=1)
    load_named(back, dict(same.state_dict()))
    for name, value in back.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name])


def test_nothing_is_adapted_where_nothing_will_be_trained() -> None:
    network = Factory(UNet3d, widths=(4, 8))
    one, two = (VolumeSegmenter(contiguous(2), network, channels=c) for c in (1, 2))
    with pytest.raises(WeightsError, match=r"for other image channels or windows.*2 channels of the file summed to 1"):
        load_whole(one, dict(two.state_dict()))


@pytest.mark.parametrize(("old", "new"), [(3, 4), (4, 3), (1, 5), (5, 1), (2, 3)])
def test_first_layers_for_other_channels_keep_what_grey_images_give(old: int, new: int) -> None:
    for axes, convolve in ((2, torch.nn.functional.conv2d), (3, torch.nn.functional.conv3d)):
        weight = torch.randn(4, old, *[3] * axes, dtype=torch.float64)
        adapted = with_channels(weight, new)
        grey = torch.randn(1, 1, *[5] * axes, dtype=torch.float64)
        before, after = (convolve(grey.expand(-1, w.shape[1], *[-1] * axes), w) for w in (weight, adapted))
        torch.testing.assert_close(after, before)


def test_a_backbone_says_which_layer_sees_the_image() -> None:
    head = Factory(FCNHead, embed_dim=8, stride=4)
    three, four = (
        SemanticSegmenter(Backbone("resnet10t", strides=(4,), image_channels=c), CLASSES, head) for c in (3, 4)
    )
    report = load_named(four, dict(three.state_dict()))
    assert [str(change) for change in report.adapted] == [
        "backbone.body.conv1.0.weight: 3 channels of the file repeated to 4"
    ]
