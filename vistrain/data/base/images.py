"""Reading image files to uint8 RGB exactly as Pillow does, only faster for ordinary JPEGs, and naming what is wrong."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision  # type: ignore[import-untyped]
from PIL import Image, ImageOps, UnidentifiedImageError

from vistrain.data.base.storage import open_file, read_bytes
from vistrain.errors import DataError

try:  # extra `fast`; like torchvision's decoder it gives Pillow's pixels to the bit, a little faster
    import simplejpeg
except ImportError:
    simplejpeg = None

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")  # of image files
ORIENTATION = 0x0112  # the EXIF tag
JPEG_MAGIC = b"\xff\xd8\xff"


def read_image(path: str | Path, apply_exif: bool = False, data: bytes | None = None) -> np.ndarray:
    """Reads an image file.

    The pixels are those of Pillow's `Image.open(path).convert("RGB")`: grey is repeated three times, palettes are
    looked up, CMYK is converted, an alpha channel is dropped (not blended), of an animation the first frame is taken.
    16-bit grey, which Pillow would clip at 255, keeps its high byte (value >> 8), as Pillow itself does for 16-bit
    colour.

    Args:
        path: JPEG, PNG, TIFF, WebP, BMP or whatever else Pillow reads.
        apply_exif: turn and mirror the image as its EXIF orientation says. The official DETR code does not (the
            coordinates of COCO belong to the stored array); a photograph that a user hands in should be.
        data: the file's content, if it has been read already.

    Returns:
        uint8 `[H, W, 3]`, RGB, contiguous.

    Raises:
        DataError: the file is missing, empty, truncated, no image, or has floating-point pixels.
    """
    data = data or _bytes(path)
    pixels = _decode(path, data)
    return _turn(pixels, _orientation(path, data)) if apply_exif else pixels


def read_listed_image(path: str | Path, height: int, width: int, exif: str = "auto") -> np.ndarray:
    """Reads an image whose size an annotation file states, in the orientation that the annotations were drawn on.

    Args:
        path: the file.
        height, width: pixels, as listed.
        exif: `auto` turns the image by its EXIF orientation exactly if only the turned size is the listed one, and
            otherwise keeps the stored array, as the official DETR code does (also where both fit: square images and
            half turns); `apply` always turns (detectron2's way), `ignore` never does.

    Returns:
        uint8 `[height, width, 3]`, RGB.

    Raises:
        DataError: as `read_image`, or the image has another size than the listed one.
    """
    data = _bytes(path)
    pixels = _decode(path, data)
    if exif == "apply" or (exif == "auto" and pixels.shape[:2] != (height, width)):
        pixels = _turn(pixels, _orientation(path, data))
    if pixels.shape[:2] != (height, width):
        raise DataError(
            str(path),
            f"the image is {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotations are for {width}x{height}",
            "resized after it was annotated? correct width and height and the boxes, or restore the file",
        )
    return pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file as stored (no EXIF orientation), from its header alone.

    Raises:
        DataError: the file is missing, or no image.
    """
    try:
        with open_file(path) as file, Image.open(file) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise DataError(str(path), "no such image file") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(str(path), f"not an image that can be read ({error})") from error


def _bytes(path: str | Path) -> bytes:
    try:
        data = read_bytes(path)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such image file") from error
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise DataError(str(path), "empty file (0 bytes)", "copy or download it again")
    return data


def _decode(path: str | Path, data: bytes) -> np.ndarray:
    if data.startswith(JPEG_MAGIC):
        # Anything out of the ordinary (CMYK, damage that libjpeg warns of) is Pillow's to judge, below.
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            return _fast_jpeg(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and transparency notes; what matters is raised
            image = Image.open(io.BytesIO(data))
            image.load()
        return np.array(_to_rgb(path, image))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(str(path), f"not an image that can be read (starts with {data[:8]!r})") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow's decoders report damage in all of these, SyntaxError ("broken PNG file") included.
        raise DataError(str(path), f"damaged image: {error}", "copy or download it again") from error


def _fast_jpeg(data: bytes) -> np.ndarray:
    """Decodes a grey or colour JPEG; ValueError, RuntimeError or OSError says that it is not an ordinary one."""
    if simplejpeg is not None:
        if simplejpeg.decode_jpeg_header(data)[2] not in ("YCbCr", "Gray", "RGB"):
            raise ValueError("not a grey or colour JPEG")
        return simplejpeg.decode_jpeg(data, "RGB")
    if Image.open(io.BytesIO(data)).mode not in ("RGB", "L"):
        raise ValueError("not a grey or colour JPEG")
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_jpeg(encoded, torchvision.io.ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()


def _to_rgb(path: str | Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError(str(path), "floating-point pixels have no agreed range", "convert the file to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise DataError(str(path), "32-bit pixels have no agreed range", "convert the file to 8 or 16 bits")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _orientation(path: str | Path, data: bytes) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = Image.open(io.BytesIO(data)).getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError):  # an unreadable EXIF block says nothing about the orientation
        return 1
    return value if value in range(1, 9) else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(image))
