"""Losses of class maps by their definitions: sets of pixels for Lovász-softmax, one pixel at a time for focal."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.losses import (
    AsymmetricLoss,
    Charbonnier,
    FrequencyLoss,
    LovaszSoftmax,
    OhemCrossEntropy,
    PixelCrossEntropy,
    PixelDice,
    PixelFocal,
    PixelTopK,
    PSNRLoss,
    SetCriterion,
)

IGNORED = 255


def case(*sides: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, *sides, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, *sides), generator=draw)  # class 3 never occurs
    labels[:, 0] = IGNORED
    return logits, labels


def jaccard_loss(truth: set[int], wrong: tuple[int, ...]) -> float:
    """1 - Jaccard index of a class's true pixels where these pixels are predicted wrongly (equation 8)."""
    union = truth | set(wrong)
    return len(set(wrong)) / len(union) if union else 0.0


def lovasz_extension(errors: list[float], truth: set[int]) -> float:
    """By its definition (equation 9): errors in descending order, times what each pixel adds to the loss of a set."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    sets = [tuple(order[:n]) for n in range(len(order) + 1)]
    return sum(
        errors[pixel] * (jaccard_loss(truth, after) - jaccard_loss(truth, before))
        for pixel, (before, after) in zip(order, itertools.pairwise(sets), strict=True)
    )


def by_definition(logits: Tensor, labels: Tensor, only_present: bool) -> float:
    share = logits.softmax(1).movedim(1, -1)[labels != IGNORED].tolist()
    kept = labels[labels != IGNORED].tolist()
    losses = []
    for channel in range(logits.shape[1]):
        truth = {i for i, label in enumerate(kept) if label == channel}
        if truth or not only_present:
            errors = [abs((i in truth) - share[i][channel]) for i in range(len(kept))]
            losses.append(lovasz_extension(errors, truth))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("only_present", [True, False])
@pytest.mark.parametrize("sides", [(4, 5), (2, 3, 4)])
def test_lovasz_softmax_of_sets(sides: tuple[int, ...], only_present: bool) -> None:
    logits, labels = case(*sides)
    loss = LovaszSoftmax(only_present=only_present, weight=2.0)(logits, labels, IGNORED)
    assert loss.item() == pytest.approx(2 * by_definition(logits.detach(), labels, only_present), abs=1e-9)
    alone = LovaszSoftmax(per_image=True, only_present=only_present)(logits, labels, IGNORED)
    each = [by_definition(logits[i : i + 1].detach(), labels[i : i + 1], only_present) for i in (0, 1)]
    assert alone.item() == pytest.approx(sum(each) / 2, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient[:, :, 0].abs().max()) == 0
    assert float(gradient.abs().max()) > 0


def test_lovasz_softmax_of_certain_predictions_is_the_jaccard_index() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]]])
    said = torch.tensor([[[0, 1, 1, 1], [0, 1, 0, 1]]])
    logits = torch.nn.functional.one_hot(said, 2).movedim(-1, 1) * 200.0
    expected = 1 - (2 / 4 + 4 / 6) / 2
    assert float(LovaszSoftmax()(logits, labels, IGNORED)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_pixel_by_pixel(gamma: float) -> None:
    logits, labels = case(4, 5)
    weights = (0.5, 1.0, 2.0, 1.0)
    total, kept = 0.0, 0
    for image, row, column in itertools.product(range(2), range(4), range(5)):
        label = int(labels[image, row, column])
        if label != IGNORED:
            p = logits[image, :, row, column].softmax(0)[label].item()
            total -= weights[label] * (1 - p) ** gamma * math.log(p)
            kept += 1
    assert PixelFocal(gamma, weights)(logits, labels, IGNORED).item() == pytest.approx(total / kept)
    assert PixelFocal(gamma, weights, over_all=True)(logits, labels, IGNORED).item() == pytest.approx(total / 40)
    counted = PixelFocal(gamma, weights)(logits, labels, IGNORED, torch.tensor(50.0))
    assert counted.item() == pytest.approx(total / 50)


@pytest.mark.parametrize(
    ("name", "make", "value"),
    [
        ("label_smoothing", PixelCrossEntropy, 2.0),
        ("label_smoothing", PixelCrossEntropy, float("nan")),
        ("gamma", PixelFocal, -1.0),
        ("threshold", OhemCrossEntropy, 1.5),
        ("smooth", PixelDice, -1.0),
        ("gamma_negative", AsymmetricLoss, -2.0),
        ("focal_alpha", SetCriterion, 1.25),
        ("focal_gamma", SetCriterion, float("inf")),
        ("eps", Charbonnier, -1e-3),
        ("eps", PSNRLoss, -1.0),
        ("norm", FrequencyLoss, "none"),
    ],
)
def test_numbers_that_no_loss_can_be_computed_with_are_refused(name: str, make: type, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: "):
        make(**{name: value})


def test_focal_without_focus_is_the_cross_entropy() -> None:
    logits, labels = case(4, 5)
    plain = PixelCrossEntropy(over_all=False)(logits, labels, IGNORED)
    torch.testing.assert_close(PixelFocal(0.0)(logits, labels, IGNORED), plain)
    certain = torch.nn.functional.one_hot(labels.clamp(max=3), 4).movedim(-1, 1).double() * 400
    certain.requires_grad_()
    loss = PixelFocal()(certain, labels, IGNORED)
    loss.backward()
    assert loss.item() == 0
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_smoothed_labels_by_their_definition() -> None:
    logits, labels = case(4, 5)
    logs = logits.log_softmax(1).movedim(1, -1)[labels != IGNORED]
    kept = labels[labels != IGNORED]
    target = torch.full_like(logs, 0.1 / 4)
    target[torch.arange(len(kept)), kept] += 0.9
    expected = -(target * logs).sum(1).mean()
    torch.testing.assert_close(
        PixelCrossEntropy(over_all=False, label_smoothing=0.1)(logits, labels, IGNORED), expected
    )


@pytest.mark.parametrize("loss", [LovaszSoftmax(), LovaszSoftmax(per_image=True), PixelFocal()])
def test_nothing_labelled_costs_nothing(loss: torch.nn.Module) -> None:
    logits, labels = case(4, 5)
    value = loss(logits, torch.full_like(labels, IGNORED), IGNORED)
    value.backward()
    assert value.item() == 0


def test_the_hardest_share_of_the_pixels() -> None:
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    labels[0, 0] = 255
    each = [
        -logits[b, :, z, y, x].log_softmax(0)[labels[b, z, y, x]].item()
        for b, z, y, x in itertools.product(range(2), range(4), range(5), range(6))
        if labels[b, z, y, x] != 255
    ]
    hardest = sorted(each)[-21:]  # a tenth of 210
    assert PixelTopK(0.1)(logits, labels, 255).item() == pytest.approx(sum(hardest) / 21, rel=1e-5)
    everything = PixelCrossEntropy(over_all=False)(logits, labels, 255)
    torch.testing.assert_close(PixelTopK(1.0)(logits, labels, 255), everything)
    assert PixelTopK()(logits, torch.full_like(labels, 255), 255).item() == 0
    with pytest.raises(ConfigError, match=r"model\.loss\.share: 0"):
        PixelTopK(0.0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"over_all": False}, {"over_all": False, "class_weights": [0.5, 2.0, 0.0, 1.5]}, {"label_smoothing": 0.2}],
)
def test_cross_entropy_of_enlarged_logits_in_tiles(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], align_corners: bool
) -> None:
    monkeypatch.setattr("vistrain.losses.class_maps.CACHED", 4 * 7 * 5)
    monkeypatch.setattr("vistrain.losses.class_maps.TILE", 7)  # tiles of 5 x 7, and smaller ones at the borders
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=draw)
    labels = torch.randint(4, (2, 18, 23), generator=draw)
    labels[:, :6] = IGNORED
    labels[1] = IGNORED
    loss = PixelCrossEntropy(**settings, weight=1.5)
    for count in (None, torch.tensor(100.0, dtype=torch.float64)):
        found, whole = (logits.clone().requires_grad_() for _ in range(2))
        value = loss.enlarged(found, labels, IGNORED, count, align_corners)
        enlarged = F.interpolate(whole, (18, 23), mode="bilinear", align_corners=align_corners)
        expected = loss(enlarged, labels, IGNORED, count)
        torch.testing.assert_close(value, expected)
        gradients = [torch.autograd.grad(3 * x, of)[0] for x, of in ((value, found), (expected, whole))]
        torch.testing.assert_close(*gradients)
        assert gradients[0].abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(
            loss.enlarged(logits, labels, IGNORED, None, align_corners),
            loss(F.interpolate(logits, (18, 23), mode="bilinear", align_corners=align_corners), labels, IGNORED),
        )


def test_enlarged_logits_of_half_precision_and_without_labels() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, generator=draw).bfloat16().requires_grad_()
    labels = torch.randint(3, (1, 16, 16), generator=draw)
    with torch.autocast("cpu", torch.bfloat16):
        value = PixelCrossEntropy().enlarged(logits, labels, IGNORED)
    assert value.dtype == torch.float32
    enlarged = F.interpolate(logits.float(), (16, 16), mode="bilinear")
    torch.testing.assert_close(value, PixelCrossEntropy()(enlarged, labels, IGNORED))
    value.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    nothing = PixelCrossEntropy(over_all=False).enlarged(logits, torch.full_like(labels, IGNORED), IGNORED)
    assert nothing == 0
