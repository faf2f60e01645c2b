"""Arguments of backbones that mean nothing end in one line with their key, before anything is built of them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn

import vistrain.backbones  # noqa: F401 - registers ours
from vistrain.backbones.argument_values import _numbers, refuse_values
from vistrain.backbones.create import arguments_of, check_arguments, create
from vistrain.config import compose
from vistrain.config.builder import build
from vistrain.devices import on_meta
from vistrain.errors import ConfigError
from vistrain.run.parts import build_parts
from vistrain.structures import Channels

DEFAULTS = {
    "depths": (2, 2, 6),
    "width": 64,
    "drop_path_rate": 0.1,
    "mlp_ratio": 4,
    "bias": True,
    "topk": (8, -1),
    "k": None,
    "sizes": (None, 14),
}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"depths": [2, 0, 6]}, "args.depths: [2, 0, 6] is not whole numbers of 1 or more - give"),
        ({"depths": []}, "args.depths: [] is not whole numbers of 1 or more"),
        ({"depths": "2"}, "args.depths: '2' is not whole numbers of 1 or more"),
        ({"width": -8}, "args.width: -8 is not a whole number of 1 or more"),
        ({"width": 2.5}, "args.width: 2.5 is not a whole number of 1 or more"),
        ({"width": True}, "args.width: true is not a whole number of 1 or more"),
        ({"width": 10**9}, "args.width: 1000000000 is not a number up to 65536"),
        ({"width": math.nan}, "args.width: nan is not a finite number"),
        ({"drop_path_rate": 1.5}, "args.drop_path_rate: 1.5 is not a number of 0 to 1"),
        ({"drop_path_rate": "much"}, "args.drop_path_rate: 'much' is not a number of 0 to 1"),
        ({"mlp_ratio": -1.0}, "args.mlp_ratio: -1.0 is not a number of 0 or more"),
        ({"sizes": [None, -7]}, "args.sizes: [None, -7] is not whole numbers of 1 or more"),
        ({"bias": 3}, "args.bias: 3 is not true or false"),
        ({"k": [math.inf]}, "args.k: [inf] is not a finite number"),
    ],
)
def test_what_the_defaults_say_of_a_value(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_values(DEFAULTS, args)
    assert said in str(refused.value)


def test_what_means_something_is_taken() -> None:
    taken = {"depths": [1, 2, 3, 4], "width": [7, 7], "drop_path_rate": 0, "mlp_ratio": 2.5, "bias": False}
    refuse_values(DEFAULTS, {**taken, "topk": [4, -2], "sizes": [None, 7], "k": "name", "unknown": 5})


def family(module: str) -> str:
    """The model of a file of ours that is called shortest."""
    found = [n for n in timm.list_models() if timm.models.model_entrypoint(n).__module__ == module]
    return min(found, key=lambda name: (len(name), name))


FAMILIES = sorted(
    {
        entry.__module__
        for entry in map(timm.models.model_entrypoint, timm.list_models())
        if entry.__module__.startswith("vistrain.backbones.")
    }
)


@pytest.mark.parametrize("module", FAMILIES)
def test_every_number_of_ours_is_looked_at(module: str) -> None:
    defaults = arguments_of(family(module))
    numbers = {key: value for key, value in defaults.items() if isinstance(value, int | float | tuple) and value}
    assert numbers
    for key, value in numbers.items():
        odd = ["text"] if isinstance(value, bool) else ["text", 10**9, math.nan]
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            odd += [-1, -0.5]
        if not list(_numbers(value)) and not isinstance(value, bool):
            odd = [math.nan]  # names, or truth values, of each stage
        for wrong in odd:
            with pytest.raises(ConfigError, match=rf"args\.{key}: "):
                refuse_values(defaults, {key: wrong})


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        (
            "cswin_tiny",
            {"embed_dim": 7},
            r"model\.backbone\.args\.embed_dim: cswin_tiny (takes no image|cannot be built)",
        ),
        ("cswin_tiny", {"depth": [1, 2]}, r"model\.backbone\.args\.depth: "),
        ("resnet10t", {"layers": [1]}, r"model\.backbone\.args\.layers: "),
        ("soft_tiny", {"embed_dims": [2, 2, 2, 2]}, r"model\.backbone\.args\.embed_dims: soft_tiny .* divisible"),
        ("sgformer_s", {"embed_dims": [2, 2, 2, 2]}, r"model\.backbone\.args\.embed_dims: sgformer_s "),
        ("sgformer_s", {"img_size": 64}, r"model\.backbone\.args\.img_size: 64 is no multiple of 224"),
        ("sgformer_s", {"depths": [1, 1]}, r"model\.backbone\.args\.depths: .*lists of different lengths"),
        ("sgformer_s", {"num_features": 9}, r"args\.num_features: is not an argument .* - sgformer_s sets it itself"),
        ("casvit_xs", {"bogus": 9}, r"args\.bogus: .*`vistrain explain casvit_xs` lists them"),
    ],
)
def test_what_does_not_fit_is_said_of_its_key(name: str, args: dict[str, Any], said: str) -> None:
    node = {"type": "backbones.Backbone", "name": name, "pretrained": False, "args": args}
    with on_meta(), pytest.raises(ConfigError, match=said):
        build(node, nn.Module, {Channels: 3}, "model.backbone")


@pytest.mark.parametrize("order", [1, -1])
def test_all_that_another_backbone_was_given_is_taken_back_by_one_line(order: int) -> None:
    left = ["channels", "stem_width"][::order]
    wanted = " ".join(f"model.backbone.args.{key}=null" for key in left)
    with pytest.raises(ConfigError, match=rf"another backbone: {re.escape(wanted)}, or model\.backbone\.args=null"):
        check_arguments("attention_pyramid_micro", dict.fromkeys(left, 16) | {"attention": "axial"})


def test_arguments_are_refused_before_data_are_generated(tmp_path: Path) -> None:
    args = "{attention: axial, channels: [16, 32, 64, 128]}"
    changes = [f"model.backbone={{name: attention_vit_micro, args: {args}}}", f"data.root={tmp_path}"]
    config = compose(["vistrain:demo/classification"], changes)
    with pytest.raises(
        ConfigError, match=r"model\.backbone\.args\.channels: .* model\.backbone\.args\.channels=null, or"
    ):
        build_parts(config, stage="fit")
    assert list(tmp_path.iterdir()) == []
    config["model"]["backbone"]["args"] = {"attention": "axail"}
    with pytest.raises(ConfigError, match=r"model\.backbone\.args\.attention: no attention operator 'axail'"):
        build_parts(config, stage="fit")
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_fit_are_built() -> None:
    body, _ = create("resnet10t", False, {"stem_width": 16, "drop_path_rate": 0.1}, 3)
    assert body.conv1[0].out_channels == 3 * 16 // 4
