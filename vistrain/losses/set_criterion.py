"""The set prediction loss of the DETR family: focal classification, L1 and GIoU on matched pairs.

Deformable-DETR (arXiv 2010.04159). Authors' code: github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/
deformable_detr.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vistrain.devices import upload
from vistrain.layers.boxes import cxcywh_to_xyxy, giou
from vistrain.layers.loss_weights import refuse_all_zero, refuse_no_exponent, refuse_no_share
from vistrain.layers.precision import at_least_float32
from vistrain.losses.focal import focal_loss_sums

log = logging.getLogger(__name__)

LOSSES = ("loss_class", "loss_bbox", "loss_giou")
# `matching.HungarianMatcher.__call__`: (logits, boxes, class-agnostic) per set, labels, boxes -> matched pairs per set
Matcher = Callable[[Sequence[tuple[Tensor, Tensor, bool]], Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class SetPrediction:
    """Predictions of L layers that share their shape.

    Attributes:
        logits: `[L, B, Q, K]`.
        boxes: `[L, B, Q, 4]` (cx, cy, w, h) in 0..1.
        suffixes: one per layer, appended to the names of its losses ("" for the last, "_0", "_enc", "_dn" ...).
        class_agnostic: every object counts as class 0 (the binary scores of two-stage proposals).
        match: a fixed `[3, P]` assignment (image, query, object) shared by the layers, instead of the matcher's.
        groups: the normaliser is multiplied by it (denoising repeats every object in each group).
    """

    logits: Tensor
    boxes: Tensor
    suffixes: tuple[str, ...]
    class_agnostic: bool = False
    match: Tensor | None = None
    groups: int = 1


class SetCriterion:
    """Weighted losses `loss_class`, `loss_bbox` and `loss_giou` of every layer.

    Sums over all queries (class) or matched pairs (boxes), divided by the number of objects averaged over the processes
    of a distributed run. Computed in float32 under autocast too.

    As the processes' gradients are averaged, the sum of the global batch is divided by the objects of the global batch,
    at least 1. The official codes ask for at least 1 per process, and so differ where a global batch has fewer objects
    than there are processes.

    Args:
        class_weight, box_weight, giou_weight: weights of the three losses.
        focal_alpha, focal_gamma: of the classification loss.
        giou_eps: 0 in the official code, 1e-6 in detrex.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        giou_eps: float = 0.0,
    ) -> None:
        refuse_all_zero(class_weight=class_weight, box_weight=box_weight, giou_weight=giou_weight)
        refuse_no_share(focal_alpha=focal_alpha)
        refuse_no_exponent(focal_gamma=focal_gamma, giou_eps=giou_eps)
        self.class_weight, self.box_weight, self.giou_weight = class_weight, box_weight, giou_weight
        self.focal_alpha, self.focal_gamma, self.giou_eps = focal_alpha, focal_gamma, giou_eps

    def __call__(
        self,
        predictions: Sequence[SetPrediction],
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        matcher: Matcher,
        num_targets: float | Tensor | None = None,
        micro_batches: int = 1,
    ) -> dict[str, Tensor]:
        """Losses of all predictions.

        Args:
            predictions: sets of layers.
            labels: per image `[N_b]` int64, below K.
            boxes: per image `[N_b, 4]` (cx, cy, w, h) in 0..1.
            matcher: assigns where a prediction has no fixed match.
            num_targets: objects that the losses are divided by; None counts this batch.
            micro_batches: how many batches' gradients are averaged before a step; `num_targets` is their mean.

        Returns:
            scalar tensors by name, already weighted. Where predictions are NaN or infinite nothing can be matched: then
            all losses are NaN, for the run's guard to stop at, and the log names the image.
        """
        device = predictions[0].logits.device
        own = sum(len(x) for x in labels)
        normalizer = average_over_processes(own if num_targets is None else num_targets, device, micro_batches)
        to_match = [(p.logits, p.boxes, p.class_agnostic) for p in predictions if p.match is None]
        try:
            matched = iter(matcher(to_match, labels, boxes))
        except FloatingPointError as error:
            log.warning("%s", error)
            return _not_a_number(predictions)
        label, box = torch.cat(list(labels)), at_least_float32(torch.cat(list(boxes)))
        losses: dict[str, Tensor] = {}
        for prediction in predictions:
            pairs = next(matched) if prediction.match is None else _repeat(prediction.match, len(prediction.suffixes))
            with torch.autocast(device.type, enabled=False):
                terms = self._terms(prediction, pairs, label, box)
            for name, sums in terms.items():
                values = (sums / (normalizer * prediction.groups)).unbind()
                losses |= {name + suffix: value for suffix, value in zip(prediction.suffixes, values, strict=True)}
        return losses

    def _terms(self, prediction: SetPrediction, pairs: Tensor, label: Tensor, box: Tensor) -> dict[str, Tensor]:
        """Weighted sums `[L]` of the three losses."""
        layer, image, query, target = pairs
        wanted = torch.zeros_like(target) if prediction.class_agnostic else label[target]
        sums = focal_loss_sums(
            at_least_float32(prediction.logits), (layer, image, query, wanted), self.focal_alpha, self.focal_gamma
        )
        predicted, true = at_least_float32(prediction.boxes[layer, image, query]), box[target]
        overlap = giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true), self.giou_eps)
        # [M] pairs lie layer by layer, equally many in each
        shape = (len(sums), len(target) // len(sums))
        distance = (predicted - true).abs().sum(-1).view(shape).sum(1)
        miss = (1 - overlap).view(shape).sum(1)
        weighted = (self.class_weight * sums, self.box_weight * distance, self.giou_weight * miss)
        return dict(zip(LOSSES, weighted, strict=True))


def average_over_processes(count: float | Tensor, device: torch.device, micro_batches: int = 1) -> Tensor:
    """Mean of a count over the processes of a distributed run, as a scalar on the device.

    Args:
        count: this process's, the mean of its micro-batches.
        device: where.
        micro_batches: of an optimizer step, on each process.

    Returns:
        float64 (a mean of whole numbers may be none), at least 1 / (processes * micro-batches): a count of 1 in all.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    mean = count.to(device, dtype, non_blocking=True) if isinstance(count, Tensor) else upload(count, device, dtype)
    batches = micro_batches
    if dist.is_available() and dist.is_initialized():
        mean = mean.clone()
        dist.all_reduce(mean)
        mean = mean / dist.get_world_size()
        batches *= dist.get_world_size()
    return mean.clamp(min=1 / batches)


def _not_a_number(predictions: Sequence[SetPrediction]) -> dict[str, Tensor]:
    """NaN for every loss, with a gradient, so that the backward pass runs as always."""
    value = torch.stack([at_least_float32(x).sum() for p in predictions for x in (p.logits, p.boxes)]).sum() * torch.nan
    return {f"{name}{suffix}": value for name in LOSSES for p in predictions for suffix in p.suffixes}


def _repeat(match: Tensor, layers: int) -> Tensor:
    """`[3, P]` -> `[4, layers * P]` with the layer in front."""
    layer = torch.arange(layers, device=match.device).repeat_interleave(match.shape[1])
    return torch.cat((layer[None], match.repeat(1, layers)))
