"""Files of disparity and flow: what is written is read, byte by byte as others write it, and damage is one line."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from vistrain.data.correspondence.displacement_files import AXES, Finds, read_displacement, write_displacement
from vistrain.errors import DataError

# Suffix, what it holds, and how far a number may be from the one that was written.
KINDS: list[tuple[str, Finds, float]] = [
    (".pfm", "disparity", 0.0),
    (".pfm", "flow", 0.0),
    (".flo", "flow", 0.0),
    (".png", "disparity", 0.5 / 256),
    (".png", "flow", 0.5 / 64),
]


@pytest.mark.parametrize(("suffix", "finds", "step"), KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_is_read(suffix: str, finds: Finds, step: float, seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    shape = (AXES[finds], *draw.integers(1, 30, 2))
    least = 1 / 256 if finds == "disparity" else -200.0
    field = draw.uniform(least, 200, shape).astype(np.float32)
    field[:, draw.random(shape[1:]) < 0.3] = np.nan
    path = tmp_path / f"field{suffix}"
    write_displacement(path, field)
    found = read_displacement(path, finds)
    assert found.dtype == np.float32
    assert found.shape == field.shape
    assert np.array_equal(np.isnan(found), np.isnan(field))
    np.testing.assert_allclose(found, field, rtol=0, atol=step)
    write_displacement(path, found)
    assert np.array_equal(read_displacement(path, finds), found, equal_nan=True)  # nothing drifts


def test_files_as_others_write_them(tmp_path: Path) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n3 2\n1.0\n" + struct.pack(">6f", 1, 2, 3, 4, float("inf"), 6))  # the lowest row first
    found = read_displacement(path, "disparity")
    assert np.array_equal(found[0], [[4, np.nan, 6], [1, 2, 3]], equal_nan=True)
    path.write_bytes(
        b"PF 1 2 -0.5 " + struct.pack("<6f", 1, 2, 0, 3, 4, 0)
    )  # other white space, FlyingThings' third zero
    assert read_displacement(path, "flow").tolist() == [[[3], [1]], [[4], [2]]]
    path = tmp_path / "a.flo"
    path.write_bytes(b"PIEH" + struct.pack("<2i4f", 2, 1, 1.5, -2.5, 2e9, 0.0))
    found = read_displacement(path, "flow")
    assert found[:, 0, 0].tolist() == [1.5, -2.5]
    assert np.isnan(found[:, 0, 1]).all()
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.array([[0, 256, 640]], np.uint16))
    assert np.array_equal(read_displacement(path, "disparity")[0], [[np.nan, 1, 2.5]], equal_nan=True)
    red, green, blue = 2**15 + 64, 2**15 - 96, 1  # to the right, down, valid
    cv2.imwrite(str(path), np.array([[[blue, green, red], [0, 0, 0]]], np.uint16))
    found = read_displacement(path, "flow")
    assert found[:, 0, 0].tolist() == [1.0, -1.5]
    assert np.isnan(found[:, 0, 1]).all()


def test_numbers_beyond_a_kitti_file_become_its_nearest(tmp_path: Path) -> None:
    write_displacement(tmp_path / "a.png", np.array([[[0.0, 300.0, -1.0]]]))
    assert read_displacement(tmp_path / "a.png", "disparity")[0, 0].tolist() == [1 / 256, 65535 / 256, 1 / 256]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pfm", b"P6\n3 2\n255\n", "does not begin as a PFM file does"),
        ("a.pfm", b"Pf\n3 2\n0\n" + bytes(24), "does not begin as a PFM file does"),
        ("a.pfm", b"Pf\n3 2\n-1\n" + bytes(23), "is cut off: 23 bytes of numbers, 3x2 pixels take 24"),
        ("a.pfm", b"Pf\n0 2\n-1\n", "says that it is 0x2 pixels"),
        ("a.pfm", b"Pf\n99999999 99999999\n-1\n", "pixels"),
        ("a.flo", b"PIEH", "does not begin as a .flo file does"),
        ("a.flo", b"PIEH" + struct.pack("<2i", -1, 5), "says that it is -1x5 pixels"),
        ("a.flo", b"PIEH" + struct.pack("<2i", 2, 5) + bytes(79), "is cut off: 79 bytes of numbers"),
        ("a.flo", b"", "is empty|does not begin"),
        ("a.npy", b"", "is no file of displacements - write it as .pfm, .flo, .png"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "a.png: "),
    ],
)
def test_damage_is_one_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_displacement(tmp_path / name, "flow")


def test_other_kinds_are_named(tmp_path: Path) -> None:
    write_displacement(tmp_path / "a.flo", np.zeros((2, 3, 4)))
    with pytest.raises(DataError, match=r"a\.flo: holds flow, and disparity is wanted - set data\.finds to flow"):
        read_displacement(tmp_path / "a.flo", "disparity")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((3, 4), np.uint8))
    with pytest.raises(DataError, match=r"b\.png: has 8 bits and 1 channels - KITTI's files have 16 bits"):
        read_displacement(tmp_path / "b.png", "disparity")
    whole = np.random.default_rng(0).integers(1, 65535, (40, 50)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "c.png"), whole)
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"c\.png: "):
        read_displacement(tmp_path / "c.png", "disparity")
