"""TIFF files of any number of bands, which Pillow opens none of beyond four.

Pillow parses the tags and its libtiff unpacks the strips or tiles, as bytes of a grey image that is made of them: sizes
are known, and bounded, before anything is allocated, whatever the packed bytes would swell to.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vistrain.data.base.images import DAMAGED, PIXELS, SMALL_TILE, refuse_large
from vistrain.errors import DataError

PACKED = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard"}
VALUE_BYTES = 2**31  # that the bands of a page may have
AT_ONCE = 2**26  # bytes that are unpacked at a time
MOST_BANDS, MOST_PAGES = 4096, 4096
KINDS = {1: "u", 2: "i", 3: "f"}  # SampleFormat
GDAL = "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE writes what is read"


@dataclass(frozen=True)
class Page:
    """One picture of a TIFF.

    Attributes:
        height, width, bands: of it.
        dtype: of its values, in the file's byte order.
        planar: whether bands are stored one after the other.
        packed: the number of its compression.
        predictor: 1 none, 2 differences, 3 differences of the bytes of floats.
        tile: (height, width) of its tiles, or of its strips.
        is_tiled: whether these are tiles, which have their whole size at the edges, too.
        places, lengths: of the packed tiles or strips in the file.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype[Any]
    planar: bool
    packed: int
    predictor: int
    tile: tuple[int, int]
    is_tiled: bool
    places: tuple[int, ...]
    lengths: tuple[int, ...]


def tiff_pages(path: str | Path, data: bytes) -> list[Page]:
    """The pages of a TIFF that have the first one's size (others are previews), by their tags alone.

    Args:
        path: for messages.
        data: the file's content.

    Raises:
        DataError: it is no TIFF, damaged, too large, or of a kind that is not read.
    """
    if data[:2] not in (b"II", b"MM"):
        raise DataError(str(path), f"is no TIFF (starts with {data[:8]!r})", "name files as what they are")
    if data[:4] == b"MM\x00\x2b":
        raise DataError(str(path), "BigTIFF with its highest bytes first is not read", GDAL)
    file, pages, seen = io.BytesIO(data), list[Page](), set[int]()
    order = "<" if data[:2] == b"II" else ">"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that nobody looks at
            is_big = data[2:3] == b"\x2b"  # BigTIFF, whose places have 64 bits
            tags = ImageFileDirectory_v2(data[: 16 if is_big else 8])
            place = tags.next
            while place and place not in seen and len(seen) < MOST_PAGES:
                seen.add(place)
                file.seek(place)
                tags.load(file)
                if not pages or (int(tags[257]), int(tags[256])) == (pages[0].height, pages[0].width):
                    pages.append(_page(path, tags, order, len(data)))
                place = tags.next
    except DataError:
        raise
    except DAMAGED as error:
        raise _damaged(path, error) from error
    if not pages:
        raise DataError(str(path), "damaged TIFF: it has no page", "copy or download it again")
    return pages


def read_tiff(path: str | Path, data: bytes, wanted: Sequence[int]) -> np.ndarray:
    """Bands of a TIFF; those of several pages follow one another.

    Args:
        path: for messages.
        data: the file's content.
        wanted: numbers of bands, from 0; all are there.

    Returns:
        `[H, W, len(wanted)]` of the stored type, in the machine's byte order.

    Raises:
        DataError: see `tiff_pages`; or its pages are of several types.
    """
    pages = tiff_pages(path, data)
    if len({page.dtype for page in pages}) > 1:
        raise DataError(str(path), "its pages hold values of several types", "write them with one")
    owners = [(page, band) for page in pages for band in range(page.bands)]
    first = pages[0]
    out = np.empty((first.height, first.width, len(wanted)), first.dtype.newbyteorder("="))
    try:
        for page in pages:
            places = [i for i, number in enumerate(wanted) if owners[number][0] is page]
            if places:
                _unpack(path, data, page, [owners[wanted[i]][1] for i in places], places, out)
    except DataError:
        raise
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise _damaged(path, error) from error
    return out


