"""Batches that are unkind to detectors, for the tests of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from parity.models import as_batch
from torch import Tensor, nn


def make_batch(counts: list[int], sizes: list[tuple[int, int]] | None = None, classes: int = 5) -> dict[str, Any]:
    """uint8 images with objects anywhere."""
    torch.manual_seed(1)
    sizes = sizes or [(64, 96)] * len(counts)
    images = [torch.randint(256, (3, h, w), dtype=torch.uint8) for h, w in sizes]
    boxes = []
    for count, (height, width) in zip(counts, sizes, strict=True):
        low = torch.rand(count, 2) * 0.6
        boxes.append(torch.cat((low, low + 0.1 + torch.rand(count, 2) * 0.3), 1) * torch.tensor([width, height] * 2))
    return as_batch(images, [torch.randint(classes, (n,)) for n in counts], boxes, scale=2)


def gradients(model: nn.Module, losses: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Of the sum of the losses, by parameter."""
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def shake(model: nn.Module) -> None:
    """Moves every parameter away from the special values that it starts with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
