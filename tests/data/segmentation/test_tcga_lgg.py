"""TCGA-LGG in Kaggle's layout: folds by patient, masks, what is not of the set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistrain.data import TCGALGG
from vistrain.errors import ConfigError, DataError

FOLDERS = ("TCGA_CS_4941_19960909", "TCGA_CS_4941_19970101", "TCGA_DU_5851_19950428", "TCGA_HT_A61A_20000127")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for folder in FOLDERS:
        place = tmp_path / "kaggle_3m" / folder
        place.mkdir(parents=True)
        for n in range(1, 3):
            mask = np.zeros((20, 20), np.uint8)
            mask[5 : 5 + n, 3:8] = 255
            Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(place / f"{folder}_{n}.tif")
            Image.fromarray(mask).save(place / f"{folder}_{n}_mask.tif")
    (tmp_path / "kaggle_3m" / "data.csv").write_text("Patient\n")
    return tmp_path


def test_patients_stay_together(root: Path) -> None:
    held_out = []
    for fold in range(3):
        data = TCGALGG(root=str(root), fold=fold, folds=3)
        patients = {s: {p.name.split("/")[0][:12] for p in data.pairs(s)} for s in ("train", "val", "test")}
        assert patients["val"] == patients["test"]
        assert not patients["train"] & patients["val"]
        assert len(data.pairs("train")) + len(data.pairs("val")) == 8
        held_out += sorted(patients["val"])
    assert sorted(held_out) == ["TCGA_CS_4941", "TCGA_DU_5851", "TCGA_HT_A61A"]
    assert len(TCGALGG(root=str(root), fold=None, folds=3).pairs("train")) == 8


def test_slices_and_masks(root: Path) -> None:
    data = TCGALGG(root=str(root), folds=3)
    found = data.dataset("val").sample(1)
    stored = np.asarray(Image.open(data.pairs("val")[1].image))
    np.testing.assert_array_equal(found.image, stored)
    assert found.id.endswith("_2")
    assert (found.label_map == 1).sum() == 10
    assert set(np.unique(data.dataset("train").sample(0, 1).label_map)) <= {0, 1, 255}


def test_refusals(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    output = tmp_path_factory.mktemp("report")
    with pytest.raises(ConfigError, match=r"data\.fold: 3 of 3 folds"):
        TCGALGG(root=str(root), fold=3, folds=3)
    with pytest.raises(DataError, match="4 folds of 3 patients"):
        TCGALGG(root=str(root), folds=4).pairs("train")
    bad = root / "kaggle_3m" / FOLDERS[0] / f"{FOLDERS[0]}_1_mask.tif"
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(bad)
    report = TCGALGG(root=str(root), folds=3, batch_size=2).check(output)
    assert bad.name in {Path(name).name for split in report.splits.values() for name in split.bad_files}
    bad.unlink()
    with pytest.raises(DataError, match=r"no masks for TCGA_CS_4941_19960909_1\.tif"):
        TCGALGG(root=str(root), folds=3).pairs("train")
    skipping = TCGALGG(root=str(root), folds=3, unpaired="skip")
    assert len(skipping.pairs("train")) + len(skipping.pairs("val")) == 7
    (root / "kaggle_3m" / FOLDERS[2]).rename(root / "kaggle_3m" / "odd")
    with pytest.raises(DataError, match="lies in no folder of a patient"):
        TCGALGG(root=str(root), folds=2, unpaired="skip").pairs("train")
