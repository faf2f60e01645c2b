"""Contrastive denoising: what is noised, by how much, and who sees whom."""

import torch
from torch import Tensor

from vistrain.detr import ContrastiveDenoising, DenoisingNoise
from vistrain.layers.boxes import cxcywh_to_xyxy

LABELS = [torch.tensor([3, 1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([4])]
BOXES = [
    torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.3, 0.4, 0.1, 0.3], [0.6, 0.6, 0.5, 0.5]]),
    torch.zeros(0, 4),
    torch.tensor([[0.2, 0.8, 0.2, 0.2]]),
]
OBJECTS = 4


def stored(groups: int, label_draw: float = 1.0, magnitude: float = 0.5) -> DenoisingNoise:
    count = 2 * groups * OBJECTS
    return DenoisingNoise(
        label_draw=torch.full((count,), label_draw),
        new_labels=torch.full((count,), 7),
        signs=torch.ones(count, 4),
        magnitudes=torch.full((count, 4), magnitude),
    )


def corners(logits: Tensor) -> Tensor:
    return cxcywh_to_xyxy(logits.sigmoid())


def test_groups_slots_and_matches() -> None:
    queries = ContrastiveDenoising(number=6)(LABELS, BOXES, 8, stored(2))
    assert queries.groups == 2  # 6 positives over at most 3 objects
    assert queries.labels.shape == (3, 2 * 2 * 3)
    assert queries.filled[0].all()
    assert not queries.filled[1].any()
    assert queries.filled[2].nonzero().flatten().tolist() == [0, 3, 6, 9]
    assert queries.labels[0].tolist() == [3, 1, 2] * 4
    matched = {tuple(column) for column in queries.match.T.tolist()}
    expected = {(0, 6 * g + j, j) for g in range(2) for j in range(3)} | {(2, 6 * g, 3) for g in range(2)}
    assert matched == expected


def test_positives_move_by_less_than_half_a_side_and_negatives_by_more() -> None:
    queries = ContrastiveDenoising(number=3, box_noise_scale=0.4)(LABELS, BOXES, 8, stored(1, magnitude=0.5))
    clean = cxcywh_to_xyxy(BOXES[0])
    half = BOXES[0][:, [2, 3, 2, 3]] / 2
    torch.testing.assert_close(corners(queries.box_logits[0, :3]), clean + 0.5 * 0.4 * half, rtol=0, atol=1e-6)
    torch.testing.assert_close(corners(queries.box_logits[0, 3:]), clean + 1.5 * 0.4 * half, rtol=0, atol=1e-6)
    empty = queries.box_logits[2, [1, 2, 4, 5]]
    assert not empty.any()


def test_boxes_stay_in_the_image() -> None:
    queries = ContrastiveDenoising(number=3)(LABELS, BOXES, 8, stored(1, magnitude=0.99))
    box = corners(queries.box_logits[0, 5])  # the large one, as a negative
    assert (box <= 1 + 1e-3).all()
    assert box[2] > 0.99


def test_labels_are_redrawn_below_half_the_ratio() -> None:
    denoising = ContrastiveDenoising(number=3, label_noise_ratio=0.5)
    assert denoising(LABELS, BOXES, 8, stored(1, label_draw=0.26)).labels[0].tolist() == [3, 1, 2] * 2
    assert denoising(LABELS, BOXES, 8, stored(1, label_draw=0.24)).labels[0].tolist() == [7] * 6


def test_who_sees_whom() -> None:
    mask = ContrastiveDenoising(number=6)(LABELS, BOXES, 8, stored(2)).attn_mask(5)
    assert mask.shape == (12 + 5, 12 + 5)
    assert mask[12:, :12].all()  # matching queries do not see noised truth
    assert not mask[12:, 12:].any()
    assert not mask[:12, 12:].any()
    assert not mask[:6, :6].any()
    assert mask[:6, 6:12].all()
    assert mask[6:12, :6].all()


def test_new_draws_are_within_their_ranges_and_follow_the_seed() -> None:
    denoising = ContrastiveDenoising(number=60, label_noise_ratio=1.0)
    torch.manual_seed(0)
    one = denoising(LABELS, BOXES, 8)
    torch.manual_seed(0)
    two = denoising(LABELS, BOXES, 8)
    assert torch.equal(one.box_logits, two.box_logits)
    assert torch.equal(one.labels, two.labels)
    assert one.groups == 20
    assert one.labels.min() >= 0
    assert one.labels.max() < 8
    changed = (one.labels[0].view(-1, 3) != LABELS[0]).float().mean()
    assert 0.25 < changed < 0.65  # half are redrawn, an eighth of those to what they were


def test_no_object_gives_no_queries_and_more_objects_than_asked_for_give_one_group() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert ContrastiveDenoising()([nothing, nothing], [torch.zeros(0, 4)] * 2, 8) is None
    assert ContrastiveDenoising(number=2)(LABELS, BOXES, 8).groups == 1
