"""NIfTI files: the one place where volumes are read and written, in one orientation, and put back into their own.

In here an array's axes are `[z, y, x]`: from below to above, from back to front, from left to right of the patient (the
closest of NIfTI's RAS+, axes reversed), whatever a file has. Spacing is in mm along the same axes.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from vistrain.errors import DataError
from vistrain.regular_files import open_regular
from vistrain.writing import whole_file

# What it says of a header names no file; what matters of it is refused here, by name.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)

SUFFIXES = (".nii.gz", ".nii")
# What other formats end in, and what makes NIfTI of them.
CONVERTERS = {
    ".dcm": "dcm2niix FOLDER",
    ".dicom": "dcm2niix FOLDER",
    ".ima": "dcm2niix FOLDER",
    ".nrrd": "`SimpleITK.WriteImage(SimpleITK.ReadImage(IN), OUT)` in Python, or 3D Slicer",
    ".nhdr": "`SimpleITK.WriteImage(SimpleITK.ReadImage(IN), OUT)` in Python, or 3D Slicer",
    ".mha": "`SimpleITK.WriteImage(SimpleITK.ReadImage(IN), OUT)` in Python, or 3D Slicer",
    ".mhd": "`SimpleITK.WriteImage(SimpleITK.ReadImage(IN), OUT)` in Python, or 3D Slicer",
    ".mgz": "FreeSurfer's mri_convert IN OUT",
    ".img": "`nibabel.save(nibabel.load(IN), OUT)` in Python",
    ".hdr": "`nibabel.save(nibabel.load(IN), OUT)` in Python",
}
DEFLATED = 1040  # times smaller than its content a compressed file can be at the most
SKEW = 0.01  # cosine between two axes, above which they are not at right angles (0.6 degrees)
FINEST, COARSEST = 1e-3, 1e3  # mm between voxels: a micrometre, a metre
SAME = 1e-3  # mm, and share of a voxel, that affines of one case may differ by
Broken = (EOFError, OSError, ValueError, zlib.error, gzip.BadGzipFile, ImageFileError, HeaderDataError,
          WrapStructError)  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a file are, and how it stores them: what is undone when a result is written beside it.

    Attributes:
        shape: of the file's array, its three axes.
        affine: float64 `[4, 4]`, from the file's indices to mm.
        dtype: NumPy's name of the stored values.
        channels: length of the fourth axis; 1 where there is none.
        scaled: whether stored values are multiplied or shifted when they are read.
        header: nibabel's, for units and codes; None where there is no file.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: str = "uint8"
    channels: int = 1
    scaled: bool = False
    header: Any = None

    @property
    def axes(self) -> np.ndarray:
        """`[3, 2]`: for each of the file's axes which of x, y, z it is closest to, and whether along (1) or against
        (-1)."""
        return np.asarray(nib.orientations.io_orientation(self.affine))

    @property
    def orientation(self) -> str:
        """Three letters, such as `RAS` or `LPS`."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def sides(self) -> tuple[int, int, int]:
        """Of the array `[z, y, x]`."""
        return self._turned(self.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm, along z, y, x."""
        return self._turned([float(x) for x in np.linalg.norm(self.affine[:3, :3], axis=0)])

    def _turned(self, values: Any) -> Any:
        found = [values[0]] * 3
        for value, (axis, _) in zip(values, self.axes, strict=True):
            found[2 - int(axis)] = value
        return tuple(found)

    def differs(self, other: Geometry) -> str:
        """How another file's voxels are elsewhere, once both are turned the same way; empty if they are not."""
        if self.sides != other.sides:
            return f"{_sides(other.shape)} voxels, not {_sides(self.shape)}"
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
        corners[:, :3] *= self.sides[::-1]
        apart = standard_affine(self) - standard_affine(other)
        distance = float(np.linalg.norm((corners @ apart.T)[:, :3], axis=1).max())
        if distance > max(SAME, SAME * max(self.spacing)) * 10:
            return f"an affine that puts voxels up to {distance:.3g} mm elsewhere"
        return ""


def refuse_other_kinds(path: str | Path) -> None:
    """Refuse a file that is no NIfTI by its name.

    Raises:
        DataError: naming a program that converts it.
    """
    name = str(path).lower()
    if name.endswith(SUFFIXES):
        return
    kind = next((suffix for suffix in CONVERTERS if name.removesuffix(".gz").endswith(suffix)), None)
    if kind is not None:
        raise DataError(str(path), f"{kind[1:].upper()} is not read", f"make a .nii.gz of it: {CONVERTERS[kind]}")
    raise DataError(str(path), "is no NIfTI file by its name", "names end in .nii or .nii.gz; DICOM: dcm2niix FOLDER")


def read_geometry(path: str | Path) -> Geometry:
    """What a file's header says; its voxels are not read.

    Raises:
        DataError: it is not there, no NIfTI, cut off, has other than three axes (a fourth one holds channels), no
            voxels, a spacing of zero or outside of 0.001 to 1000 mm, a scale that is no number, axes that are not at
            right angles, or more voxels than the file can hold.
    """
    return _opened(Path(path))[1]


def read_volume(path: str | Path, channel: int | None = None) -> tuple[np.ndarray, Geometry]:
    """Voxels as they are measured (scaled as the header says).

    Args:
        path: the file.
        channel: of a file with a fourth axis; None: the file has none.

    Returns:
        float32 `[z, y, x]` (see the module), and where they are.

    Raises:
        DataError: see `read_geometry`; or there are NaN or infinite voxels, or the file has (no) fourth axis.
    """
    image, geometry = _opened(Path(path))
    if channel is None and geometry.channels > 1:
        remedy = "give each modality a file of its own, or as many modalities as the fourth axis has"
        raise DataError(str(path), f"has four axes, the last of {geometry.channels}", remedy)
    if channel is not None and channel >= geometry.channels:
        raise DataError(str(path), f"has {geometry.channels} channels, none of number {channel}", "mend modalities")
    with _reading(path):
        part = image.dataobj[..., channel] if channel is not None and len(image.shape) > 3 else image.dataobj
        values = np.asarray(part, dtype=np.float32).reshape(geometry.shape)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(str(path), f"{bad} voxels are NaN or infinite", "give them a value, such as that of the air")
    return to_standard(values, geometry), geometry


def read_labels(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Label values.

    Returns:
        int32 `[z, y, x]`, and where they are.

    Raises:
        DataError: see `read_geometry`; or a value is no whole number, or none of 32 bits.
    """
    image, geometry = _opened(Path(path))
    if geometry.channels > 1:
        raise DataError(str(path), "has four axes", "a label map has three, and a value for each class")
    with _reading(path):
        values = np.asarray(image.dataobj).reshape(geometry.shape)
    if values.dtype.kind == "f":
        # A scale factor makes 0.99999997 of 1, and neighbours of it.
        whole = np.rint(values)
        wrong = ~(np.abs(values - whole) < 1e-3)
        if wrong.any():
            problem = f"{int(wrong.sum())} voxels have values such as {values[wrong][0]:g}, which are no whole numbers"
            raise DataError(str(path), problem, "a label map is stored without interpolation")
        values = whole
    if not np.can_cast(values.dtype, np.int32):
        # Python's numbers: compared as they are, whatever type the voxels have.
        low, high = int(values.min()), int(values.max())
        if not -(2**31) <= low <= high < 2**31:
            worst = high if high >= 2**31 else low
            remedy = "labels are whole numbers of 32 bits: give the classes smaller ones"
            raise DataError(str(path), f"has voxels of the value {worst}", remedy)
    return to_standard(values.astype(np.int32), geometry), geometry


def read_mask(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Where a mask is nearer to its greatest value than to 0: bool `[z, y, x]`, and where it is.

    Raises:
        DataError: see `read_volume`.
    """
    values, geometry = read_volume(path)
    return values > 0.5 * max(float(values.max()), 1e-6), geometry


def write_volume(path: Path, values: np.ndarray, geometry: Geometry, dtype: str | None = None) -> None:
    """Write an array `[z, y, x]` beside the file that it belongs to: with its axes, affine, units and type.

    Args:
        path: ends in `.nii` or `.nii.gz`; written whole or not at all.
        values: in the orientation of this module.
        geometry: of the file that it belongs to.
        dtype: NumPy's name of another type.

    Raises:
        DataError: it cannot be written, or the type cannot hold the values.
    """
    kind = np.dtype(dtype or geometry.dtype)
    if (
        kind.kind in "iu"
        and values.size
        and not np.iinfo(kind).min <= values.min() <= values.max() <= np.iinfo(kind).max
    ):
        raise DataError(str(path), f"{kind} cannot hold values up to {values.max()}", "give the input a larger type")
    stored = from_standard(values, geometry).astype(kind)
    header = None if geometry.header is None else geometry.header.copy()
    image = nib.Nifti1Image(stored, geometry.affine, header)
    image.header.set_data_dtype(kind)
    image.header.set_slope_inter(1, 0)
    with whole_file(path) as partial, open(partial, "wb") as file:
        if path.name.lower().endswith(".gz"):
            # Neither name nor time in it: the same voxels are the same file.
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
                image.to_stream(compressed)
        else:
            image.to_stream(file)


def to_standard(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """An array with a file's axes as `[z, y, x]`; contiguous."""
    turned = nib.orientations.apply_orientation(values, geometry.axes)
    return np.ascontiguousarray(turned.transpose(2, 1, 0))


def from_standard(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The inverse of `to_standard`."""
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), geometry.axes)
    return np.ascontiguousarray(nib.orientations.apply_orientation(values.transpose(2, 1, 0), back))


def standard_affine(geometry: Geometry) -> np.ndarray:
    """float64 `[4, 4]` from indices (x, y, z) of the array `[z, y, x]` to mm."""
    turn = nib.orientations.inv_ornt_aff(geometry.axes, geometry.shape)
    return geometry.affine @ turn


def _opened(path: Path) -> tuple[Any, Geometry]:
    """nibabel's image, nothing of its voxels read, and its checked geometry."""
    refuse_other_kinds(path)
    try:
        open_regular(path).close()
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror or error})") from error
    with _reading(path):
        second, scale, lengths = _head(path)
        image = nib.Nifti2Image.from_filename(path) if second else nib.Nifti1Image.from_filename(path)
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (3 - len(shape)) if len(shape) == 2 else ()
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(str(path), f"has the axes {_sides(shape)}", "a volume has three, of one voxel or more")
    kind = image.header.get_data_dtype()
    if kind.kind not in "iuf":
        raise DataError(str(path), f"holds values of type {kind}", "save it as numbers, one for each voxel")
    content, stored = math.prod(shape) * kind.itemsize, path.stat().st_size
    if content > stored * (DEFLATED if path.name.lower().endswith(".gz") else 1):
        problem = f"its header says {_sides(shape)} voxels of {kind}, more than {stored} bytes can hold"
        raise DataError(str(path), problem, "it is cut off, or its header is wrong: copy it again")
    # Without an sform the affine is made of these, of which nibabel takes 0 for 1.
    lengths = lengths[: min(3, int(image.header["dim"][0]))]
    if int(image.header["sform_code"]) == 0 and not all(math.isfinite(mm) and mm != 0 for mm in lengths):
        problem = f"voxels of {' x '.join(f'{mm:g}' for mm in lengths)} mm (pixdim)"
        raise DataError(str(path), problem, "mend the header's spacing and affine (`nibabel`, ITK-SNAP)")
    unit = {1: "metres", 3: "micrometres"}.get(int(image.header["xyzt_units"]) & 7)  # 2: millimetres, 0: not said
    if unit is not None:
        remedy = "write spacing and affine in mm (`nibabel`: header.set_xyzt_units('mm'))"
        raise DataError(str(path), f"counts in {unit} (xyzt_units), and distances here are mm", remedy)
    affine = np.asarray(image.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or min(spacing) <= 0:
        problem = f"voxels of {' x '.join(f'{x:g}' for x in spacing)} mm"
        raise DataError(str(path), problem, "mend the header's spacing and affine (`nibabel`, ITK-SNAP)")
    if min(spacing) < FINEST * (1 - SAME) or max(spacing) > COARSEST * (1 + SAME):
        problem = f"voxels of {' x '.join(f'{x:g}' for x in spacing)} mm, outside of {FINEST:g} to {COARSEST:g}"
        raise DataError(str(path), problem, "mend the header's spacing and affine: they are in mm")
    if not math.isfinite(scale):
        raise DataError(str(path), f"its values are scaled by {scale} (scl_slope)", "mend it; 1 scales nothing")
    directions = affine[:3, :3] / spacing
    cosines = directions.T @ directions - np.eye(3)
    if np.abs(cosines).max() > SKEW:
        angle = math.degrees(math.acos(min(1.0, float(np.abs(cosines).max()))))
        problem = f"two of its axes are at {angle:.1f} degrees, not at right angles"
        raise DataError(str(path), problem, "resample it to a grid with right angles first (ANTs, SimpleITK)")
    slope, inter = image.header.get_slope_inter()
    scaled = (slope is not None and slope != 1) or (inter is not None and inter != 0)
    sides: Any = shape[:3]
    channels = shape[3] if len(shape) == 4 else 1
    return image, Geometry(sides, affine, kind.name, channels, scaled, image.header)


def _head(path: Path) -> tuple[bool, float, tuple[float, ...]]:
    """Whether a file is NIfTI-2, by the size of its header; and what nibabel mends without a word: its `scl_slope`,
    left out if it is no number, and the first three lengths of `pixdim`."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as file:
        head = file.read(540)
    second = head[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
    order = "<" if head[:4] in (b"\x1c\x02\x00\x00", b"\x5c\x01\x00\x00") else ">"
    place, kind = (176, "d") if second else (112, "f")
    if len(head) < place + 8:
        return second, 1.0, ()  # it is cut off, which nibabel says
    lengths = struct.unpack_from(f"{order}3{kind}", head, 112 if second else 80)
    return second, float(struct.unpack_from(f"{order}{kind}", head, place)[0]), lengths


class _reading:
    """What reading a file raises, in one line with its name."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Literal[False]:
        if isinstance(error, DataError) or not isinstance(error, Broken):
            return False
        compressed = str(self.path).lower().endswith(".gz")
        cut = isinstance(error, EOFError | zlib.error) or "Expected" in str(error) or "end-of-stream" in str(error)
        if isinstance(error, FileNotFoundError):
            raise DataError(str(self.path), "no such file") from error
        if isinstance(error, gzip.BadGzipFile) and not cut:
            problem = "its name ends in .gz, and it is not compressed" if compressed else "is damaged"
            raise DataError(str(self.path), problem, "rename or copy it") from error
        if cut:
            raise DataError(str(self.path), "is cut off or damaged", "copy it again") from error
        first = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError(str(self.path), f"is no NIfTI file ({first})", "copy it again, or convert it") from error


def _sides(shape: Any) -> str:
    return "x".join(str(n) for n in shape)


def stem_of(path: str | Path) -> str:
    """A file's name without `.nii` or `.nii.gz`."""
    name = os.path.basename(path)
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name
