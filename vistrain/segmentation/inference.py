"""From logits to class maps of the original size: whole images, sliding windows and several views, in bounded memory.

Enlarged logits of all classes are never held at once: along each axis every enlargement, cut and mirroring is one
linear map (`Axis`), so the original image is made in tiles, from logits of the network's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vistrain.layers.conv import resize
from vistrain.layers.tiling import warn_of_many

SLAB = 1 << 24  # logits that are enlarged at once
CACHED = 1 << 19  # the same on processors: what stays in their caches
COLUMNS = 256  # of a tile there

Merge = Literal["mean", "cut", "blend"]


@dataclass(frozen=True)
class Axis:
    """A linear map of one side: each of N new cells is a weighted sum of T neighbouring old ones.

    Attributes:
        start: `[N]` int64, the first of the neighbours.
        weights: `[N, T]` float64.
        side: how many old cells there are.
    """

    start: Tensor
    weights: Tensor
    side: int

    @classmethod
    def resized(cls, old: int, new: int, align_corners: bool = False) -> Axis:
        """Linear interpolation of `old` cells to `new` ones, as `torch.nn.functional.interpolate` has it."""
        if old == new:
            return cls(torch.arange(new), torch.ones(new, 1, dtype=torch.float64), old)
        index = torch.arange(new, dtype=torch.float64)
        scale, shift = ((old - 1) / max(new - 1, 1), 0.0) if align_corners else (old / new, 0.5)
        place = ((index + shift) * scale - shift).clamp(0, old - 1)
        if old == 1:
            return cls(torch.zeros(new, dtype=torch.int64), torch.ones(new, 1, dtype=torch.float64), old)
        low = place.floor().long().clamp(max=old - 2)
        return cls(low, torch.stack((1 - (place - low), place - low), 1), old)

    def __len__(self) -> int:
        return len(self.start)

    def then(self, other: Axis) -> Axis:
        """This map, and another one upon what it gives."""
        places = other.start[:, None] + torch.arange(other.weights.shape[1])  # [N, T2] into what this map gives
        starts, inner = self.start[places], self.weights[places]  # [N, T2], [N, T2, T1]
        first = starts.amin(1)
        taps = int((starts - first[:, None]).max()) + self.weights.shape[1]
        first = first.clamp(max=self.side - taps)
        weights = inner.new_zeros(len(other), taps)
        columns = (starts - first[:, None])[..., None] + torch.arange(self.weights.shape[1])
        weights.scatter_add_(1, columns.flatten(1), (other.weights[..., None] * inner).flatten(1))
        return Axis(first, weights, self.side)

    def first(self, count: int) -> Axis:
        """The map without what comes after the first `count` new cells."""
        return Axis(self.start[:count], self.weights[:count], self.side)

    def mirrored(self) -> Axis:
        """New cells in reverse order."""
        return Axis(self.start.flip(0), self.weights.flip(0), self.side)

    def between(self, low: int, high: int, like: Tensor) -> tuple[slice, Tensor]:
        """The old cells that new ones `low` to `high` are made of, and the matrix `[high - low, cells]` for them."""
        start, weights = self.start[low:high], self.weights[low:high]
        begin = int(start.min())
        cells = int(start.max()) - begin + weights.shape[1]
        matrix = weights.new_zeros(len(start), cells)
        matrix.scatter_(1, (start - begin)[:, None] + torch.arange(weights.shape[1]), weights)
        return slice(begin, begin + cells), matrix.to(like)


class View(NamedTuple):
    """What a network says of an image in one of its versions.

    Attributes:
        logits: `[K, h, w]`.
        rows, columns: from them to the image that is wanted.
    """

    logits: Tensor
    rows: Axis
    columns: Axis


def class_map(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Arg-max of bilinearly resized logits, in tiles: the enlarged logits are never held at once.

    Args:
        logits: `[K, h, w]`.
        size: (H, W).
        align_corners: of the interpolation.

    Returns:
        `[H, W]` int64.
    """
    axes = (Axis.resized(old, new, align_corners) for old, new in zip(logits.shape[1:], size, strict=True))
    return best_classes([View(logits, *axes)])


