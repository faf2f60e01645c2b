"""Detectors of anchors and regions: training without objects, assignment by definition, GFL's losses, pasted masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity.models import FourMaps, TinyBackbone, TinyBody, contiguous
from torch.nn import functional as F

from vistrain.detection import (
    ATSS,
    GFL,
    ATSSHead,
    BoxHead,
    CascadeMaskRCNN,
    FasterRCNN,
    GFLHead,
    MaskHead,
    MaskRCNN,
    RetinaHead,
    RetinaNet,
    RPNHead,
)
from vistrain.detection.anchors import BoxDeltas, anchor_grid
from vistrain.detection.roi_heads import paste
from vistrain.errors import DataError
from vistrain.layers.boxes import clamped_giou, clamped_iou
from vistrain.matching.overlap import BACKGROUND, IGNORED, ATSSAssigner, OverlapAssigner, RandomSampler
from vistrain.necks import FPN
from vistrain.structures import Factory, Preprocessing

CHANNELS = (4, 6, 8, 10)


def dense(kind: Any, head: Any, extra: str) -> Any:
    body = TinyBackbone(TinyBody(list(CHANNELS)), CHANNELS[1:], (8, 16, 32), Preprocessing())
    neck = Factory(FPN, embed_dim=32, num_levels=5, extra=extra)
    return kind(body, contiguous(3), neck=neck, head=Factory(head, embed_dim=32, num_convs=1))


def staged(kind: Any, **box: Any) -> Any:
    body = TinyBackbone(FourMaps(list(CHANNELS)), CHANNELS, (4, 8, 16, 32), Preprocessing())
    masks = {} if kind is FasterRCNN else {"mask_head": Factory(MaskHead, num_convs=1, embed_dim=8)}
    rpn = Factory(RPNHead, embed_dim=8, candidates=(50, 50), proposals=(40, 40))
    neck = Factory(FPN, embed_dim=8, num_levels=5)
    return kind(body, contiguous(3), neck=neck, rpn=rpn, box_head=Factory(BoxHead, fc_dim=8, **box), **masks)


KINDS: dict[str, Any] = {
    "retinanet": lambda: dense(RetinaNet, RetinaHead, "on_input"),
    "atss": lambda: dense(ATSS, ATSSHead, "on_output"),
    "gfl": lambda: dense(GFL, GFLHead, "on_lateral"),
    "faster_rcnn": lambda: staged(FasterRCNN),
    "mask_rcnn": lambda: staged(MaskRCNN, class_agnostic=True),
    "cascade_mask_rcnn": lambda: staged(CascadeMaskRCNN),
    "cascade_mask_rcnn of swin": lambda: staged(CascadeMaskRCNN, num_convs=1, conv_dim=4, num_fcs=1, box_loss="giou"),
}


def batch_of(*counts: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([(64, 96), (60, 64)][: len(counts)])
    target = []
    for n, (height, width) in zip(counts, size.tolist(), strict=True):
        low = torch.rand((n, 2), generator=generator) * 30
        boxes = torch.cat((low, low + 8 + torch.rand((n, 2), generator=generator) * 20), 1)
        masks = torch.zeros((n, height, width), dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        target.append({"boxes": boxes, "labels": torch.randint(3, (n,), generator=generator), "masks": masks})
    image = torch.randint(256, (len(counts), 3, 64, 96), generator=generator, dtype=torch.uint8)
    return {"image": image, "size": size, "original_size": 2 * size, "target": target}


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("counts", [(2, 1), (0, 2), (0, 0)])
def test_every_parameter_has_a_gradient_however_many_objects_there_are(name: str, counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = KINDS[name]()
    losses = model.losses(batch_of(*counts))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", list(KINDS))
def test_detections_lie_in_the_original_image(name: str) -> None:
    torch.manual_seed(0)
    model = KINDS[name]().eval()
    model.score_threshold = 0.0
    batch = batch_of(1, 1)
    for found, (height, width) in zip(model.predict(batch), batch["original_size"].tolist(), strict=True):
        assert 0 < len(found.scores) <= model.detections_per_image
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.scores[:-1] >= found.scores[1:]).all()
        if name not in ("retinanet", "atss", "gfl", "faster_rcnn"):
            assert found.masks.shape == (len(found.scores), height, width)
    model.score_threshold = 2.0
    assert [len(found.scores) for found in model.predict(batch)] == [0, 0]


def test_masks_of_another_size_and_unknown_labels_are_refused() -> None:
    batch = batch_of(1, 1)
    batch["target"][1]["masks"] = torch.zeros(1, 64, 96, dtype=torch.bool)
    with pytest.raises(DataError, match="target 1"):
        KINDS["mask_rcnn"]().losses(batch)
    batch["target"][0]["labels"][0] = 3
    with pytest.raises(DataError, match="label 3"):
        KINDS["gfl"]().losses(batch)


def test_anchors_lie_row_by_row_ratio_by_ratio_scale_by_scale() -> None:
    found = anchor_grid([(2, 3)], [8], (1.0, 2.0), (0.25, 1.0), torch.device("cpu"))[0]
    assert found.shape == (2 * 3 * 4, 4)
    first = [[-8.0, -2, 8, 2], [-16, -4, 16, 4], [-4, -4, 4, 4], [-8, -8, 8, 8]]
    assert torch.equal(found[:4], torch.tensor(first))
    assert torch.equal(found[4 * 4 : 5 * 4], torch.tensor(first) + torch.tensor([8.0, 8, 8, 8]))


def test_offsets_lead_back_to_the_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand((2, 20, 2), generator=generator) * 50
    anchors, boxes = torch.cat((low, low + 1 + torch.rand((2, 20, 2), generator=generator) * 30), 2)
    deltas = BoxDeltas((0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(deltas.decode(anchors, deltas.encode(anchors, boxes)), boxes, rtol=1e-4, atol=1e-4)
    assert deltas.decode(anchors, torch.full((20, 4), 99.0), (40, 30)).unique(dim=0).tolist() == [[0, 0, 30, 40]]


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_assignment_by_overlap_as_defined() -> None:
    anchors = anchor_grid([(8, 8)], [8], (2.0,), (0.5, 1.0, 2.0), torch.device("cpu"))[0]
    objects = torch.tensor([[3.0, 5, 20, 19], [10, 10, 44, 50], [0, 0, 3, 3]])
    found = OverlapAssigner(0.5, 0.4, 0.01)(anchors, objects).tolist()
    table = clamped_iou(anchors[:, None], objects[None])[0].tolist()  # whose rounding decides between equals
    assert all(
        abs(table[i][j] - overlap(anchors[i].tolist(), objects[j].tolist())) < 1e-5 for i in (0, 82) for j in (0, 1)
    )
    for i, row in enumerate(table):
        best = max(row)
        expected = row.index(best) if best >= 0.5 else BACKGROUND if best < 0.4 else IGNORED
        for j in range(len(objects)):
            most = max(other[j] for other in table)
            if row[j] == most and most >= 0.01:
                expected = j
        assert found[i] == expected, i
    assert OverlapAssigner(0.5, 0.4)(anchors, objects[:0]).unique().tolist() == [BACKGROUND]


def test_adaptive_assignment_as_defined() -> None:
    grids = anchor_grid([(8, 8), (4, 4)], [8, 16], (8.0,), (1.0,), torch.device("cpu"))
    anchors, counts = torch.cat(grids), [len(grid) for grid in grids]
    objects = torch.tensor([[2.0, 1, 60, 63], [20, 0, 63, 64]])
    found = ATSSAssigner(5)(anchors, objects, counts)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    claims: list[dict[int, float]] = [{} for _ in anchors]
    for j, box in enumerate(objects):
        middle, near, start = (box[:2] + box[2:]) / 2, [], 0
        for count in counts:
            distance = (centres[start : start + count] - middle).square().sum(1)
            near += [start + i for i in distance.sqrt().topk(5, largest=False).indices.tolist()]
            start += count
        overlaps = torch.tensor([overlap(anchors[i].tolist(), box.tolist()) for i in near])
        for i, value in zip(near, overlaps.tolist(), strict=True):
            inside = (centres[i] > box[:2] + 0.01).all() and (centres[i] < box[2:] - 0.01).all()
            if value >= overlaps.mean() + overlaps.std() - 1e-7 and inside:
                claims[i][j] = value
    expected = [max(claim, key=lambda j: claim[j]) if claim else BACKGROUND for claim in claims]
    assert found.tolist() == expected
    assert found.amax() == 1


def test_sampling_is_balanced() -> None:
    assigned = torch.cat(
        (torch.zeros(30), torch.full((100,), float(BACKGROUND)), torch.full((9,), float(IGNORED)))
    ).long()
    (found,) = RandomSampler(40, 0.25)([assigned])
    assert (len(found.positive), len(found.negative)) == (10, 30)
    assert (assigned[found.positive] >= 0).all()
    assert (assigned[found.negative] == BACKGROUND).all()
    assert (assigned >= 0).nonzero()[:, 0][found.order].equal(found.positive)
    (found,) = RandomSampler(400, 0.25)([assigned])
    assert (len(found.positive), len(found.negative)) == (30, 100)
    assert found.order.tolist() == list(range(30))


def test_gfl_losses_as_defined() -> None:
    """Anchor by anchor, in the words of the paper's equations 4 to 6."""
    torch.manual_seed(0)
    head = GFLHead((32, 32), (8, 16), 3, embed_dim=32, num_convs=1, reg_max=4, topk=4).double()
    for conv in (head.gfl_cls, head.gfl_reg):
        torch.nn.init.normal_(conv.weight, std=0.2)
    levels = [torch.randn(1, 32, 8, 8).double(), torch.randn(1, 32, 4, 4).double()]
    outputs = [(a, b.double()) for a, b in head(levels)]
    boxes, labels = torch.tensor([[2.0, 1, 60, 63], [20, 0, 63, 64]]).double(), torch.tensor([2, 0])
    found = head.losses(outputs, [boxes], [labels])

    grids = anchor_grid([(8, 8), (4, 4)], (8, 16), (8.0,), (1.0,), torch.device("cpu"))
    assigned = ATSSAssigner(4)(torch.cat(grids), boxes.float(), [64, 16]).tolist()
    quality_loss, box_loss, corner_loss, weights, count, index = [], [], [], [], 0, 0
    for (logits, corners), stride in zip(outputs, (8, 16), strict=True):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                own, target, owner = logits[0, :, y, x], torch.zeros(3).double(), assigned[index]
                index += 1
                if owner >= 0:
                    count += 1
                    bins = corners[0, :, y, x].view(4, 5)
                    left, top, right, bottom = bins.softmax(1) @ torch.arange(5).double()
                    box = torch.stack((x - left, y - top, x + right, y + bottom))
                    true = boxes[owner] / stride
                    target[labels[owner]] = overlap(box.tolist(), true.tolist())
                    weight = own.sigmoid().max().item()
                    weights.append(weight)
                    box_loss.append(weight * (1 - clamped_giou(box, true)))
                    wanted = [x - true[0], y - true[1], true[2] - x, true[3] - y]
                    for k, distance in enumerate(wanted):
                        value = min(max(distance.item(), 0), 4 - 0.1)
                        logs, low = bins[k].log_softmax(0), int(value)
                        mixed = (low + 1 - value) * logs[low] + (value - low) * logs[low + 1]
                        corner_loss.append(-mixed * weight / 4)
                share = own.sigmoid()
                entropy = -(target * share.log() + (1 - target) * (1 - share).log())
                quality_loss.append(((target - share).abs() ** 2 * entropy).sum())
    assert count > 1
    total = max(sum(weights), 1)
    torch.testing.assert_close(found["loss_class"], torch.stack(quality_loss).sum() / count)
    torch.testing.assert_close(found["loss_bbox"], 2 * torch.stack(box_loss).sum() / total)
    torch.testing.assert_close(found["loss_dfl"], 0.25 * torch.stack(corner_loss).sum() / total)


def test_masks_are_pasted_where_their_boxes_are() -> None:
    masks = torch.ones(3, 28, 28)
    boxes = torch.tensor([[2.0, 3, 12, 9], [-5, -5, 4, 4], [50, 50, 60, 60]])
    found = paste(masks, boxes, (20, 30))
    expected = torch.zeros(3, 20, 30, dtype=torch.bool)
    expected[0, 3:9, 2:12], expected[1, :4, :4] = True, True
    assert torch.equal(found, expected)
    shape = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(shape[None], (56, 84), mode="bilinear")[0] >= 0.5
    inner = paste(shape, torch.tensor([[0.0, 0, 84, 56]]), (56, 84))
    assert torch.equal(inner[:, 2:-2, 2:-2], whole[:, 2:-2, 2:-2])  # at the border it meets zeros, not itself
