"""What networks predict of one image, a class for each kind; on the ground, as networks, metrics and tasks use them.

Runs without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: `[N, 4]` float32, (x1, y1, x2, y2) in pixels of the original image.
        scores: `[N]` float32 in 0..1.
        labels: `[N]` int64, class channels of the network's label space.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ClassScores:
    """What a classifier says of one image.

    Attributes:
        scores: `[K]` float32 in 0..1, by class channel: probabilities that sum to 1, or one by one with `multi_label`.
        multi_label: whether an image may have any number of classes.
    """

    scores: Tensor
    multi_label: bool = False


@dataclass(frozen=True)
class Restored:
    """A restored image.

    Attributes:
        image: `[C, H, W]` float32, the brightest pixel 1, as the network gives it: neither clipped nor rounded, which
            the protocol that it is measured with decides.
    """

    image: Tensor
