"""In which layer a number first was none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_tools import TinyData, TinyDetector, fit, make_task

from vistrain.callbacks import NaNGuard
from vistrain.callbacks.nonfinite import where_it_arose
from vistrain.errors import VistrainError


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, -torch.inf)


def test_the_first_layer_is_named() -> None:
    network = nn.Sequential(nn.Sequential(nn.Identity(), Root()), nn.GELU())
    assert where_it_arose(network, lambda: network(-torch.ones(1))) == "it first arose in 0.1 (Root)"
    assert where_it_arose(network, lambda: network(torch.ones(1))) == ""
    masked = nn.Sequential(Masks(), Root())  # what is meant to hide is not named before what is broken
    assert where_it_arose(masked, lambda: masked(torch.ones(2))) == "it first arose in 0 (Masks)"
    hidden = nn.Sequential(Masks(), nn.Sigmoid())
    assert where_it_arose(hidden, lambda: hidden(torch.ones(2))) == ""
    lost = where_it_arose(network, lambda: network(torch.ones(1)) * torch.nan)
    assert lost == "every layer's output is finite: it arose between layers, or in the losses"


def test_a_broken_weight_is_named() -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    nn.init.constant_(network[0].bias, torch.nan)
    assert where_it_arose(network, lambda: network(torch.ones(1))) == "the weight 0.bias is not finite"


class Pole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / (x.float() - 1)


class Half(TinyDetector):
    """Meets a pole in 16 bits alone, where 1.001 is 1; at 1.0 in 32 bits, too."""

    def __init__(self, near: float = 1.001) -> None:
        super().__init__()
        self.backbone.append(nn.Conv2d(4, 4, 1))
        nn.init.zeros_(self.backbone[-1].weight)
        nn.init.constant_(self.backbone[-1].bias, near)
        self.backbone.append(Pole())


def test_half_precision_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(VistrainError) as error:
        fit(tmp_path, make_task(Half()), TinyData(), [NaNGuard()], logger=False, precision="bf16-mixed")
    message = str(error.value)
    assert "in bf16-mixed, it first arose in backbone.4 (Pole)" in message
    assert "in 32 bits it is finite: set trainer.precision=32-true" in message
    assert "\n" not in message


def test_what_32_bits_do_not_help_is_said(tmp_path: Path) -> None:
    with pytest.raises(VistrainError, match=r"in bf16-mixed, .*; in 32 bits it is not finite either: lower"):
        fit(tmp_path, make_task(Half(near=1.0)), TinyData(), [NaNGuard()], logger=False, precision="bf16-mixed")


def test_in_whole_precision_the_layer_is_named_too(tmp_path: Path) -> None:
    task = make_task(TinyDetector(poison=frozenset(range(24))))
    with pytest.raises(VistrainError, match="it arose between layers, or in the losses"):
        fit(tmp_path, task, TinyData(), [NaNGuard()], logger=False)
