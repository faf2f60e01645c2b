"""Segments of large images, found tile by tile: what two tiles saw of one thing becomes one segment again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from vistrain.layers.tiling import Rectangle
from vistrain.predictions import PanopticMap, Segment

ROWS = 256  # of the image that are named at once


@dataclass(frozen=True)
class _Seen:
    """A tile that later ones may overlap.

    Attributes:
        place: where it lies.
        numbers: int32 `[h, w]`, of its segments; 0 void.
    """

    place: Rectangle
    numbers: np.ndarray


def owned_parts(tiles: Sequence[Rectangle]) -> list[Rectangle]:
    """The part of each tile of a grid that an image is put together of: the seams run through the middle of what
    neighbours share."""
    rows, columns = ({(t[axis], t[axis + 2]) for t in tiles} for axis in (0, 1))
    lows, highs = [], []
    for spans in (sorted(rows), sorted(columns)):
        seams = [(a[1] + b[0]) // 2 for a, b in pairwise(spans)]
        lows.append(dict(zip(spans, [spans[0][0], *seams], strict=True)))
        highs.append(dict(zip(spans, [*seams, spans[-1][1]], strict=True)))
    found = []
    for top, left, bottom, right in tiles:
        down, across = (top, bottom), (left, right)
        found.append((lows[0][down], lows[1][across], highs[0][down], highs[1][across]))
    return found


class PanopticSeams:
    """One image's segments from those of its tiles.

    Two things of one class, in two tiles that overlap, are one where they overlap by at least `least` (IoU) within the
    strip that both tiles see; each has one partner in a tile at most, those that agree best first. Stuff of one class
    is one segment. Each pixel belongs to the tile in whose middle it is nearer, see `owned_parts`; a score is the best
    of the parts'. Held are the image's map and the maps of one row of tiles.

    Args:
        size: (height, width) of the image.
        least: see above.
    """

    def __init__(self, size: tuple[int, int], least: float = 0.5) -> None:
        self.least = least
        self._whole = np.zeros(size, np.int32)
        self._segments: list[Segment] = []  # number - 1 -> what a tile said
        self._owner = [0]  # number -> the number that stands for it
        self._stuff: dict[int, int] = {}
        self._seen: list[_Seen] = []

    def add(self, found: PanopticMap, place: Rectangle, owned: Rectangle) -> None:
        """Add the next tile, row by row.

        Args:
            found: in the tile's size.
            place: where it lies.
            owned: the part of the image that is taken from it.
        """
        self._seen = [earlier for earlier in self._seen if earlier.place[2] > place[0]]
        table = np.zeros(max((s.id for s in found.segments), default=0) + 1, np.int32)
        for segment in found.segments:
            self._segments.append(segment)
            number = len(self._segments)
            self._owner.append(number if segment.thing else self._stuff.setdefault(segment.label, number))
            table[segment.id] = number
        tile = _Seen(place, table[found.ids.cpu().numpy()])
        for earlier in self._seen:
            for a, b in _partners(earlier, tile, self._segments, self.least):
                _unite(self._owner, a, b)
        top, left, bottom, right = owned
        part = tile.numbers[top - place[0] : bottom - place[0], left - place[1] : right - place[1]]
        self._whole[top:bottom, left:right] = part
        self._seen.append(tile)

    def joined(self) -> PanopticMap:
        """The image's map, `ids` int32 on the CPU, segments by the first pixel that they have; to be asked once."""
        self._seen = []
        root = np.array([_root(self._owner, number) for number in range(len(self._owner))], np.int32)
        return _named(self._whole, self._segments, root)


def _partners(a: _Seen, b: _Seen, segments: Sequence[Segment], least: float) -> list[tuple[int, int]]:
    """Numbers of things of two tiles that are one."""
    top, left = max(a.place[0], b.place[0]), max(a.place[1], b.place[1])
    bottom, right = min(a.place[2], b.place[2]), min(a.place[3], b.place[3])
    if top >= bottom or left >= right:
        return []
    first, second = (
        t.numbers[top - t.place[0] : bottom - t.place[0], left - t.place[1] : right - t.place[1]].reshape(-1)
        for t in (a, b)
    )
    areas = [dict(zip(*(x.tolist() for x in np.unique(n, return_counts=True)), strict=True)) for n in (first, second)]
    both, counts = np.unique(first.astype(np.int64) << 32 | second, return_counts=True)
    agreeing = []
    for pair, count in zip(both.tolist(), counts.tolist(), strict=True):
        i, j = pair >> 32, pair & 0xFFFFFFFF
        if i and j and segments[i - 1].thing and segments[i - 1].label == segments[j - 1].label:
            overlap = count / (areas[0][i] + areas[1][j] - count)
            if overlap >= least:
                agreeing.append((overlap, i, j))
    taken: set[int] = set()
    pairs = []
    for _, i, j in sorted(agreeing, key=lambda item: -item[0]):
        if not {i, j} & taken:
            taken |= {i, j}
            pairs.append((i, j))
    return pairs


def _root(owner: list[int], number: int) -> int:
    while owner[number] != number:
        number = owner[number]
    return number


def _unite(owner: list[int], a: int, b: int) -> None:
    first, second = sorted((_root(owner, a), _root(owner, b)))
    owner[second] = first


def _named(whole: np.ndarray, segments: Sequence[Segment], root: np.ndarray) -> PanopticMap:
    """The map with ids from 1, and the segments that have pixels in it."""
    best: dict[int, float] = {}
    for number, segment in enumerate(segments, 1):
        best[int(root[number])] = max(best.get(int(root[number]), 0.0), segment.score)
    ids: dict[int, int] = {}
    table = np.zeros(len(root), np.int32)
    for start in range(0, len(whole), ROWS):
        rows = whole[start : start + ROWS]
        stand = root[rows]
        values, first = np.unique(stand, return_index=True)
        for value in values[np.argsort(first)].tolist():
            if value and value not in ids:
                ids[value] = table[value] = len(ids) + 1
        rows[:] = table[stand]
    named = tuple(Segment(new, segments[old - 1].label, segments[old - 1].thing, best[old]) for old, new in ids.items())
    return PanopticMap(torch.from_numpy(whole), named)
