"""Neighbourhood attention, NAT, DiNAT and DiNAT_s against the authors' codes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity import fixtures
from parity.compare import assert_outputs
from vistrain.attention.neighborhood import neighborhood_attention, neighborhood_mask
from vistrain.backbones.dinat_s import DiNATs
from vistrain.backbones.nat import NAT, checkpoint_filter_fn

# Their arguments under other names here: theirs drop after every linear layer, timm's before the classifier.
RENAMED = {"drop_rate": "proj_drop_rate"}
DENSE = ("frozen_stages", "out_indices", "pretrained")  # of their dense code, no matter of what is computed


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


def network(fixture: dict[str, Any], **changes: Any) -> nn.Module:
    arguments = {RENAMED.get(k, k): v for k, v in fixture["constructor"].items() if k not in DENSE}
    cls = DiNATs if "dinats" in fixture["entry"] else NAT
    model = cls(**arguments | changes)
    model.load_state_dict(checkpoint_filter_fn(fixture["state_dict"], model), strict=True)
    return model.eval()


def classifiers() -> list[str]:
    """Fixtures of classifiers, those of dense forms apart."""
    found = {*fixtures.names("backbones/nat*.pt"), *fixtures.names("backbones/dinat*.pt")}
    return sorted(name for name in found if "dense" not in name) or ["backbones/nat.pt", "backbones/dinat.pt"]


@pytest.mark.parametrize("name", classifiers())
@torch.no_grad()
def test_classification(name: str) -> None:
    fixture = fixtures.load(name)
    model = network(fixture)
    assert_outputs([model(x) for x in fixture["inputs"]], fixture["outputs"])


@pytest.mark.parametrize("name", fixtures.names("backbones/*nat_dense*.pt") or ["backbones/dinat_dense.pt"])
@torch.no_grad()
def test_maps(name: str) -> None:
    fixture = fixtures.load(name)
    state = fixture["state_dict"]
    norms = [(state.pop(f"norm{i}.weight"), state.pop(f"norm{i}.bias")) for i in range(4)]

    def normalised(x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], *norm).permute(0, 3, 1, 2)

    # Their dense code has no last norm and no classifier.
    fixture["state_dict"] = state | {"norm.weight": norms[3][0], "norm.bias": norms[3][1]}
    model = network(fixture, num_classes=0)
    for images, expected in zip(fixture["inputs"], fixture["outputs"], strict=True):
        maps = model.forward_intermediates(images, intermediates_only=True)
        assert_outputs([normalised(x, norm) for x, norm in zip(maps, norms, strict=True)], expected)
        assert_outputs(model.forward_intermediates(images, norm=True, intermediates_only=True)[3], expected[3])
