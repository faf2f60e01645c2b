"""Dice losses of class maps: overlap instead of pixels, so that rare classes count (Milletari et al. 2016, V-Net, arXiv
1606.04797, section 3). Written from the formula; no code, and so no licence, is behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_no_exponent
from vistrain.losses.class_maps import PixelLoss


class PixelDice(PixelLoss):
    """1 minus the mean over classes of `(2 sum(p t) + smooth) / (sum(p^q) + sum(t) + smooth)`, sums over the labelled
    pixels of the whole batch.

    Args:
        smooth: added above and below; a class that is neither there nor predicted has no loss.
        squared: probabilities are squared below, as in V-Net (q = 2); otherwise not (q = 1).
        background: whether the first class counts.
        weight: of the loss.
    """

    def __init__(
        self, smooth: float = 1.0, squared: bool = False, background: bool = True, weight: float = 1.0
    ) -> None:
        super().__init__(weight)
        refuse_no_exponent(smooth=smooth)
        self.smooth, self.squared, self.background = smooth, squared, background

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; `count` has no meaning here: overlap is a quotient."""
        labelled = (labels != ignore_index)[:, None]
        probability = logits.softmax(1) * labelled
        truth = torch.zeros_like(probability).scatter_(1, labels.where(labelled[:, 0], 0)[:, None], 1.0) * labelled
        sides = [d for d in range(logits.ndim) if d != 1]
        both = (probability * truth).sum(sides)
        each = (probability.square() if self.squared else probability).sum(sides) + truth.sum(sides)
        dice = (2 * both + self.smooth) / (each + self.smooth)
        return 1 - dice[0 if self.background else 1 :].mean()


class PixelLosses(PixelLoss):
    """The sum of several losses, each with its own weight: cross-entropy and Dice, say.

    Args:
        losses: at least one.
        weight: of the sum.

    Raises:
        ConfigError: there are none, or all weigh 0.
    """

    def __init__(self, losses: Sequence[PixelLoss], weight: float = 1.0) -> None:
        super().__init__(weight)
        if not losses:
            raise ConfigError("model.loss.losses", "no losses to add", "write one at least, or leave model.loss out")
        if not any(loss.weight for loss in losses):
            raise ConfigError("losses", "all weigh 0: nothing would be learned", "give one a weight above 0")
        self.losses = nn.ModuleList(losses)

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`."""
        return torch.stack([loss(logits, labels, ignore_index, count) for loss in self.losses]).sum()
