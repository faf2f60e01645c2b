"""Fixtures that store no weights: a rule makes them from the names (their `fill`), and OpenMMLab's ResNet."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import DenseBackbone
from vistrain.structures import Preprocessing

AS_THEY_ARE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the fixtures store normalised images


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict by the fixtures' rule `fill_by_name`; batch counters are 0.

    Args:
        shapes: of every tensor under its official name.
    """
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
            continue
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_mean"):
            values = values * 0.2
        elif len(shape) >= 2:
            values = values / math.sqrt(math.prod(shape) / shape[0])
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values = 0.1 * values
        state[name] = values
    return state


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's tensors whose names are the official ones."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


class Bottleneck(nn.Module):
    """ResNet's, stride in the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        for i, (a, b, kernel) in enumerate(((inputs, width, 1), (width, width, 3), (width, 4 * width, 1)), 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, kernel, stride if i == 2 else 1, kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn3(self.conv3(self.bn2(self.conv2(out)).relu()))
        return (out + (x if self.downsample is None else self.downsample(x))).relu()


class MMResNet(DenseBackbone):
    """OpenMMLab's ResNet-50 of four base channels, under its names, in evaluation mode for ever.

    Args:
        strides: of the maps to give out.
        deep_stem: three 3x3 convolutions instead of one 7x7 (ResNetV1c).
    """

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), deep_stem: bool = False) -> None:
        super().__init__()
        stem, base = 8, 4
        if deep_stem:
            widths = ((3, stem // 2, 2), (stem // 2, stem // 2, 1), (stem // 2, stem, 1))
            layers = [(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in widths]
            self.stem = nn.Sequential(*(layer for group in layers for layer in group))
        else:
            self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(stem)
        inputs = stem
        for i, count in enumerate((3, 4, 6, 3)):
            width = base * 2**i
            blocks = [
                Bottleneck(inputs if j == 0 else 4 * width, width, 2 if i and j == 0 else 1) for j in range(count)
            ]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = 4 * width
        self.deep_stem = deep_stem
        self.strides = tuple(strides)
        self.channels = tuple(4 * base * stride // 4 for stride in strides)
        self.preprocessing = AS_THEY_ARE

    def train(self, mode: bool = True) -> MMResNet:
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images) if self.deep_stem else self.bn1(self.conv1(images)).relu()
        x, maps = F.max_pool2d(x, 3, 2, 1), {}
        for i in range(4):
            x = self.get_submodule(f"layer{i + 1}")(x)
            maps[4 * 2**i] = x
        return [maps[stride] for stride in self.strides]
