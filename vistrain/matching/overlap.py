"""Assignment of anchors and proposals to objects by their overlap (Faster R-CNN, arXiv 1506.01497, section 3.1.2), and
sampling of what is trained.

Written from their descriptions; conventions are OpenMMLab's (github.com/open-mmlab/mmdetection, Apache-2.0,
core/bbox/assigners).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistrain.devices import true_places, upload
from vistrain.layers.boxes import clamped_iou

IGNORED, BACKGROUND = -2, -1


@dataclass(frozen=True)
class OverlapAssigner:
    """An anchor belongs to the object that it overlaps most, if it does enough.

    Args:
        positive: least IoU of an anchor with its object.
        negative: anchors whose largest IoU is below it are background; those between are ignored.
        low_quality: objects claim the anchors that overlap them most, too, if they do by at least this IoU; None: not.
    """

    positive: float
    negative: float
    low_quality: float | None = None

    def __call__(self, anchors: Tensor, objects: Tensor, eligible: Tensor | None = None) -> Tensor:
        """To which object each anchor belongs.

        Args:
            anchors: `[A, 4]` xyxy.
            objects: `[N, 4]` xyxy.
            eligible: `[A]` bool; the other anchors are as if they were not there, and ignored. None: all are.

        Returns:
            `[A]` int64: index of the object, or BACKGROUND or IGNORED.
        """
        if not len(objects):
            assigned = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
            return assigned if eligible is None else assigned.masked_fill(~eligible, IGNORED)
        overlaps = clamped_iou(objects[:, None], anchors[None])[0]
        if eligible is not None:
            overlaps = overlaps.masked_fill(~eligible, -1.0)  # less than any overlap
        best, index = overlaps.max(0)
        assigned = torch.where(best < self.negative, BACKGROUND, IGNORED)
        assigned = torch.where(best >= self.positive, index, assigned)
        if self.low_quality is not None:
            most = overlaps.amax(1)
            for i, claims in enumerate((overlaps == most[:, None]) & (most >= self.low_quality)[:, None]):
                assigned = torch.where(claims, i, assigned)  # one after the other: the last object wins
        return assigned if eligible is None else assigned.masked_fill(~eligible, IGNORED)


@dataclass(frozen=True)
class ATSSAssigner:
    """Adaptive training sample selection (Zhang et al. 2020, arXiv 1912.02424, algorithm 1).

    Args:
        topk: anchors of each level that are near an object.
    """

    topk: int = 9

    def __call__(self, anchors: Tensor, objects: Tensor, counts: Sequence[int]) -> Tensor:
        """As in `OverlapAssigner`; `counts` are how many anchors each level has. No anchor is ignored."""
        background = anchors.new_full((len(anchors),), BACKGROUND, dtype=torch.int64)
        if not len(objects):
            return background
        overlaps = clamped_iou(anchors[:, None], objects[None])[0]  # [A, N]
        centre = (anchors[:, :2] + anchors[:, 2:]) / 2
        distance = (centre[:, None] - ((objects[:, :2] + objects[:, 2:]) / 2)[None]).square().sum(-1).sqrt()
        candidates, start = [], 0
        for level in distance.split(list(counts)):
            candidates.append(level.topk(min(self.topk, len(level)), 0, largest=False).indices + start)
            start += len(level)
        index = torch.cat(candidates)  # [k, N]
        near = overlaps.gather(0, index)
        threshold = near.mean(0) + near.std(0)
        chosen = centre[index]  # [k, N, 2]
        inside = torch.cat((chosen - objects[:, :2], objects[:, 2:] - chosen), -1).amin(-1) > 0.01
        kept = (near >= threshold) & inside
        table = torch.full_like(overlaps, -torch.inf).scatter(0, index, near.masked_fill(~kept, -torch.inf))
        best, owner = table.max(1)
        return torch.where(best > -torch.inf, owner, background)


@dataclass(frozen=True)
class Sampled:
    """What a sampler picked of one image.

    Attributes:
        positive, negative: indices `[P]` and `[N]` int64, ascending.
        order: `[P]` int64 on the host: the how many-eth of all positives each of the picked ones is.
    """

    positive: Tensor
    negative: Tensor
    order: Tensor


class RandomSampler:
    """Picks what is trained at random: at most a share of positives, the rest negatives.

    Args:
        count: of an image.
        positive_share: of the count.

    Attributes:
        draw: a permutation of so many; tests set stored ones.
    """

    def __init__(self, count: int, positive_share: float) -> None:
        self.count, self.positive_share = count, positive_share
        self.draw: Callable[[int], Tensor] = torch.randperm

    def __call__(self, assigned: Sequence[Tensor]) -> list[Sampled]:
        """`[A]` of an assigner, for each image -> what is trained of it. Waits for the device once: the host draws,
        and asks for that how many there are."""
        found = true_places([mask for own in assigned for mask in (own >= 0, own == BACKGROUND)])
        picked = []
        for positive, negative in zip(found[::2], found[1::2], strict=True):
            order = self._pick(len(positive), int(self.count * self.positive_share))
            others = self._pick(len(negative), self.count - len(order))
            picked.append(Sampled(_taken(positive, order), _taken(negative, others), order))
        return picked

    def _pick(self, total: int, count: int) -> Tensor:
        return torch.arange(total) if total <= count else self.draw(total)[:count].sort().values


def _taken(index: Tensor, order: Tensor) -> Tensor:
    return index if len(index) == len(order) else index[upload(order.numpy(), index.device)]
