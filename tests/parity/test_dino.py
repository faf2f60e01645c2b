"""DINO against the authors' code and detrex: weights, outputs, detections, training losses with stored noise, names.

Fixtures of further configurations that follow the same naming are picked up as they appear.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import assert_detections, assert_losses, assert_outputs
from parity.dino_models import detrex_dino, noise_of
from parity.models import as_batch
from vistrain.checkpoints import load_weights
from vistrain.detection.targets import relative_targets
from vistrain.detr import ContrastiveDenoising

DETREX = sorted({"dense/dino_detrex.pt", *fixtures.names("dense/dino*_detrex.pt")})


def loaded(model: nn.Module, state_dict: dict[str, Tensor]) -> Any:
    """The model in eval mode, every one of its tensors taken from the official names."""
    report = load_weights(model, state_dict, key_maps=model.key_maps, class_layers=model.class_layers)
    assert report.key_map is not None
    assert not report.left_out
    return model.eval()


def batch_of(fixture: dict[str, Any]) -> dict[str, Any]:
    """Images in 0..255, several sizes."""
    inputs = fixture["inputs"]
    return as_batch(
        [x / 255 for x in inputs["images"]],
        [t["labels"] for t in inputs["targets"]],
        [t["boxes_xyxy_abs"] for t in inputs["targets"]],
        inputs.get("orig_scale", 1),
    )


@pytest.mark.parametrize("name", DETREX)
def test_detrex_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch, theirs = loaded(detrex_dino(fixture), fixture["state_dict"]), batch_of(fixture), fixture["outputs"]
    single = {key: value[:1] for key, value in batch.items()}
    for stored, given in ((theirs["eval_batch2"], batch), (theirs["eval_single"], single)):
        images, _ = model.normalize(given["image"], given["size"])
        with torch.no_grad():
            decoded = model.decode(images, None)  # detrex hides no padding in evaluation
        torch.testing.assert_close(decoded.proposals[1], stored["transformer"][4], rtol=0, atol=1e-4)
        for ours, detections in zip(model.predict(given), stored["detections"], strict=True):
            assert_detections(ours, detections)
    with torch.no_grad():
        assert_outputs(model.train()(*model.normalize(batch["image"], batch["size"])), theirs["train_no_dn"])


@pytest.mark.parametrize("name", DETREX)
def test_detrex_denoising(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch, theirs = loaded(detrex_dino(fixture), fixture["state_dict"]), batch_of(fixture), fixture["outputs"]
    extra = model.denoising(*relative_targets(batch), model.labels.num_classes, noise_of(fixture, "noise"))
    with torch.no_grad():
        decoded = model.train().decode(*model.normalize(batch["image"], batch["size"]), extra)
    layers = [
        {"pred_logits": x[:, : extra.labels.shape[1]], "pred_boxes": y[:, : extra.labels.shape[1]]}
        for x, y in zip(decoded.logits, decoded.boxes, strict=True)
    ]
    assert_outputs({**layers.pop(), "aux_outputs": layers}, theirs["train_dn_known"])


@pytest.mark.parametrize("name", DETREX)
def test_detrex_losses(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch = loaded(detrex_dino(fixture), fixture["state_dict"]).train(), batch_of(fixture)
    assert_losses(model.losses(batch, noise_of(fixture, "noise")), fixture["losses"]["dn_weighted"])
    model.denoising = ContrastiveDenoising(0)
    assert_losses(model.losses(batch), fixture["losses"]["no_dn_weighted"])
