"""Data for restoration: pairs are found and checked, patches are parts of the whole, bad files are named."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import Bicubic, Chain, GaussianNoise, GeneratedTextures, ImageSet, Jpeg, RestorationData
from vistrain.data.restoration import decoded
from vistrain.data.restoration.degradations import generator
from vistrain.data.restoration.image_pairs import find_pairs
from vistrain.data.restoration.module import ProgressiveSampler
from vistrain.data.restoration.pixels import read_pixels
from vistrain.data.restoration.samples import RestorationDataset
from vistrain.errors import ConfigError, DataError


def picture(height: int = 40, width: int = 52, channels: int = 3, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (height // 4 + 1, width // 4 + 1, channels), np.uint8)
    image = Image.fromarray(small[..., 0] if channels == 1 else small)
    large = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return large.reshape(height, width, channels)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path)
    return path


def folder(root: Path, count: int = 3, **arguments) -> RestorationData:
    for i in range(count):
        save(root / "good" / f"{i}.png", picture(seed=i))
    sets = {"train": ImageSet("good"), "val": {"Good": ImageSet("good")}}
    defaults = {"degradation": Bicubic(2), "patch": 8, "batch_size": 2, "workers": 0, "root": str(root)}
    return RestorationData(**sets, **{**defaults, **arguments})


def test_batches_hold_what_the_task_needs(tmp_path):
    data = folder(tmp_path)
    train, (val, *_) = next(iter(data.train_dataloader())), list(data.val_dataloader())
    assert train["image"].shape == (2, 3, 8, 8)
    assert [t["image"].shape for t in train["target"]] == [(3, 16, 16)] * 2
    assert "num_targets" not in train
    assert (val["image"].shape, val["target"][0]["image"].shape) == ((1, 3, 20, 26), (3, 40, 52))
    assert (val["id"], val["size"].tolist(), val["original_size"].tolist()) == (["Good/0"], [[20, 26]], [[40, 52]])
    assert val["image"].dtype == torch.uint8
    noisy = folder(tmp_path, degradation=GaussianNoise(25), color="grey")
    batch = next(iter(noisy.val_dataloader()))
    assert (batch["image"].dtype, batch["image"].shape, noisy.channels) == (torch.float32, (1, 1, 40, 52), 1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_patch_is_that_part_of_the_whole_degraded_image(tmp_path, scale):
    save(tmp_path / "a.png", picture(61, 83))
    data = RestorationDataset([("a", find_pairs(tmp_path, ImageSet("*.png"))[0])], scale, "rgb", Bicubic(scale), 6)
    low, truth = data.whole(data.pairs[0][1])
    assert truth.shape == (61 // scale * scale, 83 // scale * scale, 3)
    for seed in range(25):
        part, part_truth = data.crop(data.pairs[0][1], 6, generator(seed))
        draw = generator(seed)
        top, left = (draw.randint(0, side - 6 + 1) for side in low.shape[:2])
        assert np.array_equal(part, low[top : top + 6, left : left + 6])
        place = (slice(top * scale, (top + 6) * scale), slice(left * scale, (left + 6) * scale))
        assert np.array_equal(part_truth, truth[place])


def test_training_depends_on_the_seed_alone_and_turns_both_alike(tmp_path):
    data = folder(tmp_path, degradation=GaussianNoise((0.0, 0.01)), color="grey").dataset("train")
    one, again, other = (data[0, seed] for seed in (5, 5, 6))
    assert np.array_equal(one.low, again.low)
    assert not np.array_equal(one.low, other.low)
    assert len({data[0, seed].low.tobytes() for seed in range(20)}) == 20
    for seed in range(10):
        sample = data[0, seed]
        assert np.abs(sample.low * 255 - sample.truth).max() < 0.1


def test_small_images_are_mirrored_up_to_the_patch_and_evaluated_as_they_are(tmp_path):
    save(tmp_path / "good" / "tiny.png", picture(10, 7))
    data = folder(tmp_path, count=0)
    sample = data.dataset("train")[0, 3]
    assert (sample.low.shape, sample.truth.shape) == ((8, 8, 3), (16, 16, 3))
    low, truth = data.dataset("train").whole(data.pairs("train")[0][1])
    assert (low.shape, truth.shape) == ((5, 3, 3), (10, 6, 3))
    save(tmp_path / "good" / "tiny.png", picture(1, 7))
    assert "cannot be reduced 2 times" in str(data.dataset("val")[0])


def test_grey_rgba_16_bit_and_palette_files(tmp_path):
    image = picture(16, 20)
    rgba = np.dstack([image, np.full((16, 20), 99, np.uint8)])
    Image.fromarray(rgba, "RGBA").save(tmp_path / "rgba.png")
    assert np.array_equal(read_pixels(tmp_path / "rgba.png"), image)
    grey = save(tmp_path / "grey.png", picture(16, 20, 1))
    assert read_pixels(grey).shape == (16, 20, 3)
    assert np.array_equal(read_pixels(grey, "grey"), picture(16, 20, 1))
    deep = np.arange(320, dtype=np.uint16).reshape(16, 20) * 200
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_pixels(tmp_path / "deep.png", "grey")[..., 0], (deep >> 8).astype(np.uint8))
    Image.fromarray(image).convert("P").save(tmp_path / "palette.png")
    assert read_pixels(tmp_path / "palette.png").shape == (16, 20, 3)
    assert read_pixels(save(tmp_path / "white.png", np.full((4, 4, 3), 255, np.uint8)), "luma").max() == 235
    assert np.array_equal(read_pixels(save(tmp_path / "plain.png", image)), image)
    Image.fromarray(image).save(tmp_path / "plain.bmp")
    assert np.array_equal(read_pixels(tmp_path / "plain.bmp"), image)


def test_truncated_files_are_named(tmp_path):
    data = folder(tmp_path, count=1)
    whole = (tmp_path / "good" / "0.png").read_bytes()
    (tmp_path / "good" / "0.png").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=r"0\.png: damaged image"):
        next(iter(data.val_dataloader()))
    with pytest.raises(DataError, match="no such image file"):
        decoded.Reader("rgb", "files", tmp_path / "cache")(tmp_path / "none.png")


def test_pairs_are_found_by_name_template_and_replacement(tmp_path):
    for name in ("a/sharp/1.png", "a/sharp/2.png", "b/sharp/1.png"):
        save(tmp_path / name, picture())
        save(tmp_path / name.replace("sharp", "blur"), picture(seed=1))
    pairs = find_pairs(tmp_path, ImageSet("*/sharp/*.png", {"sharp": "blur"}))
    assert [p.name for p in pairs] == ["a.sharp.1", "a.sharp.2", "b.sharp.1"]
    assert pairs[2].low == tmp_path / "b/blur/1.png"
    save(tmp_path / "Set5/HR/baby.png", picture())
    save(tmp_path / "Set5/LR/X2/babyx2.png", picture(20, 26))
    for low in ("Set5/LR/X2", "Set5/LR/X2/{name}x2.png"):
        (pair,) = find_pairs(tmp_path, ImageSet("Set5", low), 2)
        assert (pair.name, pair.low) == ("baby", tmp_path / "Set5/LR/X2/babyx2.png")
    with pytest.raises(DataError, match="has no degraded version"):
        find_pairs(tmp_path, ImageSet("Set5", "Set5/LR/X2"), 4)
    with pytest.raises(DataError, match="no such folder"):
        find_pairs(tmp_path, ImageSet("Set14"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        find_pairs(tmp_path, ImageSet("empty"))


def test_pairs_whose_sizes_do_not_match_are_refused_with_both_sizes(tmp_path):
    save(tmp_path / "good/0.png", picture(41, 53))
    save(tmp_path / "low/0.png", picture(20, 26))
    sets = {"train": ImageSet("good", "low"), "val": {"Good": ImageSet("good", "low")}}
    data = RestorationData(**sets, scale=2, root=str(tmp_path), patch=8, batch_size=1, workers=0)
    sample = data.dataset("val")[0]
    assert (sample.low.shape, sample.truth.shape) == ((20, 26, 3), (40, 52, 3))
    assert data.dataset("train")[0, 1].low.shape == (8, 8, 3)
    save(tmp_path / "low/0.png", picture(20, 27))
    assert "27x20 pixels, but 2 times less than 53x41 is 26x20" in str(data.dataset("val")[0])
    assert isinstance(data.dataset("train")[0, 1], DataError)


@pytest.mark.parametrize("cache", [True, "auto", False])
def test_patches_are_the_same_however_images_are_kept(tmp_path, cache):
    sets = {"cache": cache, "color": "luma"}
    plain, kept = (
        folder(tmp_path, cache=False, color="luma").dataset("train"),
        folder(tmp_path, **sets).dataset("train"),
    )
    for key in [(0, 9), (1, 3), (0, 10), (0, 9)]:
        a, b = plain[key], kept[key]
        assert np.array_equal(a.low, b.low)
        assert np.array_equal(a.truth, b.truth)
    copies = list((tmp_path / ".decoded").rglob("*.npy"))
    assert (len(copies), len(kept.read.kept)) == {True: (2, 0), "auto": (0, 2), False: (0, 0)}[cache]


def test_a_decoded_copy_is_made_once_and_anew_when_the_image_changes(tmp_path):
    data = folder(tmp_path, count=1, cache=True)
    for key in ((0, 9), (0, 10)):
        data.dataset("train")[key]
        copies = list((tmp_path / ".decoded").rglob("*.npy"))
        assert len(copies) == 1
    save(tmp_path / "good/0.png", picture(44, 52, seed=7))
    data.dataset("train")[0, 10]
    assert len(list((tmp_path / ".decoded").rglob("*.npy"))) == 2


def test_what_keeping_images_costs_is_said_and_a_full_disk_is_no_error(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "vistrain")
    data = folder(tmp_path, count=100, cache=True)
    assert data.dataset("train").read.keep == "files"
    assert "decoded copies of 100 images" in caplog.text
    paths = [pair.truth for _, pair in data.pairs("train")]
    assert decoded.decoded_size(paths, "rgb") == 100 * 40 * 52 * 3
    caplog.clear()
    monkeypatch.setattr(decoded, "MEMORY", 1000)
    assert folder(tmp_path).dataset("train").read.keep == "no"
    assert "data.cache=true" in caplog.text
    monkeypatch.setattr(decoded, "SPARE", 10**15)
    assert data.dataset("train").read.keep == "no"
    assert "no room for decoded copies" in caplog.text
    (tmp_path / "file").write_text("")
    reader = decoded.Reader("rgb", "files", tmp_path / "file")
    assert reader(paths[0]).shape == (40, 52, 3)
    assert reader.keep == "no"
    assert "decoded each time" in caplog.records[-1].message


def test_missing_test_sets_are_left_out_missing_training_sets_are_not(tmp_path, caplog):
    data = folder(tmp_path, test={"Good": ImageSet("good"), "Urban100": ImageSet("Urban100"), "Set5": None})
    assert len(data.pairs("test")) == 3
    assert "Urban100 left out" in caplog.text
    data = folder(tmp_path, test={"A": ImageSet("nowhere")})
    with pytest.raises(DataError, match="no such folder"):
        data.pairs("test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "scale: 3, but degraded 2 times"),
        ({"patch": 0}, "patch: 0 is too small"),
        ({"repeat": 0}, "repeat: 0 is too small"),
        ({"progressive": ((20, 8), (10, 16))}, "by ascending step"),
    ],
)
def test_contradictions_are_config_errors(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path, **arguments)


def test_a_set_without_degraded_files_needs_a_degradation(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train: set 0 has no `low`"):
        folder(tmp_path, degradation=None).setup("fit")


def test_patches_grow_at_their_steps_also_after_a_resume(tmp_path):
    data = folder(tmp_path, progressive=((2, 10), (4, 12)), repeat=4)  # 12 samples, 6 steps an epoch
    assert data.largest("train") == (24, 24)
    loader = data.train_dataloader()
    assert [batch["image"].shape[-1] for batch in loader] == [8, 8, 10, 10, 12, 12]
    data.resume = (0, 6)
    assert [batch["image"].shape[-1] for batch in data.train_dataloader()] == [10, 12, 12]
    sampler = ProgressiveSampler(12, 4, 0, 1, 2, patches=((0, 8), (3, 16)))
    assert [key[2] for key in sampler] == [8] * 6
    sampler.set_epoch(1)
    assert [key[2] for key in sampler] == [16] * 6


def test_noise_is_numpys_of_seed_0_for_each_image_and_is_neither_clipped_nor_rounded():
    image = picture(12, 9, 1)
    noisy = GaussianNoise(25)(image, generator(0))
    np.random.seed(0)
    expected = (image / np.float32(255)).astype(np.float32)
    expected += np.random.normal(0, 25 / 255, image.shape)
    assert noisy.dtype == np.float32
    assert np.array_equal(noisy, expected)
    assert (noisy < 0).any() or (noisy > 1).any()
    draws = {float(np.std(GaussianNoise((5, 50))(np.full((64, 64, 1), 128, np.uint8), generator(s)))) for s in range(9)}
    assert max(draws) > 2 * min(draws)
    quantized = GaussianNoise(50, quantize=True)(image, generator(0))
    assert quantized.dtype == np.uint8


def test_jpeg_loses_more_at_lower_quality_and_chains_add_up():
    image = picture(32, 48)
    errors = [np.abs(Jpeg(q)(image, generator(0)).astype(int) - image).mean() for q in (95, 40, 10)]
    assert errors == sorted(errors)
    assert Jpeg(50)(picture(16, 16, 1), generator(0)).shape == (16, 16, 1)
    chain = Chain((Bicubic(2), GaussianNoise(5), Jpeg((30, 60))))
    assert (chain.scale, chain.margin) == (2, 3)
    assert chain(image, generator(1)).shape == (16, 24, 3)
    for bad in (lambda: Jpeg(0), lambda: Bicubic(1), lambda: GaussianNoise(-1), lambda: Bicubic(2, "floor")):
        with pytest.raises(ConfigError):
            bad()


def test_textures_are_the_same_everywhere_and_written_once(tmp_path):
    sets = [GeneratedTextures(str(tmp_path / n), 2, 1, degradation=Bicubic(2), workers=0, batch_size=1) for n in "ab"]
    for data in sets:
        data.prepare_data()
    files = [sorted(p.relative_to(d.root) for p in d.root.rglob("*.png")) for d in sets]
    assert files[0] == files[1]
    assert len(files[0]) == 3
    for name in files[0]:
        assert (sets[0].root / name).read_bytes() == (sets[1].root / name).read_bytes()
    assert sets[0].dataset("train")[0, 1].low.shape == (48, 48, 3)
    with pytest.raises(ConfigError, match="train_images"):
        GeneratedTextures(train_images=0)


def test_subimages_cover_the_image_and_pair_up(tmp_path):
    import sys

    sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
    import extract_subimages as tool

    assert [tool.starts(n, 48, 24, 1) for n in (30, 48, 96, 100)] == [[0], [0], [0, 24, 48], [0, 24, 48, 52]]
    save(tmp_path / "HR/0001.png", picture(60, 100))
    save(tmp_path / "LR/0001x2.png", picture(30, 50))
    (tmp_path / "HR/0002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    common = ["--workers", "1", "--output"]
    assert tool.main([str(tmp_path / "HR"), *common, str(tmp_path / "HR_sub"), "--crop", "48", "--step", "24"]) == 2
    assert tool.main([str(tmp_path / "LR"), *common, str(tmp_path / "LR_sub"), "--crop", "24", "--step", "12"]) == 0
    pairs = find_pairs(tmp_path, ImageSet("HR_sub", "LR_sub"), 2)
    assert [p.name for p in pairs] == [f"0001_s{i:03d}" for i in range(1, 9)]
    places = itertools.product(tool.starts(60, 48, 24, 1), tool.starts(100, 48, 24, 1))
    for pair, (y, x) in zip(pairs, places, strict=True):
        assert np.array_equal(read_pixels(pair.truth), picture(60, 100)[y : y + 48, x : x + 48])
        assert read_pixels(pair.low).shape == (24, 24, 3)
