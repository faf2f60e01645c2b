"""The main path as a person walks it: fit, resume, test, predict, evaluate, all through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vistrain
from vistrain.cli import main
from vistrain.data import GeneratedShapes
from vistrain.run import load, load_checkpoint

SMALL_DATA = [
    "schedule.warmup_steps=1",
    "data.train_images=20",
    "data.val_images=6",
    "data.scale=0.5",
    "data.workers=0",
]
SMALL_MODEL = [
    "model.embed_dim=32",
    "model.num_heads=4",
    "model.ffn_dim=32",
    "model.encoder_layers=1",
    "model.cascade=[1.0]",
    "model.decoder_layers=2",
    "model.num_queries=12",
    "model.denoising.number=4",
]
TWELVE = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}


def arguments(folder: Path, *more: str) -> list[str]:
    config = ["--config", "vistrain:demo/detection_long", f"run.folder={folder}", f"data.root={folder.parent / 'data'}"]
    return ["fit", *config, *SMALL_DATA, *SMALL_MODEL, "trainer.log_every_n_steps=1", *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, interrupted after the first and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    small = ["trainer.check_val_every_n_epoch=1"]
    assert main(arguments(folder, "trainer.max_epochs=1", *small)) == 0
    assert main(["fit", "--resume", str(folder), "trainer.max_epochs=2"]) == 0
    return folder


def test_the_run_folder_tells_the_whole_story(finished: Path) -> None:
    expected = {"config.yaml", "environment.json", "metrics.csv", "curves.png", "first_batch.png", "summary.json"}
    expected |= {"report.html", "report.md"}
    assert expected | {"last.ckpt", "best.ckpt", "eval"} <= {path.name for path in finished.iterdir()}
    assert len(list((finished / "eval").glob("epoch_*.png"))) == 2
    assert {path.name for path in (finished / "eval").iterdir()} >= {"worst.png", "best.png"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["seconds"] > 0
    assert summary["samples"]["val"] == 6


def test_a_resumed_run_continues_its_metrics(finished: Path) -> None:
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row.get("train/loss")]
    assert steps == sorted(set(steps))  # no step twice
    assert load_steps(finished / "last.ckpt") == 4  # at least 16 images that show something, in batches of 8, twice


def load_steps(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_weights_that_are_about_to_be_replaced_are_not_fetched(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vistrain.backbones.create._build_pretrained", lambda *_: pytest.fail("went for a download"))
    words = [f"run.weights={finished / 'last.ckpt'}", "model.backbone.pretrained=true", "trainer.max_steps=1"]
    assert main(arguments(tmp_path / "tuned", *words, "trainer.limit_val_batches=0")) == 0
    assert "pretrained: true" in (tmp_path / "tuned" / "config.yaml").read_text()  # the run's config stays as it was


def test_a_finished_folder_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(finished)) == 2
    assert "--resume" in capsys.readouterr().err


def test_resuming_an_empty_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert error.count("\n") == 1


def test_a_checkpoint_is_evaluated_from_itself_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--ckpt", str(finished / "best.ckpt")]) == 0
    printed = capsys.readouterr().out
    assert "coco_box" in printed
    assert "crescent" in printed  # the table per class


def test_a_checkpoint_of_other_classes_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--ckpt", str(finished / "best.ckpt"), "data.labels=coco_ids"]) == 2
    error = capsys.readouterr().err
    assert "best.ckpt" in error
    assert "contiguous" in error
    assert "coco_ids" in error


def test_weights_of_another_label_space_start_a_run(finished: Path, tmp_path: Path) -> None:
    weights = f"run.weights={finished / 'best.ckpt'}"
    data = f"data.root={finished.parent / 'data'}"
    more = ["data.labels=coco_ids", weights, data, "trainer.max_steps=1", "trainer.limit_val_batches=0"]
    assert main(arguments(tmp_path / "other", *more)) == 0
    old, new = load_checkpoint(finished / "best.ckpt"), load_checkpoint(tmp_path / "other" / "last.ckpt")
    assert new["labels"]["name"] == "coco_ids"
    different = {k for k, v in old["state_dict"].items() if v.shape != new["state_dict"][k].shape}
    assert different
    assert all("class_embed" in k or "label_enc" in k for k in different)


def test_predict_writes_pictures_and_boxes(finished: Path, tmp_path: Path) -> None:
    config = load_checkpoint(finished / "best.ckpt")["config"]
    data = GeneratedShapes(config["data"]["root"], train_images=20, val_images=6, scale=0.5)
    images = data.image_path("val", data.ground_truth("val")["images"][0]["id"]).parent
    command = ["predict", "--ckpt", str(finished / "best.ckpt"), "--input", str(images), "--output", str(tmp_path)]
    assert main([*command, "--threshold", "0"]) == 0
    assert len(list((tmp_path / "pictures").rglob("*.jpg"))) == 6
    rows = json.loads((tmp_path / "coco_results.json").read_text())
    assert rows
    ids = set(load_checkpoint(finished / "best.ckpt")["labels"]["ids"])
    assert {row["category_id"] for row in rows} <= ids


def test_written_predictions_evaluate_to_the_runs_numbers(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_checkpoint(finished / "best.ckpt")["config"]
    data = GeneratedShapes(config["data"]["root"], train_images=20, val_images=6, scale=0.5)
    assert (
        main(["evaluate", str(finished / "predictions.json"), "--annotations", str(data.annotation_file("val"))]) == 0
    )
    assert "AP" in capsys.readouterr().out


def test_loading_needs_the_checkpoint_alone(finished: Path) -> None:
    model, facts = load(finished / "best.ckpt")
    assert not model.training
    assert len(facts["labels"]["names"]) == 8
    assert facts["preprocessing"]["mean"]


def test_fast_dev_run_leaves_no_checkpoint(tmp_path: Path) -> None:
    assert main(arguments(tmp_path / "dev", "trainer.fast_dev_run=true")) == 0
    assert not (tmp_path / "dev" / "last.ckpt").exists()


def test_debug_runs_in_one_process_and_checks_every_operation(tmp_path: Path) -> None:
    assert main([*arguments(tmp_path / "debug", "trainer.max_steps=1", "trainer.limit_val_batches=0"), "--debug"]) == 0
    config = load_checkpoint(tmp_path / "debug" / "last.ckpt")["config"]
    assert config["data"]["workers"] == 0
    assert config["trainer"]["detect_anomaly"] is True


def test_a_config_without_its_data_says_what_to_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["model.backbone.pretrained=false", f"data.root={tmp_path}", f"run.folder={tmp_path / 'run'}"]
    assert main(["fit", "--config", "vistrain:det/deformable_detr_r50", *missing]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train2017" in error
    assert str(tmp_path) in error


def test_python_users_load_and_predict_in_two_lines(finished: Path) -> None:
    found = vistrain.load(finished / "best.ckpt").predict(np.full((50, 70, 3), 128, np.uint8))
    assert found.boxes.shape == (len(found.scores), 4)
    assert bool((found.boxes[:, 2] <= 70.001).all())


def test_stages_follow_one_another(tmp_path: Path) -> None:
    stages = "stages=[{trainer: {max_steps: 1}}, {optimizer: {lr: 1e-9}, trainer: {max_steps: 2}}]"
    more = ["trainer.limit_val_batches=0", "trainer.max_epochs=-1", "callbacks.ema=null", stages]
    assert main(arguments(tmp_path / "run", *more)) == 0
    first, second = (load_checkpoint(tmp_path / "run" / name / "last.ckpt") for name in ("stage_1", "stage_2"))
    assert load_steps(tmp_path / "run" / "stage_2" / "last.ckpt") == 2
    moved = max(float((first["state_dict"][k] - second["state_dict"][k]).abs().max()) for k in ("level_embed",))
    assert moved < 1e-7  # it started from the first stage's weights, and its own learning rate is tiny


def test_a_run_of_stages_resumes_in_its_last_stage(tmp_path: Path) -> None:
    stages = "stages=[{trainer: {max_steps: 1}}, {trainer: {max_steps: 1}}]"
    more = ["trainer.limit_val_batches=0", "trainer.max_epochs=-1", stages]
    assert main(arguments(tmp_path / "run", *more)) == 0
    first = (tmp_path / "run" / "stage_1" / "last.ckpt").stat().st_mtime_ns
    longer = "stages=[{trainer: {max_steps: 1}}, {trainer: {max_steps: 2}}]"
    assert main(["fit", "--resume", str(tmp_path / "run"), longer]) == 0
    assert (tmp_path / "run" / "stage_1" / "last.ckpt").stat().st_mtime_ns == first
    assert load_steps(tmp_path / "run" / "stage_2" / "last.ckpt") == 2
