"""CHAOS in its published layout: series that are converted, label maps as pictures or NIfTI, DICOM alone."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from vistrain.cli import main
from vistrain.data import CHAOS
from vistrain.data.volumes.nifti import read_labels, read_volume
from vistrain.data.volumes.prepared import read_images, read_truth
from vistrain.errors import ConfigError, DataError

SIDES = (6, 10, 12)  # z, y, x
VALUES = {"liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}


def volume() -> np.ndarray:
    """Organs where they are in a body, `[z, y, x]` from below, back and left: the liver is right, in front, above."""
    found = np.zeros(SIDES, np.uint8)
    found[3:6, 5:8, 7:11], found[0:3, 1:4, 8:10] = 63, 126
    found[0:3, 1:4, 2:4], found[4:6, 2:4, 1:3] = 189, 252
    return found


def write(path: Path, values: np.ndarray) -> None:
    """Stored as dcm2niix does: x to the patient's left, y to the front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.5, 1.5, 5.0, 1.0])
    nib.save(nib.Nifti1Image(values.transpose(2, 1, 0)[::-1], affine), path)


def draw(folder: Path, values: np.ndarray) -> None:
    """Slices as they are looked at, from above to below: above is the front, left is the patient's right."""
    folder.mkdir(parents=True)
    for number, plane in enumerate(values[::-1]):
        Image.fromarray(plane[::-1, ::-1].copy()).save(folder / f"IMG-0001-{number:05d}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n in ("1", "2", "10"):
        case = tmp_path / "Train_Sets/MR" / n
        for place in ("T1DUAL/DICOM_anon/InPhase", "T1DUAL/DICOM_anon/OutPhase", "T2SPIR/DICOM_anon"):
            write(case / place / "series.nii.gz", (volume() + 3 * int(n)).astype(np.int16))
            (case / place / "IMG-0001-00001.dcm").touch()
        draw(case / "T1DUAL/Ground", volume())
        write(case / "T2SPIR/Ground/label.nii.gz", volume())
        case = tmp_path / "Train_Sets/CT" / n
        write(case / "DICOM_anon/ct.nii.gz", (volume() > 0).astype(np.int16))
        (case / "Ground").mkdir()
        for number, plane in enumerate(volume()[::-1]):
            Image.fromarray(plane[::-1, ::-1] == 63).save(case / "Ground" / f"liver_GT_{number:03d}.png")
    return tmp_path


def truth_of(data: CHAOS) -> np.ndarray:
    case = data.cases()[0]
    _, geometry, _ = read_images(case, data.channels)
    return read_truth(case, geometry, data.rule)


def test_pictures_and_nifti_are_the_same_label_map(root: Path) -> None:
    two = CHAOS(root=str(root), series=("in_phase", "out_phase"), slices="down")
    assert [case.id for case in two.cases()] == ["MR_1", "MR_10", "MR_2"]
    assert two.channels == 2
    wanted = np.searchsorted([0, *VALUES.values()], volume())
    np.testing.assert_array_equal(truth_of(two), wanted)
    np.testing.assert_array_equal(truth_of(CHAOS(root=str(root), series=("t2",))), wanted)
    stored, _ = read_volume(two.cases()[0].images[0])
    np.testing.assert_array_equal(stored, volume() + 3.0)  # the image lies as its label map does
    upside = CHAOS(root=str(root), series=("in_phase",), slices="up")
    np.testing.assert_array_equal(truth_of(upside), wanted[::-1])
    assert two.labels.names == ("background", *VALUES)
    ct = CHAOS(root=str(root), slices="down")
    np.testing.assert_array_equal(truth_of(ct), volume() == 63)
    np.testing.assert_array_equal(read_labels(root / "Train_Sets/MR/1/T2SPIR/Ground/label.nii.gz")[0], volume())


def test_a_cache_is_made_again_when_a_picture_changes(root: Path) -> None:
    facts = {"series": ("in_phase",), "slices": "down", "folds": 3, "cache": str(root / "cache"), "patch": (4, 8, 8)}
    first = CHAOS(root=str(root), **facts)
    (case,) = first.prepared(first.cases("val"))
    assert case.facts["voxels"]["liver"] == int((volume() == 63).sum())
    folder = root / "Train_Sets/MR" / case.id[3:] / "T1DUAL/Ground"
    Image.fromarray(np.full(SIDES[1:], 63, np.uint8)).save(folder / "IMG-0001-00000.png")
    again = CHAOS(root=str(root), **facts)
    (case,) = again.prepared(again.cases("val"))
    assert case.facts["voxels"]["liver"] > 120


def test_dicom_alone_is_one_line_that_names_a_converter(root: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(root)
    (root / "Train_Sets/MR/2/T2SPIR/DICOM_anon/series.nii.gz").unlink()
    data = CHAOS(root=str(root), series=("t2",))
    line = r"^MR_2: .*IMG-0001-00001\.dcm: DCM is not read - make a \.nii\.gz of it: dcm2niix FOLDER$"
    with pytest.raises(DataError, match=line):
        data.cases()
    config = "base: vistrain:med/unet3d_chaos_mr\ndata: {root: ., slices: down, patch: [4, 8, 8]}\n"
    (root / "chaos.yaml").write_text(config)
    assert main(["check", "-c", "chaos.yaml", "data.series=[t2]", "data.folds=2"]) == 2
    assert "dcm2niix" in capsys.readouterr().out


def test_refusals(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.series: \['ct', 't2'\]"):
        CHAOS(root=str(root), series=("ct", "t2"))
    with pytest.raises(ConfigError, match=r"data\.slices: is not said, and label maps are PNG files"):
        CHAOS(root=str(root), series=("in_phase",)).cases()
    with pytest.raises(DataError, match="no such folder"):
        CHAOS(root=str(root), folder="Test_Sets").cases()
    data = CHAOS(root=str(root), series=("in_phase",), slices="down")
    ground = root / "Train_Sets/MR/1/T1DUAL/Ground"
    Image.fromarray(np.full(SIDES[1:], 70, np.uint8)).save(ground / "IMG-0001-00002.png")
    with pytest.raises(DataError, match="MR_1: Ground: 120 voxels have the label 70, which is no class"):
        truth_of(data)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(ground / "IMG-0001-00002.png")
    with pytest.raises(DataError, match=r"IMG-0001-00002\.png: is 4x4 pixels, and a slice 12x10"):
        truth_of(data)
    (ground / "IMG-0001-00002.png").unlink()
    with pytest.raises(DataError, match="MR_1: Ground: 5 pictures, and the image has 6 slices"):
        truth_of(CHAOS(root=str(root), series=("in_phase",), slices="down"))
    for file in ground.iterdir():
        file.unlink()
    assert CHAOS(root=str(root), series=("in_phase",), slices="down").listing.bare == ["MR_1"]
