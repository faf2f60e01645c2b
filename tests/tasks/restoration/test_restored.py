"""LPIPS is its definition, asks for its weights, and folders of restored pictures are measured under any protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vistrain import cli
from vistrain.data import Bicubic
from vistrain.data.restoration.degradations import generator
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.layers.imresize import imresize
from vistrain.metrics import Lpips, protocol
from vistrain.metrics.image_quality import ImageQuality
from vistrain.predictions import Restored
from vistrain.tasks.restoration.evaluate import evaluate_folder

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # after these modules of torchvision's `features`


def features_of(network: str) -> nn.Sequential:
    from torchvision import models

    torch.manual_seed(0)
    if network == "vgg":
        return models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=False)
    return models.AlexNet().features


def weights_of(network: str, features: nn.Sequential) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=draw) for i, c in enumerate(CHANNELS[network])}
    whole = {f"features.{name}": value for name, value in features.state_dict().items()}
    return {**whole, "classifier.1.bias": torch.zeros(3)}, heads


@pytest.mark.parametrize("network", ["alex", "vgg"])
@torch.no_grad()
def test_lpips_is_its_definition(network):
    features = features_of(network)
    body, heads = weights_of(network, features)
    metric = Lpips({**body, **heads})
    assert metric.protocol == {"alex": "lpips", "vgg": "custom(lpips, network=vgg)"}[network]
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 256, (3, 43, 50), np.uint8)
    output = (truth / 255 + draw.normal(0, 0.1, truth.shape)).astype(np.float32)

    x, y = (torch.from_numpy(image) / 255 * 2 - 1 for image in ((output * 255).clip(0, 255).round(), truth))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((image.float() - shift[:, None, None]) / scale[:, None, None] for image in (x, y))
    expected = 0.0
    for i, module in enumerate(features[: TAPS[network][-1] + 1]):
        x, y = module(x), module(y)
        if i in TAPS[network]:
            level = TAPS[network].index(i)
            unit = [z / (torch.linalg.vector_norm(z, dim=0) + 1e-10) for z in (x, y)]
            weight = heads[f"lin{level}.model.1.weight"][0]
            expected += float(((unit[0] - unit[1]) ** 2 * weight).sum(0).mean())
    images = torch.from_numpy(output), torch.from_numpy(truth)
    assert expected > 0.01
    assert metric.measure(*images) == pytest.approx(expected, rel=1e-5)
    records = metric.update(
        ["A/a", "B/b"], [Restored(images[0]), Restored(images[1] / 255)], [{"image": images[1]}] * 2
    )
    assert records[1]["lpips"] == 0
    numbers = metric.compute(records)
    assert numbers == pytest.approx({"lpips/lpips": expected / 2, "lpips/A/lpips": expected, "lpips/B/lpips": 0.0})
    assert np.isnan(metric.measure(images[0][:, :15], images[1][:, :15]))
    with pytest.raises(DataError, match=r"restored to \[3, 40, 50\]"):
        metric.measure(images[0][:, :40], images[1])


def test_lpips_asks_for_its_weights():
    with pytest.raises(ConfigError, match=r"lpips has no weights - .*two files.*task\.lpips=\[FILE, FILE\]"):
        protocol("lpips", scale=2)
    body, heads = weights_of("alex", features_of("alex"))
    with pytest.raises(WeightsError, match=r"lack lin0\.model\.1\.weight - give two files"):
        Lpips(body)
    heads["lin2.model.1.weight"] = torch.ones(1, 256, 1, 1)
    with pytest.raises(WeightsError, match=r"lin2.* is for 256 channels, the network has 384"):
        Lpips({**body, **heads})


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three true images, of sizes that 2 does not divide, and their bicubic restorations under several names."""
    draw = np.random.default_rng(0)
    for name, made in (("baby", "baby.png"), ("bird", "birdx2.png"), ("head", "head_SRx2.png")):
        small = Image.fromarray(draw.integers(0, 256, (9, 11, 3), np.uint8))
        image = np.asarray(small.resize((45, 41), Image.Resampling.BICUBIC))
        for folder in ("truth/HR", "made"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "truth/HR" / f"{name}.png")
        low = Bicubic(2)(np.ascontiguousarray(image[:40, :44]), generator(0))
        large = imresize(torch.from_numpy(low / np.float32(255)).permute(2, 0, 1), 2).clamp(0, 1) * 255
        Image.fromarray(large.round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "made" / made)
    return tmp_path / "made", tmp_path / "truth"


def test_a_folder_is_measured_as_a_run_measures_it(folders, capsys):
    made, truth = folders
    report = evaluate_folder(made, truth, "sr_luma", 2)
    metric = ImageQuality("sr_luma", 2)
    for record, name in zip(report.records, ("baby.png", "birdx2.png", "head_SRx2.png"), strict=True):
        good = np.array(Image.open(truth / "HR" / f"{record['id']}.png"))[:40, :44]
        images = (torch.from_numpy(x).permute(2, 0, 1) for x in (np.array(Image.open(made / name)), good))
        output, target = images
        assert (record["psnr"], record["ssim"]) == pytest.approx(metric.measure(output / 255, target))
    assert cli.main(["evaluate", str(made), "--truth", str(truth), "--protocol", "sr_luma", "--scale", "2"]) == 0
    printed = capsys.readouterr().out
    assert "sr_luma" in printed
    assert f"{report.result.numbers['sr_luma/psnr']:.2f}" in printed
    (made.parent / "predicted").mkdir()  # as `vistrain predict --output predicted` leaves it
    (made.parent / "predicted" / "pictures").symlink_to(made)
    assert evaluate_folder(made.parent / "predicted", truth, "sr_luma", 2).records == report.records
    other = evaluate_folder(made, truth, "denoise", 2, "grey")
    assert other.result.numbers["denoise/psnr"] != report.result.numbers["sr_luma/psnr"]


def test_lpips_of_a_folder_from_two_files(folders, tmp_path, capsys):
    made, truth = folders
    for name, part in zip(("alexnet.pth", "lin.pth"), weights_of("alex", features_of("alex")), strict=True):
        torch.save(part, tmp_path / name)
    words = ["evaluate", str(made), "--truth", str(truth), "--protocol", "lpips", "--scale", "2"]
    assert cli.main([*words, "--lpips", str(tmp_path / "alexnet.pth"), str(tmp_path / "lin.pth")]) == 0
    assert "LPIPS" in capsys.readouterr().out
    assert cli.main([*words, "--lpips", str(tmp_path / "none.pth")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "linear heads" in capsys.readouterr().err


def test_folders_that_do_not_fit_end_in_one_line(folders, capsys):
    made, truth = folders
    words = ["evaluate", str(made), "--truth", str(truth)]
    for more, message in (
        (["--scale", "3"], "restored to [3, 40, 44], the truth is [3, 39, 45]"),
        (["--scale", "0"], "--scale"),
        (["--protocol", "coco_box"], "none for pictures - use sr_luma"),
        (["--annotations", "a.json"], "--truth: is for restoration alone - leave out --annotations"),
    ):
        assert cli.main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    (made / "head_other.png").write_bytes((made / "head_SRx2.png").read_bytes())
    with pytest.raises(DataError, match=r"head\.png: 2 pictures in .* call it head\.png"):
        evaluate_folder(made, truth, "sr_luma", 2)
    (made / "head_other.png").unlink()
    (made / "head_SRx2.png").unlink()
    with pytest.raises(DataError, match=r"head\.png: has none in"):
        evaluate_folder(made, truth, "sr_luma", 2)
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folder(made / "none", truth, "sr_luma", 2)
