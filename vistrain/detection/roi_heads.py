"""Heads on regions of interest: pooling, boxes, masks (Mask R-CNN, He et al. 2017, arXiv 1703.06870, section 3).

Conventions and names are OpenMMLab's: github.com/open-mmlab/mmdetection 2.25, Apache-2.0 (models/roi_heads).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align  # type: ignore[import-untyped]

from vistrain.detection.anchors import BoxDeltas, Size
from vistrain.detection.rpn import smooth_l1
from vistrain.devices import true_places, upload
from vistrain.layers.boxes import box_area, clamped_giou, nms_by_group
from vistrain.layers.conv import ConvModule
from vistrain.layers.loss_weights import refuse_negative
from vistrain.layers.packed_masks import PackedMasks
from vistrain.matching.overlap import OverlapAssigner, RandomSampler

FINEST = 56.0  # side of the regions, pixels, from which on the second level is used
BOX_SIDE, MASK_SIDE = 7, 14


@dataclass(frozen=True)
class Samples:
    """The regions of one image that are trained, positives first.

    Attributes:
        boxes: `[N, 4]` xyxy.
        owners: `[P]` int64, the object of each positive.
        objects: how many of the positives, the first ones, are themselves annotated boxes.
        labels: `[N]` int64; K is background.
        targets: `[P, 4]`, the objects' boxes.
    """

    boxes: Tensor
    owners: Tensor
    objects: int
    labels: Tensor
    targets: Tensor

    @property
    def positives(self) -> Tensor:
        """`[P, 4]`."""
        return self.boxes[: len(self.owners)]


def sample(
    proposals: Sequence[Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    assigner: OverlapAssigner,
    sampler: RandomSampler,
) -> list[Samples]:
    """Choose what is trained of each image's proposals `[R, 4]` and of its objects `[N, 4]`, proposals, too."""
    assigned = [
        torch.cat((torch.arange(len(box), device=box.device), assigner(own, box)))
        for own, box in zip(proposals, boxes, strict=True)
    ]
    found = []
    for own, box, label, owner, sampled in zip(proposals, boxes, labels, assigned, sampler(assigned), strict=True):
        regions, owners = torch.cat((box, own)), owner[sampled.positive]
        background = torch.full_like(sampled.negative, num_classes)
        found.append(
            Samples(
                boxes=torch.cat((regions[sampled.positive], regions[sampled.negative])),
                owners=owners,
                # All objects are positive, and come before the proposals: the host knows, as it drew
                objects=int((sampled.order < len(box)).sum()),
                labels=torch.cat((label[owners], background)),
                targets=box[owners],
            )
        )
    return found


