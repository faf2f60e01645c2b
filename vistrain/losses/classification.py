"""Losses of classifiers. All take logits `[B, K]` and dense targets `[B, K]` in 0..1, and give a scalar.

Targets of one class per image sum to 1 (also when two images were mixed); those of many are 0 and 1 one by one.

Cross-entropy and its binary form are timm's (github.com/huggingface/pytorch-image-models, Apache-2.0, timm/loss); the
asymmetric loss is written from its formula (authors' code: github.com/Alibaba-MIIL/ASL, MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_no_exponent
from vistrain.layers.precision import at_least_float32


class SoftCrossEntropy(nn.Module):
    """Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7), mean over the batch.

    Args:
        smoothing: share of the target that is spread evenly over all classes, in 0..1.

    Raises:
        ConfigError: the smoothing is not in 0..1.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = _share("smoothing", smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        return -(smooth(targets, self.smoothing) * F.log_softmax(at_least_float32(logits), -1)).sum(-1).mean()


class BinaryCrossEntropy(nn.Module):
    """Each class against the rest (ResNet strikes back, Wightman et al. 2021, arXiv 2110.00476, section 3).

    Args:
        smoothing: as in `SoftCrossEntropy`; timm smooths before it applies the threshold.
        threshold: classes of a mixed image whose share is above it count as wholly present; None leaves shares.
        sum_classes: sum over classes instead of the mean, mean over the batch.

    Raises:
        ConfigError: a share is not in 0..1.
    """

    def __init__(self, smoothing: float = 0.0, threshold: float | None = None, sum_classes: bool = False) -> None:
        super().__init__()
        self.smoothing, self.sum_classes = _share("smoothing", smoothing), sum_classes
        self.threshold = None if threshold is None else _share("threshold", threshold)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        targets = smooth(targets, self.smoothing)
        if self.threshold is not None:
            targets = (targets > self.threshold).to(targets.dtype)
        losses = F.binary_cross_entropy_with_logits(at_least_float32(logits), targets, reduction="none")
        return losses.sum(-1).mean() if self.sum_classes else losses.mean()


class AsymmetricLoss(nn.Module):
    """For images of many classes, where most are absent (Ridnik et al. 2021, arXiv 2009.14119, equations 4 to 7).

    Args:
        gamma_negative, gamma_positive: focusing on hard absent and present classes.
        margin: absent classes of lower probability cost nothing, and other ones are shifted by it.

    Raises:
        ConfigError: the margin is not in 0..1.
    """

    def __init__(self, gamma_negative: float = 4.0, gamma_positive: float = 1.0, margin: float = 0.05) -> None:
        super().__init__()
        refuse_no_exponent(gamma_negative=gamma_negative, gamma_positive=gamma_positive)
        self.gamma_negative, self.gamma_positive = gamma_negative, gamma_positive
        self.margin = _share("margin", margin)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar: the sum over classes, mean over the batch."""
        present = at_least_float32(logits).sigmoid()
        absent = (1 - present + self.margin).clamp(max=1)
        eps = torch.finfo(torch.float32).tiny ** 0.25
        gain = targets * present.clamp(min=eps).log() * (1 - present) ** self.gamma_positive
        gain = gain + (1 - targets) * absent.clamp(min=eps).log() * (1 - absent) ** self.gamma_negative
        return -gain.sum(-1).mean()


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """`(1 - s) targets + s / K`, as timm and torch define label smoothing."""
    return targets if not smoothing else targets * (1 - smoothing) + smoothing / targets.shape[-1]


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigError(name, f"{value} is not in 0..1")
    return value
