"""Sigmoid focal loss (RetinaNet, arXiv 1708.02002, equation 5).

Written from the formula; as in github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/segmentation.py).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def focal_loss_sums(logits: Tensor, positives: tuple[Tensor, ...], alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of one-hot targets given by their places, summed per layer.

    Nearly all targets are 0, so every logit is first counted as a negative and the few positives are corrected: no
    target tensor, and half the passes over memory.

    Args:
        logits: `[L, B, Q, K]`, at least float32.
        positives: four int64 index tensors `[M]` (layer, image, query, class) of the targets that are 1, each once;
            layer by layer, equally many in each.
        alpha: weight of positives; negatives weigh `1 - alpha`.
        gamma: focusing exponent.

    Returns:
        `[L]` sums over images, queries and classes.
    """
    negative = _negative(logits, alpha, gamma).sum((1, 2, 3))
    chosen = logits[positives]
    positive = alpha * (-chosen).sigmoid() ** gamma * F.softplus(-chosen)
    correction = positive - _negative(chosen, alpha, gamma)
    # as many in each layer, layer by layer: a reshape sums without atomics, so the result is the same every time
    return negative + correction.view(len(logits), len(correction) // len(logits)).sum(1)


def _negative(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    # -log(1 - p) is softplus(x)
    return (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)
