"""Volumes in files: one orientation, and back, voxel by voxel; what is refused, by name."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from vistrain.data.volumes.nifti import (
    from_standard,
    read_geometry,
    read_labels,
    read_volume,
    refuse_other_kinds,
    standard_affine,
    to_standard,
    write_volume,
)
from vistrain.errors import DataError

ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*order)
]  # fmt: skip


def affine_of(orientation: str, spacing: tuple[float, float, float] = (1.0, 1.5, 2.0)) -> np.ndarray:
    """Of a file whose axes run so."""
    turn = nib.orientations.axcodes2ornt(orientation)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (of_world, sign) in enumerate(turn):
        affine[int(of_world), axis] = sign * spacing[axis]
    affine[:3, 3] = 7, -11, 13
    return affine


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file."""
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_there_and_back(tmp_path: Path, orientation: str) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 200, (3, 4, 5)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", stored, affine_of(orientation))
    values, geometry = read_volume(path)
    assert geometry.orientation == orientation
    assert values.shape == geometry.sides
    # A voxel has the value that lies at its place in the patient, along axes that run as the module says.
    axes = standard_affine(geometry)
    assert "".join(nib.aff2axcodes(axes)) == "RAS"
    np.testing.assert_allclose(np.linalg.norm(axes[:3, :3], axis=0), geometry.spacing[::-1])
    inverse = np.linalg.inv(geometry.affine)
    for z, y, x in ((0, 0, 0), (1, 2, 1), tuple(n - 1 for n in values.shape)):
        i, j, k = np.rint(inverse @ axes @ [x, y, z, 1]).astype(int)[:3]
        assert values[z, y, x] == stored[i, j, k]
    assert np.array_equal(from_standard(to_standard(stored, geometry), geometry), stored)
    write_volume(tmp_path / "b.nii.gz", values, geometry)
    back = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asanyarray(back.dataobj), stored)
    np.testing.assert_allclose(back.affine, geometry.affine)
    assert back.get_data_dtype() == np.int16


def test_an_oblique_grid_keeps_its_affine(tmp_path: Path) -> None:
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 0.5, 3.0])
    geometry = read_geometry(save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.float32), affine))
    assert geometry.spacing == pytest.approx((3.0, 0.5, 0.5))
    write_volume(tmp_path / "b.nii", np.ones(geometry.sides), geometry)
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").affine, affine, atol=1e-6)


def test_the_same_voxels_are_the_same_file(tmp_path: Path) -> None:
    geometry = read_geometry(save(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.uint8)))
    for name in ("b.nii.gz", "c.nii.gz"):
        write_volume(tmp_path / name, np.ones((4, 4, 4)), geometry)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_scaled_labels_are_whole_numbers(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.array([[[0, 32767]]], np.int16), np.eye(4))
    image.header.set_slope_inter(1 / 32767 * (1 - 3e-8), 0)
    nib.save(image, tmp_path / "a.nii.gz")
    values, _ = read_labels(tmp_path / "a.nii.gz")
    assert sorted(values.ravel().tolist()) == [0, 1]


def test_what_is_refused_says_why(tmp_path: Path) -> None:
    for name in ("a.dcm", "a.nrrd", "a.mha", "a.mhd", "a.nii.gz.mgz"):
        with pytest.raises(DataError, match=r"is not read - make a \.nii\.gz of it: .+"):
            refuse_other_kinds(tmp_path / name)
    with pytest.raises(DataError, match="is no NIfTI file by its name"):
        refuse_other_kinds(tmp_path / "a.png")
    noise = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    whole = save(tmp_path / "whole.nii.gz", noise).read_bytes()
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.nii\.gz: is cut off"):
        read_volume(cut)
    plain = save(tmp_path / "plain.nii", noise)
    plain.write_bytes(plain.read_bytes()[:8000])
    with pytest.raises(DataError, match=r"16x16x16 voxels of float32, more than 8000 bytes"):
        read_volume(plain)
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(DataError, match=r"text\.nii: is no NIfTI file"):
        read_volume(tmp_path / "text.nii")
    (tmp_path / "bare.nii.gz").write_bytes(plain.read_bytes())
    with pytest.raises(DataError, match="not compressed"):
        read_volume(tmp_path / "bare.nii.gz")
    with pytest.raises(DataError, match=r"No such file|no such file"):
        read_volume(tmp_path / "missing.nii.gz")


