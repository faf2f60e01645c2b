"""LSNet against its authors' code, classification, distilled, and dense."""

import math

import pytest

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor
from vistrain.backbones.lsnet import DENSE, LSNet, checkpoint_filter_fn

BIASES = "blocks4.3.mixer.m.attention_biases"


@pytest.mark.parametrize(
    "name",
    sorted({"backbones/lsnet_cls.pt", "backbones/lsnet_dense.pt", *fixtures.names("backbones/lsnet*.pt")}),
)
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    state = fixture["state_dict"]
    arguments = constructor(fixture, "patch_size", "frozen_stages", "distillation")
    if "head.l.weight" in state:
        model = LSNet(**arguments, distillation="head_dist.l.weight" in state)
        assert_classifies(model, state, checkpoint_filter_fn, fixture)
    else:
        grid = {"bias_grid": math.isqrt(state[BIASES].shape[1])} if BIASES in state else {}
        arguments.pop("num_classes", None)
        assert_dense("lsnet_t", arguments | grid, None, DENSE, fixture, strides=(8, 16, 32, 64))
