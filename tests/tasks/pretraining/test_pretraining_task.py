"""Whole runs of pre-training: pictures, probes, resuming, hand-over, one's own pictures, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vistrain
from vistrain import config, run
from vistrain.backbones.create import create
from vistrain.checkpoints import load_file, save_durably
from vistrain.cli import main
from vistrain.data import DataModule
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.pretraining import Pretrainer
from vistrain.structures import LabelSpace

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def compose(root: Path, folder: Path, **more: Any) -> dict[str, Any]:
    data = {"root": str(root), "train_images": 2, "val_images": 1, "batch_size": 8, "workers": 0, "image_size": 32}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "check_val_every_n_epoch": 1}
    changes = {
        "data": data, "trainer": trainer, "run": {"folder": str(folder)}, "schedule": {"warmup_steps": 1},
        "model": {"backbone": {"name": "vit_tiny_patch16_224", "args": VIT}, **SMALL}, "task": {"probe_images": 12},
    }  # fmt: skip
    return config.compose(["vistrain:demo/pretraining"], changes=config.merge(changes, more))


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mae"
    assert run.fit(compose(data_root, folder)) == 0
    return folder


def test_a_run_leaves_numbers_probes_and_pictures(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert 0.5 < float(rows[-1]["val/pretrain/loss"]) < 3
    for name in ("val/probe/neighbours", "val/probe/linear"):
        assert 0 <= float(rows[-1][name]) <= 1
    # Masked, reconstructed and original stand side by side: wider than a picture is high
    width, height = Image.open(finished / "eval/epoch_001.png").size
    assert width > 150
    assert height > 150
    assert (finished / "best.ckpt").is_file()


def test_evaluations_have_the_same_masks_whatever_the_batch(finished: Path) -> None:
    network = run.load(finished / "best.ckpt")[0]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[32, 32]] * 4)
    whole = network.predict({"image": images, "size": sizes, "id": [3, 5, 7, 9]})
    part = network.predict({"image": images[2:], "size": sizes[2:], "id": [7, 9]})
    for a, b in zip(whole[2:], part, strict=True):
        assert torch.equal(a.hidden, b.hidden)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert not torch.equal(whole[0].hidden, whole[1].hidden)
    shown = ~whole[0].hidden.repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(whole[0].image[:, shown], images[0][:, shown] / 255, rtol=0, atol=1e-5)


def test_a_stopped_run_with_a_teacher_ends_with_the_bits_of_a_whole_one(data_root: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model": {"type": "pretraining.HPM", "guided_steps": 4, "decay_steps": 4},
        "schedule": {"type": "optim.Constant"},
        "task": {"probes": []},
        "data": {"train_images": 1},
    }

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "last.ckpt")["state_dict"]

    start = compose(data_root, tmp_path / "parts", **changes)
    assert run.fit(start) == 0
    more = config.compose([], start=start, changes={"trainer": {"max_epochs": 2}})
    assert run.fit(more, resume=tmp_path / "parts") == 0
    whole = config.compose([], start=more, changes={"run": {"folder": str(tmp_path / "whole")}})
    assert run.fit(whole) == 0
    parts, once = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert parts.keys() == once.keys()
    assert [name for name in once if not torch.equal(parts[name], once[name])] == []
    name = "model.teacher.network.backbone.body.blocks.0.mlp.fc1.weight"
    assert not torch.equal(once[name], once[name.replace("teacher.network.", "")])  # it follows, and is not the student


def test_predictions_are_pictures_from_the_checkpoint_alone(finished: Path, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    command = ["predict", "--ckpt", str(finished / "best.ckpt"), "--input", str(tmp_path / "a.png")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert content["images"][0]["losses"]["loss_pixels"] > 0
    width, height = Image.open(tmp_path / "out/pictures/a.png").size
    assert width > 2 * height


def test_ones_own_pictures_of_other_sides_in_grey_go_on_from_a_file(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "photos" / "holiday"
    folder.mkdir(parents=True)
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    data = {
        "type": "data.UnlabelledFolder", "root": str(tmp_path / "photos"), "holdout": 0.4, "batch_size": 4,
        "workers": 0, "image_size": [24, 48], "color": "grey",
    }  # fmt: skip
    start = compose(tmp_path, tmp_path / "run")
    start["data"] = data
    backbone = {"pretrained": str(finished / "best.ckpt"), "args": {"img_size": [24, 48]}}
    changes = {"model": {"backbone": backbone}, "task": {"probes": []}}
    caplog.set_level("INFO", "vistrain")
    changes["run"] = {"folder": str(tmp_path / "grey")}
    assert run.fit(config.compose([], start=start, changes=changes)) == 0
    assert "patch_embed.proj.weight adapted from 3 channels to 1" in caplog.text
    start["data"].pop("color")
    changes["run"] = {"folder": str(tmp_path / "colour")}
    assert run.fit(config.compose([], start=start, changes=changes)) == 0
    predictor = vistrain.load(tmp_path / "grey/best.ckpt", device="cpu")
    found = predictor.predict(Image.open(folder / "0.png"))
    assert found.image.shape == (1, 24, 48)
    assert found.hidden.shape == (3, 6)
    assert main(["check", "--output", str(tmp_path / "check"), "-c", str(tmp_path / "grey/config.yaml")]) == 0


# ------------------------------------------------------------------ hand-over


@pytest.mark.parametrize("leaf", ["demo/classification", "demo/detection", "demo/segmentation"])
def test_a_checkpoint_starts_a_network_of_every_task(
    leaf: str, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = config.compose([f"vistrain:{leaf}"])
    dense = (
        {}
        if leaf == "demo/classification"
        else {"strides": [8, 16]}
        if "detection" in leaf
        else {"strides": [4, 8, 16, 32]}
    )
    pretrained = str(finished / "best.ckpt")
    start["model"]["backbone"] = {"name": "vit_tiny_patch16_224", "args": VIT, "pretrained": pretrained, **dense}
    with caplog.at_level("INFO"):
        network = run.build_model(start, LabelSpace(("a", "b"), (0, 1)))
    assert "the backbone alone; left out" in caplog.text
    saved, own = load_file(finished / "best.ckpt")["state_dict"], network.state_dict()
    taken = [name for name in own if name.startswith("backbone.body.blocks.")]
    assert len(taken) == 24
    assert all(torch.equal(own[name], saved[f"model.{name}"]) for name in taken)
    size = torch.tensor([[32, 32]])
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    batch = {"image": image, "size": size, "original_size": size, "id": [0], "target": [{}]}
    assert len(network.eval().predict(batch)) == 1


@pytest.mark.parametrize("size", [32, 48])
def test_a_checkpoint_starts_a_plain_body(size: int, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = load_file(finished / "best.ckpt")["state_dict"]
    with caplog.at_level("INFO"):
        body, _ = create("vit_tiny_patch16_224", str(finished / "best.ckpt"), {**VIT, "img_size": size}, 3)
    assert "left out" in caplog.text
    assert "decoder_blocks" in caplog.text
    assert ("resized from 4x4 to 6x6 patches" in caplog.text) == (size == 48)
    for name, value in body.state_dict().items():
        if name != "pos_embed" or size == 32:
            assert torch.equal(value, saved[f"model.backbone.body.{name}"]), name
    assert body.pos_embed.requires_grad  # fixed while it was pre-trained, learned from here on


def test_what_is_exported_is_timms(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "encoder.pth"
    assert (
        main(
            [
                "export",
                "--ckpt",
                str(finished / "best.ckpt"),
                "--part",
                "backbone",
                "--as",
                "timm",
                "--output",
                str(file),
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "timm.create_model('vit_tiny_patch16_224', img_size=32" in told
    theirs = timm.create_model("vit_tiny_patch16_224", **VIT, num_classes=0, checkpoint_path=str(file)).eval()
    network = run.load(finished / "best.ckpt")[0]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.forward_features(images), network(images), rtol=1e-4, atol=1e-5)
    body, _ = create("vit_tiny_patch16_224", str(file), VIT, 3)
    assert torch.equal(body.norm.weight, theirs.norm.weight)
    assert main(["export", "--ckpt", str(finished / "best.ckpt"), "--part", "head", "--output", str(file)]) == 2
    assert main(["export", "--ckpt", str(finished / "best.ckpt"), "--as", "keras", "--output", str(file)]) == 2


def test_a_file_without_an_encoder_is_refused(finished: Path, tmp_path: Path) -> None:
    saved = load_file(finished / "best.ckpt")["state_dict"]
    decoder = {k: v for k, v in saved.items() if "backbone" not in k}
    save_durably({"state_dict": decoder}, tmp_path / "decoder.pth")
    with pytest.raises(WeightsError, match=r"decoder.pth: has no weights of vit_tiny_patch16_224"):
        create("vit_tiny_patch16_224", str(tmp_path / "decoder.pth"), VIT, 3)


def test_a_file_of_another_depth_or_width_says_which(finished: Path) -> None:
    file = finished / "best.ckpt"
    of_file = f"holds {VIT['depth']} blocks of {VIT['embed_dim']} channels"
    for other in ({"depth": VIT["depth"] + 1}, {"embed_dim": 2 * VIT["embed_dim"]}):
        with pytest.raises(WeightsError, match=rf"best.ckpt: {of_file}, but vit_tiny_patch16_224 has"):
            create("vit_tiny_patch16_224", str(file), {**VIT, **other}, 3)


def test_teachers_weights_that_cannot_be_had_are_named_by_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("cannot find the requested files")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    backbone = {"name": "vit_tiny_patch16_224", "args": VIT}
    node = {"type": "pretraining.MaskAlign", "backbone": backbone, "teacher": {"name": "vit_tiny_patch16_224"}}
    with pytest.raises(WeightsError, match=r"set `model\.teacher\.pretrained` to a file"):
        config.build(node, Pretrainer)
    node["teacher"] = {"name": "resnet10t", "pretrained": False}
    with pytest.raises(ConfigError, match=r"model\.teacher\.name: resnet10t is no plain ViT"):
        config.build(node, Pretrainer)


# ------------------------------------------------------------------ refused


REFUSED = {
    "model.masking.ratio=0.97": r"model.masking.ratio: 0.97 shows 0 of the 16 patches",
    "model.masking.ratio=1.0": r"ratio: 1.0 shows nothing",
    "model.masking.ratio=0.0": r"ratio: 0.0 hides nothing",
    "data.image_size=4": r"data.image_size: images of 4x4 are smaller than a patch of 8x8",
    "data.image_size=30": r"data.image_size: 30x30 is no multiple of the patch of 8x8",
    "model.backbone.name=resnet18": r"model.backbone.*: resnet18 is no plain ViT|resnet18 has no such argument",
    "task.probes=[nearest]": r"task.probes",
    "model.backbone.args.img_size=4": r"args.img_size: .* 4x4 pixels are less than one patch of 8x8",
    "model.typ=pretraining.HPM": r"model.typ: no such key - did you mean 'type'",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_before_data_are_generated(change: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSED[change]):
        run.fit(config.compose([], [change], start=compose(tmp_path / "data", tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()


def test_teachers_that_do_not_go_with_it_are_refused_before_data_are_generated(tmp_path: Path) -> None:
    teacher = {"name": "vit_tiny_patch16_224", "pretrained": False, "args": {**VIT, "reg_tokens": 4}}
    model = {"type": "pretraining.MaskAlign", "teacher": teacher, "backbone": {"name": "vit_tiny_patch16_224"}}
    start = compose(tmp_path / "data", tmp_path / "run")
    start["model"] = {**model, "backbone": start["model"]["backbone"]}
    with pytest.raises(ConfigError, match=r"^model\.teacher: .* has 5 tokens before its patches"):
        run.fit(start)
    teacher |= {"args": VIT, "pretrained": str(tmp_path / "none.pth")}
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        run.fit(start)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("side", "positions", "said"), [(32, "fixed", ""), (40, "fixed", "sines are computed"),
                                                        (40, "learned", "they are resized")])  # fmt: skip
def test_images_of_another_size_than_the_positions_are_said_once(
    side: int, positions: str, said: str, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"data": {"image_size": side}, "model": {"backbone": {"positions": positions}}, "task": {"probes": []},
            "trainer": {"limit_train_batches": 1, "limit_val_batches": 1}}  # fmt: skip
    with caplog.at_level("INFO", logger="vistrain"):
        assert run.fit(compose(data_root, tmp_path / "run", **more)) == 0
    lines = [r.getMessage() for r in caplog.records if "positions for" in r.getMessage()]
    wanted = f"images of {side}x{side} pixels, positions for 32x32 (model.backbone.args.img_size): {said}"
    assert [line.startswith(wanted) for line in lines] == [True] * bool(said)


def test_probes_want_classes(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / "photos" / f"{i}.png")
    start = compose(tmp_path, tmp_path / "run")
    start["data"] = {
        "type": "data.UnlabelledFolder",
        "root": str(tmp_path / "photos"),
        "batch_size": 2,
        "image_size": 32,
    }
    with pytest.raises(ConfigError, match=r"task.probes: UnlabelledFolder has not one class for each image"):
        run.fit(start)


def test_pictures_that_cannot_be_read_are_said_with_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    files = [tmp_path / "photos" / f"{i}.png" for i in range(8)]
    for file in files:
        Image.new("RGB", (40, 40), (90, 90, 90)).save(file)
    start = compose(tmp_path, tmp_path / "run", task={"probes": []})
    start["data"] = {"type": "data.UnlabelledFolder", "root": str(tmp_path / "photos"), "batch_size": 2,
                     "image_size": 32, "holdout": 0.3, "workers": 0}  # fmt: skip
    data = config.build(start["data"], DataModule, where="data")
    data.setup("fit")
    held_out = Path(data.dataset("val").where(0))
    held_out.write_bytes(held_out.read_bytes()[:30])
    with pytest.raises(DataError, match=rf"{held_out.name}: .* names all\), then: vistrain fit --resume .*run$"):
        run.fit(start)
    assert (tmp_path / "run" / "last.ckpt").is_file()
    Image.new("RGB", (40, 40)).save(held_out)
    assert run.fit(start, resume=tmp_path / "run") == 0
    for file in files:
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="not an image that can be read"):
        run.fit({**start, "run": {"folder": str(tmp_path / "broken")}})
    assert not (tmp_path / "broken").exists()
