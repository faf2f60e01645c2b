"""The one reader of image files, for all commands and tasks: uint8 RGB, upright, exactly Pillow's pixels.

Files are strangers': only the decoders of `FORMATS` are used (Pillow has others that start programs), no decoder is
started before the size that the head states is known to be one that is read, and what any decoder raises becomes one
error that names the file.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
import torchvision  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from vistrain.data.base.jpeg import MAGIC, JpegHead, jpeg_head, orientation_of
from vistrain.data.base.storage import open_file, read_bytes
from vistrain.errors import DataError

try:  # extra `fast`; like torchvision's decoder it gives Pillow's pixels to the bit, a little faster
    import simplejpeg
except ImportError:
    simplejpeg = None

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")  # of image files
# Of pictures that are not read: their formats need other libraries, or have no agreed colours.
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "WEBP",
    "TIFF",
)  # Pillow's decoders that are used, in the order of trying
SEVERAL = ("PNG", "WEBP", "TIFF", "GIF")  # of several pages or frames; further pictures in a JPEG are previews

PIXELS = 16384 * 12288  # that an image may have: telephones of 200 megapixels are read
FILE_BYTES = 2**30  # that an image file may have
HEAD_BYTES = 2**20  # of a JPEG in which its size is looked for first: previews stand before it
SCANNED = 25 * PIXELS  # pixels that all scans of a progressive JPEG may have together: ten scans are usual
TILE_TAGS, SMALL_TILE = (322, 323), 2**24  # TIFF's TileWidth and TileLength; pixels of a tile that any image may have
BAND = 2**22  # pixels that are converted at a time
DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError,
    MemoryError, AssertionError, struct.error, zlib.error, cv2.error,
)  # fmt: skip  # what decoders raise at damaged bytes: each from deep inside a parser that assumes sound input


def read_image(path: str | Path, apply_exif: bool = True, data: bytes | None = None) -> np.ndarray:
    """Reads an image file, upright.

    The pixels are those of Pillow's `Image.open(path).convert("RGB")`: grey is repeated three times, palettes are
    looked up, CMYK is converted, an alpha channel is dropped (not blended), of an animation or a document the first
    frame or page is taken. 16-bit grey, which Pillow would clip at 255, keeps its high byte (value >> 8), as Pillow
    itself does for 16-bit colour.

    Args:
        path: JPEG, PNG, TIFF, WebP, BMP, GIF or PPM, whatever its name ends in.
        apply_exif: turn and mirror the image as its EXIF orientation says, as every viewer does. TIFF is always read
            upright.
        data: the file's content, if it has been read already.

    Returns:
        uint8 `[H, W, 3]`, RGB, contiguous.

    Raises:
        DataError: the file is missing, no plain file, empty, truncated, no image, has floating-point pixels, or more
            than `PIXELS` of them.
    """
    pixels, orientation = _decode(path, data or image_bytes(path))
    return turned(pixels, orientation) if apply_exif else pixels


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
    pixels, orientation = _decode(path, image_bytes(path))
    if exif == "apply" or (exif == "auto" and pixels.shape[:2] != (height, width)):
        pixels = turned(pixels, orientation)
    if pixels.shape[:2] != (height, width):
        raise DataError(
            str(path),
            f"the image is {pixels.shape[1]}x{pixels.shape[0]} pixels, its annotations are for {width}x{height}",
            "resized after it was annotated? correct width and height and the boxes, or restore the file",
        )
    return pixels


def read_alpha(path: str | Path) -> np.ndarray | None:
    """The opacity of an image, upright: uint8 `[H, W, 1]`; None if nothing is transparent.

    Raises:
        DataError: as `read_image`.
    """
    data = image_bytes(path)
    if data.startswith(MAGIC):
        return None
    with _refusals(path, data):
        image = _opened(path, data)
        if not ("A" in image.getbands() or "transparency" in image.info):
            return None
        image.load()
        alpha = np.array(image.convert("RGBA").getchannel("A"))
    return None if (alpha == 255).all() else turned(alpha, _orientation(image))[..., None]


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file, upright as `read_image` gives it, from its head alone.

    Raises:
        DataError: the file is missing, no plain file, no image, or has more than `PIXELS` pixels.
    """
    height, width, orientation = _head(path)
    return (width, height) if orientation > 4 else (height, width)


def image_orientation(path: str | Path) -> int:
    """How EXIF turns an image file, 1 (not at all) to 8, from its head alone.

    Raises:
        DataError: as `image_size`.
    """
    return _head(path)[2]


def has_several(path: str | Path) -> bool:
    """Whether an image file has several pages or frames, of which `read_image` gives the first.

    Raises:
        DataError: as `image_size`.
    """
    if Path(path).suffix.lower() in JPEG_SUFFIXES:
        return False
    with _file(path) as file:
        image = _opened(path, file)
        return image.format in SEVERAL and _has_second(image)


