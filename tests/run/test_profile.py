"""`vistrain profile`: what is counted, what is measured, and what cannot be."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from vistrain.attention.neighborhood import NeighborhoodAttention, by_definition
from vistrain.backbones import staged as stages
from vistrain.cli import main
from vistrain.devices import on_meta
from vistrain.errors import ConfigError
from vistrain.run.profile import count, part_names, profile, profile_backbone, sides


class Two(nn.Module):
    """Two layers whose cost is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.second = nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.second(self.first(images).mean((2, 3)))}


def test_counts_are_those_of_the_layers():
    found = profile(Two, "two", (8, 16), batch=2, device="cpu", repeats=2)
    first, second = found.parts
    assert (first.name, first.parameters, first.multiply_adds) == ("first", 4 * 27 + 4, 4 * 8 * 4 * 27)
    assert (second.name, second.parameters, second.multiply_adds) == ("second", 50, 40)
    assert (first.shape, second.shape) == ((1, 4, 4, 8), (1, 10))
    assert found.multiply_adds == first.multiply_adds + second.multiply_adds
    assert found.to_dict()["flops"] == 2 * found.multiply_adds
    assert found.parameters == found.trainable == 162
    for speed in (found.forward, found.training):
        assert speed.images_per_second > 0
        assert speed.peak_bytes >= 0
    shares = [part.share for part in found.parts]
    assert all(0 < share < 1 for share in shares)
    assert sum(shares) < 1


def test_counting_alone_measures_nothing():
    found = profile(Two, "two", (8, 8), device="cpu", repeats=0)
    assert found.forward is found.training is None
    assert {part.share for part in found.parts} == {None}


def test_precision_goes_into_autocast():
    seen = []

    class Watching(Two):
        def forward(self, images):
            out = super().forward(images)
            seen.append(out["logits"].dtype)
            return out

    profile(Watching, "two", (8, 8), device="cpu", precision="bf16", repeats=1)
    assert seen[1:] == [torch.bfloat16] * (len(seen) - 1)  # the first one was counted


def test_parts_are_stages():
    with on_meta():
        resnet, swin = timm.create_model("resnet18"), timm.create_model("swin_tiny_patch4_window7_224")
    assert part_names(resnet) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert part_names(swin) == ["patch_embed", *(f"layers.{i}" for i in range(4)), "norm", "head"]
    wrapped = nn.Module()
    wrapped.inner = resnet
    assert part_names(wrapped)[2] == "inner.layer1"


def test_neighbourhood_attention_is_counted_by_its_definition():
    """Published: 2.7 G (2204.07143, table 3); computed in tiles it multiplies 0.4 G more."""
    with on_meta():
        model = timm.create_model("nat_mini").eval()
    layers = [m for m in model.modules() if isinstance(m, NeighborhoodAttention)]
    with by_definition(model):
        assert {layer.tile for layer in layers} == {1}
    assert {layer.tile for layer in layers} == {None}
    assert count(model, (224, 224))[0] / 1e9 == pytest.approx(stages.published("nat_mini").gmacs, rel=0.025)


def test_a_backbone_by_name_is_profiled_at_its_own_size():
    found = profile_backbone("test_resnet", repeats=0)
    assert found.size == (160, 160)
    assert found.parameters == sum(p.numel() for p in timm.create_model("test_resnet").parameters())
    assert found.parts[0].shape[1:] == (16, 80, 80) or found.parts[0].shape is not None
    assert sum(part.multiply_adds for part in found.parts) == found.multiply_adds
    assert profile_backbone("test_resnet", 64, repeats=0).multiply_adds < found.multiply_adds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "8"}, "--precision: '8' is unknown - use one of 32, bf16, 16"),
        ({"batch": 0}, "profile: batch and size are 1 or more"),
        ({"device": "cuda:99"}, "--device: 'cuda:99' is not available"),
        ({"device": "nonsense"}, "--device: 'nonsense' is not available"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        profile(Two, "two", (8, 8), **options)


def test_a_size_that_a_network_of_a_config_cannot_take():
    class Square(Two):
        def forward(self, images):
            assert images.shape[2] == 8, "only 8"
            return super().forward(images)

    with pytest.raises(ConfigError, match=r"--size: two cannot take images of 16x8 \(only 8"):
        profile(Square, "two", (16, 8), repeats=0)


def test_images_of_three_sides():
    class Volume(nn.Module):
        """Two layers that take volumes."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 1, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(images))

    found = profile(Volume, "volume", (4, 6, 8), channels=2, device="cpu", repeats=1)
    assert found.size == (4, 6, 8)
    assert found.multiply_adds == (2 * 27 + 1) * 4 * 4 * 6 * 8
    assert found.parts[0].shape == (1, 4, 4, 6, 8)
    console = Console(width=100, record=True)
    console.print(found.table())
    assert "volume at 4x6x8" in console.export_text()


@pytest.mark.parametrize(
    ("size", "measured", "expected"),
    [
        (None, (4, 6, 8), (4, 6, 8)), (32, (4, 6, 8), (32, 32, 32)), ([16], (6, 8), (16, 16)), ([1, 2], (6, 8), (1, 2)),
        ([1, 2], (4, 6, 8), "--size: 2 numbers - give one side, or depth, height and width"),
    ],
)  # fmt: skip
def test_one_side_stands_for_all_of_a_networks(size, measured, expected):
    if isinstance(expected, tuple):
        assert sides(size, measured) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            sides(size, measured)


# ------------------------------------------------------------------ the command


def test_the_command_prints_a_table_or_json(capsys):
    assert main(["profile", "test_vit", "--size", "96", "--device", "cpu", "--repeats", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["size"], found["batch"], found["device"]) == ("test_vit", [96, 96], 1, "cpu")
    assert found["flops"] == 2 * found["multiply_adds"] > 0
    assert found["training"]["images_per_second"] > 0
    assert main(["profile", "test_resnet", "--repeats", "0"]) == 0
    shown = capsys.readouterr().out
    assert "test_resnet at 160x160" in shown
    assert "multiply-adds of an image" in shown


def test_the_command_takes_networks_of_configs(capsys):
    words = ["profile", "model.backbone.name=test_resnet", "-c", "vistrain:demo/classification", "--repeats", "0"]
    assert main([*words, "model.backbone.args=null", "--json", "--size", "64", "32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["size"]) == ("classification", [64, 32])
    assert main(["profile", "-c", "vistrain:demo/restoration", "--repeats", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["multiply_adds"] > 0


def test_changes_beside_a_backbones_name_are_its_arguments(capsys):
    assert main(["profile", "test_vit", "depth=1", "--repeats", "0", "--json"]) == 0
    alone = sum(p.numel() for p in timm.create_model("test_vit", depth=1).parameters())
    assert json.loads(capsys.readouterr().out)["parameters"] == alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["profile", "test_resnet", "nonsense=3"], "args.nonsense: timm's test_resnet has no such argument"),
        (
            ["profile", "attention_pyramid_micro", "model.backbone.args.attention=halo"],
            "model.backbone.args.attention: there is no config: KEY=VALUE are arguments of the backbone",
        ),
        (["profile"], "profile: which network? - give the name of a backbone, or --config FILE"),
        (["profile", "resnet5O"], "no backbone 'resnet5O' - did you mean"),
        (
            ["profile", "convit_tiny", "--size", "200"],
            "--size: convit_tiny cannot take images of 200x200; it takes 224x224",
        ),
        (["profile", "test_vit", "--size", "1", "2", "3"], "--size: 3 numbers - give one side, or height and width"),
    ],
)
def test_the_commands_errors_are_one_line(capsys, words, message):
    assert main(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