def on_host(samples: Sequence[Samples], num_levels: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the host must know of regions that are trained, in one copy from the device: per image the level `[N]` that
    each is pooled from (see `pool`), and the owner `[P]` of each positive."""
    levels = _level_of(torch.cat([s.boxes for s in samples]), num_levels)
    found = torch.cat((levels, torch.cat([s.owners for s in samples]))).cpu().numpy()
    ends = list(itertools.accumulate([len(s.boxes) for s in samples] + [len(s.owners) for s in samples]))
    parts = np.split(found, ends[:-1])
    return parts[: len(samples)], parts[len(samples) :]


def pool(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Sequence[Tensor],
    side: int,
    where: Sequence[np.ndarray] | None = None,
) -> Tensor:
    """RoIAlign of each region on the level of its size (aligned, as many samples as there are pixels).

    Args:
        levels: `[B, C, H_l, W_l]`.
        strides: of the levels.
        boxes: per image `[N_b, 4]` xyxy in pixels.
        side: of the result.
        where: per image the level of each region, see `on_host`; None: finds out, and waits for the device, as to pool
            all regions from every level would cost as many times the work.

    Returns:
        `[N, C, side, side]`, image by image.
    """
    image = torch.cat([torch.full_like(box[:, :1], i) for i, box in enumerate(boxes)])
    regions = torch.cat(list(boxes))
    if where is None:
        level_of = _level_of(regions, len(levels))
        places = true_places([level_of == i for i in range(len(levels))])
    else:
        known = np.concatenate(where)
        counts = np.bincount(known, minlength=len(levels)).tolist()
        places = list(upload(np.argsort(known, kind="stable"), regions.device).split(counts))
    rois = torch.cat((image, regions), 1).float()
    with torch.autocast(regions.device.type, enabled=False):
        found = [
            roi_align(level.float(), rois[place], side, 1 / stride, 0, aligned=True)
            for level, stride, place in zip(levels, strides, places, strict=True)
        ]
    return torch.cat(found)[torch.cat(places).argsort()]


def _level_of(regions: Tensor, count: int) -> Tensor:
    """`[N]` int64: of so many levels the one that each box `[N, 4]` is pooled from."""
    return (box_area(regions).sqrt() / FINEST + 1e-6).log2().floor().clamp(0, count - 1).nan_to_num(0.0).long()


class BoxHead(nn.Module):
    """Convolutions and linear layers, then a class and a box of every region.

    Args:
        channels: of the levels.
        num_classes: K.
        num_convs, conv_dim: convolutions with batch norms (4 in Swin's cascade).
        num_fcs, fc_dim: linear layers.
        class_agnostic: one box for all classes.
        stds: of the offsets.
        box_loss: on offsets, or `giou` on boxes.
        smooth: below this offset `smooth_l1` is a parabola.
        box_weight: of the box loss.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_convs: int = 0,
        conv_dim: int = 256,
        num_fcs: int = 2,
        fc_dim: int = 1024,
        class_agnostic: bool = False,
        stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        box_loss: Literal["l1", "smooth_l1", "giou"] = "l1",
        smooth: float = 1.0,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.class_agnostic, self.deltas = num_classes, class_agnostic, BoxDeltas(stds)
        refuse_negative(box_weight=box_weight)
        self.box_loss, self.smooth, self.box_weight = box_loss, smooth if box_loss == "smooth_l1" else 0.0, box_weight
        width = channels
        self.shared_convs = nn.ModuleList()
        for _ in range(num_convs):
            self.shared_convs.append(ConvModule(width, conv_dim, 3))
            width = conv_dim
        width *= BOX_SIDE**2
        linears = []
        for _ in range(num_fcs):
            linears.append(nn.Linear(width, fc_dim))
            width = fc_dim
        self.shared_fcs = nn.ModuleList(linears)
        self.fc_cls = nn.Linear(width, num_classes + 1)
        self.fc_reg = nn.Linear(width, 4 * (1 if class_agnostic else num_classes))
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.fc_cls, self.fc_reg, *linears):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, C, 7, 7]` -> logits `[N, K + 1]`, the last of background, and offsets `[N, K or 1, 4]`."""
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for linear in self.shared_fcs:
            x = linear(x).relu()
        return self.fc_cls(x).float(), self.fc_reg(x).float().unflatten(1, (-1, 4))

    def losses(self, logits: Tensor, offsets: Tensor, samples: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """Losses of classes and boxes, both over all regions `[N]` of the samples."""
        labels = torch.cat([s.labels for s in samples])
        loss_class = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        boxes, targets = torch.cat([s.positives for s in samples]), torch.cat([s.targets for s in samples])
        own = zip(offsets.split([len(s.labels) for s in samples]), samples, strict=True)
        moved = torch.cat([offset[: len(s.owners)] for offset, s in own])
        chosen = self._of_class(moved, torch.cat([s.labels[: len(s.owners)] for s in samples]))
        if self.box_loss == "giou":
            total = (1 - clamped_giou(self.deltas.decode(boxes, chosen), targets)).sum()
        else:
            total = smooth_l1(chosen, self.deltas.encode(boxes, targets), self.smooth)
        return loss_class, self.box_weight * total / max(len(labels), 1) + offsets.sum() * 0.0

    def refine(self, boxes: Tensor, offsets: Tensor, labels: Tensor, size: Size) -> Tensor:
        """Regions `[N, 4]` moved by the offsets of their classes, within the image."""
        return self.deltas.decode(boxes, self._of_class(offsets, labels), size)

    def _of_class(self, offsets: Tensor, labels: Tensor) -> Tensor:
        if self.class_agnostic:
            return offsets[:, 0]
        return offsets[torch.arange(labels.shape[0], device=labels.device), labels]


class MaskHead(nn.Module):
    """Convolutions, doubled, and a mask of every class.

    Args:
        channels: of the levels.
        num_classes: K.
        num_convs, embed_dim: of the convolutions.
    """

    def __init__(self, channels: int, num_classes: int, num_convs: int = 4, embed_dim: int = 256) -> None:
        super().__init__()
        widths = [channels, *[embed_dim] * (num_convs - 1)]
        self.convs = nn.ModuleList(ConvModule(c, embed_dim, 3, norm=None) for c in widths)
        self.upsample = nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2)
        self.conv_logits = nn.Conv2d(embed_dim, num_classes, 1)
        for layer in (self.upsample, self.conv_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, 14, 14]` -> logits `[N, K, 28, 28]`."""
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(self.upsample(x).relu())

    def loss(
        self,
        logits: Tensor,
        samples: Sequence[Samples],
        owners: Sequence[np.ndarray],
        masks: Sequence[Tensor | PackedMasks],
    ) -> Tensor:
        """Binary cross-entropy of the masks of the true classes; masks are cut and shrunk to the regions.

        Args:
            logits: `[P, K, 28, 28]` of all positives.
            samples: of each image.
            owners: of each image's positives, see `on_host`.
            masks: per image `[N_b, H, W]` bool, or packed.
        """
        if not len(logits):
            return sum((p.sum() for p in self.parameters()), logits.sum()) * 0.0
        labels = torch.cat([s.labels[: len(s.owners)] for s in samples])
        parts = zip(masks, samples, owners, strict=True)
        truth = torch.cat([_cut(mask, s.positives, own, logits.shape[-1]) for mask, s, own in parts])
        chosen = logits[torch.arange(len(labels), device=labels.device), labels].float()
        return F.binary_cross_entropy_with_logits(chosen, truth)


def _cut(masks: Tensor | PackedMasks, boxes: Tensor, owners: np.ndarray, side: int) -> Tensor:
    """`[P, side, side]` float, 0 and 1: what of the mask of its owner lies in each box `[P, 4]`."""
    if not len(owners):
        return boxes.new_zeros((0, side, side))
    # Object by object: as floats, all masks of a crowded image would not fit.
    order = np.argsort(owners, kind="stable")
    rois, found = torch.cat((boxes.new_zeros((len(boxes), 1)), boxes), 1)[upload(order, boxes.device)], []
    numbers, counts = np.unique(owners, return_counts=True)
    for owner, own in zip(numbers.tolist(), rois.split(counts.tolist()), strict=True):
        found.append(roi_align(masks[owner].to(rois.dtype)[None, None], own, side, 1.0, 0, aligned=True)[:, 0])
    return (torch.cat(found)[upload(np.argsort(order), boxes.device)] >= 0.5).to(boxes.dtype)


def best_boxes(
    boxes: Tensor, scores: Tensor, threshold: float, nms_threshold: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Non-maximum suppression per class.

    Args:
        boxes: `[N, K or 1, 4]` xyxy.
        scores: `[N, K]`.
        threshold: least score.
        nms_threshold: largest IoU of two objects of a class.
        count: objects kept.

    Returns:
        boxes `[M, 4]`, scores `[M]` and labels `[M]`, best first.
    """
    index, label = (scores > threshold).nonzero().unbind(1)
    box = boxes.expand(-1, scores.shape[1], -1)[index, label]
    score = scores[index, label]
    kept = nms_by_group(box, score, label, nms_threshold)[:count]
    return box[kept], score[kept], label[kept]


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks of regions as masks of the image.

    Args:
        masks: `[N, h, w]` probabilities within the boxes.
        boxes: `[N, 4]` xyxy in pixels.
        size: (H, W) of the image.
        threshold: least probability.

    Returns:
        `[N, H, W]` bool.
    """
    found = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    low = (boxes[:, :2].floor() - 1).clamp(min=0).long().tolist()
    high = (boxes[:, 2:].ceil() + 1).long().tolist()
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        x1, y1 = min(x1, size[1]), min(y1, size[0])
        if x1 <= x0 or y1 <= y0:
            continue
        left, top, right, bottom = boxes[i]
        x = (torch.arange(x0, x1, device=masks.device) + 0.5 - left) / (right - left) * 2 - 1
        y = (torch.arange(y0, y1, device=masks.device) + 0.5 - top) / (bottom - top) * 2 - 1
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1).nan_to_num(0.0, 0.0, 0.0)
        inside = F.grid_sample(masks[i][None, None], grid[None].to(masks.dtype), align_corners=False)[0, 0]
        found[i, y0:y1, x0:x1] = inside >= threshold
    return found
