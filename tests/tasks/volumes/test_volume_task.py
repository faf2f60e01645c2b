"""Segmentation of volumes from the command line: trained, tested, predicted with the files' geometry, measured again,
and by folds; and what `check` says of faults."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.checkpoints import load_file
from vistrain.cli import main
from vistrain.data.volumes.generated import write_tumours
from vistrain.data.volumes.nifti import Geometry, read_labels, read_volume, write_volume
from vistrain.errors import DataError
from vistrain.metrics.region_components import cleaned
from vistrain.run.predict import load_predictor
from vistrain.tasks.volumes.pictures import middle_of
from vistrain.tasks.volumes.predictor import Volume, VolumePredictor

CONFIG = """
base: vistrain:demo/phantom
metrics: [regions, brats_lesions]
data: {root: data, number: 6, side: 20, folds: 3, patch: [8, 8, 8], patches: 1, cache: cache, workers: 0}
model: {network: {type: segmentation.UNet3d, widths: [4, 6]}}
optimizer: {lr: 1e-2}
schedule: {type: optim.Constant}
trainer: {max_epochs: 2, check_val_every_n_epoch: 1, accelerator: cpu, log_every_n_steps: 1}
run: {folder: run}
"""
SHARED = Path(__file__).resolve().parents[4] / "shared" / "samples"
SET = "data/tumours-v1-6-20-seed0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "mine.yaml").write_text(CONFIG)
        assert main(["fit", "-c", "mine.yaml"]) == 0
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_numbers_and_pictures(trained: Path) -> None:
    metrics = rows(trained / "run/metrics.csv")
    assert {"train/loss_seg", "val/regions/Dice", "val/regions/WT/HD95"} <= set(metrics[0])
    cases = rows(trained / "run/per_case.csv")
    assert len(cases) == 2
    assert {"case", "WT/Dice", "TC/HD95", "ET/surface_Dice"} <= set(cases[0])
    assert Image.open(trained / "run/per_case.png").size[0] > 500
    lesions = rows(trained / "run/per_lesion.csv")
    assert {row["case"] for row in lesions} <= {row["case"] for row in cases}
    assert {row["kind"] for row in lesions} <= {"found", "missed", "false", "left out"}
    assert {"val/brats_lesions/WT/Dice", "val/brats_lesions/FN"} <= set(metrics[0])
    assert len(list((trained / "run/eval").glob("*.png"))) >= 1
    assert (trained / "run/first_batch.png").is_file()


def test_a_resumed_run_has_the_same_bits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    words = ["run.folder=half", "trainer.max_epochs=1", "metrics=[regions]"]  # panels of curves cost more than steps
    assert main(["fit", "-c", "mine.yaml", *words]) == 0
    assert main(["fit", "--resume", "half", "trainer.max_epochs=2"]) == 0
    whole, half = (load_file(trained / name / "last.ckpt")["state_dict"] for name in ("run", "half"))
    assert all(torch.equal(whole[key], half[key]) for key in whole)


def test_predictions_have_the_geometry_of_their_input(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a flip and with other axes: the same voxels of the patient have the same classes."""
    monkeypatch.chdir(trained)
    case, predictor = "Phantom_000", load_predictor("run/last.ckpt", "cpu")
    first = trained / SET / case / f"{case}_flair.nii.gz"
    wanted = predictor.predict(str(first)).classes
    turned = trained / "turned" / case
    turned.mkdir(parents=True)
    for file in (trained / SET / case).iterdir():
        image = nib.load(file)
        flipped = image.as_reoriented(nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("ASL")))  # fmt: skip
        nib.save(nib.Nifti1Image(np.asanyarray(flipped.dataobj).astype(image.get_data_dtype()), flipped.affine),
                 turned / file.name)  # fmt: skip
    arguments = ["predict", "--ckpt", "run/last.ckpt", "--input", "turned", "--output", "out", "--truth", SET]
    assert main([*arguments, "--probabilities", "true"]) == 0
    labels = trained / "out/pictures/labels" / case / f"{case}.nii.gz"
    written, given = nib.load(labels), nib.load(turned / f"{case}_flair.nii.gz")
    np.testing.assert_allclose(written.affine, given.affine)
    assert nib.aff2axcodes(written.affine) == ("A", "S", "L")
    assert written.shape == given.shape
    assert written.get_data_dtype() == given.get_data_dtype()
    values, _ = read_labels(labels)
    assert np.array_equal(values, np.array([0, 1, 2, 4])[wanted])
    share, _ = read_volume(trained / "out/pictures/probabilities" / case / f"{case}_WT.nii.gz")
    assert set(np.unique(wanted[share > 0.5])) <= {1, 2, 3}
    montage = Image.open(trained / "out/pictures/montages" / case / f"{case}.png")
    assert montage.size[0] > 300
    said = json.loads((trained / "out/predictions.json").read_text())
    assert said["classes"][3] == {"value": 4, "name": "enhancing"}
    assert said["images"][0]["orientation"] == "ASL"


