"""Deformable-DETR against the authors' code and detrex: weights, outputs, detections and training losses.

Fixtures of further configurations that follow the same naming are picked up as they appear.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from parity import fixtures
from parity.compare import assert_detections, assert_losses, assert_outputs
from parity.models import as_batch, detrex_deformable_detr, official_batch, official_deformable_detr
from vistrain.checkpoints import load_weights
from vistrain.detection import DeformableDETR
from vistrain.detection.targets import top_detections

OFFICIAL = sorted(
    {"dense/official_defdetr.pt", "dense/official_defdetr_ts.pt", *fixtures.names("dense/official_defdetr*.pt")}
)
DETREX = sorted(
    {
        "dense/deformable_detr_detrex.pt",
        "dense/deformable_detr_refine_detrex.pt",
        "dense/deformable_detr_two_stage_detrex.pt",
        *fixtures.names("dense/deformable_detr*_detrex.pt"),
    }
)


def loaded(model: DeformableDETR, state_dict: dict[str, Tensor]) -> DeformableDETR:
    """The model in eval mode, every one of its tensors taken from the official names."""
    report = load_weights(model, state_dict, key_maps=model.key_maps, class_layers=model.class_layers)
    assert report.key_map is not None
    assert not report.left_out
    return model.eval()


def detrex_batch(fixture: dict[str, Any]) -> dict[str, Any]:
    """Images in 0..255, several sizes."""
    inputs = fixture["inputs"]
    return as_batch(
        [x / 255 for x in inputs["images"]],
        [t["labels"] for t in inputs["targets"]],
        [t["boxes_xyxy_abs"] for t in inputs["targets"]],
        inputs["orig_scale"],
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch = loaded(official_deformable_detr(fixture), fixture["state_dict"]), official_batch(fixture)
    theirs = fixture["outputs"]
    images, mask = model.normalize(batch["image"], batch["size"])
    with torch.no_grad():
        assert_outputs(model.backbone(images), theirs["backbone_feats"])
        outputs = model(images, mask)
    assert_outputs(outputs, theirs["eval"])
    detections = top_detections(outputs["pred_logits"], outputs["pred_boxes"], batch["original_size"], 100)
    for mode, found in (("forward", detections), ("predict", model.predict(batch))):
        assert len(found) == len(theirs["postprocess"]), mode
        for ours, stored in zip(found, theirs["postprocess"], strict=True):
            assert_detections(ours, stored)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_losses(name: str) -> None:
    fixture = fixtures.load(name)
    model = loaded(official_deformable_detr(fixture), fixture["state_dict"])
    losses, stored = model.train().losses(official_batch(fixture)), fixture["losses"]
    weighted = {
        key.replace("loss_ce", "loss_class"): value * stored["weight_dict"][key]
        for key, value in stored["unweighted"].items()
        if key in stored["weight_dict"]
    }
    assert_losses(losses, weighted)
    torch.testing.assert_close(sum(losses.values()), stored["total_weighted"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", DETREX)
def test_detrex_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch = loaded(detrex_deformable_detr(fixture), fixture["state_dict"]), detrex_batch(fixture)
    for ours, stored in zip(model.predict(batch), fixture["outputs"]["eval_batch2"]["detections"], strict=True):
        assert_detections(ours, stored)
    single = {key: value[:1] for key, value in batch.items()}
    for ours, stored in zip(model.predict(single), fixture["outputs"]["eval_single"]["detections"], strict=True):
        assert_detections(ours, stored)
    with torch.no_grad():
        outputs = model.train()(*model.normalize(batch["image"], batch["size"]))
    assert_outputs(outputs, fixture["outputs"]["train"])


@pytest.mark.parametrize("name", DETREX)
def test_detrex_losses(name: str) -> None:
    fixture = fixtures.load(name)
    model = loaded(detrex_deformable_detr(fixture), fixture["state_dict"])
    assert_losses(model.train().losses(detrex_batch(fixture)), fixture["losses"]["weighted"])


def test_uint8_images_of_two_sizes_end_to_end() -> None:
    """From uint8 to boxes in the original image, against the same arithmetic done image by image in float64.

    The stored detections belong to images with fractions of grey levels; rounding those moves boxes a little.
    """
    fixture = fixtures.load("dense/deformable_detr_two_stage_detrex.pt")
    model = loaded(detrex_deformable_detr(fixture), fixture["state_dict"])
    inputs = fixture["inputs"]
    images = [x.round().to(torch.uint8) for x in inputs["images"]]
    empty = [torch.zeros(0) for _ in images]
    batch = as_batch(images, empty, empty, inputs["orig_scale"])
    found = model.predict(batch)

    mean = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64)[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float64)[:, None, None]
    by_hand = torch.zeros(batch["image"].shape)
    for whole, image in zip(by_hand, images, strict=True):
        whole[:, : image.shape[1], : image.shape[2]] = ((image.double() - mean) / std).float()
    with torch.no_grad():
        outputs = model(by_hand)  # detrex does not hide padding in evaluation
    for index, ours in enumerate(found):
        height, width = (inputs["orig_scale"] * x for x in images[index].shape[1:])
        scores, order = outputs["pred_logits"][index].sigmoid().flatten().sort(descending=True)
        query, label = order // len(model.labels.names), order % len(model.labels.names)
        x, y, w, h = outputs["pred_boxes"][index][query].unbind(-1)
        boxes = torch.stack(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height), -1)
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
        count = model.detections_per_image
        assert_detections(ours, {"scores": scores[:count], "labels": label[:count], "boxes": boxes[:count]})
        stored = fixture["outputs"]["eval_batch2"]["detections"][index]
        assert (ours.scores - stored["scores"]).abs().max() < 1e-2
        assert (ours.boxes[0] - stored["boxes"][0]).abs().max() < 2.0
