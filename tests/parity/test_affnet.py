"""AFFNet against its authors' code."""

import pytest
import torch

from parity import fixtures
from parity.compare import assert_outputs
from vistrain.backbones.affnet import AFFNet, checkpoint_filter_fn


@pytest.mark.parametrize("name", sorted({"backbones/affnet.pt", *fixtures.names("backbones/affnet*.pt")}))
@torch.no_grad()
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    config = fixture["constructor"]["config"]
    layers = [config[f"layer{i}"] for i in range(1, 6)]
    model = AFFNet(
        channels=[layer["out_channels"] for layer in layers],
        ffn_dims=[layer["ffn_dim"] for layer in layers[2:]],
        depths=[layers[1]["num_blocks"], *(layer["transformer_blocks"] for layer in layers[2:])],
        expand_ratio=layers[0]["expand_ratio"],
        last_layer_exp_factor=config["last_layer_exp_factor"],
        num_classes=fixture["constructor"]["n_classes"],
    ).eval()
    model.load_state_dict(checkpoint_filter_fn(fixture["state_dict"], model), strict=True)
    for images, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        maps = model.forward_intermediates(images, intermediates_only=True)
        assert_outputs([model(images), model.stem(images), *maps], theirs)
