"""Images of any number of channels, whose values mean what their sensor says: multi-band TIFFs and `.npy` arrays."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vistrain.data.base.images import DAMAGED, image_bytes, refuse_large
from vistrain.data.base.tiff_bands import MOST_BANDS, VALUE_BYTES, read_tiff, tiff_pages
from vistrain.errors import ConfigError, DataError
from vistrain.structures import Preprocessing

TIFF, ARRAY = (".tif", ".tiff"), ".npy"
SUFFIXES = (*TIFF, ARRAY)  # of files with bands
AS_STORED = ("uint8", "uint16", "int16", "float32")  # OpenCV resizes these; others become float32
SPREAD = 2.0  # standard deviations around the mean that pictures show
Order = Literal["hwc", "chw"]


@dataclass(frozen=True)
class Bands:
    """Which channels of image files a network is given, and what is known of their values.

    A value x of a channel reaches the network as (x - mean) / std; what is no number (NaN, infinite) as 0.

    Args:
        channels: numbers of the channels in the files, from 0, in the order in which the network gets them.
        mean, std: of each of `channels`, in the units of the files. `vistrain check` measures them, and a run refuses
            to start without them.
        shown: which three channels (numbers in the files, as in `channels`) pictures show as red, green and blue; one
            is grey; empty: the first three of `channels`, or the first one where there are fewer.
        order: axes of `.npy` arrays: `hwc` is `[H, W, C]`, `chw` is `[C, H, W]`. An array `[H, W]` has one channel.

    Raises:
        ConfigError: numbers that do not fit together.
    """

    channels: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    shown: tuple[int, ...] = ()
    order: Order = "hwc"

    def __post_init__(self) -> None:
        """Check."""
        if not self.channels or min(self.channels) < 0 or max(self.channels) >= MOST_BANDS:
            raise ConfigError("data.bands.channels", f"{list(self.channels)}", "name at least one, counted from 0")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != len(self.channels):
                problem = f"{len(values)} numbers for {len(self.channels)} channels"
                raise ConfigError(f"data.bands.{name}", problem, "give one for each of data.bands.channels")
        if bool(self.mean) != bool(self.std) or any(not value > 0 for value in self.std):
            raise ConfigError("data.bands.std", f"{list(self.std)}", "give mean and std; each std is above 0")
        if len(self.shown) not in (0, 1, 3) or not set(self.shown) <= set(self.channels):
            raise ConfigError("data.bands.shown", f"{list(self.shown)}", "one or three of data.bands.channels")

    def read(self, path: str | Path) -> np.ndarray:
        """The channels of an image.

        Args:
            path: a TIFF or `.npy` file.

        Returns:
            `[H, W, C]`, C = `len(channels)`: uint8, uint16 or int16 as stored, else float32.

        Raises:
            DataError: it is of another kind, damaged, too large, has pickled objects in it, or has too few channels.
        """
        data, where = image_bytes(path), str(path)
        if _suffix(path) == ARRAY:
            values = self._axes(_array(where, data), where)
            self._refuse_few(where, values.shape[-1])
            return _plain(values[..., list(self.channels)])
        self._refuse_few(where, sum(page.bands for page in tiff_pages(where, data)))
        return _plain(read_tiff(where, data, self.channels))

    def size(self, path: str | Path) -> tuple[int, int]:
        """Height and width of a file, by its head.

        Raises:
            DataError: see `read`.
        """
        data, where = image_bytes(path), str(path)
        if _suffix(path) == ARRAY:
            height, width, _ = self._axes(_array(where, data), where).shape
            return height, width
        page = tiff_pages(where, data)[0]
        return page.height, page.width

    def picture(self, image: np.ndarray) -> np.ndarray:
        """What people are shown of channels as `read` gives them: `shown`, two standard deviations around the mean as
        black and white (of the image itself where none are known).

        Returns:
            uint8 `[H, W, 3]`.
        """
        chosen = self.places
        values = np.asarray(image[..., chosen], np.float32)
        finite = np.isfinite(values)
        mean = [self.mean[i] for i in chosen] if self.mean else values.mean((0, 1), where=finite)
        std = [self.std[i] for i in chosen] if self.std else values.std((0, 1), where=finite)
        scaled = (np.where(finite, values, mean) - mean) / np.maximum(std, 1e-12)
        grey = ((scaled / (2 * SPREAD) + 0.5).clip(0, 1) * 255).round().astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))

    @property
    def places(self) -> list[int]:
        """Where in a batch the channels are that pictures show: one or three."""
        shown = self.shown or self.channels[: 3 if len(self.channels) >= 3 else 1]
        return [self.channels.index(number) for number in shown]

    def refuse_unknown(self) -> None:
        """Refuses channels of which no mean and std are known.

        Raises:
            ConfigError: naming the command that measures them.
        """
        if not self.mean:
            remedy = "`vistrain check` measures them and prints the line for the config"
            raise ConfigError("data.bands.mean", "mean and std of the channels are missing", remedy)

    def matched(self, preprocessing: Preprocessing) -> MatchedBands:
        """These bands for a network.

        Raises:
            ConfigError: no mean and std are known, or the network takes another number of channels.
        """
        self.refuse_unknown()
        if len(preprocessing.mean) != len(self.channels):
            problem = f"{len(self.channels)} channels, and a network that takes {len(preprocessing.mean)}"
            raise ConfigError("data.bands.channels", problem, "take a network that is built for any number")
        order = slice(None, None, -1 if preprocessing.channel_order == "bgr" else 1)
        own = {f.name: getattr(self, f.name) for f in fields(Bands)}
        return MatchedBands(**own, to_mean=preprocessing.mean[order], to_std=preprocessing.std[order])

    def given(self, values: np.ndarray) -> np.ndarray:
        """What `read` would give, of an array `[H, W, C]` of `channels` alone, in their order.

        Raises:
            DataError: it is none.
        """
        if values.ndim != 3 or values.shape[-1] != len(self.channels) or values.dtype.kind not in "buif":
            wanted = f"[H, W, {len(self.channels)}] of the channels {list(self.channels)}"
            raise DataError("image", f"an array {values.dtype} {list(values.shape)} is not {wanted}")
        return _plain(values)

    def _axes(self, values: np.ndarray, where: str) -> np.ndarray:
        """`[H, W, C]` of an array in `order`."""
        if values.ndim not in (2, 3):
            raise DataError(where, f"has the axes {list(values.shape)}", f"bands are read of arrays [{self.order}]")
        if values.ndim == 2:
            values = values[..., None]
        elif self.order == "chw":
            values = values.transpose(1, 2, 0)
        refuse_large(where, *values.shape[:2])
        if values.shape[-1] > MOST_BANDS:
            other = "chw" if self.order == "hwc" else "hwc"
            raise DataError(where, f"{values.shape[-1]} channels", f"is data.bands.order={other}?")
        return values

    def _refuse_few(self, where: str, there: int) -> None:
        if max(self.channels) >= there:
            problem = f"has {there} channels, counted from 0; data.bands.channels asks for number {max(self.channels)}"
            raise DataError(where, problem, "correct data.bands.channels (or data.bands.order), or leave the file out")


@dataclass(frozen=True)
class MatchedBands(Bands):
    """Bands for a network's weights: a channel's mean and spread become those that the network's own normalisation
    takes away, so that it computes with (x - mean) / std.

    Args:
        base: see `Bands`.
        to_mean, to_std: the network's, for channels in the order that a batch has them.
    """

    to_mean: tuple[float, ...] = ()
    to_std: tuple[float, ...] = ()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """float32 `[H, W, C]` of channels as `read` gives them."""
        scale = np.array(self.to_std) / np.array(self.std)
        shift = np.array(self.to_mean) - np.array(self.mean) * scale
        out = image * scale.astype(np.float32)
        out += shift.astype(np.float32)
        if image.dtype.kind == "f":
            bad = ~np.isfinite(out)
            out[bad] = np.broadcast_to(np.array(self.to_mean, np.float32), out.shape)[bad]
        return out


def _suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(str(path), "bands are read of TIFF and .npy files", "convert it, or leave data.bands out")
    return suffix


def _plain(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.bool_:
        values = values.view(np.uint8)
    kind = values.dtype.newbyteorder("=") if values.dtype.name in AS_STORED else np.dtype(np.float32)
    return np.ascontiguousarray(values, kind)


def _array(where: str, data: bytes) -> np.ndarray:
    """A view of what a `.npy` file holds: its head is read, pickles never.

    Raises:
        DataError: it is none, truncated, too large, or holds other things than numbers.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise DataError(where, f"is of version {version} of .npy", "save it by numpy.save, with plain numbers")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(file)
    except DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise DataError(where, f"damaged .npy file: {reason}", "save it again by numpy.save") from error
    if dtype.kind not in "buif" or dtype.hasobject:
        raise DataError(where, f"holds {dtype}, not numbers", "save an array of integers or floating point")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > VALUE_BYTES:
        raise DataError(where, f"its head says {list(shape)} values of {dtype}, too many", "cut it into tiles")
    if len(data) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise DataError(where, "truncated, or longer than its head says", "copy or save it again")
    values = np.frombuffer(data, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if by_columns else "C")


@dataclass
class BandStatistics:
    """Sums over pixels, of which mean and standard deviation of each channel are made.

    Attributes:
        count, total, squares: float64 `[C]`, of values that are numbers.
    """

    count: Any = 0.0
    total: Any = 0.0
    squares: Any = 0.0

    @classmethod
    def of(cls, image: np.ndarray) -> BandStatistics:
        """Of one image `[H, W, C]`."""
        values = image.reshape(-1, image.shape[-1]).astype(np.float64)
        finite = np.isfinite(values)
        values = np.where(finite, values, 0)
        return cls(finite.sum(0).astype(np.float64), values.sum(0), np.square(values).sum(0))

    def __add__(self, other: BandStatistics) -> BandStatistics:
        return BandStatistics(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel, to six digits."""
        count = np.maximum(self.count, 1)
        mean = self.total / count
        std = np.sqrt(np.maximum(self.squares / count - mean**2, 0))
        return [_rounded(x) for x in mean], [_rounded(x) for x in std]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def described(values: Sequence[float]) -> str:
    """`[1.5,2]`, as a command line takes it."""
    return f"[{','.join(f'{x:g}' for x in values)}]"
