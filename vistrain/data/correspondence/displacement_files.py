"""Disparity and optical flow in files: one reader and one writer for each kind, chosen by the file's suffix.

- `.pfm`: portable float maps (disparity; with three channels, as FlyingThings3D has it, flow in the first two).
- `.flo`: Middlebury's optical flow (vision.middlebury.edu/flow, "flow-code/README.txt").
- `.png` of 16 bits: KITTI's (cvlibs.net, devkits of the 2015 stereo and flow benchmarks).

All give float32 `[A, H, W]`, NaN where nothing is known: A is 1 for disparity (pixels to the left), 2 for flow (pixels
to the right and down).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from vistrain.data.base.images import DAMAGED, image_size, refuse_large
from vistrain.data.base.storage import read_bytes
from vistrain.errors import DataError
from vistrain.writing import whole_file

Finds = Literal["disparity", "flow"]
AXES: dict[str, int] = {"disparity": 1, "flow": 2}
SUFFIXES = (".pfm", ".flo", ".png")

PFM_HEAD = re.compile(rb"(P[Ff])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s")
FLO_HEAD, FLO_MAGIC, FLO_MOST = 12, 202021.25, 1e9  # bytes; its first number; what is larger is not known
DISPARITY_STEPS, FLOW_STEPS, FLOW_ZERO = 256.0, 64.0, 2.0**15  # of KITTI's files, for each pixel


def read_displacement(path: Path, finds: Finds) -> np.ndarray:
    """Read a file of displacements, see the module.

    Raises:
        DataError: it cannot be read, is damaged or of no known kind, or holds the other of disparity and flow.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(str(path), "is no file of displacements", f"write it as {', '.join(SUFFIXES)}")
    field = {".pfm": read_pfm, ".flo": read_flo, ".png": read_kitti}[suffix](path)
    if len(field) != AXES[finds]:
        kinds = ("disparity", "flow")
        problem = f"holds {kinds[len(field) - 1]}, and {finds} is wanted"
        raise DataError(str(path), problem, f"set data.finds to {kinds[len(field) - 1]}, or name other files")
    return field


def write_displacement(path: Path, field: np.ndarray) -> None:
    """Write displacements `[A, H, W]`, NaN where nothing is known, as the suffix says, whole or not at all.

    KITTI's files hold disparities of 1/256 to 256 pixels in steps of 1/256, flow of -512 to 512 in steps of 1/64; the
    nearest is written.

    Raises:
        DataError: it cannot be written.
    """
    writers = {".pfm": _pfm, ".flo": _flo, ".png": _kitti}
    content = writers[path.suffix.lower()](np.asarray(field, np.float32))
    with whole_file(path) as partial:
        partial.write_bytes(content)


def read_pfm(path: Path) -> np.ndarray:
    """Of one channel `[1, H, W]`, of three the first two, `[2, H, W]`; infinite values are not known.

    The head's last number says the order of bytes by its sign; its size, a scale that no program of the field applies,
    is ignored.

    Raises:
        DataError: see `read_displacement`.
    """
    data = read_bytes(path)
    head = PFM_HEAD.match(data)
    if head is None or float(head[4]) == 0:
        raise DataError(str(path), "does not begin as a PFM file does", "write it anew")
    channels, width, height = (3 if head[1] == b"PF" else 1), int(head[2]), int(head[3])
    kind = np.dtype("<f4" if float(head[4]) < 0 else ">f4")
    rows = _numbers(path, data, head.end(), kind, (height, width, channels))
    return _known(rows[::-1, :, : max(channels - 1, 1)])  # rows are stored from the lowest


def read_flo(path: Path) -> np.ndarray:
    """`[2, H, W]`.

    Raises:
        DataError: see `read_displacement`.
    """
    data = read_bytes(path)
    if len(data) < FLO_HEAD or np.frombuffer(data, "<f4", 1)[0] != FLO_MAGIC:
        raise DataError(str(path), "does not begin as a .flo file does", "write it anew")
    width, height = (int(side) for side in np.frombuffer(data, "<i4", 2, 4))
    return _known(_numbers(path, data, FLO_HEAD, np.dtype("<f4"), (height, width, 2)), FLO_MOST)


