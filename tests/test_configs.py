"""Every shipped config: it composes, fits the index, builds, and its model has the published number of parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from parity import fixtures

from vistrain import cli, config, run
from vistrain.config import index
from vistrain.errors import ConfigError

CONFIGS = index.config_root()
LEAVES = sorted(
    p.relative_to(CONFIGS).with_suffix("").as_posix()
    for p in CONFIGS.rglob("*.yaml")
    if not p.parent.name.startswith("_")
)
TEMPLATES = ["cls/custom_folder", "det/custom_coco"]  # not complete: they want a user's own data
# Leaf -> the file of its full-size weights' names and shapes
PUBLISHED = {
    "det/deformable_detr_r50": "official_defdetr",
    "det/deformable_detr_r50_refine": "official_defdetr_refine",
    "det/deformable_detr_r50_two_stage": "official_defdetr_ts",
    "det/deformable_detr_r50_detrex": "deformable_detr_detrex",
    "det/deformable_detr_r50_refine_detrex": "deformable_detr_refine_detrex",
    "det/deformable_detr_r50_two_stage_detrex": "deformable_detr_two_stage_detrex",
    "det/dino_r50_4scale_12ep": "official_dino",
    "det/dino_r50_4scale_12ep_detrex": "dino_detrex",
    "det/focus_detr": "focus_detr_r50_4scale",
}


def compose(leaf: str, *overrides: str) -> dict:
    return config.compose([f"vistrain:{leaf}"], overrides)


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_short_and_says_what_it_is(leaf):
    text = (CONFIGS / f"{leaf}.yaml").read_text()
    assert len(text.splitlines()) <= 45
    assert text.startswith("# ")
    assert not re.search(r"\b(num_classes|in_channels|num_channels)\b", text)
    assert leaf in index.load()["configs"]


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf not in TEMPLATES])
def test_a_leaf_builds_as_a_whole(leaf):
    """Network, task, optimizer groups and schedule, on the meta device; the parameter count is the index's."""
    composed = compose(leaf)
    published = composed.get("reference")
    if composed["data"]["type"] == "data.Coco2017":
        assert published["metric"] == "coco/AP"
        assert str(published["value"]) in (CONFIGS / f"{leaf}.yaml").read_text().splitlines()[0]
    with torch.device("meta"):
        parts = run.build_parts(config.without_pretrained(composed))
    count = sum(p.numel() for p in parts.model.parameters())
    assert count == index.load()["configs"][leaf]["parameters"]
    if count:  # bicubic enlarging has nothing to train
        rates = composed["optimizer"]["lr"], composed["optimizer"].get("weight_decay", 0.0)
        groups = parts.task.groups(parts.model, *rates)
        assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in parts.model.parameters())
        constant = composed["schedule"]["type"] == "optim.Constant"  # short tuning
        assert constant or parts.task.schedule.factor(10**6, 10**6, 1000) < 1
    if leaf in PUBLISHED:
        assert count == fixtures.load(f"dense/keys/{PUBLISHED[leaf]}.json")["params"]


def test_the_authors_learning_rates():
    """main.py: 2e-4; 2e-5 for the backbone and for sampling offsets and reference points; decay 1e-4 everywhere."""
    for leaf, slow in (("", 2 * 12 + 2), ("_two_stage", 2 * 12)):
        composed = compose(f"det/deformable_detr_r50{leaf}", "model.backbone.pretrained=false")
        with torch.device("meta"):
            parts = run.build_parts(composed)
        groups = parts.task.groups(parts.model, 2e-4, 1e-4)
        assert {g["weight_decay"] for g in groups} == {1e-4}
        rates = {id(p): g["lr"] for g in groups for p in g["params"]}
        named = {n: rates[id(p)] for n, p in parts.model.named_parameters() if p.requires_grad}
        reduced = {n for n, lr in named.items() if lr == pytest.approx(2e-5)}
        assert {n for n in named if n.startswith("backbone.")} <= reduced
        assert len([n for n in reduced if not n.startswith("backbone.")]) == slow
        assert all(lr == pytest.approx(2e-4) for n, lr in named.items() if n not in reduced)


def test_print_config_full_builds_and_composes_again(capsys, tmp_path):
    assert cli.main(["fit", "-c", "vistrain:demo/detection", "--print-config", "full", "model.num_queries=50"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "full.yaml").write_text(text)
    again = config.compose([tmp_path / "full.yaml"])
    assert (again["model"]["num_queries"], again["model"]["num_points"]) == (50, 4)
    assert "#   channels: 8" in text
    assert re.search(r"# parameters: \d+", text)
    with torch.device("meta"):
        assert run.build_parts(again).model.tgt_embed.num_embeddings == 50


def test_the_template_takes_any_coco_set(tmp_path, monkeypatch):
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    shapes = {"type": "data.GeneratedShapes", "train_images": 2, "val_images": 2}
    from vistrain.data import DataModule

    data = config.build(shapes, DataModule, where="data")
    data.prepare_data()
    splits = [f"data.{s}={{images: {s}, annotations: annotations/{s}.json}}" for s in ("train", "val")]
    composed = compose("det/custom_coco", f"data.root={data.root}", "model.backbone.pretrained=false", *splits)
    with torch.device("meta"):
        parts = run.build_parts(composed)
    assert parts.model.labels.names == data.labels.names
    with pytest.raises(ConfigError, match=r"data\.root: must be given"):
        compose("det/custom_coco")


# One for each class of model
@pytest.mark.parametrize("leaf", ["det/deformable_detr_r50_two_stage", "det/dino_r50_4scale_12ep", "det/focus_detr"])
def test_two_real_steps(leaf, tmp_path, monkeypatch):
    """The leaf as it is, but for the data (generated, in the leaf's own label space), sizes, batch and workers."""
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    small = {
        "data": {"type": "data.GeneratedShapes", "train_images": 4, "val_images": 2, "batch_size": 2, "workers": 0}
        | {"scale": 0.5, "labels": compose(leaf)["data"]["labels"]},
        "model": {"backbone": {"pretrained": False}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
        "run": {"folder": str(tmp_path / "run")},
    }
    assert run.fit(config.compose([f"vistrain:{leaf}"], changes=small)) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) >= 2
    assert (tmp_path / "run" / "last.ckpt").is_file()
    assert Path(tmp_path / "run" / "config.yaml").is_file()
