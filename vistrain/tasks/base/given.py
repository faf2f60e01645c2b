"""Pictures as Python callers give them: paths, bytes, open files, PIL images, arrays and tensors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from vistrain.data.base.images import read_image
from vistrain.errors import DataError

CHANNELS = (1, 3, 4)
TAKEN = "give a path, bytes, an open file, a PIL image, or an array uint8 [H, W, 3] RGB or [H, W]"


def read_picture(source: Any) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB of whatever means one picture.

    Args:
        source: see `ImagePredictor`.

    Raises:
        DataError: it cannot be read, or its meaning is not clear: several pictures, values of no agreed range, channels
            of no agreed meaning, None (which OpenCV gives for a file that it cannot read).
    """
    if isinstance(source, str | Path):
        if "\0" in str(source):
            raise DataError(repr(str(source)), "is no file's name")
        return read_image(source)
    if isinstance(source, Image.Image):
        return _of_pil(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _of_bytes(bytes(source), f"{len(source)} bytes")
    if hasattr(source, "read"):
        return _of_file(source)
    if isinstance(source, torch.Tensor):
        return _of_array(_values(source), kind_of(source), of_torch=True)
    if isinstance(source, np.ndarray):
        return _of_array(source, kind_of(source), of_torch=False)
    if source is None:
        raise DataError("image", "None is no picture", "OpenCV gives it for a file that it cannot read: give its path")
    if isinstance(source, list | tuple):
        raise DataError("image", f"{kind_of(source)} is not one picture", "predict_batch takes several")
    raise DataError("image", f"{kind_of(source)} is no picture", TAKEN)


def kind_of(given: Any) -> str:
    """What something is, for a message."""
    if isinstance(given, np.ndarray | torch.Tensor):
        dtype = str(given.dtype).removeprefix("torch.")
        return f"{'a tensor' if isinstance(given, torch.Tensor) else 'an array'} {dtype} {list(given.shape)}"
    if isinstance(given, list | tuple):
        return f"a {type(given).__name__} of {len(given)}"
    return "None" if given is None else f"a {type(given).__name__}"


def _of_bytes(data: bytes, where: str) -> np.ndarray:
    if not data:
        raise DataError(where, "no picture: empty")
    return read_image(where, data=data)


def _of_file(file: Any) -> np.ndarray:
    name = file.name if isinstance(file, io.BufferedReader | io.FileIO | io.TextIOWrapper) else "open file"
    try:
        if isinstance(file, io.TextIOBase):
            raise DataError(str(name), "is open as text", "open it with mode 'rb'")
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise DataError(str(name), f"cannot be read: {error}") from error
    if not data:
        raise DataError(str(name), "no picture: the open file is at its end", "seek(0) goes to its beginning")
    return _of_bytes(bytes(data), str(name))


def _of_pil(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise DataError("image", f"PIL mode {image.mode} has no agreed range", "convert it to 8 bits")
    try:
        pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # opened lazily, so that damage is found here
        raise DataError(str(vars(image).get("filename") or "image"), f"damaged image: {error}") from error
    return _not_empty(pixels, f"a PIL image {image.width}x{image.height}")


def _values(tensor: torch.Tensor) -> np.ndarray:
    try:
        whole = tensor.detach().cpu()
        return (whole.float() if whole.is_floating_point() else whole).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, meta
        raise DataError("image", f"{kind_of(tensor)} holds no plain values: {str(error).splitlines()[0]}") from error


def _of_array(values: np.ndarray, kind: str, of_torch: bool) -> np.ndarray:
    if of_torch and values.ndim == 3 and values.shape[0] in CHANNELS:
        values = values.transpose(1, 2, 0)  # torchvision's order; it also means that where both would fit
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 4:
        raise DataError("image", f"{kind} is not one picture", "predict_batch(list(...)) takes several")
    if values.ndim != 3 or values.shape[2] not in CHANNELS:
        first = values.ndim == 3 and values.shape[0] in CHANNELS
        remedy = "transpose(1, 2, 0) brings the channels to the end" if first else TAKEN
        raise DataError("image", f"{kind} is not [H, W, 3] RGB, [H, W, 4] with alpha, or [H, W] grey", remedy)
    values = _not_empty(values, kind)[..., :3]
    pixels = _bytes_of(values, kind)
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def _bytes_of(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as uint8: they are, or floating point in 0..1, or whole numbers of 0..255 in floating point.

    Fractions above 1 could be either, so a resize that overshoots 1 would come out black.
    """
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError("image", f"{kind} has no agreed range", "bring it to 0..255 and convert it: .astype('uint8')")
    low, high = float(values.min()), float(values.max())  # NaN makes both NaN
    if low >= 0 and high <= 1:
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if low >= 0 and high <= 255 and (values == np.rint(values)).all():
        return values.astype(np.uint8)
    remedy = "floating point means 0..1, or whole numbers of 0..255; clip it, or convert it by .astype('uint8')"
    raise DataError("image", f"{kind} has values from {low:g} to {high:g}", remedy)


def _not_empty(values: np.ndarray, kind: str) -> np.ndarray:
    if not values.size:
        raise DataError("image", f"{kind} has no pixels")
    return values
