"""Segmentations in COCO's notations, checked before pycocotools' C code sees them: it believes what it is given.

Contours are those of Cheng et al. 2021, whose program's licence is not stated here.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_tools

from vistrain.errors import DataError
from vistrain.layers.packed_masks import PackedMasks
from vistrain.metrics.coco_values import is_number, shown

REACH = 10  # times the longer side of its image that a polygon may reach outside
OUTLINE = 2**22  # pixels that the outlines of an object may be long: rasterising takes some 80 bytes for each


def encode_mask(where: str, segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A segmentation (polygons, or run lengths plain or compressed) as pycocotools' compressed run lengths.

    Polygons of fewer than three points or an odd number of coordinates are left out, as detectron2 does; a coordinate
    that is no finite number is damage.

    Args:
        where: named in errors.
        segmentation: the entry's value.
        height, width: of the image, pixels.

    Raises:
        DataError: it is none of these, its run lengths do not fill the image (pycocotools would write beyond it), or a
            polygon has a coordinate that is no number, or is so far outside, or so long, that rasterising it would
            exhaust the memory.
    """
    size = [int(height), int(width)]
    if isinstance(segmentation, list) and all(isinstance(p, list) for p in segmentation):
        polygons = drawable(where, segmentation)
        if not polygons:  # pycocotools cannot draw none
            return mask_tools.frPyObjects({"size": size, "counts": [size[0] * size[1]]}, *size)
        _refuse_endless(where, polygons, max(size))
        return mask_tools.merge(mask_tools.frPyObjects(polygons, *size))
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, str | bytes | list) or not isinstance(segmentation.get("size"), list):
        raise DataError(where, "unreadable segmentation", "polygons or run lengths (size and counts) are needed")
    if segmentation["size"] != size:
        raise DataError(where, f"run lengths are for size {segmentation['size']!s:.40}, the image has {size}")
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
            raise DataError(where, f"run lengths do not add up to {size[0]} x {size[1]} pixels")
        return mask_tools.frPyObjects(segmentation, *size)
    lengths = run_lengths(counts)
    if lengths is None or (lengths < 0).any() or int(lengths.sum()) != size[0] * size[1]:
        raise DataError(where, f"damaged run lengths: they do not add up to {size[0]} x {size[1]} pixels")
    return {"size": size, "counts": counts}


def drawable(where: str, polygons: list[list[Any]]) -> list[list[float]]:
    """Those of an object's polygons that have an area to draw: three points or more, each of two coordinates.

    Raises:
        DataError: a coordinate is no finite number.
    """
    for polygon in polygons:
        if not all(map(is_number, polygon)):
            wrong = next(v for v in polygon if not is_number(v))
            raise DataError(
                where, f"its polygon has the coordinate {shown(wrong)}, not a number", "correct or remove it"
            )
    return [p for p in polygons if is_drawable(p)]


def is_drawable(polygon: list[Any]) -> bool:
    """Whether a polygon has three points or more, each of two coordinates; others are left out, as detectron2 does."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def has_mask(segmentation: Any) -> bool:
    """Whether there is something to draw: run lengths, or a polygon that `is_drawable`; damage is found later."""
    if isinstance(segmentation, list):
        return any(not isinstance(polygon, list) or is_drawable(polygon) for polygon in segmentation)
    return bool(segmentation)


def left_out_of(segmentation: Any) -> str:
    """What of a segmentation's polygons is not drawn, in words; empty: nothing is left out."""
    polygons = segmentation if isinstance(segmentation, list) else []
    few = [p for p in polygons if isinstance(p, list) and not is_drawable(p)]
    if not few:
        return ""
    return f"{len(few)} of {len(polygons)} polygons have no three points of two coordinates, such as {shown(few[0])}"


def run_lengths(counts: str | bytes) -> np.ndarray | None:
    """The run lengths in COCO's compressed notation, int64; None if the text is none.

    Each number is written in groups of five bits, the lowest first, as characters from 48 on; bit 32 says that another
    group follows, bit 16 of the last is the sign. From the fourth number on, what is written is the difference to the
    number two before (the format of cocoapi's `maskApi.c`, `rleToString`).
    """
    try:
        digits = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64)
    except UnicodeEncodeError:
        return None
    digits = digits - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:  # 35 bits hold any run length that is possible
        return None
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= ((digits[last] & 16) != 0) * (1 << (5 * (last - first + 1)))
    if len(values) > 1:  # numbers 1, 3, 5 ... and 2, 4, 6 ... add up on their own; the first stands alone
        values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def encode_part(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Compressed run lengths of a mask of an image, given the part that holds all of it.

    Args:
        mask: bool `[h, w]`.
        top, left: where the part lies.
        size: height, width of the image; nothing of its size is made.
    """
    counts = plain_runs(mask, top, left, size)
    return mask_tools.frPyObjects({"size": list(size), "counts": counts}, *size)


def plain_runs(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> list[int]:
    """As `encode_part`, COCO's plain run lengths: column by column, starting with a run of zeros (maybe empty)."""
    height = size[0]
    edges = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # of each column on its own
    column, row = np.nonzero(edges)
    place = (left + column) * height + top + row
    if len(place):  # a run that ends where the next column's begins goes on
        joined = np.flatnonzero(place[1:-1:2] == place[2::2]) * 2 + 1
        place = np.delete(place, np.concatenate([joined, joined + 1]))
    counts = np.diff(np.concatenate([[0], place, [height * size[1]]])).tolist()
    return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def encoded_masks(masks: Any) -> list[dict[str, Any]]:
    """Masks that a network has found, `[N, H, W]` bool or packed, as run lengths whose `counts` are text."""
    packed = masks if isinstance(masks, PackedMasks) else PackedMasks.of_tensor(masks)
    runs = [encode_part(mask, top, left, packed.size) for top, left, mask in packed.parts()]
    return [{"size": run["size"], "counts": run["counts"].decode("ascii")} for run in runs]


def mask_area(runs: dict[str, Any]) -> float:
    """Pixels of a mask given by compressed run lengths."""
    return float(mask_tools.area(runs))


def mask_box(runs: dict[str, Any]) -> list[float]:
    """x, y, width, height around a mask given by compressed run lengths."""
    return [float(v) for v in mask_tools.toBbox(runs)]


def mask_edge(runs: dict[str, Any], share: float = 0.02) -> dict[str, Any]:
    """The pixels of a mask that are near its contour: those that `distance` erosions by 3 x 3 take away, where what is
    outside the image is outside the mask (Cheng et al. 2021, arXiv 2103.16562, section 4).

    Args:
        runs: compressed run lengths.
        share: how near, in shares of the image's diagonal, rounded, and one pixel at the least.

    Returns:
        Compressed run lengths.
    """
    height, width = runs["size"]
    distance = max(1, round(share * float(np.hypot(height, width))))
    left, top, w, h = (int(v) for v in mask_tools.toBbox(runs))
    mask = mask_tools.decode(runs)[top : top + h, left : left + w]  # beside it there is nothing to erode
    if not mask.size:
        return runs
    inner = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return encode_part(mask > inner, top, left, (height, width))


def _refuse_endless(where: str, polygons: list[list[float]], side: int) -> None:
    outline = 0.0
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if np.abs(points).max() > (REACH + 1) * side:
            far = float(np.abs(points).max())
            raise DataError(
                where, f"its polygon reaches {far:.4g} pixels, in an image of {side}", "correct or remove it"
            )
        outline += float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())
    if outline > OUTLINE:
        raise DataError(where, f"its polygons have an outline of {outline:.4g} pixels", "simplify or remove them")