def image_bytes(path: str | Path) -> bytes:
    """The content of an image file.

    Raises:
        DataError: it is missing, empty, no plain file, or larger than `FILE_BYTES`.
    """
    try:
        data = read_bytes(path, FILE_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not data:
        raise DataError(str(path), "empty file (0 bytes)", "copy or download it again")
    return data


def ordinary_jpeg(path: str | Path, data: bytes) -> JpegHead | None:
    """The head of a grey or colour JPEG; None of anything else, CMYK included.

    Raises:
        DataError: its size or the number of its scans is refused: a few kilobytes can ask for thousands of passes over
            a large image.
    """
    head = jpeg_head(data) if data.startswith(MAGIC) else None
    if head is None:
        return None
    refuse_large(path, head.height, head.width)
    if head.is_progressive and head.height * head.width * data.count(b"\xff\xda") > SCANNED:
        problem = f"damaged image: more scans of {head.width}x{head.height} pixels than any camera writes"
        raise DataError(str(path), problem, "save it anew with an image editor")
    return head if head.components in (1, 3) else None


def refuse_large(path: str | Path, height: int, width: int) -> None:
    """Refuses an image by the size that its head states, before a decoder allocates what the size asks for.

    Raises:
        DataError: it has no pixels, or more than `PIXELS`.
    """
    if height * width == 0:
        raise DataError(str(path), f"damaged image: its head says {width}x{height} pixels", "copy or download it again")
    if height * width > PIXELS:
        most = f"{PIXELS / 1e6:.0f} million are read at the most"
        raise DataError(str(path), f"{width}x{height} pixels: {most}", "cut it into tiles, or make it smaller")


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`[H, W]` or `[H, W, C]` as EXIF's orientation, 1 to 8, says."""
    if orientation == 1:
        return pixels
    if orientation in (5, 7):
        pixels = cv2.transpose(pixels)
    elif orientation in (6, 8):
        pixels = cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE if orientation == 6 else cv2.ROTATE_90_COUNTERCLOCKWISE)
    flip = {2: 1, 3: -1, 4: 0, 7: -1}.get(orientation)
    return np.ascontiguousarray(pixels if flip is None else cv2.flip(pixels, flip))


def _unreadable(path: str | Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(str(path), "no such image file")
    return DataError(str(path), f"cannot be read: {error.strerror or error}")


def _head(path: str | Path) -> tuple[int, int, int]:
    """Height and width as stored, and the orientation, from as little of a file as its head takes."""
    with _file(path) as file:
        start = file.read(len(MAGIC))
        if start == MAGIC:
            start += file.read(HEAD_BYTES)
            head = jpeg_head(start) or jpeg_head(start + file.read(FILE_BYTES))
            if head is not None:
                refuse_large(path, head.height, head.width)
                return head.height, head.width, head.orientation
        file.seek(0)
        image = _opened(path, file)
        return image.height, image.width, _orientation(image)


@contextlib.contextmanager
def _file(path: str | Path) -> Iterator[BinaryIO]:
    """An image file, opened; what decoders raise in the block names it."""
    try:
        file = open_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    with file, _refusals(path, b""):
        yield file


def _decode(path: str | Path, data: bytes) -> tuple[np.ndarray, int]:
    """The stored pixels, and how they are to be turned."""
    head = ordinary_jpeg(path, data)
    if head is not None:
        try:
            return _fast_jpeg(data), head.orientation
        except (ValueError, RuntimeError, OSError) as error:
            # Anything out of the ordinary (damage that libjpeg warns of) is Pillow's to judge, if it takes the size.
            if head.height * head.width > 2 * (Image.MAX_IMAGE_PIXELS or PIXELS):
                raise _damaged(path, error) from error
    with _refusals(path, data):
        image = _opened(path, data)
        image.load()
        return _rgb(path, image), _orientation(image)


def _fast_jpeg(data: bytes) -> np.ndarray:
    """Decodes a grey or colour JPEG; ValueError, RuntimeError or OSError says that it is not an ordinary one."""
    if simplejpeg is not None:
        return simplejpeg.decode_jpeg(data, "RGB")
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_jpeg(encoded, torchvision.io.ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()


def _opened(path: str | Path, source: bytes | BinaryIO) -> Image.Image:
    """An image whose head alone has been read, of a size and kind that is decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF and transparency notes; what matters is raised
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        image = Image.open(file, formats=FORMATS)
    refuse_large(path, image.height, image.width)
    if isinstance(image, TiffImageFile):
        tile = (image.tag_v2.get(tag, 1) for tag in TILE_TAGS)
        if math.prod(tile) > max(4 * image.height * image.width, SMALL_TILE):  # each tile is unpacked whole
            raise DataError(str(path), "damaged image: its tiles are far larger than itself", "save it anew")
    if image.mode == "F":
        raise DataError(str(path), "floating-point pixels have no agreed range", "convert the file to 8 or 16 bits")
    return image


@contextlib.contextmanager
def _refusals(path: str | Path, data: bytes) -> Iterator[None]:
    """What decoders raise in the block becomes an error that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        begins = f" (starts with {data[:8]!r})" if data else ""
        known = f"readable are {', '.join(FORMATS)}"
        raise DataError(str(path), f"not an image that can be read{begins}", known) from error
    except Image.DecompressionBombError as error:
        problem = (
            f"more than {(Image.MAX_IMAGE_PIXELS or 0) * 2 / 1e6:.0f} million pixels, which are read of JPEG alone"
        )
        raise DataError(str(path), problem, "cut it into tiles, or make it smaller") from error
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: BaseException) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return DataError(str(path), f"damaged image: {reason}", "copy or download it again")


def _rgb(path: str | Path, image: Image.Image) -> np.ndarray:
    """uint8 `[H, W, 3]` of a loaded image; band by band, as whole conversions take several times its memory."""
    width, height = image.size
    if height * width <= BAND:
        return np.array(_to_rgb(path, image))
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(_to_rgb(path, image.crop((0, top, width, bottom))))
    return pixels


def _to_rgb(path: str | Path, image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise DataError(str(path), "32-bit pixels have no agreed range", "convert the file to 8 or 16 bits")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Of an opened image, whose pixels are as stored. Pillow itself turns TIFF, and gives its turned size."""
    if image.format == "TIFF":
        return 1
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    return orientation_of(exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b"")


def _has_second(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except DAMAGED:  # EOFError where there is none; what is behind damage is not said
        return False
    return True
