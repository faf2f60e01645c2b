"""Varied-size window attention against its authors' two files, which differ."""

import pytest
import torch

from parity import fixtures
from vistrain.attention import VariedSizeWindowAttention
from vistrain.backbones.vitae_vsa import AUTHORS

COMMITTED = {f"backbones/vsa_attn_{name}.pt" for name in ("dense_square", "pad", "square")}


@pytest.mark.parametrize("name", sorted(COMMITTED | set(fixtures.names("backbones/vsa_attn*.pt"))))
@torch.no_grad()
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    wanted = {key: fixture["constructor"][key] for key in ("dim", "num_heads", "out_dim", "window_size")}
    module = VariedSizeWindowAttention(**wanted, dense="Object-Detection" in fixture["entry"]).eval()
    state = AUTHORS.apply({f"layers.0.NC.0.attn.{key}": value for key, value in fixture["state_dict"].items()})
    ours = {key.removeprefix("stages.0.blocks.0.attn."): value for key, value in state.items()}
    module.load_state_dict({k: v.flatten(1) if v.dim() == 4 else v for k, v in ours.items()}, strict=True)
    for maps, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        size = (maps.shape[2], maps.shape[3])
        out = module(maps.flatten(2).mT, size).mT.unflatten(2, size)
        torch.testing.assert_close(out, theirs, rtol=0, atol=1e-5)
