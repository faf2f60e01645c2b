"""Label files: the values that are stored in them, and which class each value is.

Nothing is guessed: a value that no class has, and that is not ignored either, is an error with the file's name.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from vistrain.data.base.class_names import refuse_names
from vistrain.data.base.images import DAMAGED, FORMATS, image_bytes, refuse_large
from vistrain.data.base.storage import read_text
from vistrain.data.segmentation.polygons import read_cityscapes_polygons
from vistrain.errors import ConfigError, DataError
from vistrain.structures import LabelSpace

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm", ".pnm")  # JPEG changes values
POLYGONS = ".json"  # of Cityscapes
IN_BYTES = 254  # classes that are numbered in bytes
Ignore = tuple[int, ...] | Literal["others"]
RGB = tuple[int, int, int]


def read_label_file(path: str | Path, colours: bool = False) -> np.ndarray:
    """The values that an image file stores, see `label_values`.

    Args:
        path: PNG, BMP, TIFF, GIF, WebP, PGM or PPM, whatever the file is called.
        colours: look palettes up, and give colours of any file, uint8 `[H, W, 3]`.

    Raises:
        DataError: the file is missing, empty, no image, damaged, JPEG, or holds floating-point values.
    """
    image = open_label_file(path)
    return np.array(image.convert("RGB")) if colours else label_values(image, path)


def open_label_file(path: str | Path) -> Image.Image:
    """A decoded label file; of Cityscapes' polygons (`.json`) what they draw.

    Raises:
        DataError: the file is missing, empty, no image, damaged, or JPEG, whose values are not those that were saved.
    """
    if Path(path).suffix.lower() == POLYGONS:
        return read_cityscapes_polygons(path)
    data = image_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken notes in the file; what matters is raised
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.format in ("JPEG", "MPO"):
                raise DataError(str(path), "is JPEG, which changes the values of labels", "export it again, as PNG")
            refuse_large(path, image.height, image.width)
            image.load()
    except UnidentifiedImageError as error:
        raise DataError(str(path), f"not an image that can be read (starts with {data[:8]!r})") from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(str(path), f"damaged image: {reason}", "copy or download it again") from error
    return image


def label_values(image: Image.Image, path: str | Path) -> np.ndarray:
    """The values that an image stores: no palette is looked up, nothing is scaled to 8 bits or turned.

    Args:
        image: of any mode.
        path: for messages.

    Returns:
        `[H, W]`, uint8 (grey values, positions in a palette, 0 and 1) or int32 (16 and 32 bits); or uint8 `[H, W, 3]`
        of a file with colours. Grey that is stored as three equal channels is grey; alpha is dropped.

    Raises:
        DataError: it holds floating-point values.
    """
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode == "1":
        return np.array(image, np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.array(image).astype(np.int32)
    if image.mode in ("LA", "PA"):
        return np.array(image.getchannel(0))
    if image.mode == "F":
        raise DataError(str(path), "holds floating-point values, not labels", "save whole numbers")
    colours = np.array(image.convert("RGB"))
    return colours[..., 0].copy() if (colours[..., :1] == colours).all() else colours


@dataclass(frozen=True)
class ClassList:
    """The classes of a set of label files.

    Attributes:
        names: of the classes.
        values: what each is stored as.
        palette: a colour for each, 0..255, or none.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    palette: tuple[RGB, ...] = ()