def read_kitti(path: Path) -> np.ndarray:
    """Disparity `[1, H, W]` of grey files, flow `[2, H, W]` of those of three channels.

    Raises:
        DataError: see `read_displacement`; or it has 8 bits.
    """
    refuse_large(path, *image_size(path))
    try:
        values = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
    except DAMAGED:
        values = None
    if values is None:
        raise DataError(str(path), "cannot be decoded", "write it anew")
    if values.dtype != np.uint16 or (values.ndim == 3 and values.shape[2] != 3):
        problem = f"has {8 * values.dtype.itemsize} bits and {1 if values.ndim == 2 else values.shape[2]} channels"
        raise DataError(str(path), problem, "KITTI's files have 16 bits, and 1 channel or 3")
    if values.ndim == 2:
        return np.where(values > 0, values / DISPARITY_STEPS, np.nan).astype(np.float32)[None]
    valid, down, right = np.moveaxis(values, 2, 0)  # OpenCV gives blue first
    field = (np.stack((right, down)) - FLOW_ZERO) / FLOW_STEPS
    return np.where(valid > 0, field, np.nan).astype(np.float32)


def _numbers(path: Path, data: bytes, start: int, kind: np.dtype, shape: tuple[int, int, int]) -> np.ndarray:
    height, width, channels = shape
    if height < 1 or width < 1:
        raise DataError(str(path), f"says that it is {width}x{height} pixels", "write it anew")
    refuse_large(path, height, width)
    wanted = height * width * channels * kind.itemsize
    if len(data) - start < wanted:
        problem = f"is cut off: {len(data) - start} bytes of numbers, {width}x{height} pixels take {wanted}"
        raise DataError(str(path), problem, "write it anew")
    return np.frombuffer(data, kind, height * width * channels, start).reshape(shape)


def _known(rows: np.ndarray, most: float = np.inf) -> np.ndarray:
    """`[H, W, A]` -> float32 `[A, H, W]`; NaN where one of a pixel's numbers is not finite, or larger than that."""
    field = np.ascontiguousarray(np.moveaxis(rows, 2, 0), np.float32)
    with np.errstate(invalid="ignore"):
        known = (np.isfinite(field) & (np.abs(field) <= most)).all(0)
    return np.where(known, field, np.float32(np.nan))


def _pfm(field: np.ndarray) -> bytes:
    """Of flow a third channel of zeros, as FlyingThings3D has it; infinite where nothing is known."""
    channels = field if len(field) == 1 else np.concatenate((field, np.zeros_like(field[:1])))
    rows = np.where(np.isnan(channels), np.float32(np.inf), channels).transpose(1, 2, 0)[::-1]
    head = f"{'Pf' if len(field) == 1 else 'PF'}\n{field.shape[2]} {field.shape[1]}\n-1.0\n"
    return head.encode() + rows.astype("<f4").tobytes()


def _flo(field: np.ndarray) -> bytes:
    rows = np.where(np.isnan(field), np.float32(2 * FLO_MOST), field).transpose(1, 2, 0)
    head = np.array([FLO_MAGIC], "<f4").tobytes() + np.array(field.shape[:0:-1], "<i4").tobytes()
    return head + rows.astype("<f4").tobytes()


def _kitti(field: np.ndarray) -> bytes:
    known = np.isfinite(field).all(0)
    values = np.where(known, field, 0).astype(np.float64)  # 2^15 and fractions of a step take more than float32
    if len(field) == 1:
        stored = np.where(known, (values[0] * DISPARITY_STEPS).round().clip(1, 65535), 0).astype(np.uint16)
    else:
        steps = (values * FLOW_STEPS + FLOW_ZERO).round().clip(0, 65535)
        stored = np.stack((known, *(np.where(known, steps[i], 0) for i in (1, 0))), 2).astype(np.uint16)
    return bytes(cv2.imencode(".png", stored)[1])
