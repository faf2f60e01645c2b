"""Files as strangers make them, for the corpus: pictures by their bytes, annotations by their entries."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """A picture whose four corners differ."""
    ramp = np.linspace(0, 255, width * height).astype(np.uint8).reshape(height, width)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], 2))


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """The picture as a file of a kind."""
    buffer = io.BytesIO()
    picture().convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """The picture with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(kind, exif=exif)


def jpeg_of(width: int, height: int, **options: Any) -> bytes:
    """A JPEG whose head states a size of its own."""
    data = bytearray(encoded("JPEG", **options))
    frame = data.find(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its check sum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 2, chunks: bytes = b"") -> bytes:
    """A PNG whose head states a size of its own."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Many zeros, deflated."""
    deflate, block = zlib.compressobj(1), bytes(2**20)
    parts = [deflate.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, deflate.compress(bytes(count & 2**20 - 1)), deflate.flush()])


def tiff_of(
    width: int,
    height: int,
    data: bytes,
    bits: int = 8,
    compression: int = 1,
    kind: int = 1,
    more: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """A grey TIFF of one strip, or with the tags of tiles in `more`."""
    tags = {
        256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data),
        339: kind, **dict(more),
    }  # fmt: skip
    pad = len(data) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data) + pad) + data + bytes(pad) + directory


def patched(data: bytes, at: int, content: bytes) -> bytes:
    """Bytes with some of them replaced."""
    return data[:at] + content + data[at + len(content) :]


def truth() -> dict[str, Any]:
    """Two images of two classes, in COCO's format."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 100, "height": 60},
            {"id": 2, "file_name": "b.jpg", "width": 50, "height": 80},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def changed(section: str, /, **fields: Any) -> dict[str, Any]:
    """The truth with fields of the first entry of a section changed; `...` takes one out."""
    content = truth()
    entry = {**content[section][0], **fields}
    content[section][0] = {key: value for key, value in entry.items() if value is not ...}
    return content
