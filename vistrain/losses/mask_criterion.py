"""The set prediction loss of mask classification, on sampled points (Mask2Former, arXiv 2112.01527, section 3.3).

Authors' code: github.com/facebookresearch/Mask2Former, commit 9b0651c, MIT (mask2former/modeling/criterion.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.loss_weights import refuse_all_zero, refuse_negative
from vistrain.layers.packed_masks import PackedMasks
from vistrain.layers.points import sample_maps, sample_masks
from vistrain.layers.precision import at_least_float32
from vistrain.losses.set_criterion import average_over_processes

log = logging.getLogger(__name__)


class Matcher(Protocol):
    """`matching.MaskMatcher`."""

    def costs(self, logits: Tensor, points: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Costs of one image's queries with its masks."""

    def __call__(self, costs: Sequence[Sequence[Tensor]]) -> Tensor:
        """Matched pairs of all layers and images."""


@dataclass(frozen=True)
class MaskPrediction:
    """What one layer predicts; its masks are `einsum("bqc,bchw->bqhw", embeds, features)`.

    Attributes:
        logits: `[B, Q, K + 1]`, the last of no object.
        embeds: `[B, Q, C]`.
        suffix: appended to the names of its losses.
    """

    logits: Tensor
    embeds: Tensor
    suffix: str = ""


@dataclass(frozen=True)
class PointNoise:
    """The random points of one layer, (x, y) in 0..1.

    Attributes:
        matching: of each image `[P, 2]`.
        candidates: `[M, oversample * P, 2]` of the matched masks.
        uniform: `[M, P - importance * P, 2]`.
    """

    matching: Sequence[Tensor]
    candidates: Tensor
    uniform: Tensor


