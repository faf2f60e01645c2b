"""Label maps of a batch, as networks that classify pixels or voxels are trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain import devices
from vistrain.errors import DataError


def label_maps(batch: Mapping[str, Any], classes: int, ignore_index: int) -> Tensor:
    """`[B, *S]` int64 labels of a batch, padded with the ignore index.

    Args:
        batch: `image`, `size`, and `target`, each with `label_map` `[*S]` of any integer type.
        classes: how many there are.
        ignore_index: of what carries no supervision.

    Raises:
        DataError: a label map is larger than the images, or (checked on the CPU, where it costs no waiting) it has
            another size than its image, or a value that is no class.
    """
    padded = list(batch["image"].shape[2:])
    sizes = batch["size"].tolist() if devices.reads_freely(batch["size"]) else None
    maps = []
    for index, target in enumerate(batch["target"]):
        labels = target["label_map"]
        name = str(batch["id"][index]) if "id" in batch else f"image {index} of the batch"
        own = list(labels.shape)
        fits = len(own) == len(padded) and all(side <= whole for side, whole in zip(own, padded, strict=True))
        if not fits or (sizes is not None and own != sizes[index]):
            size = padded if sizes is None else sizes[index]
            raise DataError(name, f"its label map has the size {own}, the image {size}")
        labels = labels.long()
        if devices.reads_freely(labels):
            wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignore_index)]
            if len(wrong):
                raise DataError(
                    name,
                    f"label {int(wrong[0])}, but there are {classes} classes",
                    f"labels are 0 to {classes - 1}, or {ignore_index} to be ignored",
                )
        border = [x for side, whole in zip(reversed(own), reversed(padded), strict=True) for x in (0, whole - side)]
        maps.append(F.pad(labels, border, value=ignore_index))
    return torch.stack(maps)
