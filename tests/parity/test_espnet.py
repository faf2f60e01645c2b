"""ESPNet against the authors' code, with the published weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from parity import fixtures
from parity.compare import assert_outputs
from parity.models import contiguous
from vistrain.checkpoints import load_weights
from vistrain.segmentation import ESPNet, ESPNetC

NAMES = fixtures.names("dense/espnet*.pt") or ["dense/espnet_camvid.pt"]


def sizes(state: dict[str, Any]) -> dict[str, Any]:
    """Arguments that the names and shapes tell."""
    depth = {
        level: len({m[1] for k in state if (m := re.match(rf"encoder\.level{level}\.(\d+)\.", k))}) for level in (2, 3)
    }
    classes, inputs = state["conv.conv.weight"].shape[:2]
    return {
        "labels": contiguous(classes),
        "alpha2": depth[2],
        "alpha3": depth[3],
        "skip": "raw" if inputs - classes == 16 else "normalised",
    }


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    state = fixture["state_dict"]
    model = ESPNet(**sizes(state), statistics="camvid").eval()
    load_weights(model, state)
    with torch.no_grad():
        for images, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
            assert_outputs(model(images), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_alone_under_its_own_names(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = sizes(fixture["state_dict"])
    arguments.pop("skip")
    model = ESPNetC(**arguments).eval()
    state = {k.removeprefix("encoder."): v for k, v in fixture["state_dict"].items() if k.startswith("encoder.")}
    load_weights(model, state, key_maps=model.key_maps)
    with torch.no_grad():
        for images, theirs in zip(fixture["inputs"], fixture["encoder_outputs"], strict=True):
            assert_outputs(model(images), theirs)


def test_preprocessing() -> None:
    fixture = fixtures.load("dense/espnet_camvid.pt")
    model = ESPNet(contiguous(12), statistics="camvid")
    for bgr, theirs in zip(fixture["images_bgr"], fixture["inputs"], strict=True):
        image = bgr.flip(2).permute(2, 0, 1)[None]
        ours, _ = model.normalize(image, torch.tensor([image.shape[2:]]))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