def read_classes(path: Path, first_value: int = 0) -> ClassList:
    """A class file: a line for each class, empty lines and those that begin with `#` left out.

    A line is a name; or a value and a name; or either with a colour behind it. The parts stand apart by tabs, commas,
    semicolons, colons or blanks: `7 road`, `1;wall`, `road: 128 64 128`, `7, road, 128, 64, 128`.

    Args:
        path: the file.
        first_value: of the first class where lines have no values; the others follow it.

    Raises:
        DataError: the file is missing or empty, a name or value occurs twice, or not all lines have values (colours).
    """
    lines = [line.strip() for line in read_text(path, what="class file").splitlines()]
    rows = [_parts(line) for line in lines if line and not line.startswith("#")]
    if not rows:
        raise DataError(str(path), "names no classes", "write a line for each class")
    for value, name, colour in rows:
        _refuse_values(path, () if value is None else (value,))
        if colour is not None and not all(0 <= c <= 255 for c in colour):
            raise DataError(
                str(path), f"{name!r} has the colour {list(colour)}", "give three whole numbers of 0 to 255"
            )
    for what, part in (("value", 0), ("colour", 2)):
        if len({row[part] is None for row in rows}) > 1:
            bare = next(row[1] for row in rows if row[part] is None)
            raise DataError(str(path), f"{bare!r} has no {what}, other lines have", "give all or none")
    names = tuple(row[1] for row in rows)
    values = tuple(first_value + i if row[0] is None else row[0] for i, row in enumerate(rows))
    _refuse_values(path, values)
    palette = tuple(row[2] for row in rows if row[2] is not None)
    refuse_names(names, str(path))
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise DataError(str(path), f"the value {twice} stands there twice", "give each class its own")
    return ClassList(names, values, palette)


def _refuse_values(path: Path, values: Sequence[int]) -> None:
    wrong = next((v for v in values if not 0 <= v < 1 << 31), None)
    if wrong is not None:
        raise DataError(str(path), f"{wrong} is no value of a label file", "values are whole numbers of 0 or more")


def _parts(line: str) -> tuple[int | None, str, RGB | None]:
    """Value, name and colour of a line."""
    apart = r"[\t,;:\s]+"
    number = r"([-+]?\d+)"  # with its sign: a wrong number is one, and no part of the name
    found = re.fullmatch(rf"(?:{number}{apart})?(.*?)(?:{apart}{number}{apart}{number}{apart}{number})?", line)
    assert found is not None  # anything is a name
    value, name, *colour = found.groups()
    if not name:  # a number alone is a name, too
        value, name = None, line
    rgb = None if colour[0] is None else (int(colour[0]), int(colour[1]), int(colour[2]))
    return None if value is None else int(value), name.strip(), rgb


