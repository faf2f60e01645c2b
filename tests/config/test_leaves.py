"""Every shipped config: it composes, fits the index, builds, and its model has the published number of parameters.

All are composed. Built are one for each set of classes that a model is made of, and those whose classes, arguments or
sources changed since `make index` last measured them; all of them by `make leaves`.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

import pytest
from parity import fixtures

from vistrain import cli, config, run
from vistrain.config import index
from vistrain.devices import on_meta
from vistrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import leaves  # noqa: E402
import make_index  # noqa: E402

FILES = dict(leaves.config_files())
COMPLETE = [name for name, path in FILES.items() if not leaves.is_template(path)]
HASHES = leaves.hashes()
ALL = os.environ.get("LEAVES") == "all"
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


@functools.cache
def composed(leaf: str) -> dict:
    return config.compose([f"vistrain:{leaf}"])


def compose(leaf: str, *overrides: str) -> dict:
    return config.compose([f"vistrain:{leaf}"], overrides)


@functools.cache
def representatives() -> set[str]:
    """The smallest leaf of each set of classes that a model is made of."""
    size = {leaf: index.load("configs")[leaf].get("parameters", 0) for leaf in COMPLETE}
    found: dict[tuple[str, ...], str] = {}
    for leaf in sorted(COMPLETE, key=lambda leaf: (size[leaf], leaf)):
        found.setdefault(leaves.classes_of(composed(leaf)), leaf)
    return set(found.values())


@pytest.mark.parametrize("leaf", FILES)
def test_a_leaf_is_short_and_says_what_it_is(leaf):
    text = FILES[leaf].read_text()
    assert len(text.splitlines()) <= 45
    assert text.startswith("# ")
    assert not re.search(r"\b(num_classes|in_channels|num_channels)\b", text)
    assert leaf in index.load("configs")


@pytest.mark.parametrize("leaf", sorted(FILES.keys() - set(COMPLETE)))
def test_a_template_composes_once_all_is_given(leaf):
    asked = r"^(\S+): must be given"
    given = []
    with pytest.raises(ConfigError, match=asked):
        compose(leaf)
    while True:
        try:
            made = compose(leaf, *given)
        except ConfigError as error:
            found = re.match(asked, str(error))
            if found is None:
                raise
            given.append(f"{found[1]}=given")
        else:
            break
    assert made["model"]["type"]


@pytest.mark.parametrize("leaf", COMPLETE)
def test_a_leaf_is_as_the_index_says(leaf):
    """Composing checks its keys and types; what it is built of is built where that changed."""
    made = composed(leaf)
    entry = index.load("configs")[leaf]
    described = make_index.describe_config(FILES[leaf], made)
    assert described == {key: value for key, value in entry.items() if key not in make_index.MEASURED}
    published = made.get("reference")
    if made["data"]["type"] == "data.Coco2017":
        assert published["metric"] == "coco/AP"
        assert str(published["value"]) in FILES[leaf].read_text().splitlines()[0]
    if ALL or leaf in representatives() or leaves.digest(made) != HASHES.get(leaf):
        _builds_as_a_whole(made, entry["parameters"])


def _builds_as_a_whole(made: dict, parameters: int) -> None:
    """Network, task, optimizer groups and schedule, on the meta device; the parameter count is the index's."""
    with on_meta():
        parts = run.build_parts(config.without_pretrained(made))
    count = sum(p.numel() for p in parts.model.parameters())
    assert count == parameters
    if count:  # bicubic enlarging has nothing to train
        rates = made["optimizer"]["lr"], made["optimizer"].get("weight_decay", 0.0)
        groups = parts.task.groups(parts.model, *rates)
        assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in parts.model.parameters())
        constant = made["schedule"]["type"] == "optim.Constant"  # short tuning
        # a wave may be up again at the end
        assert constant or min(parts.task.schedule.factor(step, 10**6, 1000) for step in (950_000, 10**6)) < 1


def test_each_class_that_leaves_name_is_built_by_one_of_them():
    named = {path for leaf in COMPLETE for path in leaves.classes_of(composed(leaf))}
    assert named == {path for leaf in representatives() for path in leaves.classes_of(composed(leaf))}
    assert len(representatives()) < len(COMPLETE) / 3


