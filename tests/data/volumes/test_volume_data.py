"""The cache, preparation, patches and augmentation of volumes, on phantoms of a few voxels."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vistrain.config.builder import build
from vistrain.data import EvalTransform, GeneratedTumours, VolumeAugment, VolumeList, VolumePreparation
from vistrain.data.volumes.generated import tumour, write_tumours
from vistrain.data.volumes.nifti import read_labels
from vistrain.data.volumes.preparation import air_of, resampled_labels
from vistrain.data.volumes.samples import Patches
from vistrain.data.volumes.transforms import Motion, blurred, coarse, power, rotation
from vistrain.errors import ConfigError, DataError

SIDE = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(scope="module")
def phantoms(root: Path) -> GeneratedTumours:
    data = GeneratedTumours(str(root), number=4, side=SIDE, folds=2, patch=(16, 16, 16), cache=str(root / "cache"))
    data.prepare_data()
    return data


def a_set(folder: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """Files and a list of them."""
    where, rows = np.eye(4), []
    for name, values in images.items():
        nib.save(nib.Nifti1Image(values, where), folder / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels[name], where), folder / f"{name}_label.nii.gz")
        rows.append({"case": name, "image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"})
    (folder / "cases.json").write_text(json.dumps(rows))


def listed(folder: Path, **more: object) -> VolumeList:
    classes = {"background": 0, "x": 1}
    given = {"cases_file": "cases.json", "folds": 2, "patch": (8, 8, 8), "cache": str(folder / "cache"), **more}
    return VolumeList(classes, root=str(folder), **given)


# -------------------------------------------------------------------- phantoms


def test_phantoms_are_the_same_every_time_and_nested(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tumours(tmp_path / name, 1, SIDE, 3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.gz"))
    assert len(files) == 5
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    without, shares = 0, []
    for seed in range(24):
        images, label = tumour(np.random.default_rng((0, seed)), SIDE)
        without += not (label == 4).any()
        shares.append((label > 0).mean())
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        assert 2 in label
        assert not images["flair"][0].any()  # air around the head
    assert 2 <= without <= 11
    assert 0.002 < np.mean(shares) < 0.05


def test_phantoms_come_through_the_reader(phantoms: GeneratedTumours) -> None:
    case = phantoms.cases("val")[0]
    assert nib.aff2axcodes(nib.load(case.images[0]).affine) == ("L", "P", "S")
    sample = phantoms.dataset("val").sample(0)
    stored, _ = read_labels(case.label)
    assert np.array_equal(phantoms.rule.channels(stored, "f"), sample.label_map)
    assert sample.image.dtype == np.float16
    assert sample.image.shape == (4, *(high - low for low, high in sample.box))
    assert phantoms.channels == 4


# -------------------------------------------------------------------- preparation


def test_intensities_are_those_of_the_brain_and_air_is_any_value() -> None:
    image = np.full((1, 8, 8, 8), -2.7, np.float32)
    brain = np.random.default_rng(0).normal(50, 9, (4, 4, 4)).astype(np.float32)
    image[0, 2:6, 2:6, 2:6] = brain
    assert air_of(image[0]) == pytest.approx(-2.7)
    found, box = VolumePreparation().prepared(image.copy(), (1, 1, 1))
    assert box == ((2, 6),) * 3
    np.testing.assert_allclose(found[0], (brain - brain.mean()) / brain.std(), atol=1e-5)
    whole, box = VolumePreparation(crop=False).prepared(image.copy(), (1, 1, 1))
    assert box == ((0, 8),) * 3
    assert whole[0, 0, 0, 0] == 0
    everything, _ = VolumePreparation(within="all").prepared(image.copy(), (1, 1, 1))
    assert everything.std() == pytest.approx(1, abs=1e-4)
    mask = np.zeros((8, 8, 8), bool)
    mask[2:4, 2:6, 2:6] = True
    masked, box = VolumePreparation().prepared(image.copy(), (1, 1, 1), mask)
    assert box == ((2, 4), (2, 6), (2, 6))
    np.testing.assert_allclose(masked[0].mean(), 0, atol=1e-5)


def test_the_windows_of_ct_and_percentiles() -> None:
    image = np.linspace(-1000, 1000, 512, dtype=np.float32).reshape(1, 8, 8, 8)
    found, _ = VolumePreparation(intensities=("window",), window=(-100, 300, 50, 40)).prepared(image.copy(), (1, 1, 1))
    np.testing.assert_allclose(found, (np.clip(image, -100, 300) - 50) / 40, rtol=1e-5)
    image[0, 4, 4, 4] = 1e6
    found, _ = VolumePreparation(intensities=("percentiles",)).prepared(image.copy(), (1, 1, 1))
    assert found.max() < 2
    with pytest.raises(ConfigError, match=r"data\.window: is missing"):
        VolumePreparation(intensities=("window",))


def test_resampling_keeps_borders_and_labels_are_not_mixed() -> None:
    labels = np.zeros((4, 6, 8), np.uint8)
    labels[:, :3], labels[:, 3:, 4:] = 1, 3
    preparation = VolumePreparation(spacing=(1.0, 0.5, 2.0))
    sides = preparation.sides_of(labels.shape, (1.0, 1.0, 1.0))
    assert sides == (4, 12, 4)
    finer = resampled_labels(labels, sides)
    assert set(np.unique(finer)) == {0, 1, 3}
    assert np.array_equal(finer[:, :6], np.ones((4, 6, 4)))
    assert np.array_equal(resampled_labels(resampled_labels(labels, (8, 12, 16)), labels.shape), labels)


@pytest.mark.parametrize(
    ("spacing", "problem"),
    [
        ((0.01, 0.01, 0.01), "6x6x6 voxels of 1x1x1 mm would be 600x600x600 of 0.01x0.01x0.01 mm"),
        ((1000.0, 1.0, 1.0), "6x6x6 voxels of 1x1x1 mm would be less than one of 1000x1x1 mm along an axis"),
    ],
)
def test_what_resampling_would_make_is_bounded(
    tmp_path: Path, spacing: tuple[float, float, float], problem: str
) -> None:
    values = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    a_set(tmp_path, {"a": values, "b": -values}, dict.fromkeys("ab", (values > 0).astype(np.uint8)))
    data = listed(tmp_path, spacing=spacing)
    with pytest.raises(DataError, match=f"a: data.spacing: {problem}; 1 other"):
        data.prepare_data()
    found = data.check(tmp_path / "checked")
    assert {k: v.partition(" - ")[0] for s in found.splits.values() for k, v in s.bad_files.items()} == {
        f"{case}: data.spacing": problem for case in "ab"
    }
    assert VolumePreparation(spacing=(3.0, 0.5, 1.0)).sides_of((1, 6, 6), (0.8, 1, 1)) == (1, 12, 6)
    with pytest.raises(DataError, match="2000x2000x2000 voxels"):
        VolumePreparation(spacing=(0.5, 0.5, 0.5)).sides_of((2000, 2000, 2000), (1, 1, 1))
    with pytest.raises(ConfigError, match=r"data\.spacing"):
        VolumePreparation(spacing=(float("nan"), 1.0, 1.0))


def test_it_travels_as_a_node() -> None:
    made = VolumePreparation(("flair", "t1ce"), (1.0, 1.0, 2.0), ("zscore", "percentiles"))
    node = json.loads(json.dumps(made.to_node()))
    assert build({**node, "type": f"vistrain.{node['type']}"}, EvalTransform, where="evaluation") == made


# -------------------------------------------------------------------- the cache


def test_the_cache_is_used_rebuilt_and_refused(phantoms: GeneratedTumours, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vistrain")
    store, cases = phantoms.store, phantoms.cases()
    image = store.folder / f"{cases[0].id}.image.npy"
    times = {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    store.get(cases)
    assert times == {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    whole = image.read_bytes()
    image.write_bytes(whole[:-7])
    store.get(cases)
    assert "is cut off: the case is prepared again" in caplog.text
    assert image.read_bytes() == whole
    os.utime(cases[1].images[0], ns=(1, 1))
    store.get(cases)
    assert f"{cases[1].id}: its files have changed" in caplog.text
    parent = str(phantoms.root.parent)
    other = GeneratedTumours(parent, number=4, side=SIDE, folds=2, crop=False, cache=phantoms.cache_folder)
    assert other.store.folder != store.folder
    settings = store.folder / "settings.json"
    kept = settings.read_text()
    settings.write_text(kept.replace('"crop": true', '"crop": false'))
    with pytest.raises(DataError, match=r"was made with other settings \(preparation\)"):
        store.get(cases)
    settings.write_text(kept)


def test_patches_are_read_through_memory_maps(phantoms: GeneratedTumours) -> None:
    case = phantoms.prepared(phantoms.cases())[0]
    assert isinstance(case.part("image"), np.memmap)
    assert case.part("label").dtype == np.uint8


# -------------------------------------------------------------------- patches


def test_patches_are_of_their_seed_and_around_classes(phantoms: GeneratedTumours) -> None:
    cases = phantoms.prepared(phantoms.cases())
    patches = Patches(cases, (8, 8, 8), 1.0, VolumeAugment(), 255, repeats=3)
    assert len(patches) == 12
    one, same, other = (patches[(0, seed)] for seed in (5, 5, 6))
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.label_map, same.label_map)
    assert not np.array_equal(one.image, other.image)
    plain = Patches(cases, (8, 8, 8), 1.0, None, 255)
    assert all((plain.sample(seed % 4, seed).label_map > 0).any() for seed in range(40))


def test_a_patch_larger_than_its_case_is_filled_up(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    a_set(tmp_path, dict.fromkeys("ab", values), {n: (values > 1).astype(np.uint8) for n in "ab"})
    sample = listed(tmp_path, augment=VolumeAugment(0, mirror=(), noise=0, blur=0, scale=0, brightness=0, contrast=0,
                    low_resolution=0, gamma=0, inverted_gamma=0)).dataset("train").sample(0, 1)  # fmt: skip
    assert sample.image.shape == (1, 8, 8, 8)
    assert (sample.label_map != 255).sum() == 5 * 6 * 7
    normalised = (values - values.mean()) / values.std()
    inside = sample.label_map != 255
    np.testing.assert_allclose(sample.image[0][inside].reshape(7, 6, 5), normalised.T, atol=2e-3)


def test_motion_of_nothing_is_the_patch_and_a_quarter_turn_turns() -> None:
    image, label = torch.rand(2, 9, 9, 9), torch.randint(0, 4, (9, 9, 9), dtype=torch.uint8)
    found, classes = Motion(np.eye(3), None, 0.0, False).applied(image, label, (5, 5, 5), 255)
    torch.testing.assert_close(found, image[:, 2:7, 2:7, 2:7], atol=1e-5, rtol=0)
    assert torch.equal(classes, label[2:7, 2:7, 2:7])
    turn = Motion(rotation((np.pi / 2, 0, 0)), None, 0.0, True)
    found, classes = turn.applied(image[:, 2:7], label[2:7], (5, 5, 5), 255)
    wanted = torch.rot90(label[2:7, 2:7, 2:7], 1, (1, 2)), torch.rot90(label[2:7, 2:7, 2:7], -1, (1, 2))
    assert any(torch.equal(classes, turned) for turned in wanted)
    _, outside = Motion(np.eye(3), None, 0.0, False).applied(image, label, (11, 9, 9), 255)
    assert (outside[0] == 255).all()
    assert torch.equal(outside[1:10], label)


@pytest.mark.parametrize("patch", [(6, 10, 8), (1, 12, 12)])
def test_every_kind_of_augmentation_keeps_shapes_and_labels(patch: tuple[int, int, int]) -> None:
    everything = VolumeAugment(**dict.fromkeys(
        ("rotate", "scale", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma",
         "inverted_gamma"), 1.0))  # fmt: skip
    draw = np.random.default_rng(0)
    motion = everything.motion(patch, draw)
    assert motion is not None
    extent = motion.extent(patch)
    image, label = torch.randn(2, *extent), torch.randint(0, 3, extent, dtype=torch.uint8)
    assert motion.flat == (patch[0] == 1)
    if motion.flat:
        assert extent[0] == 1
    image, label = motion.applied(image, label, patch, 255)
    found, classes = everything.values(image, label, draw)
    assert found.shape == (2, *patch)
    assert classes.shape == patch
    assert torch.isfinite(found).all()
    assert set(classes.unique().tolist()) <= {0, 1, 2, 255}


def test_what_changes_values_does_what_it_says() -> None:
    image = torch.randn(6, 7, 8)
    torch.testing.assert_close(power(image, 1.0), image, atol=1e-5, rtol=1e-4)
    bent = power(image, 1.4)
    torch.testing.assert_close(bent.mean(), image.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(bent.std(), image.std())
    torch.testing.assert_close(coarse(image, 1.0), image)
    line = torch.zeros(1, 1, 15)
    line[..., 7] = 1
    soft = blurred(line, 1.0)[0, 0]
    wanted = torch.exp(-0.5 * torch.arange(-3.0, 4) ** 2)
    torch.testing.assert_close(soft[4:11], wanted / wanted.sum())
    constant = torch.full((4, 5, 6), 2.5)
    torch.testing.assert_close(blurred(constant, 0.8), constant)
    assert F.mse_loss(coarse(image, 0.5), image) > 0.1
    with pytest.raises(ConfigError, match=r"data\.augment\.blur: 2"):
        VolumeAugment(blur=2)


# -------------------------------------------------------------------- files that do not belong together


def test_wrong_cases_are_named(tmp_path: Path) -> None:
    values = np.ones((6, 6, 6), np.float32) * np.arange(6, dtype=np.float32)
    good = np.zeros((6, 6, 6), np.uint8)
    good[2] = 1
    faults = {
        "stranger": (values, good * 7),
        "smaller": (values, good[:5]),
        "broken": (np.where(values == 3, np.nan, values), good),
        "four": (np.stack([values, values], -1), good),
    }
    for name, (image, label) in faults.items():
        folder = tmp_path / name
        folder.mkdir()
        a_set(folder, {"fine": values, name: image}, {"fine": good, name: label})
    expected = {
        "stranger": "stranger: stranger_label.nii.gz: 36 voxels have the label 7, which is no class",
        "smaller": "smaller: smaller_label.nii.gz: has 5x6x6 voxels, not 6x6x6, unlike smaller.nii.gz",
        "broken": "broken: broken.nii.gz: 36 voxels are NaN or infinite",
        "four": "four: four.nii.gz: 2 images, and there are 1 modalities",
    }
    for name, message in expected.items():
        with pytest.raises(DataError) as caught:
            listed(tmp_path / name).prepare_data()
        assert str(caught.value).startswith(message)


def test_a_label_on_another_grid_is_refused(tmp_path: Path) -> None:
    values, label = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32), np.ones((6, 6, 6), np.uint8)
    a_set(tmp_path, {"a": values, "b": values}, {"a": label, "b": label})
    shifted = np.eye(4)
    shifted[0, 3] = 5
    nib.save(nib.Nifti1Image(label, shifted), tmp_path / "b_label.nii.gz")
    with pytest.raises(DataError, match=r"b: b_label.nii.gz: has an affine that puts voxels up to 5 mm elsewhere"):
        listed(tmp_path).prepare_data()
