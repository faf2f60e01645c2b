"""A cascade from the command line: folds at a low resolution, and a second stage that sees what they found."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vistrain.cli import main
from vistrain.data.volumes.nifti import read_labels
from vistrain.run.predict import load_predictor

CONFIG = """
base: vistrain:demo/phantom
data: {root: data, number: 4, side: 16, folds: 2, patch: [8, 8, 8], patches: 1, cache: cache, workers: 0}
model: {network: {type: segmentation.UNet3d, widths: [4, 6]}}
schedule: {type: optim.Constant}
trainer: {max_epochs: 1, check_val_every_n_epoch: 2, accelerator: cpu}
"""


def test_a_second_stage_sees_what_the_first_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    low = ["data.spacing=[2,2,2]", "run.folder=low", "task.keep_labels=true"]
    assert main(["folds", "-c", "mine.yaml", *low]) == 0
    kept = {path.name: path for path in (tmp_path / "low").glob("fold_*/labels/*.nii.gz")}
    assert sorted(kept) == [f"Phantom_{n:03d}.nii.gz" for n in range(4)]
    own = kept["Phantom_000.nii.gz"]
    case = tmp_path / "data/tumours-v1-4-16-seed0/Phantom_000/Phantom_000_flair.nii.gz"
    np.testing.assert_allclose(nib.load(own).affine, nib.load(case).affine)
    fold = own.parents[1]
    found = load_predictor(fold / "last.ckpt", "cpu").predict(str(case)).classes
    stored, values = read_labels(own)[0], np.array([0, 1, 2, 4])
    assert (values[found] == stored).mean() > 0.98  # the cache is in half precision
    # The second stage.
    assert main(["fit", "-c", "mine.yaml", "data.previous=low", "run.folder=second"]) == 0
    predictor = load_predictor("second/last.ckpt", "cpu", previous="low")
    assert predictor.segmenter.channels == 4 + 3
    volume = predictor.read(str(case))
    assert np.array_equal(values[volume.previous], stored)
    batch = predictor.preparation.prepared(volume.images, volume.geometry.spacing, None, volume.previous)[0]
    assert set(np.unique(batch[4:])) <= {0.0, 1.0}
    assert main(["predict", "--ckpt", "second/last.ckpt", "--input", str(case.parent), "--output", "out",
                 "--previous", "low"]) == 0  # fmt: skip
    capsys.readouterr()
    # What is missing is named.
    assert main(["predict", "--ckpt", "second/last.ckpt", "--input", str(case), "--output", "out"]) == 2
    assert "label maps of a first stage" in capsys.readouterr().err
    own.unlink()
    assert main(["fit", "-c", "mine.yaml", "data.previous=low", "run.folder=third"]) == 2
    assert "Phantom_000: has no label map in low" in capsys.readouterr().err
