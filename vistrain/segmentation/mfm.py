"""MFM: masked feature modelling for unsupervised domain adaptation of segmentation, on DAFormer's head.

Features are masked, not images; a small network that only training has (the Rebuilder) fills them in, and the head's
own classifier must still find the labels. No code is published (no licence), and neither the paper's share of masked
features nor its Rebuilder and weight are known to us: those here are ours, and no number is claimed for them. The host
is `SelfTrainedSegmenter`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.conv import DepthwiseSeparableConv
from vistrain.layers.loss_weights import refuse_negative
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.self_training import SelfTrainedSegmenter


class Rebuilder(nn.Module):
    """Fills in masked features: `[B, C, H, W]` twice.

    Interpretation: a learned token in place of what is masked, then depthwise-separable convolutions, each added to
    what it reads.

    Args:
        channels: C.
        depth: convolutions.
        kernel: their side.
    """

    def __init__(self, channels: int, depth: int, kernel: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1))
        nn.init.normal_(self.mask_token, std=0.02)
        self.layers = nn.ModuleList(DepthwiseSeparableConv(channels, channels, kernel) for _ in range(depth))

    def forward(self, features: Tensor, masked: Tensor) -> Tensor:
        """Features with those where `masked` `[B, 1, H, W]` bool is True filled in."""
        x = torch.where(masked, self.mask_token.to(features.dtype), features)
        for layer in self.layers:
            x = x + layer(x)
        return x


class MFM(SelfTrainedSegmenter):
    """Self-training, and labels that must be found from masked features.

    Args:
        mask_ratio: interpretation: share of the features that is masked.
        mask_side: interpretation: side of the squares that are masked, in features.
        rebuilder_depth, rebuilder_kernel: interpretation: see `Rebuilder`.
        rebuilt_weight: interpretation: of the loss on rebuilt features of mixed images.
        base: see `SelfTrainedSegmenter`.

    Raises:
        ConfigError: a number is out of its range, or the head has no classifier of its own.
    """

    def __init__(
        self,
        *,
        mask_ratio: float = 0.5,
        mask_side: int = 4,
        rebuilder_depth: int = 2,
        rebuilder_kernel: int = 7,
        rebuilt_weight: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if not 0 < mask_ratio < 1:
            problem = f"{mask_ratio} {'masks nothing' if mask_ratio <= 0 else 'keeps nothing'}"
            raise ConfigError("model.mask_ratio", problem, "use a share between 0 and 1, such as 0.5")
        if mask_side < 1 or rebuilder_depth < 1 or rebuilder_kernel % 2 == 0:
            problem = f"mask_side={mask_side}, rebuilder_depth={rebuilder_depth}, rebuilder_kernel={rebuilder_kernel}"
            raise ConfigError("model", problem, "use 1 or more, and an odd side")
        refuse_negative(rebuilt_weight=rebuilt_weight)
        head = self.decode_head
        if type(head).forward is not DecodeHead.forward:
            problem = f"{type(head).__name__} does not classify one map of features"
            raise ConfigError("model.head", problem, "take segmentation.DAFormerHead, UPerHead, FPNHead or FCNHead")
        self.mask_ratio, self.mask_side, self.rebuilt_weight = mask_ratio, mask_side, rebuilt_weight
        self.rebuilder = Rebuilder(head.conv_seg.in_channels, rebuilder_depth, rebuilder_kernel)

    def mixed_losses(self, images: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """`loss_mixed`, and `loss_rebuilt` of the same labels; the features are computed once."""
        head = self.decode_head
        features = head.features(self.maps(images))
        masked = masked_squares(features, self.mask_ratio, self.mask_side)
        rebuilt = head.conv_seg(head.dropout(self.rebuilder(features, masked)))
        return {
            "loss_mixed": self.mixed_weight
            * self.weighted_loss(head.conv_seg(head.dropout(features)), labels, weights),
            "loss_rebuilt": self.rebuilt_weight * self.weighted_loss(rebuilt, labels, weights),
        }


def masked_squares(features: Tensor, ratio: float, side: int) -> Tensor:
    """`[B, 1, H, W]` bool: squares of a grid, the share (rounded, one at least, never all) drawn by torch's generator;
    features `[B, C, H, W]`.

    Raises:
        ConfigError: there is one square alone, which is never masked.
    """
    batch, (height, width) = features.shape[0], features.shape[-2:]
    rows, columns = -(-height // side), -(-width // side)
    if rows * columns < 2:
        problem = f"squares of {side} on {height}x{width} features: one, which is never masked"
        raise ConfigError("model.mask_side", problem, "use a smaller side, or larger crops")
    count = min(max(round(rows * columns * ratio), 1), rows * columns - 1)
    noise = torch.rand(batch, rows * columns, device=features.device)
    hidden = torch.zeros_like(noise, dtype=torch.bool).scatter(1, noise.argsort(1)[:, :count], True)
    squares = hidden.view(batch, 1, rows, columns)
    return squares.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]
