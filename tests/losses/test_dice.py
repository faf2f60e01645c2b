"""Dice losses by their definition, on images and volumes, with ignored pixels left out."""

from __future__ import annotations

import pytest
import torch

from vistrain.losses import PixelCrossEntropy, PixelDice, PixelLosses

IGNORED = 255


def case(*sides: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *sides, generator=draw, requires_grad=True)
    labels = torch.randint(0, 3, (2, *sides), generator=draw)
    labels[:, 0] = IGNORED
    return logits, labels


@pytest.mark.parametrize("sides", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("squared", [False, True])
def test_the_formula(sides, squared):
    logits, labels = case(*sides)
    share = logits.softmax(1).movedim(1, -1)[labels != IGNORED]
    kept = labels[labels != IGNORED]
    scores = []
    for c in range(1, 3):
        p, t = share[:, c], (kept == c).float()
        scores.append((2 * (p * t).sum() + 0.5) / ((p**2 if squared else p).sum() + t.sum() + 0.5))
    loss = PixelDice(smooth=0.5, squared=squared, background=False, weight=2.0)(logits, labels, IGNORED)
    assert loss.item() == pytest.approx(2 * (1 - float(sum(scores).item()) / 2), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient[:, :, 0].abs().max()) == 0  # ignored
    assert float(gradient.abs().max()) > 0


def test_right_is_0_and_wrong_is_1():
    labels = torch.tensor([[[0, 1], [1, 0]]])
    right = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2) * 200.0
    loss = PixelDice(smooth=1e-6)
    assert float(loss(right, labels, IGNORED)) == pytest.approx(0, abs=1e-6)
    assert float(loss(right.flip(1), labels, IGNORED)) == pytest.approx(1, abs=1e-6)
    everything = torch.full_like(labels, IGNORED)
    assert float(loss(right, everything, IGNORED)) == pytest.approx(0, abs=1e-6)


def test_losses_add_up():
    logits, labels = case(5, 6)
    parts = [PixelCrossEntropy(over_all=False), PixelDice(weight=3.0)]
    together = PixelLosses(parts, weight=0.5)(logits, labels, IGNORED)
    assert together.item() == pytest.approx(0.5 * sum(p(logits, labels, IGNORED).item() for p in parts), abs=1e-6)
