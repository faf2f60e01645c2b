"""One-to-one assignment of queries to objects (DETR, arXiv 2005.12872, section 3.1).

Authors' codes: github.com/facebookresearch/detr and, with the focal cost, github.com/fundamentalvision/Deformable-DETR,
both Apache-2.0 (models/matcher.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vistrain.layers.boxes import cxcywh_to_xyxy, giou
from vistrain.layers.loss_weights import refuse_all_zero
from vistrain.layers.precision import at_least_float32


class HungarianMatcher:
    """Assigns each object the query with which the total cost is least.

    The cost of a pair is `class_cost * focal + box_cost * L1 + giou_cost * -GIoU`, in float32, for an image's own
    objects only. Costs of all layers and images go to the host in one copy.

    Args:
        class_cost, box_cost, giou_cost: weights of the three terms.
        focal_alpha, focal_gamma: of the classification cost.
        giou_eps: 0 in the official code, 1e-6 in detrex.
    """

    def __init__(
        self,
        class_cost: float = 2.0,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        giou_eps: float = 0.0,
    ) -> None:
        refuse_all_zero(class_cost=class_cost, box_cost=box_cost, giou_cost=giou_cost)
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost
        self.focal_alpha, self.focal_gamma, self.giou_eps = focal_alpha, focal_gamma, giou_eps

    @torch.no_grad()
    def __call__(
        self,
        predictions: Sequence[tuple[Tensor, Tensor, bool]],
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
    ) -> list[Tensor]:
        """Match several sets of predictions with the same objects.

        Args:
            predictions: per set logits `[L, B, Q, K]`, boxes `[L, B, Q, 4]` (cx, cy, w, h in 0..1) and whether it is
                class-agnostic (every object counts as class 0); Q and L may differ between sets.
            labels: per image `[N_b]` int64.
            boxes: per image `[N_b, 4]` (cx, cy, w, h) in 0..1.

        Returns:
            per set `[4, M]` int64 on the predictions' device: layer, image, query and object (counted over the batch)
            of every matched pair, layer by layer; each layer has `sum(min(Q, N_b))` of them.

        Raises:
            FloatingPointError: a cost is NaN or infinite, so the predictions (or boxes) are.
        """
        if not predictions:
            return []
        counts = [len(x) for x in labels]
        device = predictions[0][0].device
        if max(counts, default=0) == 0:
            return [torch.zeros((4, 0), dtype=torch.int64, device=device) for _ in predictions]
        # Objects padded to the fullest image: a handful of large operations instead of a handful per image and layer.
        label = torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True).to(device)
        box = torch.nn.utils.rnn.pad_sequence(list(boxes), batch_first=True, padding_value=0.5).to(device)
        with torch.autocast(device.type, enabled=False):
            costs = [
                self._costs(
                    at_least_float32(logits),
                    at_least_float32(predicted),
                    torch.zeros_like(label) if agnostic else label,
                    box.to(at_least_float32(predicted).dtype),
                )
                for logits, predicted, agnostic in predictions
            ]
        host = torch.cat([c.flatten() for c in costs]).cpu()
        pairs, start = [], 0
        for cost in costs:
            pairs.append(
                assign(host[start : start + cost.numel()].view(cost.shape), counts).to(device, non_blocking=True)
            )
            start += cost.numel()
        return pairs

    def _costs(self, logits: Tensor, boxes: Tensor, label: Tensor, target: Tensor) -> Tensor:
        """`[L, B, Q, N]` costs of queries with their image's padded objects: `label` `[B, N]`, `target` `[B, N, 4]`."""
        layers, _, queries, _ = logits.shape
        logits = logits.gather(3, label[None, :, None].expand(layers, -1, queries, -1))
        probability = logits.sigmoid()
        # The official eps inside the logarithms, kept: it bounds the cost of saturated scores.
        positive = self.focal_alpha * (1 - probability) ** self.focal_gamma * -(probability + 1e-8).log()
        negative = (1 - self.focal_alpha) * probability**self.focal_gamma * -(1 - probability + 1e-8).log()
        cost = self.class_cost * (positive - negative)
        cost += self.box_cost * torch.cdist(boxes, target.expand(layers, -1, -1, -1), p=1)
        corners, target = cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(target)[None, :, None]
        return cost - self.giou_cost * giou(corners, target, self.giou_eps)


def assign(costs: Tensor, counts: Sequence[int]) -> Tensor:
    """Solve every layer and image.

    Args:
        costs: `[L, B, Q, N]` float on the host; an image's objects come first in N.
        counts: objects of each image.

    Returns:
        `[4, M]` int64, as `HungarianMatcher` returns.

    Raises:
        FloatingPointError: a cost is NaN or infinite.
    """
    table = costs.numpy()
    columns = []
    for layer in range(table.shape[0]):
        first = 0
        for image, count in enumerate(counts):
            own = table[layer, image, :, :count]
            try:
                query, target = linear_sum_assignment(own)
            except ValueError as error:
                raise FloatingPointError(
                    f"matching costs of image {image} of the batch (layer {layer}) are not finite: "
                    "the predictions or the boxes contain NaN or infinity"
                ) from error
            pairs = torch.empty((4, len(query)), dtype=torch.int64)
            pairs[0], pairs[1] = layer, image
            pairs[2], pairs[3] = torch.from_numpy(query), torch.from_numpy(target) + first
            columns.append(pairs)
            first += count
    return torch.cat(columns, 1)
