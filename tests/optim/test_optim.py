"""Parameter groups and schedules: who learns at which pace, and when."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from vistrain.backbones import Backbone, TimmModel
from vistrain.classification import Classifier
from vistrain.detection.set_detector import SetDetector
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.optim import Constant, Cosine, MultiStep, ParameterGroups, Poly
from vistrain.structures import LabelSpace


class Untrained(Network):
    """What groups are made of: names, and what a network says of its layers."""

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def predict(self, batch: Any) -> list[Any]:
        raise NotImplementedError


class Net(Untrained):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2)


def by_name(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    of = {id(p): group for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if id(p) in of}


def test_defaults_decay_weights_and_biases_but_not_norms() -> None:
    model = Net()
    groups = by_name(model, ParameterGroups()(model, lr=1.0, weight_decay=0.1))
    assert {n for n, g in groups.items() if g["weight_decay"] == 0} == {
        "backbone.1.weight", "backbone.1.bias", "backbone.2.weight", "backbone.2.bias"
    }  # fmt: skip
    assert set(groups) == {n for n, _ in model.named_parameters()}
    assert all(g["lr"] == 1.0 for g in groups.values())


def test_biases_undecayed_on_request_and_norms_decayed_on_request() -> None:
    model = Net()
    groups = by_name(model, ParameterGroups(no_decay_norms=False, no_decay_bias=True)(model, 1.0, 0.1))
    assert groups["head.bias"]["weight_decay"] == 0
    assert groups["attention.in_proj_bias"]["weight_decay"] == 0
    assert groups["backbone.1.weight"]["weight_decay"] == 0.1


def test_the_first_matching_rule_decides() -> None:
    model = Net()
    rules = [
        {"match": "backbone.0.*", "lr_scale": 0.5, "weight_decay": 0.0},
        {"match": ["backbone.*"], "lr_scale": 0.1},
    ]
    groups = by_name(model, ParameterGroups(rules)(model, lr=2.0, weight_decay=0.1))
    assert (groups["backbone.0.weight"]["lr"], groups["backbone.0.weight"]["weight_decay"]) == (1.0, 0.0)
    assert (groups["backbone.1.weight"]["lr"], groups["backbone.1.weight"]["weight_decay"]) == (0.2, 0.0)
    assert (groups["head.weight"]["lr"], groups["head.weight"]["weight_decay"]) == (2.0, 0.1)


def test_frozen_parameters_are_left_out_and_optimizers_take_the_groups() -> None:
    model = Net()
    model.backbone.requires_grad_(False)
    groups = ParameterGroups([{"match": "backbone.*", "lr_scale": 0.1}])(model, 1e-3, 0.1)
    assert all(p.requires_grad for g in groups for p in g["params"])
    optimizer = torch.optim.AdamW(groups)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len([*model.head.parameters()]) + 4
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable"):
        ParameterGroups()(model, 1e-3, 0.1)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "bakbone.*"}, r"'bakbone\.\*' matches no parameter - nearest: backbone\."),
        ({"match": "head.*", "lr_scal": 0.1}, r"rules\.0\.lr_scal: no such key - did you mean 'lr_scale'"),
        ({"lr_scale": 0.1}, "neither a pattern"),
        ({"match": "head.*", "lr_scale": "0.1"}, "not a number"),
        ({"match": "head.*", "weight_decay": -1}, "not a number of 0 or more"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParameterGroups([rule])(Net(), 1e-3, 0.1)


def test_layer_decay_follows_timms_layers_with_the_head_on_top() -> None:
    class Dense(Untrained):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone("vit_tiny_patch16_224", strides=(16,), args=args)
            self.head = nn.Linear(4, 2)

        def layers_above(self) -> dict[str, int] | None:
            return SetDetector.layers_above(self)

    args = {"img_size": 32, "depth": 3}
    labels = LabelSpace(tuple(map(str, range(10))), tuple(range(10)))
    classifier = Classifier(TimmModel("vit_tiny_patch16_224", labels, args=args), labels)
    classifier.head = nn.Linear(4, 2)
    for model in (Dense(), classifier):  # with and without a classifier the last block is one below the top
        groups = by_name(model, ParameterGroups(layer_decay=0.5)(model, 1.0, 0.05))
        rates = {n: g["lr"] for n, g in groups.items()}
        assert rates["head.weight"] == 1.0
        assert rates["backbone.body.blocks.2.attn.qkv.weight"] == 0.5
        assert rates["backbone.body.norm.weight"] == 0.5
        assert rates["backbone.body.blocks.0.attn.qkv.weight"] == 0.125
        assert rates["backbone.body.patch_embed.proj.weight"] == rates["backbone.body.pos_embed"] == 0.0625
    with pytest.raises(ConfigError, match="layer_decay"):
        ParameterGroups(layer_decay=0.5)(Net(), 1.0, 0.05)


def test_schedule_values() -> None:
    drop = MultiStep([2, 3], gamma=0.1)
    assert [round(drop.factor(s, 40, 10), 6) for s in (0, 19, 20, 29, 30, 39)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert MultiStep([20], unit="step").factor(19, 40, 10) == 1.0
    assert MultiStep([20], unit="step").factor(20, 40, 10) == pytest.approx(0.1)
    assert Cosine().factor(25, 100, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert Cosine(unit="epoch").factor(29, 100, 10) == Cosine().factor(20, 100, 10)
    assert Cosine(final_factor=0.2).factor(100, 100, 10) == pytest.approx(0.2)
    cooled = Cosine(final_factor=0.2, cooldown_epochs=2)
    assert cooled.factor(40, 100, 10) == pytest.approx(0.6)
    assert cooled.factor(80, 100, 10) == cooled.factor(99, 100, 10) == pytest.approx(0.2)
    assert Poly(power=2.0).factor(50, 100, 10) == pytest.approx(0.25)
    assert Constant().factor(10**6, math.inf, 10) == 1.0


def test_warm_up_rises_linearly_and_meets_the_decay() -> None:
    schedule = Constant(warmup_steps=10, warmup_factor=0.1)
    assert [schedule.factor(s, 100, 10) for s in (0, 5, 10)] == pytest.approx([0.1, 0.55, 1.0])
    assert Constant(warmup_epochs=2.5, warmup_factor=0.0).factor(5, 100, 4) == pytest.approx(0.5)
    after = Cosine(warmup_steps=20, decay_after_warmup=True)
    assert after.factor(20, 100, 10) == 1.0
    assert after.factor(60, 100, 10) == pytest.approx(0.5)
    assert MultiStep([1], warmup_steps=20, warmup_factor=0.0).factor(10, 100, 10) == pytest.approx(0.05)


def test_schedules_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ConfigError, match="keep one"):
        Constant(warmup_steps=1, warmup_epochs=1.0)
    with pytest.raises(ConfigError, match="ascending"):
        MultiStep([3, 2])
    with pytest.raises(ConfigError, match="needs a run with an end"):
        Cosine().factor(0, math.inf, 10)
    with pytest.raises(ConfigError, match="warmup_factor"):
        Poly(warmup_factor=2.0)
