"""Real files through training and prediction: a brain MRI with slices far apart, and BraTS cases. Their geometry comes
back, voxel by voxel, also from a file with other axes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vistrain.cli import main

SHARED = Path(__file__).resolve().parents[4] / "shared" / "samples"
CONFIG = """
base: vistrain:med/custom_nifti
data:
  {data}
  patch: [4, 16, 16]
  patches: 1
  batch_size: 1
  workers: 0
  cache: cache
model: {{network: {{type: segmentation.UNet3d, widths: [4, 6]}}, mirror: []}}
trainer: {{max_epochs: 1, limit_train_batches: 2, check_val_every_n_epoch: 2, accelerator: cpu}}
run: {{folder: run}}
"""
AXES = "ASL"


def turned(source: Path, target: Path) -> None:
    """The same voxels of the patient in a file whose axes run otherwise."""
    image = nib.load(source)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(AXES))
    stored = nib.orientations.apply_orientation(np.asanyarray(image.dataobj.get_unscaled()), turn)
    affine = image.affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    target.parent.mkdir(parents=True, exist_ok=True)
    again = nib.Nifti1Image(stored, affine)
    again.header.set_slope_inter(*image.header.get_slope_inter())
    nib.save(again, target)


def geometry_comes_back(labels: Path, given: Path) -> np.ndarray:
    """The label map of a prediction, which lies where its input does; turned to RAS."""
    found, image = nib.load(labels), nib.load(given)
    assert found.shape == image.shape
    assert found.get_data_dtype() == image.get_data_dtype()
    np.testing.assert_array_equal(found.affine, image.affine)
    assert nib.aff2axcodes(found.affine) == nib.aff2axcodes(image.affine)
    return np.asanyarray(nib.as_closest_canonical(found).dataobj)


@pytest.mark.skipif(not (SHARED / "volume").is_dir(), reason="the sample volume is not there")
def test_a_real_volume_keeps_its_geometry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = SHARED / "volume" / "t2.nii.gz"
    image = nib.load(source)
    values = np.asanyarray(image.dataobj, dtype=np.float32)
    bright = (values > np.percentile(values, 70)).astype(np.uint8)
    nib.save(nib.Nifti1Image(bright, image.affine), tmp_path / "bright.nii.gz")
    turned(source, tmp_path / "turned/t2.nii.gz")
    turned(tmp_path / "bright.nii.gz", tmp_path / "turned/bright.nii.gz")
    rows = f"case,t2,label,fold\none,{source},bright.nii.gz,0\ntwo,turned/t2.nii.gz,turned/bright.nii.gz,1\n"
    (tmp_path / "cases.csv").write_text(rows)
    (tmp_path / "mine.yaml").write_text(
        CONFIG.format(
            data="""type: data.VolumeList
  root: .
  cases_file: cases.csv
  modalities: [t2]
  spacing: [6, 6, 6]
  classes: {background: 0, bright: 1}
  folds: 2"""
        )
    )
    assert main(["fit", "-c", "mine.yaml"]) == 0
    for name, given in (("plain", source), ("other", tmp_path / "turned/t2.nii.gz")):
        words = ["--input", str(given), "--output", name]
        assert main(["predict", "--ckpt", "run/last.ckpt", *words]) == 0
    plain = geometry_comes_back(tmp_path / "plain/pictures/labels/t2.nii.gz", source)
    other = geometry_comes_back(tmp_path / "other/pictures/labels/t2.nii.gz", tmp_path / "turned/t2.nii.gz")
    np.testing.assert_array_equal(plain, other)
    assert set(np.unique(plain)) <= {0, 1}


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "brats2013").is_dir(), reason="the BraTS samples are not there")
def test_brats_cases_keep_their_geometry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        CONFIG.format(
            data=f"""type: data.BraTS
  root: {SHARED / "brats2013"}
  year: 2013
  modalities: [flair, t1ce]
  spacing: [5, 5, 5]
  folds: 4"""
        )
    )
    assert main(["fit", "-c", "mine.yaml", "model.outputs=regions"]) == 0
    assert main(["test", "--ckpt", "run/last.ckpt"]) == 0
    case = SHARED / "brats2013/val/pat0003"
    for file in case.glob("*.nii.gz"):
        turned(file, tmp_path / "turned/pat0003" / file.name)
    for name, given in (("plain", case), ("other", tmp_path / "turned/pat0003")):
        assert main(["predict", "--ckpt", "run/last.ckpt", "--input", str(given), "--output", name]) == 0
    maps = []
    for name, given in (("plain", case), ("other", tmp_path / "turned/pat0003")):
        labels = next((tmp_path / name / "pictures/labels").rglob("*.nii.gz"))
        maps.append(geometry_comes_back(labels, next(given.glob("*flair*.nii.gz"))))
    np.testing.assert_array_equal(*maps)
    assert maps[0].shape == (240, 240, 155)
