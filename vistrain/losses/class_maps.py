"""Losses of class maps: `(logits [B, K, *S], labels [B, *S] int64, ignore_index, count) -> scalar`.

`count` is the number of labelled pixels that a mean is taken over, where the gradients of several batches are averaged;
None counts this batch. Written from their formulas; constants follow mmsegmentation (Apache-2.0) and PIDNet (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_negative
from vistrain.layers.precision import at_least_float32


class PixelLoss(nn.Module):
    """Base of losses of class maps.

    Args:
        weight: of the loss.

    Raises:
        ConfigError: it is negative, or class weights are, or all of them 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        refuse_negative(weight=weight)
        self.weight = weight

    def forward(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None = None) -> Tensor:
        """A scalar for `[B, K, *S]` logits and `[B, *S]` int64 labels."""
        with torch.autocast(logits.device.type, enabled=False):
            return self.weight * self.compute(at_least_float32(logits), labels, ignore_index, count)

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """The loss, without its weight."""
        raise NotImplementedError


def refuse_other_weights(loss: nn.Module, num_classes: int) -> None:
    """Refuse a loss, or one within it, whose class weights are not as many as the classes; or one that weighs nothing.

    Raises:
        ConfigError: saying how many there are.
    """
    if isinstance(loss, PixelLoss) and not loss.weight:
        raise ConfigError("model.loss.weight", "is 0: nothing would be learned", "give a number above 0")
    for part in loss.modules():
        if isinstance(part, PixelCrossEntropy | PixelFocal | OhemCrossEntropy) and part.class_weights is not None:
            given = len(part.class_weights)
            if given != num_classes:
                problem = f"{given} weights for {num_classes} classes"
                raise ConfigError("model.loss.class_weights", problem, "`vistrain check` writes one for each class")


class PixelCrossEntropy(PixelLoss):
    """Cross-entropy of each pixel.

    Args:
        class_weights: K factors; empty: all 1.
        over_all: divide by all pixels, ignored ones too, as mmsegmentation does; False: by the labelled ones, weighted
            as their losses are (torch).
        label_smoothing: share of each target that is spread over all classes.
        base: see `PixelLoss`.
    """

    def __init__(
        self,
        class_weights: Sequence[float] = (),
        over_all: bool = True,
        label_smoothing: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.over_all, self.label_smoothing = over_all, label_smoothing
        refuse_negative(class_weights=class_weights)
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None, persistent=False)
        self.class_weights: Tensor | None

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; 0 where nothing is labelled."""
        factors = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = F.cross_entropy(
            logits, labels, factors, ignore_index=ignore_index, label_smoothing=self.label_smoothing, reduction="sum"
        )
        if self.over_all:
            return total / labels.numel()
        if count is None:
            labelled = labels[labels != ignore_index]
            count = factors[labelled].sum() if factors is not None else total.new_tensor(labelled.numel())
        return total / count.clamp(min=torch.finfo(total.dtype).tiny)


class PixelFocal(PixelLoss):
    """Focal loss of each pixel, of a softmax: `-(1 - p)^gamma log p`, p the probability of the true class (Lin et al.
    2017, arXiv 1708.02002, equation 4). With gamma 0 it is the cross-entropy.

    Args:
        gamma: focusing exponent.
        class_weights: K factors (equation 5's alpha); empty: all 1. They do not enter the mean's divisor.
        over_all: divide by all pixels, ignored ones too; False: by the labelled ones.
        weight: of the loss.
    """

    def __init__(
        self, gamma: float = 2.0, class_weights: Sequence[float] = (), over_all: bool = False, weight: float = 1.0
    ) -> None:
        super().__init__(weight)
        self.gamma, self.over_all = gamma, over_all
        refuse_negative(class_weights=class_weights)
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None, persistent=False)
        self.class_weights: Tensor | None

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; 0 where nothing is labelled."""
        labelled = labels != ignore_index
        losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        losses = (-torch.expm1(-losses)).clamp(min=0) ** self.gamma * losses
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses.dtype)[labels.where(labelled, 0)]
        total = losses.where(labelled, 0.0).sum()
        if self.over_all:
            return total / labels.numel()
        return total / (labelled.sum() if count is None else count).clamp(min=1)


class PixelTopK(PixelLoss):
    """Mean cross-entropy of the pixels where it is greatest (Wu et al. 2016, arXiv 1605.06885; a loss of nnU-Net's).

    Args:
        share: of the labelled pixels of the batch, above 0 and at most 1.
        weight: of the loss.

    Raises:
        ConfigError: the share is none.
    """

    def __init__(self, share: float = 0.1, weight: float = 1.0) -> None:
        super().__init__(weight)
        if not 0 < share <= 1:
            raise ConfigError("model.loss.share", f"{share}", "a share of the pixels: above 0, at most 1")
        self.share = share

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; 0 where nothing is labelled. `count` has no meaning here: the batch decides what is hard."""
        losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
        labelled = losses[labels != ignore_index]
        if not len(labelled):
            return logits.sum() * 0.0
        return labelled.topk(max(1, round(self.share * len(labelled))), sorted=False).values.mean()


class OhemCrossEntropy(PixelLoss):
    """Cross-entropy of the hard pixels only (Shrivastava et al. 2016, arXiv 1604.03540, per pixel).

    Hard are the pixels whose true class has a lower probability than the threshold, or than that of the pixel number
    `min_kept` (from the hardest, counted from 0) if that is higher.

    Args:
        threshold: probability.
        min_kept: pixels of the batch.
        class_weights: K factors; empty: all 1. They do not enter the mean's divisor.
        base: see `PixelLoss`.
    """

    def __init__(
        self,
        threshold: float = 0.9,
        min_kept: int = 131072,
        class_weights: Sequence[float] = (),
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.threshold, self.min_kept = threshold, max(1, min_kept)
        refuse_negative(class_weights=class_weights)
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None, persistent=False)
        self.class_weights: Tensor | None

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; 0 where nothing is labelled. `count` has no meaning here: the batch decides what is hard."""
        labelled = labels != ignore_index
        logits, labels = logits.movedim(1, -1)[labelled], labels[labelled]
        if not len(labels):
            return logits.sum() * 0.0
        losses = F.cross_entropy(logits, labels, reduction="none")
        probability = (-losses.detach()).exp()
        rank = min(self.min_kept, len(labels) - 1)
        threshold = probability.kthvalue(rank + 1).values.clamp(min=self.threshold)
        if self.class_weights is not None:
            losses = losses * self.class_weights.to(losses.dtype)[labels]
        hard = losses[probability < threshold]
        return hard.mean() if len(hard) else losses.sum() * 0.0
