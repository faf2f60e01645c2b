"""From logits to class maps of the original size: whole images, images in parts and several views, in bounded memory.

Enlarged logits of all classes are never held at once: along each axis every enlargement, cut and mirroring is one
linear map (`Axis`), so the original image is made in tiles, from logits of the network's own size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vistrain.layers.axis import Axis
from vistrain.layers.conv import resize

SLAB = 1 << 24  # logits that are enlarged at once
CACHED = 1 << 19  # the same on processors: what stays in their caches
COLUMNS = 256  # of a tile there


class View(NamedTuple):
    """What a network says of an image in one of its versions.

    Attributes:
        logits: `[K, h, w]`.
        rows, columns: from them to the image that is wanted.
    """

    logits: Tensor
    rows: Axis
    columns: Axis

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image that is wanted."""
        return len(self.rows), len(self.columns)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Logits of a part of the image that is wanted: `[h, K, w]`."""
        (down, vertical), (across, horizontal) = (
            axis.between(part.start, part.stop, self.logits)
            for axis, part in ((self.rows, rows), (self.columns, columns))
        )
        part = self.logits[:, down, across].movedim(0, 1) @ horizontal.mT  # [cells, K, w]
        return (vertical @ part.flatten(1)).unflatten(1, part.shape[1:])


class Placed(NamedTuple):
    """What a network says of a part of an image.

    Attributes:
        view: of the pixels of the wanted image that it says anything of.
        top, left: the first of these.
    """

    view: View
    top: int
    left: int


class Mosaic(NamedTuple):
    """What a network says of an image in parts, which are added up where they overlap.

    Attributes:
        parts: each pixel of the image is in one of them, or in several whose weights add up to 1.
        size: height and width of the image that is wanted.
    """

    parts: Sequence[Placed]
    size: tuple[int, int]

    @property
    def logits(self) -> Tensor:
        """Those of one part: `[K, h, w]`."""
        return self.parts[0].view.logits

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """See `View.tile`."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        total = None
        for view, top, left in self.parts:
            down, across = (
                slice(max(wanted.start, first), min(wanted.stop, first + len(axis)))
                for wanted, first, axis in ((rows, top, view.rows), (columns, left, view.columns))
            )
            if down.start >= down.stop or across.start >= across.stop:
                continue
            values = view.tile(slice(down.start - top, down.stop - top), slice(across.start - left, across.stop - left))
            if total is None and values.shape[::2] == (height, width):
                total = values
                continue
            total = values.new_zeros(height, len(self.logits), width) if total is None else total
            place = (
                slice(part.start - of.start, part.stop - of.start) for part, of in ((down, rows), (across, columns))
            )
            inside = next(place), slice(None), next(place)
            total[inside] += values
        assert total is not None
        return total


Seen = View | Mosaic


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


def best_classes(views: Sequence[Seen]) -> Tensor:
    """The class of each pixel: of one view the greatest logit, of several the greatest mean probability.

    Args:
        views: of one image, at least one.

    Returns:
        `[H, W]` int64; of equal classes the first.
    """
    height, width = views[0].size
    found = torch.empty(height, width, dtype=torch.int64, device=views[0].logits.device)
    for rows, columns in _tiles(len(views[0].logits), height, width, found.device):
        found[rows, columns] = _scores(views, rows, columns).max(1).indices  # max is faster than argmax
    return found


def probabilities(views: Sequence[Seen]) -> Tensor:
    """Mean probabilities `[K, H, W]` of views of one image, as `best_classes` compares them."""
    height, width = views[0].size
    found = views[0].logits.new_empty(len(views[0].logits), height, width)
    for rows, columns, tile in probability_tiles(views):
        found[:, rows, columns] = tile
    return found


def probability_tiles(views: Sequence[Seen]) -> Iterator[tuple[slice, slice, Tensor]]:
    """`probabilities` in parts: rows, columns, and `[K, h, w]` float32."""
    height, width = views[0].size
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


def _scores(views: Sequence[Seen], rows: slice, columns: slice) -> Tensor:
    """`[h, K, w]` of a tile: logits of a single view, the sum of several views' probabilities."""
    if len(views) == 1:
        return views[0].tile(rows, columns)
    total = views[0].tile(rows, columns).softmax(1)
    for view in views[1:]:
        total += view.tile(rows, columns).softmax(1)
    return total


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


def enlarged_in_python(name: str) -> tuple[str, ...]:
    """Lines of Python, see `structures.Exported`, that make `planes` `[K, H, W]`, of the picture's size, of the output
    of a name, `[K, h, w]`: to the padded image, cut, to the picture, bilinearly as networks' own predictions are (but
    that Pillow smooths where it makes smaller)."""
    return (
        "box, method = (0, 0, pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR",
        f'planes = [Image.fromarray(p).resize(x.shape[:1:-1], method).crop(box) for p in found["{name}"]]',
        "planes = np.stack([p.resize(image.size, method) for p in planes])",
    )
