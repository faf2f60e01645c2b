"""Hungarian matching and the set criterion."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from vistrain.layers.boxes import cxcywh_to_xyxy
from vistrain.losses import SetCriterion, SetPrediction, focal_loss_sums, set_criterion
from vistrain.matching import HungarianMatcher


def predictions(layers: int, counts: list[int], queries: int, classes: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    logits = torch.randn(layers, len(counts), queries, classes)
    boxes = torch.rand(layers, len(counts), queries, 4) * 0.4 + 0.2
    labels = [torch.randint(classes, (n,)) for n in counts]
    targets = [torch.rand(n, 4) * 0.4 + 0.2 for n in counts]
    return logits, boxes, labels, targets


def cost_by_hand(logits: Tensor, box: Tensor, label: int, target: Tensor) -> float:
    p = logits.sigmoid()[label].item()
    focal = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    overlap = 1 - generalized_box_iou_loss(cxcywh_to_xyxy(box), cxcywh_to_xyxy(target), eps=0.0).item()
    return 2 * focal + 5 * (box - target).abs().sum().item() - 2 * overlap


def test_the_assignment_is_the_cheapest_of_all() -> None:
    logits, boxes, labels, targets = predictions(2, [3, 0, 1], 4, 5)
    (pairs,) = HungarianMatcher()([(logits, boxes, False)], labels, targets)
    first = [0, 3, 3]
    for layer, image in itertools.product(range(2), range(3)):
        chosen = pairs[:, (pairs[0] == layer) & (pairs[1] == image)]
        found = {(q, t - first[image]) for q, t in chosen[2:].T.tolist()}
        objects = range(len(labels[image]))

        def total(queries: tuple[int, ...], layer: int = layer, image: int = image) -> float:
            return sum(
                cost_by_hand(
                    logits[layer, image, q], boxes[layer, image, q], labels[image][t].item(), targets[image][t]
                )
                for t, q in enumerate(queries)
            )

        best = min(itertools.permutations(range(4), len(objects)), key=total)
        assert found == {(q, t) for t, q in enumerate(best)}


def test_more_objects_than_queries_leaves_objects_over() -> None:
    logits, boxes, labels, targets = predictions(1, [7, 2], 3, 5)
    (pairs,) = HungarianMatcher()([(logits, boxes, False)], labels, targets)
    assert pairs.shape == (4, 3 + 2)
    assert sorted(pairs[2, :3].tolist()) == [0, 1, 2]


def test_class_agnostic_predictions_are_matched_by_class_0() -> None:
    logits, boxes, labels, targets = predictions(1, [2], 4, 5)
    zeros = [torch.zeros_like(x) for x in labels]
    agnostic, plain = HungarianMatcher()([(logits, boxes, True), (logits, boxes, False)], zeros, targets)
    assert torch.equal(agnostic, plain)


def test_one_copy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, boxes, labels, targets = predictions(6, [3, 4], 5, 5)
    copies: list[int] = []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.numel()) or original(self))
    HungarianMatcher()([(logits, boxes, False), (logits[:1], boxes[:1], True)], labels, targets)
    assert len(copies) == 1


def test_no_object_anywhere() -> None:
    logits, boxes, labels, targets = predictions(2, [0, 0], 4, 5)
    (pairs,) = HungarianMatcher()([(logits, boxes, False)], labels, targets)
    assert pairs.shape == (4, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_diverged_predictions_are_named(value: float) -> None:
    logits, boxes, labels, targets = predictions(1, [1, 2], 4, 5)
    boxes[0, 1, 2] = value
    with pytest.raises(FloatingPointError, match="image 1 of the batch"):
        HungarianMatcher()([(logits, boxes, False)], labels, targets)


def test_focal_sums_are_those_of_a_dense_one_hot_target() -> None:
    logits, _, _, _ = predictions(3, [1, 1], 4, 5)
    logits = (logits * 8).requires_grad_()  # saturated ones too
    index = tuple(
        torch.tensor(x) for x in ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 0, 1], [4, 3, 2, 1, 0, 0])
    )
    dense = torch.zeros_like(logits).index_put(index, torch.ones(()))
    for alpha, gamma in ((0.25, 2.0), (0.6, 1.5)):
        ours = focal_loss_sums(logits, index, alpha, gamma)
        expected = sigmoid_focal_loss(logits, dense, alpha, gamma).sum((1, 2, 3))
        torch.testing.assert_close(ours, expected)
        (a,), (b,) = (torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (ours, expected))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def criterion_losses(**arguments: object) -> dict[str, Tensor]:
    logits, boxes, labels, targets = predictions(2, [3, 1], 6, 5)
    prediction = SetPrediction(logits, boxes, ("_0", ""))
    return SetCriterion()([prediction], labels, targets, HungarianMatcher(), **arguments)


def test_losses_by_hand() -> None:
    logits, boxes, labels, targets = predictions(2, [3, 1], 6, 5)
    losses = criterion_losses()
    (pairs,) = HungarianMatcher()([(logits, boxes, False)], labels, targets)
    _, image, query, target = pairs[:, pairs[0] == 1]
    label, box = torch.cat(labels), torch.cat(targets)
    one_hot = torch.zeros(2, 6, 5)
    one_hot[image, query, label[target]] = 1
    predicted = boxes[1, image, query]
    overlap = generalized_box_iou_loss(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(box[target]), "sum", eps=0.0)
    expected = {
        "loss_class": 2 * sigmoid_focal_loss(logits[1], one_hot, 0.25, 2.0).sum() / 4,
        "loss_bbox": 5 * (predicted - box[target]).abs().sum() / 4,
        "loss_giou": 2 * overlap / 4,
    }
    assert set(losses) == {name + suffix for name in expected for suffix in ("", "_0")}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_the_normaliser_is_the_accumulated_batchs() -> None:
    own, given = criterion_losses(), criterion_losses(num_targets=16.0)
    for name in own:
        torch.testing.assert_close(given[name] * 4, own[name])


def test_the_normaliser_is_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoProcesses:
        """As seen from one of two processes, the other of which has 12 objects."""

        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)
        all_reduce = staticmethod(lambda count: count.add_(12))

    own = criterion_losses()
    monkeypatch.setattr(set_criterion, "dist", TwoProcesses)
    for name, value in criterion_losses().items():
        torch.testing.assert_close(value * 2, own[name])  # 4 objects here; (4 + 12) / 2 = 8 on average


def test_a_fixed_match_and_groups() -> None:
    logits, boxes, labels, targets = predictions(2, [1, 1], 4, 5)
    match = torch.tensor([[0, 0, 1, 1], [0, 2, 0, 2], [0, 0, 1, 1]])
    prediction = SetPrediction(logits, boxes, ("_dn_0", "_dn"), match=match, groups=2)
    losses = SetCriterion()([prediction], labels, targets, HungarianMatcher())
    distance = sum((boxes[1, i, q] - torch.cat(targets)[t]).abs().sum() for i, q, t in match.T.tolist())
    torch.testing.assert_close(losses["loss_bbox_dn"], 5 * distance / (2 * 2))


def test_diverged_predictions_make_every_loss_nan_and_the_log_names_the_image(caplog: pytest.LogCaptureFixture) -> None:
    logits, boxes, labels, targets = predictions(2, [1, 2], 4, 5)
    logits[1, 0, 2] = math.nan
    logits.requires_grad_()
    losses = SetCriterion()([SetPrediction(logits, boxes, ("_0", ""))], labels, targets, HungarianMatcher())
    assert set(losses) == set(criterion_losses())
    assert all(value.isnan() for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert "image 0 of the batch" in caplog.text
