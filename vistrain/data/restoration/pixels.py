"""Reading the pixels of image sets for restoration: as few of them as are needed, in the colours that are wanted."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from vistrain.data.base.images import image_bytes, read_image, refuse_large
from vistrain.metrics.image import luma

ColorName = Literal["rgb", "grey", "luma"]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TURNING = {b"eXIf", b"iTXt", b"zTXt", b""}  # chunks that may hold an orientation, or be bombs; and damage
END = b"IEND\xaeB`\x82"  # the last bytes of a whole PNG
PLAIN = {b"\x08\x00": 2, b"\x08\x02": 3}  # bit depth and colour type -> dimensions of what OpenCV gives: grey, RGB


def read_pixels(path: Path, color: ColorName = "rgb") -> np.ndarray:
    """The pixels of a file.

    Args:
        path: whatever `read_image` reads, upright; of 16-bit files the high byte is kept, alpha is dropped.
        color: `rgb`; `grey` is a grey file as it is, and of a colour file 0.299 R + 0.587 G + 0.114 B; `luma` is Y of
            BT.601 in the studio range, rounded, as MATLAB's `rgb2ycbcr` gives it.

    Returns:
        uint8 `[H, W, 3]` or `[H, W, 1]`.

    Raises:
        DataError: as `read_image`.
    """
    data = image_bytes(path)
    image = _fast_png(path, data)
    if image is None:
        image = read_image(path, data=data)
    if color == "rgb":
        return np.repeat(image, 3, 2) if image.shape[2] == 1 else image
    if color == "luma":
        return luma(np.repeat(image, 3, 2) if image.shape[2] == 1 else image).round().astype(np.uint8)
    if image.shape[2] == 1:
        return image
    first = image[..., :1]
    return first if (image == first).all() else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def _fast_png(path: Path, data: bytes) -> np.ndarray | None:
    """uint8 `[H, W, 1 or 3]` of an ordinary 8-bit PNG; None for anything else, damage included, which is Pillow's to
    judge (OpenCV gives half an image for half a file), and what metadata may turn."""
    dimensions = PLAIN.get(data[24:26])
    if not data.startswith(PNG_MAGIC) or not data.endswith(END) or dimensions is None:
        return None
    if not TURNING.isdisjoint(_chunks(data)):
        return None
    refuse_large(path, *reversed(struct.unpack_from(">II", data, 16)))
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if (
        image is None
        or image.dtype != np.uint8
        or image.ndim != dimensions
        or (dimensions == 3 and image.shape[2] != 3)
    ):
        return None
    return image[..., None] if dimensions == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _chunks(data: bytes) -> set[bytes]:
    """Kinds of the chunks of a PNG; an empty one among them if they do not fill the file."""
    kinds, at = set(), 8
    while at + 12 <= len(data):
        kinds.add(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return kinds if at == len(data) else kinds | {b""}
