"""MAXIM against the authors' flax code, from flax names and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from parity import fixtures
from vistrain.checkpoints import load_weights
from vistrain.errors import WeightsError
from vistrain.restoration import MAXIM, RestorationModel

NAME = "restoration_pretraining/maxim.pt"


def prepared() -> tuple[dict[str, Any], MAXIM]:
    fixture = fixtures.load(NAME)
    model = MAXIM(**fixture["constructor"]["kwargs"])
    report = load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    assert report.key_map == "flax"
    return fixture, model.eval()


def test_every_image_of_every_stage() -> None:
    """In float64: values reach 60, of which float32 holds 4e-6, and some processors' sums of it come out 1.1e-4 away
    from the stored ones, which are themselves 8.4e-5 away from what the formula gives."""
    fixture, model = prepared()
    assert model.padded_multiple == 16
    with torch.no_grad():
        stages = model.double().stages(fixture["inputs"]["x_nhwc"].permute(0, 3, 1, 2).double())
    for s, images in enumerate(stages):
        for i, image in enumerate(images):
            stored = fixture["outputs"][f"stage{s}_out{i}"].permute(0, 3, 1, 2)
            torch.testing.assert_close(image.float(), stored, rtol=0, atol=1e-4)


def test_padding_of_the_evaluation() -> None:
    fixture, model = prepared()
    with torch.no_grad():
        restored = model(fixture["inputs"]["x2_hwc"].permute(2, 0, 1)[None])[0]
    stored = fixture["outputs"]["y2_pad_protocol"].permute(2, 0, 1)
    torch.testing.assert_close(restored, stored, rtol=0, atol=1e-4)


def test_an_npz_file_as_the_authors_publish_it(tmp_path) -> None:
    """Weights lie below opt/target, beside the optimizer's state."""
    fixture, model = prepared()
    arrays = {f"opt/target/{key}": value.numpy() for key, value in fixture["state_dict"].items()}
    np.savez(tmp_path / "checkpoint.npz", **arrays, **{"opt/state/step": np.int32(7)})
    fresh = MAXIM(**fixture["constructor"]["kwargs"])
    load_weights(fresh, tmp_path / "checkpoint.npz", key_maps=fresh.key_maps)
    loaded = fresh.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded[name]), name


def test_transposed_kernels_are_turned() -> None:
    fixture, model = prepared()
    name = "stage_0_cross_gating_block_0/ConvTranspose_0/kernel"
    ours = model.state_dict()[name.replace("/", ".").replace("kernel", "weight")]
    assert torch.equal(ours[1, 2, 0, 1], fixture["state_dict"][name][1, 0, 1, 2])


def test_a_missing_tensor_is_refused() -> None:
    fixture, model = prepared()
    weights = dict(fixture["state_dict"])
    weights.pop("stage_0_input_conv_0/kernel")
    with pytest.raises(WeightsError, match=r"1 missing: stage_0_input_conv_0\.weight"):
        load_weights(model, weights, key_maps=model.key_maps)


def test_flax_files_load_into_the_model_around_the_network() -> None:
    fixture, network = prepared()
    model = RestorationModel(MAXIM(**fixture["constructor"]["kwargs"]))
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    loaded = model.network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, loaded[name]), name
