"""Multi-scale deformable attention against the authors' module."""

import pytest
import torch

from parity import fixtures
from vistrain.layers.deformable import CORES, MSDeformAttn


@pytest.mark.parametrize("core", CORES)
def test_ms_deform_attn(core: str) -> None:
    fixture = fixtures.load("dense/ms_deform_attn.pt")
    inputs, outputs, state = fixture["inputs"], fixture["outputs"], fixture["state_dict"]
    shapes = [tuple(shape) for shape in inputs["spatial_shapes"].tolist()]
    embed_dim, points = state["value_proj.weight"].shape[0], state["attention_weights.bias"].shape[0]
    heads = 4  # shapes tell heads x points alone
    module = MSDeformAttn(embed_dim, heads, len(shapes), points // heads // len(shapes), core)
    module.load_state_dict(state)
    with torch.no_grad():
        for name, points_name, mask in (
            ("ref2", "ref2", inputs["padding_mask"]),
            ("ref4", "ref4", inputs["padding_mask"]),
            ("ref2_nomask", "ref2", None),
        ):
            ours = module(inputs["query"], inputs[points_name], inputs["value"], shapes, mask)
            torch.testing.assert_close(ours, outputs[name], rtol=0, atol=1e-5)
