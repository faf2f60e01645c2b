"""Images in overlapping windows, which are put together as mmsegmentation does it, or better, in bounded memory.

What windows count for where they overlap is a product of what their rows and their columns count for, so a window's way
to the wanted image is one linear map along each axis, as a whole image's is: windows are held as coarse as the network
gives them, and are enlarged, weighed and added up in tiles of the image that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vistrain.layers.axis import Axis
from vistrain.layers.tiling import warn_of_many
from vistrain.segmentation.inference import Mosaic, Placed, View, best_classes

Merge = Literal["mean", "cut", "blend"]


class Windows(NamedTuple):
    """How images are cut into windows, placed as in mmsegmentation: the last ones end at the border.

    Attributes:
        window: (height, width); a smaller image is one window.
        stride: between windows.
        batch: windows that are computed at once.
        merge: what is done where windows overlap: their `mean` (mmsegmentation), a mean that is `blend`ed from window
            to window, weights falling towards their borders, or a `cut` through the middle.
        align_corners: of the enlargement of a window's logits to the window, and of the image's to what is wanted.
    """

    window: tuple[int, int]
    stride: tuple[int, int]
    batch: int = 4
    merge: Merge = "mean"
    align_corners: bool = False

    def class_map(
        self, network: Callable[[Tensor], Tensor], image: Tensor, size: tuple[int, int], wanted: tuple[int, int]
    ) -> Tensor:
        """The classes of an image: `[H, W]` int64; see `bands`."""
        return torch.cat([best_classes([band]) for _, band in self.bands(network, image, size, wanted)])

    def logits(self, network: Callable[[Tensor], Tensor], image: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits `[K, H, W]` float32 of an image, all at once; see `bands`."""
        whole = self.whole(network, image, size, size)
        return whole.tile(slice(0, size[0]), slice(0, size[1])).movedim(1, 0).contiguous()

    def whole(
        self,
        network: Callable[[Tensor], Tensor],
        image: Tensor,
        size: tuple[int, int],
        wanted: tuple[int, int],
        flip: bool = False,
    ) -> Mosaic:
        """All windows of an image, as the network gives them; see `bands`.

        Args:
            flip: the image is mirrored left to right, the one that is wanted is not.
        """
        parts = [part for row in self._rows(network, image, size, wanted) for part in row[1]]
        if flip:
            parts = [
                Placed(view._replace(columns=view.columns.mirrored()), top, wanted[1] - left - len(view.columns))
                for view, top, left in parts
            ]
        return Mosaic(parts, wanted)

    def bands(
        self, network: Callable[[Tensor], Tensor], image: Tensor, size: tuple[int, int], wanted: tuple[int, int]
    ) -> Iterator[tuple[int, Mosaic]]:
        """An image from the top down, in parts over its whole width. Held are the logits of two rows of windows, as
        coarse as they are.

        Args:
            network: `[B, C, h, w]` -> logits `[B, K, h', w']` of any size, which are enlarged to the window's.
            image: `[C, H, W]`, normalised, maybe padded at the bottom and at the right.
            size: (height, width) of it without the padding.
            wanted: (height, width) to enlarge that to.

        Yields:
            The first row of a part of the wanted image, and the part.
        """
        held: list[Placed] = []
        done = 0
        for ready, row in self._rows(network, image, size, wanted):
            held += row
            if ready > done:
                moved = [Placed(view, top - done, left) for view, top, left in held]
                yield done, Mosaic(moved, (ready - done, wanted[1]))
                done = ready
                held = [part for part in held if part.top + len(part.view.rows) > done]

    def _rows(
        self, network: Callable[[Tensor], Tensor], image: Tensor, size: tuple[int, int], wanted: tuple[int, int]
    ) -> Iterator[tuple[int, list[Placed]]]:
        """Each row of windows, and how many rows of the wanted image no later one changes."""
        spans = [
            _spans(side, length, step, self.merge)
            for side, length, step in zip(image.shape[1:], self.window, self.stride, strict=True)
        ]
        rows, columns = spans
        warn_of_many(len(rows) * len(columns), *image.shape[1:])
        last = [Axis.resized(old, new, self.align_corners) for old, new in zip(size, wanted, strict=True)]
        ways: list[list[tuple[int, Axis]]] = []
        places = [(y, x) for y in range(len(rows)) for x in range(len(columns))]
        row: list[Placed] = []
        for begin in range(0, len(places), self.batch):
            part = places[begin : begin + self.batch]
            cut = [image[:, rows[y].start : rows[y].stop, columns[x].start : columns[x].stop] for y, x in part]
            found = network(torch.stack(cut)).float()
            if not ways:
                cells = zip(spans, found.shape[2:], last, strict=True)
                ways = [[_way(i, axis, count, end, self) for i in range(len(axis))] for axis, count, end in cells]
            for (y, x), logits in zip(part, found, strict=True):
                (top, down), (left, across) = ways[0][y], ways[1][x]
                if len(down) and len(across):  # not so where all of a window is padding
                    row.append(Placed(View(logits, down, across), top, left))
                if x + 1 == len(columns):
                    seen = rows[y + 1].start + rows[y + 1].low if y + 1 < len(rows) else size[0]
                    yield int((last[0].start + last[0].weights.shape[1] <= seen).sum()), row
                    row = []


def _way(index: int, spans: list[_Span], cells: int, last: Axis, how: Windows) -> tuple[int, Axis]:
    """A window's way along an axis: from its cells to the pixels of the wanted image that it says anything of, weighed;
    and the first of these."""
    span = spans[index]
    own = Axis.resized(cells, span.stop - span.start, how.align_corners)
    total = torch.zeros(spans[-1].stop, dtype=torch.float64)
    for other in spans:
        total[other.start + other.low : other.start + other.high] += _weights(other, how.merge)
    begin, end = span.start + span.low, span.start + span.high
    share = (_weights(span, how.merge) / total[begin:end])[:, None]
    taps = last.weights.shape[1]
    # Pixels of the image that are not the window's count 0: as many on either side as a wanted pixel may look at.
    start, weights = own.start[span.low : span.high], own.weights[span.low : span.high] * share
    start = torch.cat((start[:1].expand(taps - 1), start, start[-1:].expand(taps - 1)))
    weights = torch.nn.functional.pad(weights, (0, 0, taps - 1, taps - 1))
    concerned = torch.nonzero((last.start + taps > begin) & (last.start < end)).flatten()
    if not len(concerned):
        return 0, Axis(last.start[:0], last.weights[:0], cells)
    low, high = int(concerned[0]), int(concerned[-1]) + 1
    after = Axis(last.start[low:high] - begin + taps - 1, last.weights[low:high], len(start))
    return low, Axis(start, weights, own.side).then(after)


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


def _weights(span: _Span, merge: Merge) -> Tensor:
    """`[high - low]` float64: what a window's pixels count for; blended, they rise evenly from its ends to its
    middle."""
    place = torch.arange(span.low, span.high, dtype=torch.float64)
    if merge != "blend":
        return torch.ones_like(place)
    return torch.minimum(place + 0.5, span.stop - span.start - 0.5 - place)
