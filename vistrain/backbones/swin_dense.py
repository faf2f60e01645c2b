"""timm's Swin on maps that its windows do not divide.

The authors' dense code pads a map at the bottom and right, then shifts it; timm 1.0 shifts it and then pads. Where
nothing is padded, as in classification, both are the same; elsewhere timm's shifted windows hold other tokens, and
detectors trained with the authors' would not give their numbers. The authors also shift windows on every map, timm only
on maps larger than a window at the size that the model was built for: `args: {always_partition: true}` asks it to.

Swin is arXiv 2103.14030. The dense code is github.com/SwinTransformer/Swin-Transformer-Object-Detection, Apache-2.0
(mmdet/models/backbones/swin_transformer.py).
"""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F


class _DenseSwinBlock(SwinTransformerBlock):
    """timm's block, but that maps are padded before windows are shifted. Made by `pad_before_shift`."""

    def _attn(self, x: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, H, W, C]`."""
        height, width = x.shape[1:3]
        bottom, right = -height % self.window_size[0], -width % self.window_size[1]
        return super()._attn(F.pad(x, (0, 0, 0, right, 0, bottom)))[:, :height, :width]


def pad_before_shift(body: nn.Module) -> None:
    """Let every Swin block below `body` pad its map first; parameters and their names stay. Others are not touched."""
    for module in body.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = _DenseSwinBlock