class MaskCriterion:
    """Weighted losses `loss_class`, `loss_mask` (BCE) and `loss_dice` of every layer.

    Masks are never computed at the image's size: matching samples the features, which every query reads, at points, and
    of the predicted masks only the matched ones are made, at the features' size, to find where they are uncertain.

    Args:
        class_weight, mask_weight, dice_weight: weights of the three losses.
        no_object_weight: of queries without a mask in the classification loss.
        num_points: P, for matching and for the losses.
        oversample_ratio: candidates for each point.
        importance_ratio: share of the points that are the most uncertain of the candidates; the rest are uniform.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ) -> None:
        refuse_all_zero(class_weight=class_weight, mask_weight=mask_weight, dice_weight=dice_weight)
        refuse_negative(no_object_weight=no_object_weight)
        if num_points < 1:
            raise ConfigError("model.criterion.num_points", f"{num_points} is too small", "use 1 or more")
        if oversample_ratio < 1:
            raise ConfigError("model.criterion.oversample_ratio", f"{oversample_ratio} is not 1 or more")
        if not 0 <= importance_ratio <= 1:
            raise ConfigError("model.criterion.importance_ratio", f"{importance_ratio} is not in 0..1")
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight
        self.no_object_weight, self.num_points = no_object_weight, num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(importance_ratio * num_points)

    def __call__(
        self,
        predictions: Sequence[MaskPrediction],
        features: Tensor,
        labels: Sequence[Tensor],
        masks: Sequence[Tensor | PackedMasks],
        extent: tuple[int, int],
        matcher: Matcher,
        num_targets: float | Tensor | None = None,
        micro_batches: int = 1,
        noise: Sequence[PointNoise] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of all layers.

        Args:
            predictions: of the layers.
            features: `[B, C, H, W]`, see `MaskPrediction`.
            labels: per image `[N_b]` int64, below K.
            masks: per image `[N_b, H_b, W_b]` bool, or packed, of the image without its padding.
            extent: (height, width) of the padded images.
            matcher: assigns.
            num_targets: masks that the losses are divided by; None counts this batch.
            micro_batches: how many batches' gradients are averaged before a step; `num_targets` is their mean.
            noise: stored points for each layer; None draws new ones.

        Returns:
            scalars by name, weighted. NaN where the predictions are, for the run's guard to stop at.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            layers = [
                MaskPrediction(at_least_float32(p.logits), at_least_float32(p.embeds), p.suffix) for p in predictions
            ]
            costs = [
                self._costs(
                    layer, features, labels, masks, extent, matcher, None if noise is None else noise[i].matching
                )
                for i, layer in enumerate(layers)
            ]
            try:
                matched = matcher(costs)
            except FloatingPointError as error:
                log.warning("%s", error)
                matched = torch.zeros((4, 0), dtype=torch.int64)
                features = features * torch.nan
                layers = [MaskPrediction(layer.logits * torch.nan, layer.embeds, layer.suffix) for layer in layers]
            own = sum(len(x) for x in labels)
            normalizer = average_over_processes(
                own if num_targets is None else num_targets, features.device, micro_batches
            )
            losses: dict[str, Tensor] = {}
            for i, layer in enumerate(layers):
                pairs = matched[1:, matched[0] == i]
                drawn = None if noise is None else noise[i]
                losses |= self._losses(layer, features, labels, masks, extent, pairs, normalizer, drawn)
            return losses

    @torch.no_grad()
    def _costs(
        self,
        layer: MaskPrediction,
        features: Tensor,
        labels: Sequence[Tensor],
        masks: Sequence[Tensor | PackedMasks],
        extent: tuple[int, int],
        matcher: Matcher,
        stored: Sequence[Tensor] | None,
    ) -> list[Tensor]:
        """Of each image `[Q, N_b]`; all its masks and queries are compared at the same points."""
        found = []
        for i, (label, mask) in enumerate(zip(labels, masks, strict=True)):
            points = features.new_empty((self.num_points, 2)).uniform_() if stored is None else stored[i]
            sampled = sample_maps(features[i : i + 1], points[None])[0]
            targets = sample_masks(mask, points[None], extent).to(sampled.dtype)
            found.append(matcher.costs(layer.logits[i], layer.embeds[i] @ sampled, label, targets))
        return found

    def _losses(
        self,
        layer: MaskPrediction,
        features: Tensor,
        labels: Sequence[Tensor],
        masks: Sequence[Tensor | PackedMasks],
        extent: tuple[int, int],
        pairs: Tensor,
        normalizer: Tensor,
        noise: PointNoise | None,
    ) -> dict[str, Tensor]:
        """The three losses of one layer, for its matched `pairs` `[3, M]` (image, query, mask), on the host."""
        counts = torch.bincount(pairs[0], minlength=len(masks)).tolist()  # on the host: nothing waits for the device
        image, query, target = pairs.to(features.device, non_blocking=True)
        label = torch.cat(list(labels))
        classes = torch.full_like(layer.logits[..., 0], layer.logits.shape[-1] - 1, dtype=torch.int64)
        classes[image, query] = label[target]
        weights = layer.logits.new_ones(layer.logits.shape[-1])
        weights[-1] = self.no_object_weight
        # Over all queries of this batch, as published; the number of masks of the global batch plays no part in it.
        loss_class = F.cross_entropy(layer.logits.transpose(1, 2), classes, weights)

        maps, chosen, first, start = [], [], 0, 0
        for i, (mask, count) in enumerate(zip(masks, counts, strict=True)):  # pairs come image by image
            own = slice(first, first + count)
            maps.append((layer.embeds[i, query[own]] @ features[i].flatten(1)).unflatten(1, features.shape[2:]))
            chosen.append((mask, target[own] - start))
            first, start = own.stop, start + len(mask)
        predicted = torch.cat(maps)[:, None]
        with torch.no_grad():
            points = self._points(predicted.detach(), noise)
            cut = points.split([len(index) for _, index in chosen])
            truth = [sample_masks(mask, p, extent, index) for (mask, index), p in zip(chosen, cut, strict=True)]
        logits = sample_maps(predicted, points)[:, 0]
        targets = torch.cat(truth).to(logits.dtype)
        loss_mask = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
        share = logits.sigmoid()
        dice = 1 - (2 * (share * targets).sum(1) + 1) / (share.sum(1) + targets.sum(1) + 1)
        # An image without masks must leave no parameter without a gradient.
        untouched = 0.0 * (features.sum() + layer.embeds.sum())
        return {
            f"loss_class{layer.suffix}": self.class_weight * loss_class,
            f"loss_mask{layer.suffix}": (self.mask_weight * loss_mask / normalizer + untouched).to(loss_class.dtype),
            f"loss_dice{layer.suffix}": (self.dice_weight * dice.sum() / normalizer + untouched).to(loss_class.dtype),
        }

    def _points(self, masks: Tensor, noise: PointNoise | None) -> Tensor:
        """`[M, P, 2]` points of `[M, 1, H, W]` logits: the most uncertain of many, and some anywhere."""
        count = len(masks)
        if noise is None:
            candidates = masks.new_empty((count, self.num_candidates, 2)).uniform_()
            uniform = masks.new_empty((count, self.num_points - self.num_uncertain, 2)).uniform_()
        else:
            candidates, uniform = noise.candidates, noise.uniform
        certainty = sample_maps(masks, candidates)[:, 0].abs()
        index = certainty.topk(self.num_uncertain, 1, largest=False).indices
        return torch.cat((candidates.gather(1, index[..., None].expand(-1, -1, 2)), uniform), 1)
