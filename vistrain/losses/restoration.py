"""Losses of restored images: means over all pixels, `(output, target) -> scalar`, brightest pixel 1.

All are written from their formulas; constants follow BasicSR (github.com/XPixelGroup/BasicSR, Apache-2.0) and NAFNet
(github.com/megvii-research/NAFNet, MIT).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_negative, refuse_no_exponent

NORMS = ("backward", "ortho", "forward")  # of Fourier transforms, as torch calls them


class ImageLoss(nn.Module):
    """Base of losses of images, `(output [B, C, H, W], target [B, C, H, W]) -> scalar`.

    Args:
        weight: of the loss.

    Raises:
        ConfigError: it is negative.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        refuse_negative(weight=weight)
        self.weight = weight


class L1(ImageLoss):
    """Mean absolute difference.

    Args:
        weight: of the loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar for two `[B, C, H, W]`."""
        return self.weight * F.l1_loss(output, target)


class MSE(ImageLoss):
    """Mean squared difference.

    Args:
        weight: of the loss.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar for two `[B, C, H, W]`."""
        return self.weight * F.mse_loss(output, target)


class Charbonnier(ImageLoss):
    """Mean of `sqrt(d^2 + eps^2)`, d the difference: an L1 that is smooth at zero.

    Source: Lai et al., arXiv 1704.03915, section 3.3.

    Args:
        eps: where it turns from a parabola to straight lines. BasicSR writes `sqrt(d^2 + 1e-12)`, which is eps 1e-6.
        weight: of the loss.
    """

    def __init__(self, eps: float = 1e-3, weight: float = 1.0) -> None:
        super().__init__(weight)
        refuse_no_exponent(eps=eps)
        self.eps = eps

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar for two `[B, C, H, W]`."""
        return self.weight * ((output - target).square() + self.eps**2).sqrt().mean()


class FrequencyLoss(ImageLoss):
    """Mean absolute difference of the Fourier coefficients, real and imaginary parts apart.

    Source: Cho et al. (MIMO-UNet), arXiv 2108.05054, section 3.3; MAXIM, arXiv 2201.02973, equation 4.

    Args:
        weight: of the loss; 0.1 beside a pixel loss in both papers.
        norm: of the transform; `backward` leaves the sum over pixels in the coefficients, as the papers' code does.
    """

    def __init__(self, weight: float = 0.1, norm: str = "backward") -> None:
        super().__init__(weight)
        if norm not in NORMS:
            raise ConfigError("norm", f"{norm!r}", f"one of {', '.join(NORMS)}")
        self.norm = norm

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar for two `[B, C, H, W]`."""
        spectrum = torch.fft.fft2(output - target, norm=self.norm)  # linear: one transform does for both
        return self.weight * torch.view_as_real(spectrum).abs().mean()


class PSNRLoss(ImageLoss):
    """`10 log10(mse + eps)`, the negative of the decibels, mean over images.

    Source: NAFNet (arXiv 2204.04676), BasicSR's `PSNRLoss`.

    Args:
        weight: of the loss.
        eps: added to each image's mean squared error.
    """

    def __init__(self, weight: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__(weight)
        refuse_no_exponent(eps=eps)
        self.eps = eps

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar for two `[B, C, H, W]`."""
        mse = (output - target).square().mean(dim=(1, 2, 3))
        return self.weight * 10 / math.log(10) * (mse + self.eps).log().mean()