def _page(path: str | Path, tags: ImageFileDirectory_v2, order: str, size: int) -> Page:
    """A page by its tags.

    Raises:
        DataError: it is too large, or of a kind that is not read.
    """
    height, width, bands = int(tags[257]), int(tags[256]), int(tags.get(277, 1))
    refuse_large(path, height, width)
    bits, kinds = set(_numbers(tags, 258, 1)), set(_numbers(tags, 339, 1))
    if not 0 < bands <= MOST_BANDS or len(bits) != 1 or len(kinds) != 1:
        raise DataError(str(path), f"{bands} bands of {sorted(bits)} bits are not read", GDAL)
    bit, kind = bits.pop(), KINDS.get(kinds.pop(), "")
    if bit not in (8, 16, 32, 64) or not kind or (kind == "f" and bit == 8):
        raise DataError(str(path), f"values of {bit} bits of this kind are not read", "write 8, 16 or 32 bits")
    dtype = np.dtype(f"{order}{kind}{bit // 8}")
    if height * width * bands * dtype.itemsize > VALUE_BYTES:
        problem = f"{width}x{height} pixels of {bands} bands fill more than {VALUE_BYTES // 2**30} GiB"
        raise DataError(str(path), problem, "cut it into tiles")
    packed, predictor = int(tags.get(259, 1)), int(tags.get(317, 1))
    if packed not in PACKED or predictor not in (1, 2, 3) or int(tags.get(266, 1)) != 1:
        problem = f"its compression (number {packed}, predictor {predictor}) is not read"
        raise DataError(str(path), problem, f"readable are {', '.join(dict.fromkeys(PACKED.values()))}; {GDAL}")
    is_tiled = 322 in tags
    tile = (int(tags[323]), int(tags[322])) if is_tiled else (min(int(tags.get(278, height)), height), width)
    if min(tile) < 1 or math.prod(tile) > max(4 * height * width, SMALL_TILE):
        raise DataError(str(path), "damaged TIFF: its tiles are far larger than itself", "save it anew")
    planar = int(tags.get(284, 1)) == 2
    places, lengths = (_numbers(tags, tag, 0) for tag in ((324, 325) if is_tiled else (273, 279)))
    count = -(-height // tile[0]) * -(-width // tile[1]) * (bands if planar else 1)
    fits = len(places) == len(lengths) == count and count <= PIXELS
    if not fits or any(a < 0 or n < 0 or a + n > size for a, n in zip(places, lengths, strict=True)):
        raise DataError(str(path), "damaged TIFF: parts of it are missing", "copy or download it again")
    return Page(height, width, bands, dtype, planar, packed, predictor, tile, is_tiled, places, lengths)


def _numbers(tags: ImageFileDirectory_v2, tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return tuple(int(x) for x in value) if isinstance(value, tuple) else (int(value),)


def _unpack(
    path: str | Path, data: bytes, page: Page, bands: Sequence[int], places: Sequence[int], out: np.ndarray
) -> None:
    """Write bands of a page into places of the last axis of `out`, some rows of tiles at a time."""
    (high, wide), across = page.tile, -(-page.width // page.tile[1])
    down = -(-page.height // high)
    samples = 1 if page.planar else page.bands
    row_bytes = across * wide * samples * page.dtype.itemsize
    step = max(1, AT_ONCE // (row_bytes * high))
    for plane, targets in _planes(page, bands, places):
        for first in range(0, down, step):
            last = min(first + step, down)
            begin = (plane * down + first) * across
            segments = range(begin, begin + (last - first) * across)
            height = (last - first) * high if page.is_tiled else min(last * high, page.height) - first * high
            raw = _bytes(path, data, page, segments, height, row_bytes, wide * samples * page.dtype.itemsize)
            values = _values(raw, page, samples, across)
            top = first * high
            rows = min(height, page.height - top)
            out_rows, found = out[top : top + rows], values[:rows, : page.width]
            if targets == [(i, i) for i in range(out.shape[2])] and samples == out.shape[2]:
                out_rows[:] = found  # several times faster than band by band
                continue
            for source, target in targets:
                out_rows[..., target] = found[..., source]


def _planes(page: Page, bands: Sequence[int], places: Sequence[int]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Which plane of the file holds which bands: (its number, [(band in it, place)])."""
    pairs = list(zip(bands, places, strict=True))
    return [(band, [(0, place)]) for band, place in pairs] if page.planar else [(0, pairs)]


def _bytes(
    path: str | Path, data: bytes, page: Page, segments: range, height: int, width: int, tile_width: int
) -> np.ndarray:
    """The unpacked bytes of some rows of tiles, uint8 `[height, width]`, as one libtiff image of grey bytes."""
    parts = [data[page.places[i] : page.places[i] + page.lengths[i]] for i in segments]
    high = page.tile[0]
    if page.packed == 1 and not page.is_tiled:
        raw = np.frombuffer(b"".join(parts), np.uint8)
        if raw.size != height * width:
            raise DataError(str(path), "damaged TIFF: it is truncated", "copy or download it again")
        return raw.reshape(height, width)
    lengths = [len(part) for part in parts]
    places = np.cumsum([8, *lengths[:-1]]).tolist()
    tags = {256: [width], 257: [height], 258: [8], 259: [page.packed], 262: [1], 277: [1]}
    tags |= {322: [tile_width], 323: [high], 324: places, 325: lengths} if page.is_tiled else {}
    tags |= {} if page.is_tiled else {273: places, 278: [high], 279: lengths}
    file = _written(b"".join(parts), tags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(file), formats=("TIFF",))
        return np.asarray(image)


def _written(body: bytes, tags: dict[int, list[int]]) -> bytes:
    """A TIFF of one page whose packed bytes begin at 8, behind its head; all tags are whole numbers."""
    body += b"\0" * (len(body) % 2)
    start = 8 + len(body)
    beyond, entries = start + 2 + 12 * len(tags) + 4, []
    extra = b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        value = packed if len(values) == 1 else struct.pack("<I", beyond + len(extra))
        extra += packed if len(values) > 1 else b""
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + value)  # 4: unsigned, 32 bits
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, start) + body + directory + extra


def _values(raw: np.ndarray, page: Page, samples: int, across: int) -> np.ndarray:
    """Values `[rows, columns, samples]` of unpacked bytes, the predictor undone within each row of each tile."""
    rows, size, wide = raw.shape[0], page.dtype.itemsize, page.tile[1]
    if page.predictor == 3:
        # Each row of a tile: the highest bytes of all its values, the next ones, ...; differences band by band.
        summed = raw.reshape(rows, across, wide * size, samples).cumsum(2, dtype=np.uint8)
        planes = summed.reshape(rows, across, size, wide * samples).swapaxes(2, 3)
        values = np.ascontiguousarray(planes).view(f">{page.dtype.kind}{size}")
    else:
        values = np.ascontiguousarray(raw).view(page.dtype)
        if page.predictor == 2:
            whole = np.dtype(f"u{size}")
            bits = values.view(page.dtype.str[0] + f"u{size}").astype(whole).reshape(rows, across, wide, samples)
            values = bits.cumsum(2, dtype=whole).view(f"{page.dtype.kind}{size}")
    return values.reshape(rows, across * wide, samples)


def _damaged(path: str | Path, error: BaseException) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return DataError(str(path), f"damaged TIFF: {reason}", f"copy or download it again; {GDAL}")
