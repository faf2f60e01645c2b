"""TransNeXt against the authors' code."""

import pytest

from parity import fixtures
from parity.backbones import assert_classifies, constructor
from vistrain.backbones.transnext import TransNeXt, checkpoint_filter_fn

KNOWN = {"backbones/transnext_cls.pt", "backbones/transnext_dense_interp.pt"}


@pytest.mark.parametrize("name", sorted({*KNOWN, *fixtures.names("backbones/transnext*.pt")}))
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = constructor(fixture, "norm_layer", "num_stages", "pretrained")  # their norm is the same in all variants
    arguments = {"proj_drop_rate" if key == "drop_rate" else key: value for key, value in arguments.items()}
    if not any(key.startswith("head.") for key in fixture["state_dict"]):
        arguments["num_classes"] = 0
    assert_classifies(TransNeXt(**arguments), fixture["state_dict"], checkpoint_filter_fn, fixture)