def test_a_resampled_case_comes_back_in_its_own_voxels(trained: Path) -> None:
    """A network that thresholds: classes are those of the interpolated image, voxel by voxel."""
    predictor = load_predictor(trained / "run/last.ckpt", "cpu")
    assert isinstance(predictor, VolumePredictor)
    geometry = Geometry((9, 10, 12), np.diag([2.0, -1.0, 3.0, 1.0]))
    assert geometry.sides == (12, 10, 9)
    images = np.random.default_rng(0).normal(size=(4, *geometry.sides)).astype(np.float32)
    object.__setattr__(predictor.preparation, "spacing", (1.5, 1.0, 1.0))
    found = predictor.predict(Volume(images.copy(), geometry))
    assert found.classes.shape == geometry.sides
    resampled, box = predictor.preparation.prepared(images.copy(), geometry.spacing)
    assert resampled.shape[1:] == (24, 10, 18)
    planes = list(predictor.segmenter.planes(torch.from_numpy(resampled), box))
    small = predictor.segmenter.planes(torch.from_numpy(resampled), [(0, n) for n in resampled.shape[1:]])
    whole = torch.stack(list(small), 1)[None]
    wanted = torch.nn.functional.interpolate(whole, geometry.sides, mode="trilinear")[0]
    torch.testing.assert_close(torch.stack(planes, 1), wanted, atol=1e-5, rtol=1e-4)
    assert np.array_equal(found.classes, predictor.segmenter.plane_classes(wanted).numpy())


