"""Contrastive denoising: noised copies of the objects as extra queries (DINO, arXiv 2203.03605, section 3.3).

Authors' code: github.com/IDEA-Research/DINO, Apache-2.0 (models/dino/dn_components.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistrain.devices import upload
from vistrain.layers.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh


@dataclass(frozen=True)
class DenoisingNoise:
    """The random draws of one batch; K = 2 * groups * objects of the batch, rows (positive, negative) per group.

    Attributes:
        label_draw: `[K]` in 0..1; the label is replaced where it is below `0.5 * label_noise_ratio`.
        new_labels: `[K]` int64 replacements.
        signs: `[K, 4]` of -1 and 1, one per corner coordinate.
        magnitudes: `[K, 4]` in 0..1, in half sides; one is added for negatives.
    """

    label_draw: Tensor
    new_labels: Tensor
    signs: Tensor
    magnitudes: Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """What the decoder receives in front of its own queries, and how the losses read the result.

    Attributes:
        labels: `[B, D]` int64 noised labels; 0 in empty slots.
        filled: `[B, D]` bool, False in empty slots (their content and box logit are zero).
        box_logits: `[B, D, 4]` logits of the noised (cx, cy, w, h).
        groups: number of groups; the losses' normaliser is multiplied by it.
        match: `[3, P]` int64: image, denoising query and object (counted over the batch) of every positive.
    """

    labels: Tensor
    filled: Tensor
    box_logits: Tensor
    groups: int
    match: Tensor

    def attn_mask(self, num_queries: int) -> Tensor:
        """`[D + Q, D + Q]` bool, True where a query must not see another.

        Matching queries do not see denoising ones, and groups do not see each other.
        """
        total = self.labels.shape[1]
        group = torch.arange(total, device=self.labels.device) // (total // self.groups)
        mask = self.labels.new_zeros((total + num_queries, total + num_queries), dtype=torch.bool)
        mask[total:, :total] = True
        mask[:total, :total] = group[:, None] != group[None]
        return mask


class ContrastiveDenoising:
    """Makes denoising queries from the objects of a batch.

    With M the most objects in one image there are `max(1, number // M)` groups; a group holds M positives (noised by
    less than half a side) and M negatives (by half a side to a whole one), so about `2 * number` queries in all.

    Per local batch, as in the authors' code: M, and with it the number of groups that the losses are divided by, is of
    the images that one process sees at once, and so are the draws and the empty slots beside images with fewer objects
    (which count as negatives). So a global batch cut otherwise is denoised otherwise.

    Args:
        number: positives per image over all groups (`dn_number`); 0 makes none.
        label_noise_ratio: twice the share of labels that are redrawn.
        box_noise_scale: noise in half sides of the box.
        inverse_sigmoid_eps: 1e-3 in DINO.
        group_threshold: where `2 * number` is less, it is the number of groups itself, however many objects there are:
            an oddity of the authors' code (100), which detrex's has not (0).
    """

    def __init__(
        self,
        number: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        inverse_sigmoid_eps: float = 1e-3,
        group_threshold: int = 0,
    ) -> None:
        self.group_threshold = group_threshold
        self.number, self.inverse_sigmoid_eps = number, inverse_sigmoid_eps
        self.label_noise_ratio, self.box_noise_scale = label_noise_ratio, box_noise_scale

    def __call__(
        self,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        num_classes: int,
        noise: DenoisingNoise | None = None,
    ) -> DenoisingQueries | None:
        """Noise one batch.

        Args:
            labels: per image `[N_b]` int64.
            boxes: per image `[N_b, 4]` (cx, cy, w, h) in 0..1 of the unpadded image.
            num_classes: noised labels are drawn from this many.
            noise: stored draws; None draws new ones on the boxes' device.

        Returns:
            the queries, or None if no image has an object.
        """
        counts = [len(x) for x in labels]
        slots = max(counts, default=0)
        if slots == 0 or self.number < 1:
            return None
        groups = max(1, self.number // slots)
        if 2 * self.number < self.group_threshold:
            groups = 2 * self.number
        label, box = torch.cat(list(labels)), torch.cat(list(boxes))
        objects, device = len(label), box.device
        noise = noise or self._draw(2 * groups * objects, num_classes, device)
        noised_labels = torch.where(
            noise.label_draw < 0.5 * self.label_noise_ratio, noise.new_labels, label.repeat(2 * groups)
        )
        rows = torch.arange(2 * groups, device=device)
        half = (box[:, 2:] / 2).repeat(1, 2).repeat(2 * groups, 1)
        magnitudes = noise.magnitudes + (rows % 2).repeat_interleave(objects)[:, None]
        shift = noise.signs * magnitudes * half * self.box_noise_scale
        corners = (cxcywh_to_xyxy(box).repeat(2 * groups, 1) + shift).clamp(0, 1)
        logits = inverse_sigmoid(xyxy_to_cxcywh(corners), self.inverse_sigmoid_eps)

        image = upload([i for i, n in enumerate(counts) for _ in range(n)], device, torch.int64)
        place = upload([i for n in counts for i in range(n)], device, torch.int64)
        slot = (rows[:, None] * slots + place).flatten()  # row r, object j of its image -> slot r * M + j
        where = (image.repeat(2 * groups), slot)
        shape = (len(counts), 2 * groups * slots)
        positives = (rows[::2, None] * slots + place).flatten()
        return DenoisingQueries(
            labels=label.new_zeros(shape).index_put(where, noised_labels),
            filled=label.new_zeros(shape, dtype=torch.bool).index_put(where, label.new_ones((), dtype=torch.bool)),
            box_logits=box.new_zeros((*shape, 4)).index_put(where, logits),
            groups=groups,
            match=torch.stack((image.repeat(groups), positives, torch.arange(objects, device=device).repeat(groups))),
        )

    @staticmethod
    def _draw(count: int, num_classes: int, device: torch.device) -> DenoisingNoise:
        return DenoisingNoise(
            label_draw=torch.rand(count, device=device),
            new_labels=torch.randint(num_classes, (count,), device=device),
            signs=torch.randint(2, (count, 4), device=device) * 2.0 - 1.0,
            magnitudes=torch.rand((count, 4), device=device),
        )
