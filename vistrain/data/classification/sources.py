"""Where the images of a classification set come from: files, or arrays in memory; read only as far as is needed."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from vistrain.data.base.images import SUFFIXES, UNREAD, image_bytes, ordinary_jpeg, read_image, turned
from vistrain.data.base.jpeg import JpegHead
from vistrain.data.base.storage import files_below
from vistrain.errors import DataError

try:  # extra `fast`, see `images`
    import simplejpeg
except ImportError:
    simplejpeg = None

FACTORS = (8, 4, 2)  # by which JPEGs can be decoded smaller at less than the full cost


class Encoded(Protocol):
    """An image that is not decoded yet."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def decode(self, shrink: float = 1.0) -> np.ndarray:
        """uint8 `[h, w, 3]`, RGB, at most `shrink` times smaller than it is; often not smaller at all."""
        ...


class Source(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Encoded:
        """The image of an index."""
        ...

    def path(self, index: int) -> Path:
        """Its file, for messages and pictures."""
        ...


@dataclass(frozen=True)
class Split:
    """Images and their classes.

    Attributes:
        source: the images.
        labels: `[M]` int64, class channels of all images one after the other.
        first: `[N + 1]` int64: image i has `labels[first[i]:first[i + 1]]`.
    """

    source: Source
    labels: np.ndarray
    first: np.ndarray

    @classmethod
    def single(cls, source: Source, labels: Sequence[int] | np.ndarray) -> Split:
        """A split with one class for each image."""
        return cls(source, np.asarray(labels, dtype=np.int64), np.arange(len(source) + 1))

    def __len__(self) -> int:
        return len(self.source)

    def of(self, index: int) -> tuple[int, ...]:
        """The classes of an image."""
        return tuple(self.labels[self.first[index] : self.first[index + 1]].tolist())

    def subset(self, chosen: np.ndarray) -> Split:
        """The images of these indices, in this order."""
        labels = [self.of(int(i)) for i in chosen]
        first = np.concatenate([[0], np.cumsum([len(row) for row in labels])])
        flat = np.array([label for row in labels for label in row], np.int64)
        return Split(_Chosen(self.source, chosen), flat, first)


class Files:
    """Image files below a folder. Names are kept as one array of bytes, which worker processes share without copies.

    Args:
        folder: that the names are relative to.
        names: of the files.
        upright: turn photographs as their EXIF orientation says; False reads them as they are stored.
    """

    def __init__(self, folder: Path, names: Sequence[str], upright: bool = True) -> None:
        self.folder, self.upright = folder, upright
        self.names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Encoded:
        """The file's image.

        Raises:
            DataError: it cannot be read.
        """
        return ImageFile(self.path(index), self.upright)

    def path(self, index: int) -> Path:
        """The file."""
        return self.folder / os.fsdecode(bytes(self.names[index]))


class ImageFile:
    """An image file, of which nothing but the head is decoded until it is asked for.

    Args:
        path: the file.
        upright: see `Files`.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path, upright: bool = True) -> None:
        self.path, self.upright = path, upright
        self._pixels: np.ndarray | None = None
        self._data = image_bytes(path)
        self._head = ordinary_jpeg(path, self._data)
        if self._head is None:
            self.size = self._all().shape[:2]
        else:
            self.size = self._head.upright if upright else (self._head.height, self._head.width)

    def decode(self, shrink: float = 1.0) -> np.ndarray:
        """uint8 `[h, w, 3]`; a JPEG by 2, 4 or 8 smaller where that is not too small.

        Raises:
            DataError: it is damaged.
        """
        factor = next((f for f in FACTORS if f <= shrink), 1)
        if factor > 1 and self._pixels is None and self._head is not None:
            # Anything out of the ordinary is the full reader's to judge.
            with contextlib.suppress(ValueError, RuntimeError, OSError, SyntaxError):
                pixels = self._decode_smaller(self._head, factor)
                return turned(pixels, self._head.orientation) if self.upright else pixels
        return self._all()

    def _decode_smaller(self, head: JpegHead, factor: int) -> np.ndarray:
        wanted = (math.ceil(head.height / factor), math.ceil(head.width / factor))
        if simplejpeg is not None:
            pixels: np.ndarray = simplejpeg.decode_jpeg(
                self._data, "RGB", min_height=wanted[0], min_width=wanted[1], min_factor=factor
            )
            return pixels
        with Image.open(io.BytesIO(self._data), formats=("JPEG",)) as image:
            image.draft("RGB", wanted[::-1])
            return np.array(image.convert("RGB"))

    def _all(self) -> np.ndarray:
        if self._pixels is None:
            self._pixels = read_image(self.path, self.upright, data=self._data)
        return self._pixels


class Arrays:
    """Images in memory.

    Args:
        images: uint8 `[N, H, W]` or `[N, H, W, 3]`.
        path: the file that they come from.
    """

    def __init__(self, images: np.ndarray, path: Path) -> None:
        self.images, self.file = images, path

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Encoded:
        """The image of an index."""
        return _Decoded(self.images[index])

    def path(self, index: int) -> Path:
        """The file that holds all of them."""
        return self.file


@dataclass(frozen=True)
class _Decoded:
    image: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def decode(self, shrink: float = 1.0) -> np.ndarray:
        if self.image.ndim == 2:
            return np.repeat(self.image[..., None], 3, axis=2)
        return np.ascontiguousarray(self.image)


class _Chosen:
    def __init__(self, source: Source, chosen: np.ndarray) -> None:
        self.source, self.chosen = source, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def open(self, index: int) -> Encoded:
        return self.source.open(int(self.chosen[index]))

    def path(self, index: int) -> Path:
        return self.source.path(int(self.chosen[index]))


def unread_files(folder: Path) -> list[str]:
    """Names of the pictures below a folder that are of formats which are not read, sorted.

    Raises:
        OSError, DataError: the folder cannot be read.
    """
    return [name for name in files_below(folder) if name.lower().endswith(UNREAD)]


def image_files(folder: Path) -> list[str]:
    """Names of the image files below a folder, at any depth, sorted; hidden files are left out.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        names = files_below(folder)
    except OSError as error:
        raise DataError(str(folder), f"cannot be read: {error.strerror or error}") from error
    return [n for n in names if n.lower().endswith(SUFFIXES) and not os.path.basename(n).startswith(".")]