def test_files_give_the_numbers_of_the_test(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog) -> None:
    monkeypatch.chdir(trained)
    assert main(["test", "--ckpt", "run/last.ckpt", "--analysis", "analysis"]) == 0
    tested = json.loads((trained / "run/test.json").read_text())["numbers"]
    held_out = [row["case"] for row in rows(trained / "analysis/per_case.csv")]
    folders = [f"{SET}/{case}" for case in held_out]
    assert main(["predict", "--ckpt", "run/last.ckpt", "--input", *folders, "--output", "again"]) == 0
    capsys.readouterr()
    flat = trained / "flat"
    flat.mkdir()
    for file in (trained / "again/pictures/labels").rglob("*.nii.gz"):
        shutil.copy(file, flat / file.name)
    assert len(list(flat.iterdir())) == len(held_out) == 2
    shutil.copy(next(flat.iterdir()), flat / "stranger.nii.gz")
    assert main(["evaluate", "flat", "-c", "mine.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "1 predictions of no case of the test split are left out, such as stranger" in caplog.text
    assert f"{100 * tested['test/regions/WT/Dice']:.2f}" in printed
    assert main(["evaluate", "flat", "-c", "mine.yaml", "--protocol", "miou"]) == 2


def test_folds_are_run_reported_and_averaged(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(trained)
    words = ["folds", "-c", "mine.yaml", "run.folder=cv", "trainer.max_epochs=1", "metrics=[regions, components]"]
    assert main([*words, "--only", "2"]) == 0
    assert "folds 0, 1 are missing" in capsys.readouterr().out
    time = (trained / "cv/fold_2/last.ckpt").stat().st_mtime_ns
    assert main(words) == 0
    assert (trained / "cv/fold_2/last.ckpt").stat().st_mtime_ns == time
    said = capsys.readouterr().out
    assert "3 folds, 6 cases, each measured once" in said
    assert "regions/WT/specificity, %" in said
    assert "…" not in said
    found = json.loads((trained / "cv/folds.json").read_text())
    assert found["samples"] == 6
    records = [r for n in range(3) for r in json.loads((trained / f"cv/fold_{n}/records.json").read_text())["regions"]]
    assert sorted(record["id"] for record in records) == [f"Phantom_{n:03d}" for n in range(6)]
    dice = [record["regions"]["WT"]["Dice"] for record in records]
    assert found["numbers"]["regions/WT/Dice"] == pytest.approx(np.mean(dice))
    low, high = found["intervals"]["regions/WT/Dice"]
    assert min(dice) <= low <= np.mean(dice) <= high <= max(dice)
    checkpoints = [str(path) for path in sorted((trained / "cv").glob("fold_*/last.ckpt"))]
    together = load_predictor(checkpoints, "cpu", probabilities=True)
    alone = [load_predictor(path, "cpu", probabilities=True) for path in checkpoints]
    case = str(trained / SET / "Phantom_000/Phantom_000_flair.nii.gz")
    mean = np.mean([one.predict(case).probabilities.astype(np.float32) for one in alone], 0)
    np.testing.assert_allclose(together.predict(case).probabilities, mean, atol=2e-3)
    # What the folds chose, or here: what they might have chosen, is done to predictions.
    assert set(found["choices"]) == {"regions", "components"}
    found["choices"]["components"] = {"WT": "largest", "ET": 1e9}
    (trained / "rules.json").write_text(json.dumps(found))
    plain = alone[0].predict(case).classes
    kept = load_predictor(checkpoints[0], "cpu", components=str(trained / "rules.json")).predict(case).classes
    regions = {"WT": (1, 2, 3), "ET": (3,)}
    assert np.array_equal(kept, cleaned(plain.copy(), {"WT": "largest", "ET": 1e9}, regions, 1.0))
    assert 3 not in kept
    for wrong in ({**found, "missing": [1]}, {**found, "choices": {"components": {"liver": "largest"}}}, []):
        (trained / "rules.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="rule"):
            load_predictor(checkpoints[0], "cpu", components=str(trained / "rules.json"))
    # The mean of a network with itself is that network: the numbers of its folds come back, and are compared.
    chosen = ["-c", "mine.yaml", "metrics=[regions]"]
    assert main(["folds", "--average", "cv", "cv", *chosen, "run.folder=both"]) == 0
    again = json.loads((trained / "both/folds.json").read_text())
    assert again["numbers"] == {k: v for k, v in found["numbers"].items() if k.startswith("regions")}
    assert again["digest"] == found["digest"]
    assert main(["folds", "--average", "cv", "run", *chosen, "run.folder=wrong"]) == 2
    assert main(["folds", "--average", "cv", "both", *chosen, "run.folder=both"]) == 2
    capsys.readouterr()
    assert main(["compare", "cv", "both", "--output", "compared"]) == 0
    said = capsys.readouterr().out
    assert f"best by test/regions/Dice: cv, {found['numbers']['regions/Dice']:.4f}" in said
    assert main([*words, "--only", "3"]) == 2
    assert main(["folds", "-c", "vistrain:demo/segmentation"]) == 2
    assert "has no folds" in capsys.readouterr().err


def test_inputs_that_are_no_case_are_named(trained: Path, tmp_path: Path) -> None:
    predictor = load_predictor(trained / "run/last.ckpt", "cpu")
    source = trained / SET / "Phantom_000"
    half = tmp_path / "half"
    half.mkdir()
    for word in ("flair", "t1", "seg"):
        shutil.copy(source / f"Phantom_000_{word}.nii.gz", half)
    with pytest.raises(DataError, match="Phantom_000: has no t1ce, t2 beside Phantom_000_flair"):
        predictor.predict(half / "Phantom_000_flair.nii.gz")
    found = VolumePredictor.find([source], tmp_path / "out")
    assert [(file.path.name, file.name) for file in found] == [("Phantom_000_flair.nii.gz", "Phantom_000.nii.gz")]
    (tmp_path / "a.dcm").touch()
    with pytest.raises(DataError, match=r"DCM is not read - make a \.nii\.gz of it: dcm2niix"):
        VolumePredictor.find([tmp_path / "a.dcm"], tmp_path / "out")
    with pytest.raises(DataError, match="a volume is a NIfTI file or a Volume, not int"):
        predictor.predict(3)


def test_truths_are_looked_for_before_the_network_runs(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", "--ckpt", str(trained / "run/last.ckpt"), "--input"]
    words += [str(trained / SET / f"Phantom_00{n}") for n in range(3)]
    (tmp_path / "truth").mkdir()
    assert main([*words, "--output", "none", "--truth", "truth"]) == 2
    assert "truth: has no truth of Phantom_000/Phantom_000.nii.gz, nor of any other" in capsys.readouterr().err
    assert not list(tmp_path.glob("none/**/*.nii.gz"))
    shutil.copy(trained / SET / "Phantom_000/Phantom_000_seg.nii.gz", tmp_path / "truth")
    values, geometry = read_labels(trained / SET / "Phantom_001/Phantom_001_seg.nii.gz")
    write_volume(tmp_path / "truth/Phantom_001.nii.gz", values + 7, geometry)
    assert main([*words, "--output", "some", "--truth", "truth"]) == 0
    said = caplog.text
    assert "no truth in truth, so montages without it: Phantom_002/Phantom_002.nii.gz" in said
    assert "Phantom_001/Phantom_001.nii.gz: its montage has no truth: Phantom_001: Phantom_001.nii.gz: " in said
    assert len(list(tmp_path.glob("some/pictures/labels/*/*.nii.gz"))) == 3
    widths = [Image.open(path).size[0] for path in sorted(tmp_path.glob("some/pictures/montages/*/*.png"))]
    heights = [Image.open(path).size[1] for path in sorted(tmp_path.glob("some/pictures/montages/*/*.png"))]
    assert len({*zip(widths[1:], heights[1:], strict=True)}) == 1
    assert (widths[0], heights[0]) != (widths[1], heights[1])


def test_one_numbered_modality_is_called_as_its_label_is(tmp_path: Path) -> None:
    for name in ("c0_0000.nii.gz", "c1_0000.nii", "c2.nii.gz", "c3_t1.nii.gz"):
        (tmp_path / name).touch()
    found = [file.name for file in VolumePredictor.find([tmp_path], tmp_path / "out")]
    assert found == ["c0.nii.gz", "c1.nii", "c2.nii.gz", "c3_t1.nii.gz"]


# -------------------------------------------------------------------- check


def a_copy(folder: Path, number: int = 4) -> Path:
    """Phantoms in a folder of their own, to be spoilt."""
    write_tumours(folder / "set", number, 16, 0)
    (folder / "spoilt.yaml").write_text(
        "data: {type: data.BraTS, root: set, folds: 2, patch: [8, 8, 8], cache: cache, workers: 0}\n"
    )
    return folder / "set"


def report(folder: Path, code: int) -> dict:
    assert main(["check", "-c", "spoilt.yaml", "--output", "checked"]) == code
    return json.loads((folder / "checked/report.json").read_text())


def test_a_set_without_faults_gets_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    a_copy(tmp_path)
    found = report(tmp_path, 0)
    assert found["ok"]
    assert "report and plans: checked\n" in capsys.readouterr().out
    assert found["fingerprint"]["spacing"] == [1, 1, 1]
    assert found["fingerprint"]["orientations"] == {"LPS": 4}
    assert 0 < found["fingerprint"]["foreground"] < 0.2
    assert set(found["fingerprint"]["intensities"]) == {"flair", "t1", "t1ce", "t2"}
    for name in ("3d", "2d"):
        plan = tmp_path / f"checked/plan_{name}.yaml"
        assert (
            main(["fit", "-c", "vistrain:med/custom_nifti", "-c", "spoilt.yaml", "-c", str(plan), "--print-config"])
            == 0
        )
    assert "segmentation.UNet2d" in capsys.readouterr().out


def test_every_fault_is_named_by_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = a_copy(tmp_path, 9)

    def files(number: int) -> dict[str, Path]:
        return {
            p.name.rpartition("_")[2].removesuffix(".nii.gz"): p for p in (root / f"Phantom_{number:03d}").iterdir()
        }

    files(0)["t1"].unlink()
    whole = files(1)["t2"].read_bytes()
    files(1)["t2"].write_bytes(whole[: len(whole) // 2])
    values, geometry = read_volume(files(2)["flair"])
    values[8, 8, 8] = np.inf
    write_volume(files(2)["flair"], values, geometry, "float32")
    values, geometry = read_labels(files(3)["seg"])
    values[8, 8, 8] = 3
    write_volume(files(3)["seg"], values, geometry)
    values, geometry = read_labels(files(4)["seg"])
    write_volume(files(4)["seg"], values * 0, geometry)
    values, geometry = read_volume(files(5)["t1ce"])
    write_volume(files(5)["t1ce"], values[1:], Geometry((16, 16, 15), geometry.affine, "int16"))
    shutil.copytree(root / "Phantom_006", root / "more" / "Phantom_006")
    shutil.rmtree(root / "Phantom_008")
    shutil.copytree(root / "Phantom_007", root / "Phantom_008")
    for path in (root / "Phantom_008").iterdir():
        path.rename(path.with_name(path.name.replace("007", "008")))
    found = report(tmp_path, 2)
    refused = " ".join(line for split in found["splits"].values() for line in split["refused"])
    assert "Phantom_000: has no t1, but flair, seg, t1ce, t2" in refused
    assert "Phantom_006: is there twice" in refused
    bad = {file: why for split in found["splits"].values() for file, why in split["bad_files"].items()}
    assert bad["Phantom_001: Phantom_001_t2.nii.gz"].startswith("is cut off")
    assert bad["Phantom_002: Phantom_002_flair.nii.gz"].startswith("1 voxels are NaN or infinite")
    assert bad["Phantom_003: Phantom_003_seg.nii.gz"].startswith("1 voxels have the label 3, which is no class")
    assert bad["Phantom_005: Phantom_005_t1ce.nii.gz"].startswith("has 16x16x15 voxels, not 16x16x16")
    assert found["notes"]["background alone (trained on as it is)"] == ["Phantom_004"]
    same = [*found["leaks"], *(group for split in found["splits"].values() for group in split["repeated"])]
    assert any("Phantom_007" in " ".join(group) and "Phantom_008" in " ".join(group) for group in same)


@pytest.mark.parametrize("other", [1, 2, 3])
def test_the_same_voxels_under_two_names_end_the_check_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    monkeypatch.chdir(tmp_path)
    root = a_copy(tmp_path)
    for path in (root / "Phantom_000").iterdir():
        name = f"Phantom_{other:03d}"
        shutil.copy(path, root / name / path.name.replace("Phantom_000", name))
    found = report(tmp_path, 2)
    same = [*found["leaks"], *(group for split in found["splits"].values() for group in split["repeated"])]
    assert len(same) == 1
    assert not found["ok"]
    assert not any(split["refused"] or split["bad_files"] for split in found["splits"].values())


@pytest.mark.skipif(not (SHARED / "hippocampus").is_dir(), reason="needs ../shared/samples/hippocampus")
def test_the_planted_faults_of_the_hippocampus_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = SHARED / "hippocampus"
    for kind, faulty in (("imagesTr", "images"), ("labelsTr", "labels")):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for file in sorted(path for path in (source / kind).iterdir() if not path.name.startswith("."))[:8]:
            shutil.copy(file, tmp_path / "set" / kind)
        for file in (source / "faulty" / faulty).iterdir():
            shutil.copy(file, tmp_path / "set" / kind)
    about = json.loads((source / "dataset.json").read_text())
    (tmp_path / "set/dataset.json").write_text(json.dumps({**about, "training": []}))
    (tmp_path / "spoilt.yaml").write_text(
        "data: {type: data.VolumeFolders, root: set, patch: [8, 8, 8], cache: cache, workers: 0}\n"
    )
    found = report(tmp_path, 2)
    assert found["bare"] == ["hippocampus_118"]
    assert set(found["lonely"]) == {"hippocampus_010", "hippocampus_281"}
    assert "the same voxels as the label of hippocampus_011" in found["lonely"]["hippocampus_010"]
    assert "of another set by its size" in found["lonely"]["hippocampus_281"]


def test_short_schedules_and_early_stopping_have_names(capsys) -> None:
    names = [word for name in ("demo/phantom", "med/_base_/short", "med/_base_/early_stopping")
             for word in ("-c", f"vistrain:{name}")]  # fmt: skip
    assert main(["fit", *names, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "max_epochs: 50" in printed
    assert "monitor: val/regions/Dice" in printed


def test_planes_go_through_what_matters() -> None:
    found = np.zeros((5, 6, 7), np.uint8)
    found[3, 1:4, 2:5] = 1
    found[3, 2, 5] = 1
    assert middle_of([found], found.shape) == (3, 2, 2)
    found[0] = 255  # outside of a case
    assert middle_of([found], found.shape) == (3, 2, 2)
    assert middle_of([found * 0], found.shape) == (2, 3, 3)
