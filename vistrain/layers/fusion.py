"""Convolutions with batch norms, alone and side by side, that fold into one convolution once they are trained.

Folding a batch norm: Jacob et al. 2018 (arXiv 1712.05877, equation 14). Branches: RepVGG (arXiv 2101.03697, section
3.3; DingXiaoH/RepVGG, MIT); dilated ones: UniRepLKNet (arXiv 2311.15599, section 3.1; AILab-CVC/UniRepLKNet,
Apache-2.0). Written from the formulae.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fusible(nn.Module, abc.ABC):
    """What computes in evaluation the same as a simpler module."""

    @abc.abstractmethod
    def fused(self) -> nn.Module:
        """The simpler module, with weights of its own, in evaluation mode. Made of running statistics."""


def fuse(module: nn.Module) -> nn.Module:
    """Replaces all that is fusible below `module`, in place; it can be evaluated afterwards, and not trained well.

    Returns:
        `module`, or its replacement if it is fusible itself.
    """
    if isinstance(module, Fusible):
        return module.fused()
    for name, child in module.named_children():
        replacement = fuse(child)
        if replacement is not child:
            setattr(module, name, replacement)
    return module


def affine_of(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factors and summands `[C]` that a batch norm is in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


class ConvBN(Fusible):
    """A convolution without bias, and a batch norm.

    Args:
        in_chans, out_chans, kernel_size, stride, groups, dilation: see `nn.Conv2d`.
        padding: None is half of the kernel, so that maps of stride 1 keep their size.
        bn_weight: initial factor of the norm; 0 makes a residual branch start as nothing.
        eps: of the norm.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        bn_weight: float = 1.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        pad = dilation * (kernel_size - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, pad, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chans, eps)
        nn.init.constant_(self.bn.weight, bn_weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        return self.bn(self.conv(x))

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel `[C', C / groups, k, k]` and bias `[C']` of the one convolution."""
        scale, shift = affine_of(self.bn)
        return self.conv.weight * scale[:, None, None, None], shift

    def fused(self) -> nn.Module:
        """One convolution with a bias."""
        return _conv_like(self.conv, *self.folded())


class ParallelConvs(Fusible):
    """A sum of convolutions with a norm each, of one stride, around the same cell; with the map itself if need be.

    Args:
        branches: `ConvBN` by name, one of them with the largest kernel, undilated.
        identity: add the map itself; it has a stride of 1 and as many channels then.
    """

    def __init__(self, branches: Mapping[str, ConvBN], identity: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(dict(branches))
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C', H', W']`."""
        first, *rest = self.branches.values()
        y = first(x)
        for branch in rest:
            y = y + branch(x)
        return y + x if self.identity else y

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """One convolution with a bias: kernels are summed, dilated ones with zeros between their cells."""
        branches = [branch for branch in self.branches.values() if isinstance(branch, ConvBN)]
        widest = max((branch.conv for branch in branches), key=_extent)
        size = _extent(widest)
        parts = [
            (_spread(weight, branch.conv, size), bias) for branch in branches for weight, bias in [branch.folded()]
        ]
        weight, bias = sum(w for w, _ in parts), sum(b for _, b in parts)
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        if self.identity:
            channel = torch.arange(weight.shape[0], device=weight.device)
            weight[channel, channel % weight.shape[1], size // 2, size // 2] += 1
        return _conv_like(widest, weight, bias)


def _extent(conv: nn.Conv2d) -> int:
    """Cells that a kernel reaches over along an axis."""
    return conv.dilation[0] * (conv.kernel_size[0] - 1) + 1


def _spread(weight: Tensor, conv: nn.Conv2d, size: int) -> Tensor:
    """A kernel among zeros: undilated, and `size` cells wide around its middle."""
    step, (rows, columns) = conv.dilation[0], weight.shape[2:]
    wide = weight.new_zeros(*weight.shape[:2], step * (rows - 1) + 1, step * (columns - 1) + 1)
    wide[..., ::step, ::step] = weight
    return F.pad(wide, [(size - wide.shape[-1]) // 2] * 4)


def _conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """The same convolution with other weights, and a bias."""
    made = copy.deepcopy(conv)
    made.weight, made.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return made.eval()
