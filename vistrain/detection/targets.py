"""Between batches and detectors: targets in, detections out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vistrain import devices
from vistrain.errors import DataError
from vistrain.layers.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from vistrain.predictions import Detections
from vistrain.structures import LabelSpace


def relative_targets(batch: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Labels `[N_b]` and boxes `[N_b, 4]` (cx, cy, w, h), relative to each image's own unpadded size.

    Args:
        batch: `target` (per image `boxes` `[N_b, 4]` xyxy in pixels and `labels`) and `size` `[B, 2]` (h, w).
    """
    extents = batch["size"].flip(1).repeat(1, 2).float()
    labels = [target["labels"].to(extents.device) for target in batch["target"]]
    boxes = [
        xyxy_to_cxcywh(target["boxes"].to(extents.device, torch.float32)) / extent
        for target, extent in zip(batch["target"], extents, strict=True)
    ]
    return labels, boxes


def host_sizes(batch: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(Height, width) of each image without padding; from a batch without `host_size` it waits for the device."""
    return [(h, w) for h, w in (batch["host_size"] if "host_size" in batch else batch["size"].tolist())]


def check_labels(labels: Sequence[Tensor], space: LabelSpace) -> None:
    """Refuse labels that no class channel has; only where they are on the CPU, for elsewhere it would take a wait.

    Args:
        labels: per image `[N_b]` int64.
        space: of the network.

    Raises:
        DataError: a label is negative, or not below the number of channels.
    """
    for index, label in enumerate(labels):
        if devices.reads_freely(label) and len(label) and not 0 <= label.min() <= label.max() < space.num_classes:
            wrong = sorted({x for x in label.tolist() if not 0 <= x < space.num_classes})
            raise DataError(
                f"target {index} of the batch",
                f"label {wrong[0]} is not among the {space.num_classes} channels of the label space",
                "labels are channels (`LabelSpace.channel_of`), not category ids",
            )


def top_detections(
    logits: Tensor, boxes: Tensor, original_size: Tensor, count: int, clip: bool = False
) -> list[Detections]:
    """The best (query, class) pairs of each image by sigmoid score; a query may appear with several classes.

    Args:
        logits: `[B, Q, K]`.
        boxes: `[B, Q, 4]` (cx, cy, w, h) in 0..1 of the unpadded image.
        original_size: `[B, 2]` (h, w) of the images before resizing.
        count: detections per image; fewer if there are not `Q * K` pairs.
        clip: cut boxes at the image's border and drop those that become empty (detectron2 does, DETR does not).

    Returns:
        per image, best first, in pixels of the original image.
    """
    classes = logits.shape[-1]
    scores, index = logits.float().sigmoid().flatten(1).topk(min(count, logits.shape[1] * classes))
    extents = original_size.flip(1).repeat(1, 2).to(boxes.device, torch.float32)
    corners = cxcywh_to_xyxy(boxes.float()) * extents[:, None]
    corners = corners.gather(1, (index // classes)[..., None].expand(-1, -1, 4))
    found = []
    for box, score, label, extent in zip(corners, scores, index % classes, extents, strict=True):
        if clip:
            box = box.clamp(min=0).minimum(extent)
            kept = ((box[:, 2:] - box[:, :2]) > 0).all(1)
            box, score, label = box[kept], score[kept], label[kept]
        found.append(Detections(boxes=box, scores=score, labels=label))
    return found