def best_classes(views: Sequence[View]) -> Tensor:
    """The class of each pixel: of one view the greatest logit, of several the greatest mean probability.

    Args:
        views: of one image, at least one.

    Returns:
        `[H, W]` int64; of equal classes the first.
    """
    height, width = len(views[0].rows), len(views[0].columns)
    found = torch.empty(height, width, dtype=torch.int64, device=views[0].logits.device)
    for rows, columns in _tiles(len(views[0].logits), height, width, found.device):
        found[rows, columns] = _scores(views, rows, columns).max(1).indices  # max is faster than argmax
    return found


def probabilities(views: Sequence[View]) -> Tensor:
    """Mean probabilities `[K, H, W]` of views of one image, as `best_classes` compares them."""
    height, width = len(views[0].rows), len(views[0].columns)
    found = views[0].logits.new_empty(len(views[0].logits), height, width)
    for rows, columns, tile in probability_tiles(views):
        found[:, rows, columns] = tile
    return found


def probability_tiles(views: Sequence[View]) -> Iterator[tuple[slice, slice, Tensor]]:
    """`probabilities` in parts: rows, columns, and `[K, h, w]` float32."""
    height, width = len(views[0].rows), len(views[0].columns)
    for rows, columns in _tiles(len(views[0].logits), height, width, views[0].logits.device):
        scores = _scores(views, rows, columns)
        yield rows, columns, (scores.softmax(1) if len(views) == 1 else scores / len(views)).movedim(1, 0)


