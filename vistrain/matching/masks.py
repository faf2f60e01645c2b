"""One-to-one assignment of queries to masks, compared at points (Mask2Former, arXiv 2112.01527, section 3.3).

Authors' code: github.com/facebookresearch/Mask2Former, commit 9b0651c, MIT (mask2former/modeling/matcher.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.layers.loss_weights import refuse_all_zero
from vistrain.matching.hungarian import assign


class MaskMatcher:
    """Assigns each mask the query with which the total cost is least.

    The cost of a pair is `class_cost * -probability + mask_cost * BCE + dice_cost * dice`, in float32, for an image's
    own masks only.

    Args:
        class_cost, mask_cost, dice_cost: weights of the three terms.
    """

    def __init__(self, class_cost: float = 2.0, mask_cost: float = 5.0, dice_cost: float = 5.0) -> None:
        refuse_all_zero(class_cost=class_cost, mask_cost=mask_cost, dice_cost=dice_cost)
        self.class_cost, self.mask_cost, self.dice_cost = class_cost, mask_cost, dice_cost

    @torch.no_grad()
    def costs(self, logits: Tensor, points: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Costs of one image's queries with its masks.

        Args:
            logits: `[Q, K + 1]`, the last of no object.
            points: `[Q, P]` logits of the queries' masks at points.
            labels: `[N]` int64.
            targets: `[N, P]` in 0..1, the masks at the same points.

        Returns:
            `[Q, N]`.
        """
        probability = logits.softmax(-1)[:, labels]
        # BCE(x, t) is softplus(x) - x t: one product where the formula has two
        bce = (F.softplus(points).sum(1, keepdim=True) - points @ targets.T) / points.shape[1]
        share = points.sigmoid()
        dice = 1 - (2 * share @ targets.T + 1) / (share.sum(1, keepdim=True) + targets.sum(1) + 1)
        return self.mask_cost * bce - self.class_cost * probability + self.dice_cost * dice

    def __call__(self, costs: Sequence[Sequence[Tensor]]) -> Tensor:
        """Match layers and images in one copy to the host.

        Args:
            costs: of each layer and image `[Q, N_b]`.

        Returns:
            `[4, M]` int64 on the host: layer, image, query and mask (counted over the batch), layer by layer.

        Raises:
            FloatingPointError: a cost is NaN or infinite.
        """
        counts = [cost.shape[1] for cost in costs[0]]
        if max(counts) == 0:
            return torch.zeros((4, 0), dtype=torch.int64)
        table = [[F.pad(cost, (0, max(counts) - cost.shape[1])) for cost in layer] for layer in costs]
        host = torch.stack([torch.stack(layer) for layer in table]).cpu()
        return assign(host, counts)
