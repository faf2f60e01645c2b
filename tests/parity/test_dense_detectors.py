"""RetinaNet, ATSS and GFL against mmdetection: weights, maps, losses and detections."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import ATOL, assert_outputs
from parity.filled import MMResNet, filled, shapes_of
from parity.models import TinyBackbone, contiguous
from vistrain.checkpoints import load_weights
from vistrain.detection import ATSS, GFL, ATSSHead, GFLHead, RetinaHead, RetinaNet
from vistrain.devices import on_meta
from vistrain.necks import FPN
from vistrain.predictions import Detections
from vistrain.structures import Factory

KINDS: dict[str, Any] = {"retinanet": (RetinaNet, RetinaHead), "atss": (ATSS, ATSSHead), "gfl": (GFL, GFLHead)}
NAMES = [
    name
    for kind in KINDS
    for name in (fixtures.names(f"dense/mmdet_{kind}*.pt") or [f"dense/mmdet_{kind}_r50_fpn.pt"] * (kind != "gfl"))
]
LOSSES = {
    "loss_class": "loss_cls",
    "loss_bbox": "loss_bbox",
    "loss_centerness": "loss_centerness",
    "loss_dfl": "loss_dfl",
}


def number(text: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", text)
    assert found, name
    return int(found[1])


def mm_batch(fixture: dict[str, Any]) -> dict[str, Any]:
    """A fixture's padded batch; detections are stored at twice the size."""
    inputs = fixture["inputs"]
    size = torch.tensor(inputs["sizes"])
    target = [{"boxes": b, "labels": x} for b, x in zip(inputs["gt_bboxes"], inputs["gt_labels"], strict=True)]
    return {"image": inputs["img"], "size": size, "original_size": 2 * size, "target": target}


def with_weights(model: Any, fixture: dict[str, Any]) -> Any:
    """The model with the fixture's weights, in evaluation mode."""
    state = filled(shapes_of(model)) if fixture["state_dict"] is None else fixture["state_dict"]
    assert set(state) == set(fixture.get("keys") or state)
    load_weights(model, state)
    return model.eval()


def model_of(name: str, fixture: dict[str, Any]) -> Any:
    """Ours in a fixture's configuration."""
    kind, head = next(value for key, value in KINDS.items() if key in name)
    config = fixture["config"]
    extra = re.search(r"add_extra_convs='(\w+)'", config)
    assert extra
    model = kind(
        MMResNet((8, 16, 32)),
        contiguous(number(config, "num_classes")),
        neck=Factory(
            FPN, embed_dim=number(config, "out_channels"), num_levels=number(config, "num_outs"), extra=extra[1]
        ),
        head=Factory(head, embed_dim=number(config, "feat_channels"), num_convs=number(config, "stacked_convs")),
        detections_per_image=number(config, "max_per_img"),
    )
    return with_weights(model, fixture)


def assert_found(ours: Detections, theirs: list[Tensor], pixels: float = 1e-3) -> None:
    """The same objects of each class, in the order of their scores."""
    assert len(ours.scores) == sum(len(x) for x in theirs)
    for label, stored in enumerate(theirs):
        own = ours.labels == label
        order = stored[:, 4].argsort(descending=True, stable=True)
        torch.testing.assert_close(ours.scores[own], stored[order, 4], rtol=0, atol=ATOL)
        tolerance = max(pixels, 1e-6 * float(stored.abs().max())) if len(stored) else 0
        torch.testing.assert_close(ours.boxes[own], stored[order, :4], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_maps_losses_and_detections(name: str) -> None:
    fixture = fixtures.load(name)
    model, batch = model_of(name, fixture), mm_batch(fixture)
    with torch.no_grad():
        levels = model.neck(model.backbone(batch["image"]))
    assert_outputs([x[..., ::2, ::2] for x in levels], fixture["outputs"]["fpn_stride2"])
    losses = model.losses(batch)
    theirs = {key: torch.stack(fixture["losses"][stored]).sum() for key, stored in LOSSES.items() if key in losses}
    assert len(theirs) == len(fixture["losses"])
    for key, value in theirs.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=1e-7, msg=lambda t, k=key: f"{k}: {t}")
    for ours, stored in zip(model.predict(batch), fixture["outputs"]["det"], strict=True):
        assert_found(ours, stored)


@pytest.mark.parametrize("name", list(KINDS))
def test_names_and_shapes_of_full_size(name: str) -> None:
    theirs = fixtures.load(f"dense/keys/mmdet_{name}_r50_fpn.json")["state_dict"]
    with on_meta():
        model = KINDS[name][0](TinyBackbone(nn.Identity(), (512, 1024, 2048)), contiguous(80))
    ours = {key: list(shape) for key, shape in shapes_of(model).items()}
    assert ours == {key: shape for key, shape in theirs.items() if not key.startswith("backbone.")}