@pytest.mark.parametrize("leaf", PUBLISHED)
def test_a_leaf_has_the_parameters_of_the_official_weights(leaf):
    assert index.load("configs")[leaf]["parameters"] == fixtures.load(f"dense/keys/{PUBLISHED[leaf]}.json")["params"]


def test_what_changes_a_leafs_hash(monkeypatch):
    before = composed("restore/swinir_x2")
    swinir, detr = leaves.digest(before), leaves.digest(composed("det/focus_detr"))
    assert leaves.digest(compose("restore/swinir_x2", "trainer.max_steps=7", "data.patch=32")) == swinir
    assert leaves.digest(compose("restore/swinir_x2", "model.network.upscale=3")) != swinir
    original = leaves._code_of
    monkeypatch.setattr(
        leaves, "_code_of", lambda module: original(module) + "x" * (module == "vistrain.restoration.swinir")
    )
    assert leaves.digest(before) != swinir
    assert leaves.digest(composed("det/focus_detr")) == detr
    monkeypatch.setattr(
        leaves, "_code_of", lambda module: original(module) + "x" * (module == "vistrain.backbones.cswin")
    )
    assert leaves.digest(before) == swinir
    assert leaves.digest(composed("cls/cswin_tiny")) != leaves.digest(composed("cls/efficientvit_m0"))


def test_comments_and_docstrings_are_not_code():
    bare = "class A:\n    def f(self):\n        return 1  # one\n"
    text = f'"""Module."""\n\n# why\n{bare}'.replace("f(self):\n", 'f(self):\n        """Two\n        lines."""\n\n')
    assert leaves.code(text) == leaves.code(bare) == bare.rstrip()
    assert leaves.code(bare.replace("1  #", "2  #")) != leaves.code(bare)


def test_the_authors_learning_rates():
    """main.py: 2e-4; 2e-5 for the backbone and for sampling offsets and reference points; decay 1e-4 everywhere."""
    for leaf, slow in (("", 2 * 12 + 2), ("_two_stage", 2 * 12)):
        made = compose(f"det/deformable_detr_r50{leaf}", "model.backbone.pretrained=false")
        with on_meta():
            parts = run.build_parts(made)
        groups = parts.task.groups(parts.model, 2e-4, 1e-4)
        assert {g["weight_decay"] for g in groups} == {1e-4}
        rates = {id(p): g["lr"] for g in groups for p in g["params"]}
        named = {n: rates[id(p)] for n, p in parts.model.named_parameters() if p.requires_grad}
        reduced = {n for n, lr in named.items() if lr == pytest.approx(2e-5)}
        assert {n for n in named if n.startswith("backbone.")} <= reduced
        assert len([n for n in reduced if not n.startswith("backbone.")]) == slow
        assert all(lr == pytest.approx(2e-4) for n, lr in named.items() if n not in reduced)


def test_print_config_full_builds_and_composes_again(capsys, tmp_path):
    words = ["--print-config", "full", "model.num_queries=50"]
    assert cli.main(["fit", "-c", "vistrain:demo/detection_long", *words]) == 0
    text = capsys.readouterr().out
    (tmp_path / "full.yaml").write_text(text)
    again = config.compose([tmp_path / "full.yaml"])
    assert (again["model"]["num_queries"], again["model"]["num_points"]) == (50, 4)
    assert "#   channels: 8" in text
    assert re.search(r"# parameters: \d+", text)
    with on_meta():
        assert run.build_parts(again).model.tgt_embed.num_embeddings == 50


@pytest.mark.parametrize("template", ["det/custom_coco", "det/custom_instances"])
def test_the_template_takes_any_coco_set(template, tmp_path, monkeypatch):
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    shapes = {"type": "data.GeneratedShapes", "train_images": 2, "val_images": 2}
    from vistrain.data import DataModule

    data = config.build(shapes, DataModule, where="data")
    data.prepare_data()
    splits = [f"data.{s}={{images: {s}, annotations: annotations/{s}.json}}" for s in ("train", "val")]
    made = compose(template, f"data.root={data.root}", "model.backbone.pretrained=false", *splits)
    with on_meta():
        parts = run.build_parts(made)
    assert parts.model.labels.names == data.labels.names
    with pytest.raises(ConfigError, match=r"data\.root: must be given"):
        compose(template)


