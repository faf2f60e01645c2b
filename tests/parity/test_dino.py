"""DINO against the authors' code and detrex: weights, outputs, detections, training losses with stored noise, names.

Fixtures of further configurations that follow the same naming are picked up as they appear.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import assert_detections, assert_losses, assert_outputs
from parity.dino_models import detrex_dino, noise_of, official_dino
from parity.models import as_batch, official_batch
from vistrain.checkpoints import load_weights
from vistrain.detection.targets import relative_targets
from vistrain.detr import ContrastiveDenoising

DETREX = sorted({"dense/dino_detrex.pt", *fixtures.names("dense/dino*_detrex.pt")})


OFFICIAL = sorted({"dense/official_dino.pt", *fixtures.names("dense/official_dino*.pt")})


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


def own_names(outputs: dict[str, Any]) -> dict[str, Any]:
    """The authors' outputs of all layers and of the proposals under our names."""
    renamed = {key: outputs[key] for key in ("pred_logits", "pred_boxes", "aux_outputs")}
    return {**renamed, "enc_outputs": outputs["interm_outputs"]}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch, theirs = (
        loaded(official_dino(fixture), fixture["state_dict"]),
        official_batch(fixture),
        fixture["outputs"],
    )
    normalised = model.normalize(batch["image"], batch["size"])
    with torch.no_grad():
        assert_outputs(model.backbone(normalised[0]), theirs["backbone_feats"])
        assert_outputs(model(*normalised), own_names(theirs["eval"]))
        model.train()
        assert_outputs(model(*normalised), own_names(theirs["train_dn"]))  # denoising queries are invisible to these
    found = model.eval().predict(batch)
    for ours, stored in zip(found, theirs["postprocess"], strict=True):
        assert_detections(ours, stored)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_denoising(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch = loaded(official_dino(fixture), fixture["state_dict"]), official_batch(fixture)
    extra = model.denoising(*relative_targets(batch), model.labels.num_classes, noise_of(fixture, "noise"))
    theirs = fixture["outputs"]["train_dn"]["dn_meta"]
    known = theirs["output_known_lbs_bboxes"]
    assert (extra.labels.shape[1], extra.groups) == (theirs["pad_size"], theirs["num_dn_group"])
    with torch.no_grad():
        decoded = model.train().decode(*model.normalize(batch["image"], batch["size"]), extra)
    layers = [
        {"pred_logits": x[:, : extra.labels.shape[1]], "pred_boxes": y[:, : extra.labels.shape[1]]}
        for x, y in zip(decoded.logits, decoded.boxes, strict=True)
    ]
    assert_outputs({**layers.pop(), "aux_outputs": layers}, known)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_losses(name: str) -> None:
    fixture = fixtures.load(name)
    model, stored = loaded(official_dino(fixture), fixture["state_dict"]).train(), fixture["losses"]
    losses = model.losses(official_batch(fixture), noise_of(fixture, "noise"))
    weighted = {
        key.replace("loss_ce", "loss_class").replace("_interm", "_enc"): torch.as_tensor(
            value * stored["weight_dict"][key]
        )
        for key, value in stored["dn_unweighted"].items()
        if key in stored["weight_dict"]
    }
    assert_losses(losses, weighted)
    torch.testing.assert_close(sum(losses.values()), stored["total_weighted"], rtol=1e-4, atol=0)


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
