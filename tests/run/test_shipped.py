"""`vistrain reproduce --all`: what is recognised, what is missing, and that one failure does not end the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vistrain import run
from vistrain.cli import main
from vistrain.config import compose, index
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.run import shipped
from vistrain.run.networks import build_without_memory


def images(folder: Path, count: int = 1) -> None:
    """Images of 48 pixels in a folder that is made."""
    import cv2
    import numpy as np

    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(
            str(folder / f"{number}.png"), np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
        )


def dncnn(file: Path, leaf: str = "restore/dncnn_s25") -> None:
    model = build_without_memory(compose([f"vistrain:{leaf}"]))
    torch.save({name: torch.zeros(value.shape, dtype=value.dtype) for name, value in model.state_dict().items()}, file)


def survey(tmp_path: Path, *weights: Path, only: str = "restore/*") -> dict[str, shipped.Claim]:
    found = shipped.survey([tmp_path / "sets"], weights, only=only)
    return {claim.leaf: claim for claim in found.claims}


@pytest.fixture
def sets(tmp_path):
    """Set5 in a folder beside others."""
    images(tmp_path / "sets" / "super" / "Set5")
    images(tmp_path / "sets" / "photos")
    return tmp_path


def test_data_are_recognised_by_their_layout_and_weights_are_asked_for_where_there_are_any(sets):
    claims = survey(sets)
    assert claims["restore/bicubic_x4"].data == sets / "sets" / "super"
    assert claims["restore/bicubic_x4"].missing == ""
    assert claims["restore/hat_x4"].data == sets / "sets" / "super"
    assert claims["restore/hat_x4"].missing.startswith("weights ")
    assert claims["restore/dncnn_s25"].data is None
    said = claims["restore/dncnn_s25"].missing
    assert said == "data data.RestorationData; weights dncnn_25.pth of https://github.com/cszn/KAIR"


def test_weights_are_recognised_by_names_and_shapes_alone_where_no_digest_is_stated(sets):
    dncnn(sets / "mine.pth", "restore/dlgsanet_tiny_x4")
    claims = survey(sets, sets / "mine.pth")
    assert [name for name, claim in claims.items() if claim.weights] == ["restore/dlgsanet_tiny_x4"]


def test_a_stated_digest_decides(sets, monkeypatch):
    """A file of the same shapes is not the published one; one of that digest is, whatever is in it."""
    dncnn(sets / "other.pth")
    assert survey(sets, sets / "other.pth")["restore/dncnn_s25"].weights is None
    stated = index.load("configs")["restore/dncnn_s25"]["reference"]["sha256"]
    monkeypatch.setattr(shipped, "sha256", lambda file: stated)
    assert survey(sets, sets / "other.pth")["restore/dncnn_s25"].weights == sets / "other.pth"


def test_a_file_that_fits_several_is_given_to_the_one_that_calls_it_so(sets):
    """Networks for several data sets may differ in nothing but their values."""
    names = ("cls/affnet", "cls/affnet_t")
    called = shipped.publishing()[names[1]]["reference"]["weights"]
    assert shipped._named(Path(f"{called}.pth"), names) == [names[1]]
    assert shipped._named(Path("mine.pth"), names) == list(names)


def test_what_is_named_must_be_there(sets):
    with pytest.raises(DataError, match="no such folder"):
        shipped.survey([sets / "absent"], [])
    with pytest.raises(WeightsError, match="no such file or folder"):
        shipped.survey([], [sets / "absent"])
    with pytest.raises(ConfigError, match="no config that publishes a number matches"):
        shipped.survey([], [], only="restore/absent")


def test_a_file_that_is_no_checkpoint_is_said_and_not_fatal(sets):
    (sets / "weights").mkdir()
    (sets / "weights" / "broken.pth").write_bytes(b"no checkpoint")
    (sets / "weights" / "notes.txt").write_text("not looked at")
    found = shipped.survey([sets / "sets"], [sets / "weights"], only="restore/bicubic_x4")
    assert len(found.notes) == 1
    assert "broken.pth" in found.notes[0]


def all_of(sets: Path, *words: str) -> int:
    place = ["--data", str(sets / "sets"), "--output", str(sets / "out")]
    return main(["reproduce", "--all", "--only", "restore/bicubic_x*", *place, *words])


def test_one_that_fails_does_not_end_the_rest(sets, capsys, caplog, monkeypatch):
    def test(config, *, weights, allow):
        scale = config["model"]["network"]["upscale"]
        if scale == broken:
            raise DataError("Set5/0.png", "is damaged")
        numbers = compose([f"vistrain:restore/bicubic_x{scale}"])["reference"]["values"]
        return {f"test/{name}": value + (outside if scale == 4 else 0) for name, value in numbers.items()}

    monkeypatch.setattr(run, "test", test)
    broken, outside = 0, 0.0
    assert all_of(sets) == 0
    assert json.loads((sets / "out/restore/bicubic_x8/reproduction.json").read_text())["reproduced"] is True
    broken = 2
    assert all_of(sets) == 2
    said = capsys.readouterr()
    assert "failed: Set5/0.png: is damaged" in " ".join(said.out.split()).replace("│ │ ", "")
    assert "[4/4] restore/bicubic_x8: reproduced" in caplog.text
    outside = 1.0
    assert all_of(sets) == 3
    assert main(["reproduce", "--all", "--only", "restore/bicubic_x4", "--output", str(sets / "out")]) == 2
    assert "data data.RestorationData (for 1 configs)" in capsys.readouterr().out


def test_a_bug_is_code_1(sets, monkeypatch):
    def test(config, *, weights, allow):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "test", test)
    assert all_of(sets) == 1


def test_few_images_are_not_a_reproduction(sets, capsys):
    """Really evaluated: one image of 48 pixels, whose numbers nobody published."""
    words = ("data.workers=0", "trainer.accelerator=cpu")
    images(sets / "sets" / "super" / "Set14")
    assert main([
        "reproduce", "--all", "--only", "restore/bicubic_x2", "--limit", "1", "--data", str(sets / "sets"),
        "--output", str(sets / "out"), *words,
    ]) == 0  # fmt: skip
    made = json.loads((sets / "out/restore/bicubic_x2/reproduction.json").read_text())
    assert (made["limit"], made["complete"], made["reproduced"]) == (1, False, False)
    assert made["numbers"].keys() >= {"test/sr_luma/Set5/psnr"}
    assert "test/sr_luma/Set14/psnr" not in made["numbers"]
    assert "not judged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--all", "-c", "vistrain:restore/bicubic_x4"), "--config: --all takes the shipped ones"),
        (("-c", "vistrain:restore/bicubic_x4", "--data", "sets"), "--data: goes with --all"),
        (("-c", "vistrain:restore/bicubic_x4", "--only", "cls/*"), "--only: goes with --all"),
        (("-c", "vistrain:restore/bicubic_x4", "--weights", "a", "--weights", "b"), "--weights: one config takes one"),
        (("--all", "--limit", "0"), "--limit: 0 images"),
    ],
)
def test_options_that_do_not_go_together(words, message, capsys):
    assert main(["reproduce", *words]) == 2
    assert message in capsys.readouterr().err
