"""Objects of large images, found tile by tile: what two tiles saw of one object becomes one again.

Neighbouring tiles overlap. Of one object, whole or cut, both must find the same within the strip that both see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch

from vistrain.layers.packed_masks import PackedMasks
from vistrain.layers.tiling import Rectangle
from vistrain.predictions import Detections, InstanceDetections

Part = tuple[int, int, np.ndarray]


def joined(
    found: Sequence[Detections], tiles: Sequence[Rectangle], size: tuple[int, int], least: float = 0.5
) -> Detections:
    """One image's detections from those of its tiles.

    Two of one class, in two tiles that overlap, are one object where their masks (boxes, if the network finds none)
    overlap by at least `least` (IoU) within the strip that both tiles see; each has one partner in a tile at most. One
    object's box and mask are the union, its score the best. Nothing of the image's size is made.

    Args:
        found: in pixels of each tile, masks packed.
        tiles: where they lie.
        size: (height, width) of the image.
        least: see above.

    Returns:
        Best first.
    """
    tile_of = np.repeat(np.arange(len(found)), [len(d.scores) for d in found])
    shifts = [torch.tensor((left, top, left, top)) for top, left, _, _ in tiles]
    boxes = torch.cat([d.boxes + s for d, s in zip(found, shifts, strict=True)]).double().numpy()
    scores, labels = torch.cat([d.scores for d in found]), torch.cat([d.labels for d in found])
    has_masks = all(isinstance(d, InstanceDetections) for d in found)
    parts: list[Part] = []
    if has_masks:
        parts = [part for d, tile in zip(found, tiles, strict=True) for part in _shifted(d, tile)]
    owner = np.arange(len(tile_of))
    for a, b in combinations(range(len(tiles)), 2):
        strip = _shared(tiles[a], tiles[b])
        if strip is not None:
            for i, j in _pairs(tile_of == a, tile_of == b, boxes, labels.numpy(), parts, strip, least):
                owner[owner == owner[j]] = owner[i]
    groups = [np.flatnonzero(owner == root) for root in np.unique(owner)]
    score = torch.stack([scores[g].max() for g in groups]) if groups else scores
    order = score.argsort(descending=True, stable=True).tolist()
    groups = [groups[i] for i in order]
    whole = [[*boxes[g, :2].min(0), *boxes[g, 2:].max(0)] for g in groups]
    box = torch.tensor(np.array(whole), dtype=torch.float32).view(-1, 4)
    label = labels[[int(g[0]) for g in groups]]
    if not has_masks:
        return Detections(box, score[order], label)
    masks = PackedMasks.of((_union([parts[i] for i in g]) for g in groups), size)
    return InstanceDetections(box, score[order], label, masks)


def _shifted(found: Detections, tile: Rectangle) -> Iterator[Part]:
    masks: PackedMasks = found.masks  # type: ignore[attr-defined]
    return ((top + tile[0], left + tile[1], mask) for top, left, mask in masks.parts())


def _shared(a: Rectangle, b: Rectangle) -> Rectangle | None:
    top, left, bottom, right = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


def _pairs(
    of_a: np.ndarray,
    of_b: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[Part],
    strip: Rectangle,
    least: float,
) -> list[tuple[int, int]]:
    """Detections of two tiles that are one object, those that agree best first."""
    window = np.array([strip[1], strip[0], strip[3], strip[2]], np.float64)
    cut = np.concatenate([np.maximum(boxes[:, :2], window[:2]), np.minimum(boxes[:, 2:], window[2:])], 1)
    inside = (cut[:, 2:] > cut[:, :2]).all(1)
    agreeing = []
    for i in np.flatnonzero(of_a & inside).tolist():
        for j in np.flatnonzero(of_b & inside & (labels == labels[i])).tolist():
            overlap = _mask_overlap(parts[i], parts[j], strip) if parts else _box_overlap(cut[i], cut[j])
            if overlap >= least:
                agreeing.append((overlap, i, j))
    taken: set[int] = set()
    pairs = []
    for _, i, j in sorted(agreeing, key=lambda item: -item[0]):
        if i not in taken and j not in taken:
            taken |= {i, j}
            pairs.append((i, j))
    return pairs


def _box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def _mask_overlap(a: Part, b: Part, strip: Rectangle) -> float:
    first, second = _cropped(a, strip), _cropped(b, strip)
    areas = int(first[2].sum()) + int(second[2].sum())
    both = _shared(_extent(first), _extent(second))
    shared = 0 if both is None else int((_cropped(first, both)[2] & _cropped(second, both)[2]).sum())
    return shared / max(areas - shared, 1)


def _extent(part: Part) -> Rectangle:
    top, left, mask = part
    return top, left, top + mask.shape[0], left + mask.shape[1]


def _cropped(part: Part, window: Rectangle) -> Part:
    """What of a part lies in a window."""
    top, left, mask = part
    y, x = max(window[0] - top, 0), max(window[1] - left, 0)
    return top + y, left + x, mask[y : max(window[2] - top, 0), x : max(window[3] - left, 0)]


def _union(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    filled = [part for part in parts if part[2].size]
    if not filled:
        return parts[0]
    extents = np.array([_extent(part) for part in filled])
    top, left = extents[:, :2].min(0).tolist()
    bottom, right = extents[:, 2:].max(0).tolist()
    whole = np.zeros((bottom - top, right - left), bool)
    for y, x, mask in filled:
        whole[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]] |= mask
    return top, left, whole
