"""The restoration floor: resize, decibels, losses, the model around a network, tiles, the task, prediction."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain import cli, config, run
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.layers.imresize import imresize, imresize_uint8
from vistrain.layers.padding import extend, to_unit
from vistrain.losses import L1, MSE, Charbonnier, FrequencyLoss, PSNRLoss
from vistrain.metrics import protocol
from vistrain.metrics.image import luma, psnr, ssim, ssim_uniform
from vistrain.predictions import Restored
from vistrain.restoration import RestorationModel, Restorer
from vistrain.restoration.tiles import starts, tiled
from vistrain.run.predict import predict_files
from vistrain.tasks.base.inputs import find_images
from vistrain.tasks.restoration.predictor import RestorationPredictor


class Blur(Restorer):
    """Sees one pixel around; refuses sides that 4 does not divide, and those below 8."""

    multiple, smallest, channels = 4, 8, 3

    def __init__(self, scale: int = 1, padding: str = "reflect", least_padding: int = 0) -> None:
        super().__init__()
        self.scale, self.padding, self.least_padding = scale, padding, least_padding
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect", groups=3)
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        assert height % 4 == width % 4 == 0
        assert min(height, width) >= 8
        self.seen.append((height, width))
        return F.interpolate(self.conv(x), scale_factor=self.scale)


# -------------------------------------------------------------------- resize


def dense(length: int, output: int, scale: float) -> np.ndarray:
    """The resize of one side as a matrix, written as its definition says."""
    matrix = np.zeros((output, length))
    stretch = min(scale, 1)
    for i in range(output):
        center = (i + 0.5) / scale - 0.5
        row = np.zeros(length)
        for j in range(math.floor(center - 3 / stretch), math.ceil(center + 3 / stretch) + 1):
            x = abs(center - j) * stretch
            near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            folded = j % (2 * length)
            row[min(folded, 2 * length - 1 - folded)] += near if x <= 1 else far if x <= 2 else 0
        matrix[i] = row / row.sum()
    return matrix


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 0.7, 0.31, 1.0, 1.5, 2, 3])
@pytest.mark.parametrize("size", [(37, 50), (5, 3), (1, 9)])
def test_resize_is_its_definition(scale, size):
    image = torch.rand(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    height, width = (math.ceil(n * scale) for n in size)
    rows, columns = (torch.from_numpy(dense(n, m, scale)) for n, m in zip(size, (height, width), strict=True))
    torch.testing.assert_close(imresize(image, scale), rows @ image @ columns.T, rtol=0, atol=1e-12)


def test_resize_keeps_constants_has_gradients_and_takes_sizes():
    assert torch.allclose(imresize(torch.full((1, 9, 9), 0.3), 0.4), torch.tensor(0.3))
    image = torch.rand(1, 6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), image)
    assert imresize(image, size=(13, 3)).shape == (1, 13, 3)
    torch.testing.assert_close(imresize(image, size=(3, 4)), imresize(image, 0.5))
    for bad in ({}, {"scale": 2.0, "size": (1, 1)}, {"scale": 0.0}, {"size": (0, 4)}):
        with pytest.raises(ValueError, match="give one of"):
            imresize(image.detach(), **bad)


def test_eight_bits_are_rounded_after_each_side_as_matlab_does():
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    planes = torch.from_numpy(image.transpose(2, 0, 1)).double()
    once = imresize(planes, 0.5).add(0.5).floor().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    assert np.array_equal(imresize_uint8(image, 0.5, between=False), once)
    between = imresize_uint8(image, 0.5)
    assert 0 < np.abs(between.astype(int) - once).max() <= 2


# -------------------------------------------------------------------- numbers


def test_decibels_and_similarity_of_known_images():
    black, grey = np.zeros((16, 16, 1), np.uint8), np.full((16, 16, 1), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert psnr(grey, grey) == math.inf
    assert ssim(grey, grey) == pytest.approx(1)
    c1 = 2.55**2
    assert ssim(black, grey) == pytest.approx(c1 / (51**2 + c1))
    assert ssim_uniform(black, grey) == pytest.approx(c1 / (51**2 + c1))
    assert math.isnan(ssim(black[:10], grey[:10]))
    assert luma(np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)).flatten() == pytest.approx(
        [16, 235, 81.481]
    )


def test_protocols_cut_round_and_average_by_set():
    truth = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    output = to_unit(truth) + 0.4 / 255  # rounding mends it
    output[:, :4] = 0
    metric = protocol("sr_luma", scale=4)
    assert (metric.crop, metric.protocol) == (4, "sr_luma")
    assert protocol("sr_luma", scale=4, crop=0).protocol == "custom(sr_luma, crop=0)"
    half = truth.float().div(255).clamp(max=0.5)
    target = {"image": truth}
    records = metric.update(
        ["Set5/a", "Set5/b", "Set14/c"], [Restored(output), Restored(half), Restored(half)], [target] * 3
    )
    assert records[0]["psnr"] == math.inf
    assert protocol("sr_luma", scale=2).measure(output, truth)[0] < 20
    clipped, unclipped = (protocol(n).measure(output * 3, truth)[0] for n in ("clipped_rgb", "float_rgb"))
    assert clipped > unclipped
    numbers = metric.compute(records[1:])
    assert numbers["sr_luma/psnr"] == pytest.approx(records[1]["psnr"])
    assert numbers["sr_luma/Set14/ssim"] == pytest.approx(records[2]["ssim"])
    assert next(iter(numbers)) == "sr_luma/psnr"
    with pytest.raises(DataError, match="restored to"):
        metric.measure(output[:, 1:], truth)


def test_losses_are_their_formulas():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 8, 6, generator=g), torch.rand(2, 3, 8, 6, generator=g)
    d = a - b
    assert L1(2.0)(a, b) == pytest.approx(2 * float(d.abs().mean()))
    assert MSE()(a, b) == pytest.approx(float((d**2).mean()))
    assert Charbonnier(1e-2)(a, b) == pytest.approx(float((d**2 + 1e-4).sqrt().mean()), rel=1e-5)
    spectrum = torch.fft.fft2(a) - torch.fft.fft2(b)
    assert FrequencyLoss()(a, b) == pytest.approx(
        0.1 * float((spectrum.real.abs() + spectrum.imag.abs()).mean() / 2), rel=1e-4
    )
    decibels = [
        psnr(255 * x.double().permute(1, 2, 0).numpy(), 255 * y.double().permute(1, 2, 0).numpy())
        for x, y in zip(a, b, strict=True)
    ]
    assert PSNRLoss(eps=0.0)(a, b) == pytest.approx(-np.mean(decibels), rel=1e-5)


# -------------------------------------------------------------------- the model


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "edge"])
def test_extending_is_numpys_padding_of_any_width(mode):
    image = torch.rand(2, 5, 3)
    for bottom, right in ((0, 2), (3, 0), (11, 7)):
        expected = np.pad(image.numpy(), ((0, 0), (0, bottom), (0, right)), mode)
        assert np.array_equal(extend(image, bottom, right, mode=mode).numpy(), expected)
    assert extend(image[:, :1, :1], 3, 3, mode=mode).unique().numel() == 2
    assert extend(image, 1, 1, mode="zeros")[:, -1].abs().sum() == 0


@pytest.mark.parametrize(
    ("size", "seen"), [((8, 12), (8, 12)), ((9, 12), (12, 12)), ((3, 5), (8, 8)), ((1, 1), (8, 8))]
)
def test_images_of_any_size_are_padded_and_cut_again(size, seen):
    network = Blur(scale=2)
    model = RestorationModel(network)
    image = torch.rand(1, 3, *size)
    assert model(image).shape == (1, 3, size[0] * 2, size[1] * 2)
    assert network.seen == [seen]
    more = Blur(least_padding=1)
    RestorationModel(more)(torch.rand(1, 3, 8, 12))
    assert more.seen == [(12, 16)]


def test_a_batch_of_several_sizes_is_restored_as_its_images_alone():
    model = RestorationModel(Blur(scale=2)).eval()
    small, large = torch.rand(3, 9, 10), torch.rand(3, 16, 12)
    batch = {"image": torch.zeros(2, 3, 16, 12), "size": torch.tensor([[9, 10], [16, 12]])}
    batch["image"][0, :, :9, :10], batch["image"][1] = small, large
    for found, image in zip(model.predict(batch), (small, large), strict=True):
        torch.testing.assert_close(found.image, model(image[None])[0])


def test_tiles_leave_no_seams():
    assert starts(100, 32, 8, 1) == [0, 24, 48, 72]
    assert starts(32, 32, 8) == [0]
    assert starts(50, 32, 8, 16) == [0, 16, 32]
    torch.manual_seed(0)
    model = RestorationModel(Blur(scale=2), tile=24, overlap=8).eval()
    for size in ((50, 61), (24, 25), (70, 9)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model.restore(image), model(image), rtol=0, atol=1e-5)
    constant = tiled(lambda x: x, torch.ones(1, 1, 77, 45), 16, 6)
    torch.testing.assert_close(constant, torch.ones(1, 1, 77, 45))
    with pytest.raises(ConfigError, match="too small for an overlap"):
        RestorationModel(Blur(), tile=16, overlap=8)


def test_losses_have_names_and_several_outputs_are_summed():
    class Twice(Blur):
        def pairs(self, x: Tensor, truth: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [(x, truth), (x, truth)]

    batch = {"image": torch.zeros(2, 3, 8, 8).byte(), "target": [{"image": torch.full((3, 8, 8), 51).byte()}] * 2}
    losses = RestorationModel(Twice(), {"pixel": L1(), "psnr": PSNRLoss(0.1)}).losses(batch)
    assert losses["pixel"] == pytest.approx(0.4)
    assert losses["psnr"] == pytest.approx(0.2 * 20 * math.log10(0.2))
    assert list(RestorationModel(Blur()).losses(batch)) == ["loss"]
    with pytest.raises(ConfigError, match="takes images of 3 channel"):
        RestorationModel(Blur(), channels=1)


# -------------------------------------------------------------------- as a user


TINY = {
    "base": "vistrain:_base_/restoration",
    "data": {
        "type": "data.GeneratedTextures", "train_images": 2, "val_images": 2, "patch": 8, "batch_size": 2, "workers": 0,
        "degradation": {"type": "data.Bicubic", "scale": 2},
    },
    "model": {"network": {"type": "restoration.BicubicEnlarger", "upscale": 2}},
    "optimizer": {"type": "torch.optim.Adam", "lr": 1e-3},
    "metrics": ["sr_luma"],
}  # fmt: skip


def small_swinir() -> dict:
    network = {
        "type": "restoration.SwinIR",
        "upscale": 2,
        "img_size": 8,
        "embed_dim": 8,
        "depths": [1],
        "num_heads": [2],
    }
    return {**TINY, "model": {"network": {**network, "upsampler": "pixelshuffledirect"}}}


def composed(content: dict, tmp_path: Path, **more) -> dict:
    import yaml

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    changes = {"run": {"folder": str(tmp_path / "run")}, "trainer": {"accelerator": "cpu"}, **more}
    return config.compose([tmp_path / "tiny.yaml"], changes=changes)


@pytest.fixture
def data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path / "data"))


@pytest.mark.usefixtures("data_root")
def test_a_run_leaves_numbers_pictures_and_a_checkpoint_that_restores_photographs(tmp_path):
    made = composed(small_swinir(), tmp_path)
    made["trainer"] |= {"max_epochs": 1, "log_every_n_steps": 1}
    assert run.fit(made) == 0
    folder = tmp_path / "run"
    for name in ("first_batch.png", "eval/epoch_001.png", "best.ckpt", "per_image.csv"):
        assert (folder / name).is_file(), name
    rows = (folder / "per_image.csv").read_text().splitlines()
    assert rows[0] == "protocol,image,psnr,ssim"
    assert rows[1].startswith("sr_luma,Textures/0000,")
    numbers = run.test(checkpoint=folder / "best.ckpt")
    assert set(numbers) == {f"test/sr_luma/{s}{n}" for s in ("", "Textures/") for n in ("psnr", "ssim")}
    photos = tmp_path / "photos"
    photos.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    Image.fromarray(image).save(photos / "photo.jpg")
    Image.fromarray(image[..., 0]).save(photos / "grey.png")
    Image.fromarray(np.dstack([image, image[..., :1]]), "RGBA").save(photos / "alpha.png")
    (photos / "cut.png").write_bytes((photos / "grey.png").read_bytes()[:200])
    words = ["predict", "--ckpt", str(folder / "best.ckpt"), "--input", str(photos), "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--device", "cpu"]) == 0
    written = sorted(p.name for p in (tmp_path / "out/pictures").iterdir())
    assert written == ["alpha.png", "grey.png", "photo.jpg.png"]
    for name in written:
        with Image.open(tmp_path / "out/pictures" / name) as picture:
            assert picture.size == (60, 42)
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    modes = {name: Image.open(tmp_path / "out/pictures" / name).mode for name in written}
    assert modes == {"alpha.png": "RGBA", "grey.png": "L", "photo.jpg.png": "RGB"}
    assert content["scale"] == 2
    assert [f["file"] for f in content["failed"]] == ["cut.png"]
    assert {(i["restored_width"], i["restored_height"]) for i in content["images"]} == {(60, 42)}
    assert cli.main([*words, "--threshold", "0.4"]) == 2


@pytest.mark.usefixtures("data_root")
def test_official_weights_load_into_the_network_and_predict_without_a_run(tmp_path):
    made = composed(small_swinir(), tmp_path)
    torch.manual_seed(3)
    source = run.build_parts(made).model.network
    torch.save({"params_ema": source.state_dict()}, tmp_path / "official.pth")
    model, _ = run.load_official(made, tmp_path / "official.pth")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.network.parameters(), strict=True))
    image = np.random.default_rng(0).integers(0, 256, (9, 30, 3), np.uint8)
    assert RestorationPredictor(model, "cpu").predict(image).shape == (18, 60, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ["-c", str(tmp_path / "tiny.yaml"), "--weights", str(tmp_path / "official.pth"), "--device", "cpu"]
    output = ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert cli.main(["predict", *words, *output]) == 0
    assert (tmp_path / "out/pictures/a.png").is_file()


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("upscale", [3, 4])
def test_training_starts_from_weights_of_another_scale_and_says_what_it_left_out(tmp_path, caplog, upscale):
    def network(scale: int) -> dict:
        # The other networks' shell is the same: a trunk, `conv_before_upsample`, `upsample`, `conv_last`
        return {"type": "restoration.EDSR", "upscale": scale, "num_feat": 4, "num_block": 1}

    twice = run.build_parts(composed({**TINY, "model": {"network": network(2)}}, tmp_path)).model.network
    torch.save({"params": twice.state_dict()}, tmp_path / "x2.pth")
    data = {**TINY["data"], "degradation": {"type": "data.Bicubic", "scale": upscale}}
    made = composed({**TINY, "data": data, "model": {"network": network(upscale)}}, tmp_path)
    made["run"]["weights"] = str(tmp_path / "x2.pth")
    made["trainer"] |= {"max_steps": 1}
    made["optimizer"] |= {"lr": 0.0}
    caplog.set_level("INFO", "vistrain")
    assert run.fit(made) == 0
    lost = {3: ["upsample.0.weight: [16, 4, 3, 3] in the file, [36, 4, 3, 3] here", "upsample.0.bias"],
            4: ["upsample.2.weight: not in the file, [16, 4, 3, 3] here", "upsample.2.bias"]}[upscale]  # fmt: skip
    assert all(f"left out network.{line}" in caplog.text for line in lost)
    assert caplog.text.count("left out") == len(lost)
    start, learned = twice.state_dict(), run.load(tmp_path / "run/last.ckpt")[0].network.state_dict()
    for name in start.keys() - {line.partition(":")[0] for line in lost}:
        assert torch.equal(start[name], learned[name]), name
    # Nothing may be left out where nothing is trained afterwards
    with pytest.raises(WeightsError, match=r"is for another scale: network\.upsample\..* fine-tune with run\.weights"):
        run.load_official(made, tmp_path / "x2.pth")
    torch.save({"params": {k: v for k, v in start.items() if "upsample" not in k}}, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"missing: network\.upsample"):
        run.load_official(made, tmp_path / "cut.pth")
    del start["body.0.conv1.bias"]
    torch.save({"params": start}, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"1 missing: network\.body\.0\.conv1\.bias"):
        run.load_official(made, tmp_path / "cut.pth")


@pytest.mark.usefixtures("data_root")
def test_a_network_of_another_scale_or_of_other_channels_is_refused(tmp_path):
    made = composed(TINY, tmp_path)
    made["model"]["network"]["upscale"] = 3
    with pytest.raises(ConfigError, match=r"data\.scale: is 2, but the network enlarges 3 times"):
        run.test(made)
    made = composed(small_swinir(), tmp_path)
    made["data"]["color"] = "grey"
    with pytest.raises(ConfigError, match="takes images of 3 channel"):
        run.build_parts(made)


def test_a_grey_network_restores_the_colours_one_by_one():
    class Grey(Restorer):
        channels = 1

        def forward(self, x: Tensor) -> Tensor:
            return 1 - x

    predictor = RestorationPredictor(RestorationModel(Grey(), channels=1), "cpu", tile=80)
    image = np.random.default_rng(0).integers(0, 256, (90, 30, 3), np.uint8)
    assert np.array_equal(predictor.predict(image), 255 - image)
    assert np.array_equal(predictor.predict(image[..., 0]), 255 - np.repeat(image[..., :1], 3, 2))


def test_grey_pictures_stay_grey_and_transparent_ones_transparent(tmp_path):
    class Nearest(Restorer):
        scale, channels = 2, 1

        def forward(self, x: Tensor) -> Tensor:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    predictor = RestorationPredictor(RestorationModel(Nearest(), channels=1), "cpu")
    draw = np.random.default_rng(0)
    alpha = Image.fromarray(draw.integers(0, 256, (3, 4), np.uint8).repeat(4, 0).repeat(4, 1))
    grey, rgb = (Image.fromarray(draw.integers(0, 256, (12, 16, *c), np.uint8)) for c in ((), (3,)))
    images = {"grey": grey, "rgb": rgb, "la": Image.merge("LA", (grey, alpha)), "rgba": rgb.copy()}
    images["rgba"].putalpha(alpha)
    images["opaque"] = rgb.convert("RGBA")
    images["palette"] = grey.copy()
    images["palette"].info["transparency"] = int(np.asarray(grey)[0, 0])
    images["wide"] = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    files = find_images([tmp_path])
    predict_files(predictor, files, tmp_path / "out")
    made = {file.path.stem: Image.open(tmp_path / "out/pictures" / file.name) for file in files}
    modes = {"grey": "L", "rgb": "RGB", "la": "LA", "rgba": "RGBA", "opaque": "RGB", "palette": "LA", "wide": "L"}
    assert {name: image.mode for name, image in made.items()} == modes
    for name in ("grey", "wide", "la"):
        assert np.array_equal(np.asarray(made[name].getchannel(0))[::2, ::2], np.asarray(grey))
    assert np.array_equal(np.asarray(made["rgba"])[1::2, 1::2, :3], np.asarray(rgb))
    expected = imresize_uint8(np.array(alpha)[..., None], 2)[..., 0]
    assert np.array_equal(np.asarray(made["rgba"].getchannel("A")), expected)
    assert "grey images, colours one by one" in predictor.sentence([])
