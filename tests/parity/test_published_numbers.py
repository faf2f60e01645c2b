"""Published numbers from published weights and real images, brought back by the command that users have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity import fixtures
from vistrain import run
from vistrain.cli import main
from vistrain.config import compose
from vistrain.data import GaussianNoise, ImageSet, RestorationData
from vistrain.metrics import protocol

DNCNN = "checkpoints/dncnn_25_kair.pth"
THREE_IMAGES = 30.889  # dB, mean of 01, 02 and 04 of Set12


def samples() -> Path:
    """The folder of real images and weights beside the fixtures; a skip without it."""
    place = fixtures.folder()
    found = None if place is None else place.parent / "samples"
    if found is None or not (found / "restoration").is_dir():
        pytest.skip("no real images: they are expected at ../shared/samples beside the work tree")
    return found


def reproduce(tmp_path: Path, leaf: str, *words: str) -> dict:
    data = f"data.root={samples() / 'restoration'}"
    assert main(["reproduce", "-c", f"vistrain:restore/{leaf}", "--output", str(tmp_path), data, *words]) == 0
    return json.loads((tmp_path / "reproduction.json").read_text())


@pytest.mark.parametrize("color", ["", "luma_"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_on_set5(tmp_path, color, scale):
    """From the supplied low-resolution images of MATLAB for RGB, from our own resize for luma."""
    low = f", low: Set5/LR_bicubic/X{scale}" if not color else ""
    sets = [f"data.test.{name}.truth=nowhere" for name in ("Set14", "BSD100", "Urban100", "Manga109")]
    sets.append(f"data.test.Set5={{truth: Set5/HR{low}}}")
    made = reproduce(tmp_path, f"bicubic_{color}x{scale}", "data.workers=0", *sets)
    assert len(made["results"]) == 2
    assert made["reproduced"]


def test_dncnn_on_three_images(tmp_path, capsys):
    """Enough to see that weights, noise and rounding are right; `test_dncnn` takes the whole sets."""
    few = ("data.test.Set12.truth=Set12/0[124].png", "data.test.BSD68.truth=nowhere")
    data = f"data.root={samples() / 'restoration'}"
    words = ["-c", "vistrain:restore/dncnn_s25", "--weights", str(samples() / DNCNN), "--output", str(tmp_path)]
    assert main(["reproduce", *words, data, "data.workers=0", *few]) == 3  # three images are not the set
    said = capsys.readouterr().out
    assert "OUTSIDE" in said
    assert "not measured" in said
    made = json.loads((tmp_path / "reproduction.json").read_text())
    assert made["numbers"]["test/denoise/Set12/psnr"] == pytest.approx(THREE_IMAGES, abs=0.005)


@pytest.mark.slow
def test_dncnn(tmp_path):
    made = reproduce(tmp_path, "dncnn_s25", "--weights", str(samples() / DNCNN), "data.workers=0")
    measured = {row["metric"]: row["measured"] for row in made["results"]}
    assert measured["denoise/Set12/psnr"] == pytest.approx(30.43, abs=0.02)
    assert measured["denoise/BSD68/psnr"] == pytest.approx(29.23, abs=0.02)


@pytest.mark.slow
def test_espnet_on_camvid(tmp_path):
    """The authors' file on CamVid's 233 test images; void counts as a false positive, as in their figures."""
    weights, data = samples() / "checkpoints" / "espnet_p2_q8_camvid.pth", f"data.root={samples() / 'camvid'}"
    words = ["-c", "vistrain:seg/espnet_camvid", "--weights", str(weights), "--output", str(tmp_path)]
    assert main(["reproduce", *words, data, "data.workers=0"]) == 0
    made = json.loads((tmp_path / "reproduction.json").read_text())
    measured = {row["metric"]: row["measured"] for row in made["results"]}
    assert measured["miou_void/mIoU"] == pytest.approx(55.64, abs=0.02)
    assert measured["miou_void/mAcc"] == pytest.approx(68.30, abs=0.02)


def wnet_on_drive(tmp_path: Path, leaf: str) -> dict[str, float]:
    weights, data = samples() / "checkpoints" / "wnet_drive.pth", f"data.root={samples() / 'drive'}"
    words = ["-c", f"vistrain:med/{leaf}", "--weights", str(weights), "--output", str(tmp_path)]
    assert main(["reproduce", *words, data, "data.workers=0"]) == 0
    made = json.loads((tmp_path / "reproduction.json").read_text())
    return {row["metric"]: row["measured"] for row in made["results"]}


def test_wnet_on_drives_validation_images(tmp_path):
    """The authors' file under the protocol of the figures that they print beside it."""
    measured = wnet_on_drive(tmp_path, "wnet_drive_validation")
    assert measured["vessels/AUC"] == pytest.approx(98.5861, abs=0.001)
    assert measured["vessels/Dice"] == pytest.approx(80.9617, abs=0.001)


@pytest.mark.slow
def test_wnet_on_drive(tmp_path):
    """What the authors' code gives on the 20 test images."""
    measured = wnet_on_drive(tmp_path, "wnet_drive")
    assert measured["vessels/AUC"] == pytest.approx(98.0973, abs=0.001)
    assert measured["vessels/Dice"] == pytest.approx(82.8439, abs=0.001)
    assert measured["vessels/MCC"] == pytest.approx(80.3044, abs=0.001)


@pytest.mark.parametrize("image", [pytest.param("comic", marks=pytest.mark.slow), "face"])
def test_tiles_measure_as_whole_images_do_on_set14(image):
    """Within 0.02 dB, as all 14 images were when tried: 0.0007 dB at most for tiles of 128 pixels."""
    leaf = compose(["vistrain:restore/dncnn_s25"])
    model, _ = run.load_official(leaf, samples() / DNCNN)
    images = ImageSet(f"Set14/{image}.png")
    root, noise = str(samples() / "restoration"), GaussianNoise(25)
    data = RestorationData(images, {"Set14": images}, root=root, degradation=noise, color="grey", workers=0)
    (batch,) = data.val_dataloader()
    metric, truth = protocol("denoise"), batch["target"][0]["image"]
    measured = []
    for tile in (None, 160):
        model.set_tile(tile)
        measured.append(metric.measure(model.predict(batch)[0].image, truth))
    assert measured[0][0] > 27
    assert measured[1] == pytest.approx(measured[0], abs=0.002)
    assert measured[1] != measured[0]


def test_a_whole_pickle_is_refused(tmp_path, capsys, monkeypatch):
    """A module pickled whole needs its author's code: the reason and the way out, in one line, and nothing runs."""
    weights = samples() / "checkpoints" / "dncnn_sigma25_official.pth"
    data = f"data.root={samples() / 'restoration'}"
    words = ["reproduce", "-c", "vistrain:restore/dncnn_s25", "--weights", str(weights), data, "data.workers=0"]
    assert main([*words, "--output", str(tmp_path)]) == 2
    assert "is another file: its sha256 is" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path), "reference.sha256=null"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "needs code execution to be read (it names `__main__.DnCNN`) and was refused - nothing was executed" in said
    assert "`python tools/convert_pickle.py FILE -o OUTPUT`" in said
    assert not (tmp_path / "reproduction.json").exists()
