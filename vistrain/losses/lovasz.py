"""Lovász-softmax: the Jaccard index made continuous (Berman, Triki, Blaschko 2018, arXiv 1705.08790, section 3).

Authors' code: github.com/bermanmaxim/LovaszSoftmax, MIT; written from the paper's equations 8, 9 and 11.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistrain.losses.class_maps import PixelLoss


class LovaszSoftmax(PixelLoss):
    """The mean over classes of the Lovász extension of 1 - Jaccard index, at the errors of the softmax probabilities.

    Args:
        per_image: take each image alone and average, as evaluations of single images do; otherwise the batch is one.
        only_present: average over the classes that the truth has; otherwise over all.
        weight: of the loss.
    """

    def __init__(self, per_image: bool = False, only_present: bool = True, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.per_image, self.only_present = per_image, only_present

    def compute(self, logits: Tensor, labels: Tensor, ignore_index: int, count: Tensor | None) -> Tensor:
        """See `PixelLoss`; 0 where nothing is labelled. `count` has no meaning here: the index is a quotient."""
        shares = logits.softmax(1).movedim(1, -1)
        groups = zip(shares, labels, strict=True) if self.per_image else ((shares, labels),)
        losses = []
        for share, label in groups:
            labelled = label != ignore_index
            if bool(labelled.any()):
                losses.append(self._of_pixels(share[labelled], label[labelled]))
        return torch.stack(losses).mean() if losses else logits.sum() * 0.0

    def _of_pixels(self, shares: Tensor, labels: Tensor) -> Tensor:
        """`[N, K]` probabilities and `[N]` labels -> a scalar."""
        losses = []
        for channel in range(shares.shape[1]):
            truth = (labels == channel).to(shares.dtype)
            area = truth.sum()
            if self.only_present and area == 0:
                continue
            errors, order = (truth - shares[:, channel]).abs().sort(descending=True)
            found = truth[order]
            # 1 - Jaccard index of the sets of the worst 1, 2, ... N pixels (equation 8): what each adds is its weight
            jaccard = 1 - (area - found.cumsum(0)) / (area + (1 - found).cumsum(0))
            added = torch.cat((jaccard[:1], jaccard.diff()))
            losses.append((errors * added).sum())
        return torch.stack(losses).mean()
