"""Losses of class maps: `(logits [B, K, *S], labels [B, *S] int64, ignore_index, count) -> scalar`.

`count` is the number of labelled pixels that a mean is taken over, where the gradients of several batches are averaged;
None counts this batch. Written from their formulas; constants follow mmsegmentation (Apache-2.0) and PIDNet (MIT).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.axis import Axis
from vistrain.layers.conv import resize
from vistrain.layers.loss_weights import refuse_negative, refuse_no_exponent, refuse_no_share
from vistrain.layers.precision import at_least_float32

CACHED = 1 << 19  # logits of a tile, which stay in a processor's caches
TILE = 128  # pixels across


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

    def enlarged(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        count: Tensor | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """As `forward`, of logits `[B, K, *s]` of any size, which are enlarged to the labels'."""
        return self(resize(logits, labels.shape[1:], align_corners), labels, ignore_index, count)


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
        refuse_no_share(label_smoothing=label_smoothing)
        self.over_all, self.label_smoothing = over_all, label_smoothing
        refuse_negative(class_weights=class_weights)
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None, persistent=False)
        self.class_weights: Tensor | None

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; 0 where nothing is labelled."""
        total = F.cross_entropy(logits, labels, **self._settings(logits, ignore_index))
        return self._mean(total, labels, ignore_index, count)

    def enlarged(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        count: Tensor | None = None,
        align_corners: bool = False,
    ) -> Tensor:
        """See `PixelLoss`; on processors in tiles, so that what is enlarged stays in their caches."""
        if logits.device.type != "cpu" or logits.dim() != 4 or logits.shape[2:] == labels.shape[1:]:
            return super().enlarged(logits, labels, ignore_index, count, align_corners)
        with torch.autocast("cpu", enabled=False):
            logits = at_least_float32(logits)
            settings = self._settings(logits, ignore_index)
            total: Tensor = _TiledCrossEntropy.apply(logits, labels, align_corners, settings)
            return self.weight * self._mean(total, labels, ignore_index, count)

    def _settings(self, logits: Tensor, ignore_index: int) -> dict[str, Any]:
        """Of `torch.nn.functional.cross_entropy`, for the sum over pixels."""
        factors = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        smoothing = self.label_smoothing
        return {"weight": factors, "ignore_index": ignore_index, "label_smoothing": smoothing, "reduction": "sum"}

    def _mean(self, total: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        if self.over_all:
            return total / labels.numel()
        if count is None:
            labelled = labels != ignore_index  # not picked out: how many there are, the host would have to wait for
            counted = labelled.to(total.dtype)
            if self.class_weights is not None:
                counted = counted * self.class_weights.to(total.dtype)[labels.where(labelled, 0)]
            count = counted.sum()
        return total / count.clamp(min=torch.finfo(total.dtype).tiny)


class _TiledCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of enlarged logits, and its gradient, tile by tile.

    All at once, logits of 150 classes at 512 x 512 pixels and what is computed from them go through memory a dozen
    times.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, align_corners: bool, settings: Mapping[str, Any]) -> Tensor:
        """Of logits `[B, K, h, w]` and labels `[B, H, W]` int64: a scalar."""
        height, width = labels.shape[1:]
        rows, columns = (
            Axis.resized(old, new, align_corners) for old, new in zip(logits.shape[2:], (height, width), strict=True)
        )
        across = [slice(x, min(x + TILE, width)) for x in range(0, width, TILE)]
        high = max(1, CACHED // (logits.shape[1] * min(TILE, width)))
        down = [slice(y, min(y + high, height)) for y in range(0, height, high)]
        horizontal = [(x, *columns.between(x.start, x.stop, logits)) for x in across]
        vertical = [(y, *rows.between(y.start, y.stop, logits)) for y in down]
        wanted = ctx.needs_input_grad[0]
        total, gradient = logits.new_zeros(()), torch.zeros_like(logits) if wanted else None
        for b in range(len(logits)):
            for (y, over, vertically), (x, along, horizontally) in itertools.product(vertical, horizontal):
                with torch.set_grad_enabled(wanted):
                    part = logits[b, :, over, along].detach().requires_grad_(wanted)
                    tile = vertically @ (part @ horizontally.mT)
                    loss = F.cross_entropy(tile[None], labels[b : b + 1, y, x], **settings)
                total += loss.detach()
                if gradient is not None:
                    gradient[b, :, over, along] += torch.autograd.grad(loss, part)[0]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        """The gradient, which `forward` has computed."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None, None


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
        refuse_no_exponent(gamma=gamma)
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
        refuse_no_share(threshold=threshold)
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