# One for each class of model, and so each task: the leaf's data is generated, and keeps what it says of these keys.
GENERATED = {
    "tasks.DetectionTask": (
        {"type": "data.GeneratedShapes", "train_images": 4, "val_images": 2, "scale": 0.5},
        ("labels", "masks"),
    ),
    "tasks.ClassificationTask": (
        {"type": "data.GeneratedPatterns", "train_images": 1, "val_images": 1},
        ("augment", "repeats"),
    ),
    "tasks.RestorationTask": ({"type": "data.GeneratedTextures", "train_images": 4, "val_images": 1}, ("degradation",)),
    "tasks.SegmentationTask": ({"type": "data.GeneratedMasks", "train_images": 4, "val_images": 2, "scale": 0.5}, ()),
    "tasks.PanopticTask": ({"type": "data.GeneratedPanoptic", "train_images": 4, "val_images": 2, "scale": 0.5}, ()),
    "tasks.VolumeTask": ({"type": "data.GeneratedTumours", "number": 5, "side": 24, "patches": 1, "workers": 0}, ()),
    "tasks.CorrespondenceTask": ({"type": "data.GeneratedMatches", "train_images": 4, "val_images": 1}, ("crop",)),
    "tasks.PretrainingTask": ({"type": "data.GeneratedPatterns", "train_images": 1, "val_images": 1}, ()),
}
REGIONS_AND_ANCHORS = ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn", "retinanet", "atss", "gfl")
STEPS = {
    "det/deformable_detr_r50_two_stage": {"batch_size": 2},
    "det/dino_r50_4scale_12ep": {"batch_size": 2},
    "det/focus_detr": {"batch_size": 2},
    **{f"det/{name}_r50_1x": {"batch_size": 2} for name in REGIONS_AND_ANCHORS},
    "cls/efficientvit_m0": {"batch_size": 4, "image_size": 64},
    "restore/dlgsanet_tiny_x2": {"batch_size": 2, "patch": 16},
    "seg/semantic_fpn_r50": {"batch_size": 2},
    "seg/mask2former_coco_panoptic_r50": {"batch_size": 2, "augment": {"crop": [64, 64]}},
    "med/agunet_meningioma": {"batch_size": 2, "patch": [16, 16, 16]},
    "pretrain/mae_base_1600": {"batch_size": 2},
    "demo/matching": {"batch_size": 2},
}


def test_real_steps_are_taken_in_every_task():
    tasks = {name for name, entry in index.load("classes").items() if entry["kind"] == "task"}
    taken = {composed(leaf)["task"]["type"] for leaf in STEPS}
    # The base; classification without learning; lanes, of which `tests/tasks/segmentation/test_lane_task.py` trains a
    # small network: the published one has the size of its images in its layers.
    assert taken == tasks - {"tasks.Task", "tasks.NeighbourTask", "tasks.LaneTask"}


# One detector with a network of full size is enough for the fast tests.
SLOW = {"det/deformable_detr_r50_two_stage", "det/dino_r50_4scale_12ep", "seg/mask2former_coco_panoptic_r50"}
SLOW |= {"pretrain/mae_base_1600"}
SLOW |= {f"det/{name}_r50_1x" for name in REGIONS_AND_ANCHORS}


@pytest.mark.parametrize("leaf", [pytest.param(leaf, marks=[pytest.mark.slow] * (leaf in SLOW)) for leaf in STEPS])
def test_two_real_steps(leaf, tmp_path, monkeypatch):
    """The leaf as it is, but for the data (generated, in the leaf's own label space), sizes, batch and workers."""
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    made = composed(leaf)
    data, kept = GENERATED[made["task"]["type"]]
    small = {
        "data": {
            **data,
            **{key: made["data"][key] for key in kept if key in made["data"]},
            **STEPS[leaf],
            "workers": 0,
        },
        "model": {"backbone": {"pretrained": False}} if "backbone" in made["model"] else {},
        "trainer": {"max_epochs": None, "max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1},
        "run": {"folder": str(tmp_path / "run")},
    }
    assert run.fit(config.compose([f"vistrain:{leaf}"], changes=small)) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) >= 3  # a line of names, two steps
    assert (tmp_path / "run" / "last.ckpt").is_file()
    assert Path(tmp_path / "run" / "config.yaml").is_file()
