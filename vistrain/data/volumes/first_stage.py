"""The second stage of a cascade: what a network at a lower resolution has found, as further channels of the images.

As nnU-Net has it (Isensee et al. 2021, arXiv 1904.08128, supplementary note 4; written from there): the label map of
the first stage, one channel for each class but the background. Training cases have those of networks that had not seen
them, and channels are disturbed, since a first stage is too good to be doubted otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vistrain.data.volumes.nifti import SUFFIXES, stem_of
from vistrain.errors import DataError

LARGEST_RADIUS = 4  # voxels, that a class grows or shrinks by
LEAST_SHARE = 0.15  # of a patch: components from there on are never left out


def label_maps(folder: str | Path) -> dict[str, Path]:
    """Stem of each NIfTI file below a folder -> the file: what `vistrain predict` writes, or folds with
    `task.keep_labels`.

    Raises:
        DataError: there is none, or two have the same name.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.name.lower().endswith(SUFFIXES):
            stem = stem_of(path)
            if stem in found:
                remedy = "name a folder that holds the label map of each case once"
                raise DataError(str(path), f"is there twice, also as {found[stem]}", remedy)
            found[stem] = path
    if not found:
        remedy = "train the first stage with `vistrain folds ... task.keep_labels=true`, and name its folder"
        raise DataError(str(folder), "holds no label maps of a first stage", remedy)
    return found


def disturbed(maps: Tensor, draw: np.random.Generator, reshape: float, drop: float) -> Tensor:
    """Channels of a first stage, as an imperfect one might have given them.

    Args:
        maps: float32 `[K, d, h, w]`, 0..1.
        draw: decides.
        reshape: probability that each class grows, shrinks, or does both one after the other, by up to four voxels
            (a box); what a class gains, the others lose.
        drop: probability that each class loses one of its components of less than 15 % of the patch.

    Returns:
        float32 of 0 and 1.
    """
    found = (maps > 0.5).float()
    if draw.random() < reshape:
        for channel in draw.permutation(len(found)).tolist():
            before, radius = found[channel], int(draw.integers(1, LARGEST_RADIUS + 1))
            kind = int(draw.integers(4))  # grow, shrink, close, open
            after = _grown(before, radius) if kind in (0, 2) else 1 - _grown(1 - before, radius)
            if kind > 1:
                after = 1 - _grown(1 - after, radius) if kind == 2 else _grown(after, radius)
            found = found * (1 - ((after - before) > 0).float())
            found[channel] = after
    for channel in range(len(found)):
        if draw.random() < drop:
            marks, count = ndimage.label(found[channel].numpy() > 0)
            sizes = np.bincount(marks.ravel(), minlength=count + 1)[1:]
            small = np.flatnonzero(sizes < LEAST_SHARE * marks.size)
            if len(small):
                found[channel][torch.from_numpy(marks == small[int(draw.integers(len(small)))] + 1)] = 0
    return found


def _grown(mask: Tensor, radius: int) -> Tensor:
    """`[d, h, w]` of 0 and 1, by a box, axis by axis."""
    found = mask[None, None]
    for axis in range(3):
        radii = [radius if a == axis and mask.shape[a] > 1 else 0 for a in range(3)]
        found = F.max_pool3d(found, [2 * r + 1 for r in radii], 1, radii)
    return found[0, 0]
