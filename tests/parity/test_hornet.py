"""HorNet against the authors' code."""

from typing import Any

import pytest
import torch

from parity import fixtures
from parity.compare import assert_outputs
from vistrain.backbones.hornet import HorNet, checkpoint_filter_fn


def arguments(constructor: dict[str, Any]) -> dict[str, Any]:
    """Ours for what the fixtures call theirs, which are partially applied classes."""
    rest = dict(constructor)
    sizes: list[tuple[int, int] | None] = [None] * 4
    for stage, size in zip(rest.pop("gflayer_stages", ()) or (), rest.pop("gf_hw", ()) or (), strict=False):
        sizes[stage] = tuple(size)
    return {**rest, "filter_sizes": sizes}


@pytest.mark.parametrize("name", fixtures.names("backbones/hornet*.pt") or ["backbones/hornet_gf.pt"])
@torch.no_grad()
def test_logits_and_maps(name: str) -> None:
    fixture = fixtures.load(name)
    model = HorNet(**arguments(fixture["constructor"]))
    model.load_state_dict(checkpoint_filter_fn(fixture["state_dict"], model), strict=True)
    model.eval()
    for images, expected in zip(fixture["inputs"], fixture["outputs"], strict=True):
        assert_outputs([model(images), *model.forward_intermediates(images, intermediates_only=True)], expected)