class LabelRule:
    """From what label files store to class channels; `stored_values` is the way back.

    Args:
        classes: names, values and, for colours, the palette.
        ignore: stored values that carry no supervision: some, or all `others` that no class has.
        colours: whether files hold the palette's colours instead of values; a colour that no class has is refused, or
            ignored with `others`.

    Attributes:
        labels: the label space: `ids` are the stored values (of colours the positions), the ignore index is 255 (-1 for
            255 classes or more).
        dtype: of label maps: uint8 (int16).

    Raises:
        ConfigError: a class's value is ignored as well, or the palette does not fit the classes or has no colours.
    """

    def __init__(self, classes: ClassList, ignore: Ignore = (255,), colours: bool = False) -> None:
        count = len(classes.names)
        if classes.palette and len(classes.palette) != count:
            raise ConfigError("data.palette", f"{len(classes.palette)} colours for {count} classes")
        for colour in classes.palette:
            if len(colour) != 3 or not all(0 <= c <= 255 for c in colour):
                raise ConfigError(
                    "data.palette", f"{list(colour)} is no colour", "give three whole numbers of 0 to 255"
                )
        if colours and len(set(classes.palette)) < count:
            problem = "masks with colours need one of its own for each class"
            raise ConfigError("data.palette", problem, "give data.palette, or colours in the class file")
        both = () if colours or ignore == "others" else tuple(v for v in classes.values if v in ignore)
        if both:
            name = classes.names[classes.values.index(both[0])]
            raise ConfigError("data.ignore", f"{both[0]} is the value of {name!r}", "take it out of one of the two")
        self.classes, self.ignore, self.colours = classes, ignore, colours
        self.dtype = np.dtype(np.uint8 if count <= IN_BYTES - 1 else np.int16)
        self.ignored, self._unknown = (255, 254) if self.dtype == np.uint8 else (-1, -2)
        values = tuple(range(count)) if colours else classes.values
        self.labels = LabelSpace(classes.names, values, ignore_index=self.ignored, palette=classes.palette)
        self._codes = np.array([(r << 16) | (g << 8) | b for r, g, b in classes.palette], np.int64)
        self._table = self._of(np.arange(256))

    def _of(self, stored: np.ndarray) -> np.ndarray:
        """Channels of any integers."""
        keys = np.array(self._codes if self.colours else self.classes.values, np.int64)
        order = np.argsort(keys)
        place = np.searchsorted(keys[order], stored).clip(max=len(keys) - 1)
        is_class = keys[order][place] == stored
        if self.ignore == "others":
            rest = np.full(stored.shape, self.ignored)
        else:
            rest = np.where(np.isin(stored, self.ignore) & (not self.colours), self.ignored, self._unknown)
        return np.where(is_class, order[place], rest).astype(self.dtype)

    def read(self, path: str | Path) -> np.ndarray:
        """The class channels of a label file, `[H, W]` of `dtype`.

        Raises:
            DataError: see `read_label_file` and `channels`.
        """
        return self.channels(read_label_file(path, self.colours), path)

    def channels(self, stored: np.ndarray, path: str | Path) -> np.ndarray:
        """The class channels of a label file.

        Args:
            stored: see `read_label_file`, with `colours` as the rule has it.
            path: for messages.

        Returns:
            `[H, W]` of `dtype`.

        Raises:
            DataError: it holds a value or colour that is no class, or colours where values are expected.
        """
        if stored.ndim == 3 and not self.colours:
            remedy = "give data.colors=true and the classes' colours; `vistrain check` names those that occur"
            raise DataError(str(path), "holds colours, not class values", remedy)
        if self.colours:
            found = self._of((stored.astype(np.int64) * (1 << 16, 1 << 8, 1)).sum(2))
        elif stored.dtype == np.uint8 and self.dtype == np.uint8:
            found = cv2.LUT(stored, self._table)
        else:
            found = self._of(stored)
        wrong = found == self._unknown
        if wrong.any():
            raise DataError(str(path), *self._wrong(stored, wrong))
        return found

    def channel_of(self, stored: np.ndarray) -> int | None:
        """The channel of one stored value (a colour, `[3]`), the ignore index, or None: it is no class."""
        value = int(stored) if stored.ndim == 0 else int(stored @ np.array([1 << 16, 1 << 8, 1]))
        found = int(self._of(np.array([value]))[0])
        return None if found == self._unknown else found

    def _wrong(self, stored: np.ndarray, wrong: np.ndarray) -> tuple[str, str]:
        value = stored[wrong][0].tolist()
        share = f"{100 * float(wrong.mean()):.3g} % of its pixels"
        if self.colours:
            return f"the colour {value} ({share}) is no class's", "add its class, or data.ignore=others"
        fitting = f"classes have {_ranges(self.classes.values)}"
        kept = [] if self.ignore == "others" else [v for v in self.ignore if isinstance(v, int)]
        ignored = ",".join(map(str, sorted({*kept, value})))  # what is ignored already stays so
        return f"the value {value} ({share}) is no class: {fitting}", f"name its class, or data.ignore=[{ignored}]"


def stored_values(labels: LabelSpace, channels: np.ndarray) -> np.ndarray:
    """The data set's own values of a class map `[H, W]`, uint8 or uint16; what is ignored becomes the largest value
    that no class has.

    Raises:
        ConfigError: a value is negative or needs more than 16 bits.
    """
    values = np.array([labels.category_of.get(c, 0) for c in range(labels.num_classes)], np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ConfigError("data.classes", f"the values {_ranges(values.tolist())} do not fit into 16 bits")
    kind = np.uint8 if values.max() <= 255 else np.uint16
    rest = next((v for v in range(int(np.iinfo(kind).max), -1, -1) if v not in values), 0)
    is_class = (channels >= 0) & (channels < len(values))
    return np.where(is_class, values[np.where(is_class, channels, 0)], rest).astype(kind)


def _ranges(values: Sequence[int]) -> str:
    """`0-10, 20`."""
    found: list[list[int]] = []
    for value in sorted(values):
        if found and value == found[-1][1] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