def _tiles(classes: int, height: int, width: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    is_cpu = device.type == "cpu"
    across = min(width, COLUMNS if is_cpu else 8 * COLUMNS)
    down = max(1, min(SLAB, CACHED if is_cpu else SLAB) // (classes * across))
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, min(top + down, height)), slice(left, min(left + across, width))


def _scores(views: Sequence[View], rows: slice, columns: slice) -> Tensor:
    """`[h, K, w]` of a tile: logits of a single view, the sum of several views' probabilities."""
    total = None
    for view in views:
        (down, vertical), (across, horizontal) = (
            axis.between(part.start, part.stop, view.logits)
            for axis, part in ((view.rows, rows), (view.columns, columns))
        )
        part = view.logits[:, down, across].movedim(0, 1) @ horizontal.mT  # [cells, K, w]
        tile = (vertical @ part.flatten(1)).unflatten(1, part.shape[1:])
        if len(views) == 1:
            return tile
        total = tile.softmax(1) if total is None else total.add_(tile.softmax(1))
    assert total is not None
    return total


def sliding_class_map(
    bands: Iterator[Tensor], size: tuple[int, int], original: tuple[int, int], align_corners: bool = False
) -> Tensor:
    """The classes of an image from its rows of logits: `[H, W]` int64. See `sliding_views`."""
    return torch.cat([best_classes([view]) for _, view in sliding_views(bands, size, original, align_corners)])


def sliding_views(
    bands: Iterator[Tensor], size: tuple[int, int], original: tuple[int, int], align_corners: bool = False
) -> Iterator[tuple[int, View]]:
    """An image from its rows of logits, which are forgotten as soon as they have been used.

    Args:
        bands: `[K, n, w]` each, from the top down, as `sliding_bands` gives them.
        size: (h, w) of all of them.
        original: (H, W) wanted.
        align_corners: of the interpolation to it.

    Yields:
        The first row of a part of the wanted image, and the part, over its whole width; from the top down.
    """
    rows, columns = (Axis.resized(old, new, align_corners) for old, new in zip(size, original, strict=True))
    taps = rows.weights.shape[1]
    held, top, done = None, 0, 0
    for band in bands:
        held = band if held is None else torch.cat((held, band), 1)
        there = top + held.shape[1]
        ready = int((rows.start + taps <= there).sum())  # starts ascend
        if ready > done:
            part = Axis(rows.start[done:ready] - top, rows.weights[done:ready], held.shape[1])
            yield done, View(held, part, columns)
            done = ready
        needed = int(rows.start[done]) if done < len(rows) else there
        held, top = held[:, needed - top :], needed


def enlarged(maps: Tensor, size: tuple[int, int], align_corners: bool = False) -> Iterator[Tensor]:
    """Bilinearly resized maps in slabs of rows: what is large is never held at once.

    Args:
        maps: `[K, h, w]`.
        size: (H, W).
        align_corners: of the interpolation.

    Returns:
        Parts `[K, rows, W]`, which stand below one another.
    """
    if not len(maps):
        yield maps.new_zeros((0, *size))
        return
    rows = max(1, SLAB // (len(maps) * size[1]))
    if tuple(maps.shape[1:]) == tuple(size):
        yield from maps.split(rows, 1)
        return
    axis = Axis.resized(maps.shape[1], size[0], align_corners)
    for start in range(0, size[0], rows):
        # Along the height by hand, so that a slab needs its own rows alone; then along the width.
        down, matrix = axis.between(start, min(start + rows, size[0]), maps)
        slab = torch.matmul(matrix, maps[:, down])
        yield resize(slab[None], (slab.shape[1], size[1]), align_corners)[0]


def sliding_logits(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    num_classes: int,
    batch: int = 4,
    merge: Merge = "mean",
) -> Tensor:
    """All of `sliding_bands`: `[K, H, W]` float32."""
    return torch.cat(list(sliding_bands(network, image, window, stride, num_classes, batch, merge)), 1)


def sliding_bands(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    num_classes: int,
    batch: int = 4,
    merge: Merge = "mean",
) -> Iterator[Tensor]:
    """Logits of overlapping windows put together, placed as in mmsegmentation: the last ones end at the border.

    Held are the rows of one window's height, over the image's width.

    Args:
        network: `[B, C, h, w]` -> logits `[B, K, h', w']` of any size, which are enlarged to the window's.
        image: `[C, H, W]`, normalised.
        window: (height, width); a smaller image is one window.
        stride: between windows.
        num_classes: K.
        batch: windows that are computed at once.
        merge: what is done where windows overlap: their `mean` (mmsegmentation), a mean that is `blend`ed from window
            to window, weights falling towards their borders, or a `cut` through the middle.

    Yields:
        `[K, n, W]` float32 each, from the top down, n rows that no later window changes.
    """
    rows, columns = (
        _spans(side, length, step, merge) for side, length, step in zip(image.shape[1:], window, stride, strict=True)
    )
    places = [(y, x) for y in rows for x in columns]
    warn_of_many(len(places), *image.shape[1:])
    height, width = rows[0].stop, image.shape[2]
    total = image.new_zeros((num_classes, height, width), dtype=torch.float32)
    weight = total.new_zeros(height, width)
    top = 0
    for begin in range(0, len(places), batch):
        part = places[begin : begin + batch]
        logits = network(torch.stack([image[:, y.start : y.stop, x.start : x.stop] for y, x in part]))
        size = (part[0][0].stop - part[0][0].start, part[0][1].stop - part[0][1].start)
        for (y, x), values in zip(part, resize(logits.float(), size), strict=True):
            if y.start > top:  # the first window of the next row of windows
                finished = y.start - top
                yield total[:, :finished] / weight[:finished]
                total, weight = (_shifted(held, finished) for held in (total, weight))
                top = y.start
            inside = (slice(y.low, y.high), slice(x.low, x.high))
            place = (slice(y.start + y.low - top, y.start + y.high - top), slice(x.start + x.low, x.start + x.high))
            values = values[:, inside[0], inside[1]]
            if merge == "blend":
                factor = torch.outer(*(_ramp(s.stop - s.start, values) for s in (y, x)))
                total[:, place[0], place[1]].addcmul_(values, factor)
                weight[place] += factor
            else:
                total[:, place[0], place[1]] += values
                weight[place] += 1
    yield total / weight


def _shifted(held: Tensor, rows: int) -> Tensor:
    """Without its first rows (the last axis but one), and zeros after the others."""
    moved = torch.zeros_like(held)
    moved[..., : held.shape[-2] - rows, :] = held[..., rows:, :]
    return moved


class _Span(NamedTuple):
    """A window along one axis, and which of its own pixels are taken."""

    start: int
    stop: int
    low: int
    high: int


def _spans(side: int, length: int, step: int, merge: Merge) -> list[_Span]:
    starts = range(0, max(side - length + step - 1, 0) // step * step + 1, step)
    ends = [min(start + length, side) for start in starts]
    spans = [(max(end - length, 0), end) for end in ends]
    if merge != "cut":
        return [_Span(start, end, 0, end - start) for start, end in spans]
    seams = [0, *((spans[i][1] + spans[i + 1][0]) // 2 for i in range(len(spans) - 1)), side]
    return [_Span(start, end, seams[i] - start, seams[i + 1] - start) for i, (start, end) in enumerate(spans)]


def _ramp(length: int, like: Tensor) -> Tensor:
    """`[length]`, rising evenly from the ends to the middle, above 0."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 0.5, length - 0.5 - place)
