"""Volumes as people look at them: three planes through what matters, truth beside prediction."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vistrain.data.volumes.labels import IGNORED
from vistrain.pictures import class_colours, legend, overlaid
from vistrain.pictures.grids import GROUND
from vistrain.structures import LabelSpace

PERCENTILES = (1, 99)  # of the voxels that are not air, between which greys lie
GAP = 2  # pixels


def middle_of(maps: Sequence[np.ndarray], sides: Sequence[int]) -> tuple[int, int, int]:
    """The planes (z, y, x) that show most of the first map that has any class but the first; else the middle ones. What
    is not annotated, as outside of a case, is no class."""
    for found in maps:
        inside = (found > 0) & (found != IGNORED)
        if inside.any():
            sums = [inside.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3)]
            z, y, x = (int(of_axis.argmax()) for of_axis in sums)
            return z, y, x
    return sides[0] // 2, sides[1] // 2, sides[2] // 2


def planes(
    volume: np.ndarray,
    classes: np.ndarray | None,
    at: tuple[int, int, int],
    spacing: Sequence[float],
    labels: LabelSpace,
    side: int,
    opacity: float = 0.45,
) -> np.ndarray:
    """Axial, coronal and sagittal plane side by side, in true proportions, heads up and noses up or to the right.

    Args:
        volume: `[z, y, x]` of any unit.
        classes: `[z, y, x]` class channels drawn over it but for the first, or None.
        at: planes to show.
        spacing: mm along z, y, x.
        labels: colours of the classes.
        side: longest side of a plane, pixels.
        opacity: of the colours, 0..1.

    Returns:
        uint8 `[H, W, 3]`.
    """
    colours = {channel: colour for channel, colour in class_colours(labels).items() if channel != 0}
    values = volume[::4, ::4, ::4].astype(np.float32)
    different = values[values != values.ravel()[0]]
    low, high = np.percentile(different if different.size else values, PERCENTILES)
    found = []
    for axis, place in enumerate(at):
        picture = np.take(volume, place, axis).astype(np.float32)
        grey = np.clip((picture - low) / max(float(high - low), 1e-9), 0, 1)
        shown = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, 2)
        if classes is not None:
            shown = overlaid(shown, np.take(classes, place, axis).astype(np.int64), colours, opacity)
        # Rows run from below to above, or from back to front: pictures have them the other way round.
        shown = shown[::-1]
        mm = [step for a, step in enumerate(spacing) if a != axis]
        height, width = shown.shape[0] * mm[0], shown.shape[1] * mm[1]
        factor = side / max(height, width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        found.append(_resized(np.ascontiguousarray(shown), size))
    tall = max(picture.shape[0] for picture in found)
    cells = []
    for picture in found:
        cell = np.zeros((tall, picture.shape[1] + GAP, 3), np.uint8)
        cell[: picture.shape[0], : picture.shape[1]] = picture
        cells.append(cell)
    return np.concatenate(cells, 1)


def montage(
    volume: np.ndarray,
    maps: dict[str, np.ndarray],
    spacing: Sequence[float],
    labels: LabelSpace,
    side: int = 240,
) -> dict[str, np.ndarray]:
    """The planes alone and under each map, all at the same places, with a legend of the classes below.

    Args:
        volume: `[z, y, x]`.
        maps: caption -> class channels `[z, y, x]`, the truth first.
        spacing, labels, side: see `planes`.

    Returns:
        caption -> uint8 `[H, W, 3]`.
    """
    at = middle_of(list(maps.values()), volume.shape)
    found = {"": planes(volume, None, at, spacing, labels, side)}
    found |= {caption: planes(volume, classes, at, spacing, labels, side) for caption, classes in maps.items()}
    there = set().union(*(np.unique(classes).tolist() for classes in maps.values())) if maps else set()
    names = labels.name_of
    width = found[""].shape[1]
    line = legend(names, class_colours(labels), [c for c in names if c in there and c != 0], width)
    blank = np.full_like(line, GROUND[0])
    return {caption: np.concatenate((picture, line if caption else blank)) for caption, picture in found.items()}


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA))