def test_wrong_voxels_are_refused(tmp_path: Path) -> None:
    values = np.zeros((4, 4, 4), np.float32)
    values[1, 1, 1], values[2, 2, 2] = np.nan, np.inf
    with pytest.raises(DataError, match="2 voxels are NaN or infinite"):
        read_volume(save(tmp_path / "nan.nii.gz", values))
    with pytest.raises(DataError, match="no whole numbers"):
        read_labels(save(tmp_path / "soft.nii.gz", np.full((2, 2, 2), 0.5, np.float32)))
    with pytest.raises(DataError, match="has four axes, the last of 2"):
        read_volume(save(tmp_path / "four.nii.gz", np.zeros((4, 4, 4, 2), np.float32)))
    one = read_volume(save(tmp_path / "one.nii.gz", np.zeros((4, 4, 4, 1), np.float32)))[0]
    assert one.shape == (4, 4, 4)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (np.int64, 2**32 + 1), (np.int64, -(2**31) - 1), (np.uint64, 2**64 - 1), (np.uint32, 2**31),
        (np.float32, 2.0**31), (np.float64, -1e300),
    ],
)  # fmt: skip
def test_labels_beyond_32_bits_are_refused(tmp_path: Path, kind: Any, value: float) -> None:
    values = np.zeros((2, 2, 2), kind)
    values[1, 0, 1] = value
    image = nib.Nifti1Image(values, np.eye(4), dtype=kind)
    nib.save(image, tmp_path / "wide.nii.gz")
    with pytest.raises(DataError, match=rf"wide\.nii\.gz: has voxels of the value {int(value)}"):
        read_labels(tmp_path / "wide.nii.gz")


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.float64, np.int32])
def test_labels_of_32_bits_are_read_whatever_holds_them(tmp_path: Path, kind: Any) -> None:
    values = np.zeros((2, 2, 2), kind)
    values[1, 0, 1] = 2**31 - 1
    nib.save(nib.Nifti1Image(values, np.eye(4), dtype=kind), tmp_path / "a.nii.gz")
    found, _ = read_labels(tmp_path / "a.nii.gz")
    assert (found.dtype, found.max(), found.min()) == (np.int32, 2**31 - 1, 0)


def test_wrong_geometry_is_refused(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(DataError, match="not at right angles"):
        read_volume(save(tmp_path / "sheared.nii.gz", np.zeros((4, 4, 4), np.uint8), sheared))
    flat = tmp_path / "flat.nii"
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
    image.header["srow_x"] = 0
    image.to_filename(flat)
    content = bytearray(flat.read_bytes())
    content[280:296] = bytes(16)  # srow_x
    flat.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"flat\.nii: voxels of 0 x 1 x 1 mm"):
        read_geometry(flat)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("length", [0.0, float("nan")])
def test_a_spacing_of_zero_that_makes_the_affine_is_refused(tmp_path: Path, kind: Any, length: float) -> None:
    path = tmp_path / "zero.nii"
    image = kind(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    image.header.set_sform(None, 0)
    image.to_filename(path)
    content, place, letter = bytearray(path.read_bytes()), *((80, "f") if kind is nib.Nifti1Image else (112, "d"))
    code = (254, "h") if kind is nib.Nifti1Image else (348, "i")
    content[place : place + struct.calcsize(letter)] = struct.pack(f"<{letter}", length)
    struct.pack_into(f"<{code[1]}", content, code[0], 0)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=rf"zero\.nii: voxels of {length:g} x 1 x 1 mm \(pixdim\)"):
        read_geometry(path)
    struct.pack_into(f"<{code[1]}", content, code[0], 1)  # where an sform is, the lengths are not used
    path.write_bytes(bytes(content))
    if length == 0:
        assert read_geometry(path).spacing == (1, 1, 1)


@pytest.mark.parametrize("length", [1e-9, 1e9])
def test_a_spacing_that_cannot_be_meant_is_refused(tmp_path: Path, length: float) -> None:
    values = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(DataError, match=r"odd\.nii\.gz: voxels of 1 x 1e[-+]09 x 1 mm, outside of 0\.001 to 1000"):
        read_geometry(save(tmp_path / "odd.nii.gz", values, np.diag([1, length, 1, 1])))
    for fine in (1e-3, 1e3):
        assert read_geometry(save(tmp_path / "fine.nii.gz", values, np.diag([1, fine, 1, 1]))).sides == (4, 4, 4)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("slope", [float("inf"), float("nan"), 0.0, 2.0])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, kind: Any, order: str, slope: float) -> None:
    path = tmp_path / "scaled.nii"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    kind(np.ones((4, 4, 4), np.int16), np.eye(4), header).to_filename(path)
    content = bytearray(path.read_bytes())
    place, letter = (112, "f") if kind is nib.Nifti1Image else (176, "d")
    content[place : place + struct.calcsize(letter)] = struct.pack(order + letter, slope)
    path.write_bytes(bytes(content))
    if math.isfinite(slope):
        assert (read_volume(path)[0] == (slope or 1)).all()  # 0: not scaled
    else:
        with pytest.raises(DataError, match=rf"scaled\.nii: its values are scaled by {slope} \(scl_slope\)"):
            read_volume(path)


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((30000, 30000, 30000))
    path = tmp_path / "huge.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4000)))
    with pytest.raises(DataError, match=r"more than .* bytes can hold"):
        read_volume(path)


@pytest.mark.parametrize(("unit", "said"), [("meter", "metres"), ("micron", "micrometres")])
def test_other_units_of_length_are_refused(tmp_path: Path, unit: str, said: str) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "odd.nii.gz")
    with pytest.raises(DataError, match=rf"odd\.nii\.gz: counts in {said} .* header\.set_xyzt_units"):
        read_volume(tmp_path / "odd.nii.gz")
