"""Which files are a case; folds; classes and regions; all that does not pair up, by the name of the case."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vistrain.data import BraTS, VolumeFolders, VolumeList
from vistrain.data.volumes.cases import (
    Case,
    brats_cases,
    decathlon_cases,
    listed_cases,
    modality_of,
    read_dataset_json,
    refuse_missing,
)
from vistrain.data.volumes.fold_numbers import folds_of
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.prepared import read_images
from vistrain.data.volumes.sets import classes_of
from vistrain.errors import ConfigError, DataError

EMPTY = np.zeros((2, 2, 2), np.uint8)
TWO = {"labels": {"background": 0, "one": 1}, "channel_names": {"0": "T1", "1": "T2"}}


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(EMPTY, np.eye(4)), file)


def test_folds_keep_patients_together_and_are_always_the_same() -> None:
    cases = [Case(f"{p}_{t}", (), patient=f"p{p}") for p in range(11) for t in range(2)]
    folds = folds_of(cases, 5)
    assert folds == folds_of(list(reversed(cases)), 5)[::-1]
    assert all(folds[2 * p] == folds[2 * p + 1] for p in range(11))
    counts = [folds.count(fold) for fold in range(5)]
    assert sorted(counts) == [4, 4, 4, 4, 6]
    with pytest.raises(DataError, match="5 folds of 2 patients"):
        folds_of(cases[:4], 5)


def test_folds_of_a_list_are_kept_or_refused() -> None:
    said = [Case("a", (), patient="p", fold=1), Case("b", (), patient="q", fold=0)]
    assert folds_of(said, 2) == [1, 0]
    with pytest.raises(DataError, match=r"data.folds: is 5, and the list has the folds 0, 1 - set data.folds=2"):
        folds_of(said, 5)
    with pytest.raises(DataError, match=r"the list has the folds 0, 1, 3 - number them from 0"):
        folds_of([*said, Case("c", (), fold=3)], 3)
    with pytest.raises(DataError, match="c: is in fold 2, and a of the same patient in fold 1"):
        folds_of([*said, Case("c", (), patient="p", fold=2)], 5)
    with pytest.raises(DataError, match="c: has no fold, and 2 other cases have one"):
        folds_of([*said, Case("c", ())], 5)


def test_decathlon_folders_and_what_does_not_pair_up(tmp_path: Path) -> None:
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    for case in ("a", "b"):
        touch(images / f"{case}_0000.nii.gz", images / f"{case}_0001.nii.gz", labels / f"{case}.nii.gz")
    touch(images / "half_0000.nii.gz", labels / "half.nii.gz")  # taken for a file with a fourth axis: refused when read
    touch(images / "second_0001.nii.gz", labels / "second.nii.gz")
    touch(
        images / "bare_0000.nii.gz", images / "bare_0001.nii.gz", labels / "lonely.nii.gz", images / "._a_0000.nii.gz"
    )
    found = decathlon_cases(
        tmp_path, {**TWO, "training": [{"label": "./labelsTr/a.nii.gz"}] * 2 + [{"label": "gone.nii.gz"}]}
    )
    assert [case.id for case in found.cases] == ["a", "b", "half"]
    assert [file.name for file in found.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    with pytest.raises(DataError, match=r"^half: has no 0001 beside half_0000\.nii\.gz - there are 2 modalities"):
        read_images(found.cases[2], 2)
    assert found.bare == ["bare"]
    assert list(found.lonely) == ["lonely"]
    problems = [str(problem) for problem in found.problems]
    assert problems[0].startswith("a: is listed 2 times in dataset.json")
    assert problems[1].startswith("gone: is listed in dataset.json, and has neither")
    assert problems[2].startswith("second: has no 0000 beside second_0001.nii.gz")


def test_other_formats_are_named_with_a_converter(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "a.mha").touch()
    with pytest.raises(DataError, match=r"a\.mha: MHA is not read - make a \.nii\.gz of it"):
        decathlon_cases(tmp_path, TWO)
    with pytest.raises(DataError, match=r"a\.mha: MHA is not read"):
        brats_cases(tmp_path, ["flair"])
    with pytest.raises(DataError, match="no such folder"):
        brats_cases(tmp_path / "nowhere", ["flair"])


def test_another_format_among_nifti_files_is_named_by_its_case(tmp_path: Path) -> None:
    touch(*(tmp_path / "brats" / case / f"{case}_{word}.nii.gz" for case in ("a", "b") for word in ("flair", "seg")))
    (tmp_path / "brats/b/b_flair.nii.gz").rename(tmp_path / "brats/b/b_flair.nrrd")
    found = brats_cases(tmp_path / "brats", ["flair"])
    assert [case.id for case in found.cases] == ["a"]
    assert str(found.problems[0]).startswith("b: b_flair.nrrd: NRRD is not read - make a .nii.gz of it: ")
    for case in ("a", "b", "c"):
        touch(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "labelsTr" / f"{case}.nii.gz")
    (tmp_path / "imagesTr/b_0000.nii.gz").rename(tmp_path / "imagesTr/b_0000.mha")
    (tmp_path / "labelsTr/c.nii.gz").rename(tmp_path / "labelsTr/c.nrrd")
    found = decathlon_cases(tmp_path, {"labels": {"background": 0, "one": 1}})
    assert [case.id for case in found.cases] == ["a"]
    assert [str(problem).partition(" - ")[0] for problem in found.problems] == [
        "b: b_0000.mha: MHA is not read", "c: c.nrrd: NRRD is not read",
    ]  # fmt: skip
    assert not found.lonely
    assert not found.bare
    assert not found.other_kinds
    for name in ("a.mha", "d_0000.dcm", "e.nrrd"):
        (tmp_path / "imagesTr" / name).touch()
    found = decathlon_cases(tmp_path, {"labels": {"background": 0, "one": 1}})
    assert [path.name for path in found.other_kinds] == ["a.mha", "d_0000.dcm", "e.nrrd"]
    assert len(found.problems) == 2


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("BraTS20_Training_001_flair.nii.gz", ("BraTS20_Training_001", "flair")),
        ("BraTS-GLI-00000-001-t1c.nii.gz", ("BraTS-GLI-00000-001", "t1ce")),
        ("BraTS-GLI-00000-001-t2w.nii.gz", ("BraTS-GLI-00000-001", "t2")),
        ("x_t1Gd.nii", ("x", "t1ce")),
        ("flair.nii.gz", ("pat1", "flair")),
        ("seg.nii.gz", ("pat1", "seg")),
        ("brainmask.nii.gz", ("pat1", "brain")),
    ],
)
def test_names_say_case_and_modality(name: str, wanted: tuple[str, str]) -> None:
    assert modality_of(Path("pat1") / name) == wanted


def test_brats_folders_of_all_years(tmp_path: Path) -> None:
    for case in ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001"):
        touch(*(tmp_path / case / f"{case}-{word}.nii.gz" for word in ("t1n", "t1c", "t2w", "t2f", "seg")))
    touch(
        *(tmp_path / "HGG" / "Brats18_1" / f"Brats18_1_{word}.nii.gz" for word in ("flair", "t1", "t1ce", "t2", "seg"))
    )
    touch(*(tmp_path / "plain" / f"{word}.nii.gz" for word in ("flair", "t1", "t1ce", "t2", "seg", "brainmask")))
    touch(*(tmp_path / "half" / f"half_{word}.nii.gz" for word in ("flair", "t1", "seg")))
    touch(*(tmp_path / "bare" / f"bare_{word}.nii.gz" for word in ("flair", "t1", "t1ce", "t2")))
    touch(tmp_path / "alone" / "alone_seg.nii.gz")
    found = brats_cases(tmp_path, ("flair", "t1", "t1ce", "t2"))
    assert {case.id: case.patient for case in found.cases} == {
        "BraTS-GLI-00001-000": "BraTS-GLI-00001",
        "BraTS-GLI-00001-001": "BraTS-GLI-00001",
        "Brats18_1": "Brats18_1",
        "plain": "plain",
    }
    assert [file.name for file in found.cases[0].images] == [
        f"BraTS-GLI-00001-000-{word}.nii.gz" for word in ("t2f", "t1n", "t1c", "t2w")
    ]
    assert next(case for case in found.cases if case.id == "plain").brain is not None
    assert (found.bare, list(found.lonely)) == (["bare"], ["alone"])
    assert [str(problem).partition(" -")[0] for problem in found.problems] == [
        "half: has no t1ce, t2, but flair, seg, t1"
    ]


def test_classes_of_brats_by_year() -> None:
    assert BraTS(year=2020).labels.ids == (0, 1, 2, 4)
    assert BraTS(year=2023).labels.ids == (0, 1, 2, 3)
    old = BraTS(year=2013, modalities=("flair", "t1ce")).labels
    assert old.ids == (0, 1, 2, 3, 4)
    assert old.regions == (("WT", (1, 2, 3, 4)), ("TC", (1, 3, 4)), ("ET", (4,)))
    assert BraTS().labels.regions == (("WT", (1, 2, 3)), ("TC", (1, 3)), ("ET", (3,)))
    with pytest.raises(ConfigError, match=r"data\.year: 2016"):
        BraTS(year=2016)
    for name in ("seg", "SEG", "label", "brainmask"):
        with pytest.raises(ConfigError, match=rf"data\.modalities: '{name}' is a label or a mask"):
            BraTS(modalities=("flair", name))


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_lists(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"case": "a", "ct": "x/a.nii.gz", "label": "y/a.nii.gz", "patient": "p", "fold": "1"},
        {"case": "b", "ct": "x/b.nii.gz", "label": "", "patient": "", "fold": "0"},
        {"case": "a", "ct": "x/a.nii.gz", "label": "y/a.nii.gz", "patient": "p", "fold": "0"},
        {"case": "d", "ct": "", "label": "y/d.nii.gz", "patient": "", "fold": "0"},
    ]
    file = tmp_path / f"cases.{suffix}"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    file.write_text(json.dumps(rows) if suffix == "json" else "\n".join(lines))
    found = listed_cases(file, ("ct",))
    assert found.cases == [Case("a", (tmp_path / "x/a.nii.gz",), tmp_path / "y/a.nii.gz", None, "p", 1)]
    assert found.bare == ["b"]
    assert [problem.where for problem in found.problems] == ["a", "d"]
    with pytest.raises(DataError, match="unknown column 'ct'"):
        listed_cases(file, ("image",))
    with pytest.raises(ConfigError, match="none of"):
        VolumeList({"background": 0, "x": 1}, modalities=("label",))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"channel_names": ["CT"]}, r"channel_names is \['CT'\]"),
        ({"channel_names": {"5": "CT"}}, "channel_names is {'5': 'CT'}"),
        ({"channel_names": {}}, "channel_names is {}"),
        ({"channel_names": None, "modality": {"0": 3}}, "modality is {'0': 3}"),
        ({"file_ending": 5}, "file_ending is 5"),
        ({"file_ending": ".mha"}, r"file_ending is '\.mha'"),
        ({"training": 5}, "training has the entry '5'"),
        ({"training": [{"image": "a.nii.gz"}]}, "training has the entry"),
        ({"labels": {"background": 0, "x": 1.5}}, "no whole numbers"),
        ({"labels": {"background": 0, "x": True}}, "no whole numbers"),
        ({"labels": {"background": 0, "x": [1, 10**30]}}, "no whole numbers"),
        ({"labels": {"background": 0, "x": "9" * 5000}}, "no whole numbers"),
        ({"labels": {"background": 0, "": 1}}, "the class of number 1 has no name"),
        ({"labels": {"0": "background", "1": "x", "2": "x"}}, "the class 'x' stands there twice"),
    ],
)
def test_a_dataset_json_of_another_kind_is_refused(tmp_path: Path, changed: dict[str, object], problem: str) -> None:
    touch(tmp_path / "imagesTr" / "a.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")
    about = {"labels": {"background": 0, "x": 1}, "channel_names": {"0": "CT"}, **changed}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    data = VolumeFolders(root=str(tmp_path))
    with pytest.raises(DataError, match=rf"dataset\.json: .*{problem}"):
        data.cases(), data.rule


def test_dataset_json_names_files_that_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "imagesTr" / "a.nii.gz", tmp_path / "labelsTr" / "a.nii.gz", tmp_path / "imagesTr" / "b.nii.gz")
    entries = [("a", "a"), ("z", "a"), ("a", "b"), ("b", "b")]
    training = [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{k}.nii.gz"} for i, k in entries]
    about = {"channel_names": {"0": "CT"}, "training": training[1:3], "numTraining": 60}
    assert [str(problem).partition(" -")[0] for problem in decathlon_cases(tmp_path, about).problems] == [
        "z: ./imagesTr/z.nii.gz is listed in dataset.json, and is not there",
        "b: ./labelsTr/b.nii.gz is listed in dataset.json, and is not there",
    ]
    assert decathlon_cases(tmp_path, {**about, "training": training[3:]}).bare == ["b"]
    many = [{"label": f"./labelsTr/gone{i}.nii.gz"} for i in range(20)]
    (problem,) = decathlon_cases(tmp_path, {"training": [{"label": "./labelsTr/a.nii.gz"}, *many]}).problems
    assert "20 cases are listed, and have neither image nor label (gone0, gone1, gone10, ...)" in str(problem)
    assert "numTraining is 60, and there are 2 cases" in caplog.text
    caplog.clear()
    assert not decathlon_cases(tmp_path, {**about, "training": training[:1], "numTraining": 2}).problems
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [("[" * 100_000, "nested too deeply"), (f'{{"labels": {"1" * 5000}}}', "not valid JSON"), ("{", "not valid JSON")],
)
def test_json_that_python_gives_up_on_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    for name in ("dataset.json", "cases.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"dataset\.json: .*{problem}"):
        read_dataset_json(tmp_path)
    with pytest.raises(DataError, match=rf"cases\.json: .*{problem}"):
        listed_cases(tmp_path / "cases.json", ("image",))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,a.nii,b.nii,²", "fold '²' is no number"),
        ("a,a.nii,b.nii," + "9" * 5000, r"fold '9+\.\.\.' is no number"),
        ("a,a.nii,b.nii,-1", "fold '-1' is no number"),
        ("a," + "x" * 200_000 + ",b.nii,0", r"is no CSV file \(row 1: field larger"),
        ("a," + "x" * 300 + ".nii,b.nii,0", r"image is 'x+\.\.\.', a name of 304 bytes"),
        ("a,a.nii,b\0.nii,0", r"label is 'b\\x00\.nii', which is no name of a file"),
        ("a,a,b.nii,c.nii,0", "row 1 has 5 fields, and there are 4 columns"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused(tmp_path: Path, row: str, problem: str) -> None:
    file = tmp_path / "cases.csv"
    file.write_text(f"case,image,label,fold\n{row}\n")
    with pytest.raises(DataError, match=rf"cases\.csv: (a: )?{problem}") as caught:
        listed_cases(file, ("image",))
    assert len(str(caught.value).replace(str(file), "")) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("sign", [";", "\t"])
def test_columns_that_stand_apart_by_another_sign(tmp_path: Path, sign: str) -> None:
    file = tmp_path / "cases.csv"
    file.write_text("case,image,label\na,a.nii,b.nii\n".replace(",", sign))
    with pytest.raises(DataError, match=r"its columns stand apart by .* - separate them by commas"):
        listed_cases(file, ("image",))
    file.write_text("case,image,label,label\na,a.nii,b.nii,c.nii\n")
    with pytest.raises(DataError, match=r"has the column 'label' twice - leave one"):
        listed_cases(file, ("image",))


def test_a_file_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "y"):
        with pytest.raises(DataError, match=r"c: .*(cannot be read|is not there)"):
            refuse_missing([Case("c", (tmp_path / f"{name}.nii",))])


@pytest.mark.parametrize("name", ["../../c1", "/tmp/c1", "a\\b", ".", "..", "a\0b", "é" * 101, "settings"])
def test_a_case_has_a_plain_name(tmp_path: Path, name: str) -> None:
    """Files are called after it, so others would lie outside of the cache, or replace what lies in it."""
    file = tmp_path / "cases.json"
    rows = [{"case": case, "image": "a.nii.gz", "label": "b.nii.gz"} for case in ("é" * 100, name)]
    file.write_text(json.dumps(rows[:1]))
    assert len(listed_cases(file, ("image",)).cases) == 1
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"cases\.json: (a case is called|the name of the case)") as caught:
        listed_cases(file, ("image",))
    assert "\n" not in str(caught.value)


def test_labels_of_dataset_json() -> None:
    assert classes_of({"labels": {"0": "background", "1": "x"}}, "f")[0] == {"background": 0, "x": 1}
    assert classes_of({"labels": {"background": 0, "x": 1, "ignore": 2}}, "f") == (
        {"background": 0, "x": 1},
        None,
        (2,),
    )
    classes, regions, _ = classes_of({"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "et": 3}}, "f")
    assert classes == {"background": 0, "label 1": 1, "label 2": 2, "et": 3}
    assert regions == {"whole": ("label 1", "label 2", "et"), "core": ("label 2", "et"), "et": ("et",)}
    with pytest.raises(DataError, match="names no labels"):
        classes_of({}, "dataset.json")


def test_values_become_channels_or_are_refused() -> None:
    labels = VoxelLabels({"background": 0, "x": 7}, ignore=(9,))
    assert labels.channels(np.array([0, 7, 9]), "f").tolist() == [0, 1, 255]
    far = VoxelLabels({"background": 0, "x": 2**31 - 1})  # no table of all values between
    assert far.channels(np.array([[2**31 - 1, 0], [0, 0]]), "f").tolist() == [[1, 0], [0, 0]]
    with pytest.raises(DataError, match="case: 2 voxels have the label 3, which is no class"):
        labels.channels(np.array([0, 3, 3]), "case")
    with pytest.raises(ConfigError, match="the value 7 is there twice"):
        VoxelLabels({"background": 0, "x": 7, "y": 7})
    with pytest.raises(ConfigError, match="a class has no name"):
        VoxelLabels({"background": 0, "": 1})
    with pytest.raises(ConfigError, match="'WT' is made of 'z'"):
        VoxelLabels({"background": 0, "x": 7}, {"WT": ("z",)})


def test_a_set_refuses_what_does_not_pair_up_or_skips_it(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "x": 1}}))
    for case in "abcde":
        touch(tmp_path / "imagesTr" / f"{case}.nii.gz", tmp_path / "labelsTr" / f"{case}.nii.gz")
    touch(tmp_path / "imagesTr" / "bare.nii.gz", tmp_path / "labelsTr" / "lonely.nii.gz")
    with pytest.raises(DataError, match="bare: has no label, and 1 other files have no partner"):
        VolumeFolders(root=str(tmp_path)).cases("train")
    data = VolumeFolders(root=str(tmp_path), unpaired="skip", fold=2)
    train, val = ({case.id for case in data.cases(split)} for split in ("train", "val"))
    assert (len(train), len(val), train | val) == (4, 1, set("abcde"))
    assert len(VolumeFolders(root=str(tmp_path), unpaired="skip", fold=None).cases("train")) == 5
    with pytest.raises(ConfigError, match=r"data\.fold: 5 of 5 folds"):
        VolumeFolders(root=str(tmp_path), fold=5)
