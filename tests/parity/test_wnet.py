"""W-Net against the authors' code, with the published weights."""

from __future__ import annotations

import pytest
import torch

from parity import fixtures
from parity.compare import assert_outputs
from parity.models import contiguous
from vistrain.checkpoints import load_weights
from vistrain.segmentation import WNet


@pytest.mark.parametrize("name", fixtures.names("dense/wnet*.pt") or ["dense/wnet_drive.pt"])
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    sizes = fixture["constructor"]
    model = WNet(contiguous(max(2, sizes["n_classes"])), tuple(sizes["layers"])).eval()
    load_weights(model, {"model_state_dict": fixture["state_dict"]})
    for images, rgb, theirs in zip(fixture["inputs"], fixture["images_rgb"], fixture["outputs"], strict=True):
        size = torch.tensor([rgb.shape[:2]])
        ours, _ = model.normalize(rgb.permute(2, 0, 1)[None], size)
        torch.testing.assert_close(ours, images, rtol=0, atol=1e-6)
        with torch.no_grad():
            first, second = model.both(images)
        assert_outputs({"first": first, "second": second}, theirs)
