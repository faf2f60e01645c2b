"""Neighbourhood attention, NAT, DiNAT and DiNAT_s against the authors' codes."""

import pytest
import torch

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor, is_dense
from vistrain.attention.neighborhood import neighborhood_attention, neighborhood_mask
from vistrain.backbones.dinat_s import DiNATs
from vistrain.backbones.nat import DENSE, NAT, checkpoint_filter_fn

KNOWN = {f"backbones/{name}.pt" for name in ("nat", "dinat", "dinat_dense")}
FOUND = {*fixtures.names("backbones/nat*.pt"), *fixtures.names("backbones/dinat*.pt")}
RENAMED = {"drop_rate": "proj_drop_rate"}
UNUSED = ("norm_layer", "frozen_stages", "out_indices", "pretrained")  # the norm is the same in all variants


@pytest.mark.parametrize("name", fixtures.names("backbones/gna*.pt") or ["backbones/gna_mask.pt"])
def test_generalized_neighborhoods(name: str) -> None:
    fixture = fixtures.load(name)
    for case, inputs, (out, mask) in zip(
        fixture["constructor"]["cases"], fixture["inputs"], fixture["outputs"], strict=True
    ):
        arguments = {key: tuple(value) for key, value in case.items()}
        size = (inputs[0].shape[1], inputs[0].shape[2])
        assert torch.equal(neighborhood_mask(size, **arguments).float(), mask)
        torch.testing.assert_close(neighborhood_attention(*inputs, **arguments), out, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(KNOWN | FOUND))
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    # Theirs drops after every linear layer, timm's before the classifier.
    arguments = {RENAMED.get(key, key): value for key, value in constructor(fixture, *UNUSED).items()}
    swin = "dinats" in fixture["entry"]
    if is_dense(fixture, "norm0"):
        arguments.pop("num_classes", None)
        assert_dense("dinat_s_tiny" if swin else "dinat_tiny", arguments, 1e-5, DENSE, fixture)
    else:
        assert_classifies((DiNATs if swin else NAT)(**arguments), fixture["state_dict"], checkpoint_filter_fn, fixture)
