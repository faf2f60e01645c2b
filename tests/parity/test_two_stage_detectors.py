"""Faster, Mask and Cascade R-CNN against mmdetection: weights, maps, losses, detections and masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import assert_outputs
from parity.filled import MMResNet, shapes_of
from parity.models import TinyBackbone, contiguous
from parity.test_dense_detectors import assert_found, mm_batch, with_weights
from vistrain.detection import BoxHead, CascadeMaskRCNN, FasterRCNN, MaskHead, MaskRCNN, RPNHead
from vistrain.devices import on_meta
from vistrain.matching import RandomSampler
from vistrain.necks import FPN
from vistrain.structures import Factory

SWIN = {"num_convs": 4, "num_fcs": 1, "box_loss": "giou", "box_weight": 10.0, "class_agnostic": False}
CASCADE = {"class_agnostic": True, "box_loss": "smooth_l1"}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "faster_rcnn_r50_fpn": (FasterRCNN, {}),
    "mask_rcnn_r50_fpn": (MaskRCNN, {}),
    "cascade_mask_rcnn_r50_fpn": (CascadeMaskRCNN, CASCADE),
    "cascade_mask_rcnn_swin_giou4conv1f": (CascadeMaskRCNN, SWIN),
}
# Each of the three stages starts from the boxes of the one before. In double precision this network lies 1.2e-3 pixels
# from the stored boxes: that is the stored run's own rounding, and the convolutions of another processor add to it.
ROUNDING = {"cascade_mask_rcnn_swin_giou4conv1f": 3e-3}
# A box that is 1e-3 pixels away turns a pixel of its mask where the probability is the threshold.
PIXELS_OF_A_MASK = 3


class Stored:
    """Gives a fixture's permutations instead of new ones."""

    def __init__(self, permutations: list[Tensor]) -> None:
        self.left = list(permutations)

    def __call__(self, count: int) -> Tensor:
        permutation = self.left.pop(0)
        assert len(permutation) == count
        return permutation


def stored(count: int, share: float, draw: Stored) -> RandomSampler:
    """A sampler with stored permutations."""
    sampler = RandomSampler(count, share)
    sampler.draw = draw
    return sampler


def model_of(name: str, fixture: dict[str, Any], draw: Stored) -> Any:
    """Ours in a fixture's configuration, with its weights and random draws."""
    kind, box = NETWORKS[name]
    cascade = kind is CascadeMaskRCNN
    rpn = {"border": 0.0, "smooth": 1 / 9, "proposals": (2000, 1000)} if cascade else {}
    arguments: dict[str, Any] = {} if kind is FasterRCNN else {"mask_head": Factory(MaskHead, embed_dim=16)}
    model = kind(
        MMResNet(),
        contiguous(7),
        neck=Factory(FPN, embed_dim=32, num_levels=5),
        rpn=Factory(RPNHead, embed_dim=32, sampler=stored(256, 0.5, draw), **rpn),
        box_head=Factory(BoxHead, fc_dim=24, conv_dim=16, **box),
        sampler=stored(512, 0.25, draw),
        detections_per_image=20,
        **arguments,
    )
    return with_weights(model, fixture)


def their_losses(stored: dict[str, Any]) -> dict[str, Tensor]:
    """A fixture's losses under our names, summed over levels."""
    found = {}
    for name, value in stored.items():
        stage, _, kind = name.rpartition(".")
        if kind == "acc":
            continue
        kind = kind.replace("cls", "class")
        total = torch.stack(value).sum() if isinstance(value, list) else value.sum()
        found[f"{kind}_{stage[1:]}" if stage else kind] = total
    return found


@pytest.mark.parametrize("name", list(NETWORKS))
def test_maps_losses_and_detections(name: str) -> None:
    fixture = fixtures.load(f"dense/mmdet_{name}.pt")
    draw = Stored(fixture["inputs"]["randperm"])
    model, batch = model_of(name, fixture, draw), mm_batch(fixture)
    with torch.no_grad():
        levels = model.neck(model.backbone(batch["image"]))
    assert_outputs([x[..., ::2, ::2] for x in levels], fixture["outputs"]["fpn_stride2"])
    if model.trains_masks:
        for target, masks, (h, w) in zip(
            batch["target"], fixture["inputs"]["gt_masks"], batch["size"].tolist(), strict=True
        ):
            target["masks"] = masks[:, :h, :w].to(torch.bool)
    model.rpn_head.train()  # more proposals; all else stays in evaluation mode, as in the stored run
    ours, theirs = model.losses(batch), their_losses(fixture["losses"])
    assert not draw.left
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-7, msg=lambda t, k=key: f"{k}: {t}")
    for found, stored in zip(model.eval().predict(batch), fixture["outputs"]["det"], strict=True):
        if not model.trains_masks:
            assert_found(found, stored)
            continue
        assert_found(found, stored["boxes"], ROUNDING.get(name, 1e-3))
        for label, (boxes, areas) in enumerate(zip(stored["boxes"], stored["mask_areas"], strict=True)):
            own = found.masks[found.labels == label].flatten(1).sum(1)
            stored_areas = areas[boxes[:, 4].argsort(descending=True, stable=True)].long()
            assert not len(own) or (own - stored_areas).abs().max() <= PIXELS_OF_A_MASK


@pytest.mark.parametrize("name", list(NETWORKS))
def test_names_and_shapes_of_full_size(name: str) -> None:
    theirs = fixtures.load(f"dense/keys/mmdet_{name}.json")["state_dict"]
    kind, box = NETWORKS[name]
    with on_meta():
        widths = tuple(theirs[f"neck.lateral_convs.{i}.conv.weight"][1] for i in range(4))
        backbone = TinyBackbone(nn.Identity(), widths, (4, 8, 16, 32))
        model = kind(backbone, contiguous(80), box_head=Factory(BoxHead, **box))
    ours = {key: list(shape) for key, shape in shapes_of(model).items()}
    assert ours == {key: shape for key, shape in theirs.items() if not key.startswith("backbone.")}
