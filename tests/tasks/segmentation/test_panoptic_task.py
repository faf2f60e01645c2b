"""Panoptic segmentation from the command line: trained, resumed, tested, predicted, and measured again from files."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import assert_resumed_is_undisturbed, rows, trained_folder
from PIL import Image
from pycocotools import mask as mask_tools

from vistrain.cli import main
from vistrain.config import compose
from vistrain.data.segmentation.panoptic_files import read_numbers
from vistrain.errors import ConfigError
from vistrain.pictures import overlays
from vistrain.predictions import InstanceDetections, PanopticMap, Segment, Segmentation
from vistrain.run.predict import load_predictor
from vistrain.run.rehearsal import refuse_ahead
from vistrain.structures import LabelSpace
from vistrain.tasks.segmentation.segment_pictures import segment_picture, truth_and_segments

CONFIG = """
base: vistrain:seg/_base_/panoptic
data:
  type: data.GeneratedPanoptic
  root: data
  train_images: 8
  val_images: 6
  scale: 0.5
  batch_size: 4
  workers: 0
  scenes: {classes: [circle, crescent], more_objects: 1.0, sides: [0.3, 0.6], visible: 0.9}
model:
  type: segmentation.Mask2Former
  backbone: {name: resnet10t, strides: [4, 8, 16, 32], args: {stem_width: 8, channels: [8, 16, 24, 32]}}
  pixel_decoder:
    {type: segmentation.DeformablePixelDecoder, embed_dim: 32, mask_dim: 16, num_layers: 1, num_heads: 4, ffn_dim: 32}
  decoder: {type: segmentation.MaskedDecoder, embed_dim: 32, num_queries: 8, num_layers: 1, num_heads: 4, ffn_dim: 32}
  criterion: {type: losses.MaskCriterion, num_points: 128}
  outputs: [semantic, panoptic, instances]
  object_threshold: 0.2
  overlap_threshold: 0.2
metrics: [panoptic, coco_mask, coco_boundary, miou_present]
optimizer: {type: torch.optim.AdamW, lr: 3e-3}
trainer: {max_epochs: 4, check_val_every_n_epoch: 4, accelerator: cpu, log_every_n_steps: 1}
run: {folder: run}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory, "panoptic", CONFIG)


def test_a_run_leaves_numbers_and_pictures(trained: Path) -> None:
    metrics = rows(trained / "run/metrics.csv")
    wanted = {"val/panoptic/PQ", "val/panoptic/PQ_things", "val/coco_mask/AP", "val/coco_boundary/AP"}
    wanted |= {"val/miou_present/mIoU"}
    assert wanted | {"train/loss_mask", "train/loss_dice_0"} <= set(metrics[0])
    classes = rows(trained / "run/per_class.csv")
    assert [(row["class"], row["kind"]) for row in classes] == [
        ("circle", "thing"), ("crescent", "stuff"), ("ground", "stuff"),
    ]  # fmt: skip
    images = rows(trained / "run/per_image.csv")
    assert len(images) == 6
    assert list((trained / "run/eval").glob("*.png"))


def test_test_predict_and_evaluate_agree(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert main(["test", "--ckpt", "run/last.ckpt", "--analysis", "analysis", "data.workers=0"]) == 0
    said = capsys.readouterr().out
    assert {p.name for p in Path("analysis").iterdir()} == {"per_class.csv", "per_image.csv", "worst.png", "instances"}
    instances = json.loads(Path("analysis/instances/analysis.json").read_text())
    assert instances["confusion"]["classes"] == ["circle", "background"]
    assert Path("analysis/instances/confusion.png").is_file()
    (root,) = Path("data").glob("panoptic-*")
    command = ["predict", "--ckpt", "run/last.ckpt", "--input", str(root / "val"), "--output", "out"]
    assert main([*command, "--threshold", "0"]) == 0
    found = json.loads(Path("out/pictures/panoptic.json").read_text())
    assert [c["isthing"] for c in found["categories"]] == [1, 0, 0]
    counted = 0
    for annotation in found["annotations"]:
        numbers = read_numbers(Path("out/pictures/panoptic") / annotation["file_name"])
        assert {s["id"] for s in annotation["segments_info"]} == set(np.unique(numbers).tolist()) - {0}
        for segment in annotation["segments_info"]:
            assert segment["area"] == (numbers == segment["id"]).sum()
            counted += 1
    assert counted
    results = json.loads(Path("out/coco_results.json").read_text())
    one = results[0]
    assert mask_tools.decode(one["segmentation"]).shape == (one["height"], one["width"])
    assert {r["category_id"] for r in results} == {17}
    mask = np.asarray(Image.open("out/pictures/masks/000000.jpg.png"))
    assert set(np.unique(mask).tolist()) <= {17, 90, 200}
    assert len(list(Path("out/pictures/overlays").glob("*.jpg"))) == 6
    capsys.readouterr()
    for given in ("out", "out/pictures/panoptic.json", "out/pictures/panoptic"):
        assert main(["evaluate", given, "-c", "mine.yaml"]) == 0
        again = capsys.readouterr().out
        tables = [text[text.index("┃        ┃   PQ") :].split("\ntested")[0] for text in (said, again)]
        first = tables[0][: tables[0].index("per class")]
        assert first == tables[1][: len(first)]  # the same numbers from files
    truth = root / "annotations/panoptic_val.json"
    assert main([*command[:-1], "ids", "--annotations", str(truth), "--threshold", "0"]) == 0
    listed = {image["id"] for image in json.loads(truth.read_text())["images"]}
    for name in ("pictures/panoptic.json", "coco_results.json"):
        content = json.loads(Path("ids", name).read_text())
        entries = content["annotations"] if name.startswith("pictures") else content
        assert {entry["image_id"] for entry in entries} <= listed
    capsys.readouterr()
    assert main(["evaluate", "ids", "-c", "mine.yaml"]) == 0
    again = capsys.readouterr().out
    assert first == again[again.index("┃        ┃   PQ") :][: len(first)]
    for protocol in ("coco_mask", "coco_boundary"):
        assert main(["evaluate", "out", "-c", "mine.yaml", "--protocol", protocol]) == 0
        again = capsys.readouterr().out
        assert again[again.index(protocol) :].split("per class")[0].strip() in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.targets=instances"], "things alone are trained, but model.outputs gives semantic, panoptic"),
        (["data.targets=semantic"], "regions of classes are trained, but model.outputs gives panoptic, ins"),
        (
            ["data.targets=instances", "model.outputs=[instances]", "metrics=[panoptic]"],
            "the network gives instances - data.targets=panoptic model.outputs=[instances,panoptic]",
        ),
        (
            ["task.type=tasks.SegmentationTask", "metrics=[miou]", "model.outputs=[panoptic]"],
            "model.outputs: the network gives panoptic, miou measures semantic",
        ),
        (
            ["model={type: segmentation.SemanticSegmenter, backbone: {name: resnet10t, strides: [4, 8, 16, 32]}, "
             "head: {type: segmentation.FPNHead}, neck: {type: necks.FPN}}", "metrics=[miou]"],
            "targets of GeneratedPanoptic hold labels, masks; SemanticSegmenter learns from label_map",
        ),
        (
            ["data={type: data.GeneratedMasks, root: data, train_images: 4, val_images: 2, batch_size: 2}",
             "model.outputs=[semantic]", "metrics=[miou]"],
            "MaskClassifier learns from labels, masks - data.regions=true",
        ),
        (
            ["data={type: data.GeneratedMasks, root: data, train_images: 4, val_images: 2, batch_size: 2}",
             "data.regions=true", "model.outputs=[semantic]", "metrics=[panoptic]"],
            "metrics: panoptic needs truth that GeneratedMasks has not - it has that of miou",
        ),
    ],
)  # fmt: skip
def test_targets_outputs_and_metrics_that_do_not_go_together(
    trained: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], said: str
) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(ConfigError) as refused:
        refuse_ahead(compose(["mine.yaml"], changes))
    assert said.replace("MaskClassifier", "Mask2Former") in str(refused.value)


def test_what_does_not_fit_is_said(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(trained)
    (root,) = Path("data").glob("panoptic-*")
    truth = root / "annotations/panoptic_val.json"
    assert main(["evaluate", str(truth), "-c", "mine.yaml"]) == 0  # the truth itself
    assert "100.00" in capsys.readouterr().out
    content = json.loads(truth.read_text())
    (tmp_path / "x").symlink_to((root / "annotations/panoptic_val").resolve())

    def problem(**changes: object) -> str:
        (tmp_path / "x.json").write_text(json.dumps({**content, **changes}))
        assert main(["evaluate", str(tmp_path / "x.json"), "-c", "mine.yaml"]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "has no prediction" in problem(annotations=content["annotations"][1:])
    first = {**content["annotations"][0], "segments_info": content["annotations"][0]["segments_info"][1:]}
    assert "which is not listed" in problem(annotations=[first, *content["annotations"][1:]])
    more = [*content["annotations"][0]["segments_info"], {"id": 1, "category_id": 17}]
    first = {**first, "segments_info": more}
    assert "has no pixel" in problem(annotations=[first, *content["annotations"][1:]])
    assert main(["fit", "-c", "mine.yaml", "model.outputs=[panoptic]", "run.folder=other"]) == 2
    assert "model.outputs=[panoptic,instances]" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_undisturbed_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert_resumed_is_undisturbed(2, 4)


def test_an_array_is_predicted(trained: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    found = load_predictor(trained / "run/last.ckpt", "cpu").predict(image)
    assert found.panoptic.ids.shape == found.semantic.shape == (48, 64)
    assert found.instances.masks.shape[1:] == (48, 64)


LABELS = LabelSpace(("cat", "sky"), (3, 5), things=(0,), palette=((200, 40, 40), (40, 40, 200)))


def test_pictures_tell_things_of_a_class_apart() -> None:
    image = np.full((60, 90, 3), 128, np.uint8)
    truth = torch.zeros((60, 90), dtype=torch.uint8)
    truth[:, :30], truth[:, 30:60], truth[:, 60:] = 1, 2, 3
    target = {"segment_map": truth, "segment_labels": torch.tensor([0, 0, 1])}
    ids = torch.zeros((60, 90), dtype=torch.int32)
    ids[:, 60:] = 7
    masks = torch.zeros((2, 60, 90), dtype=torch.bool)
    masks[0, 10:30, 10:30], masks[1, 20:50, 20:60] = True, True
    boxes = torch.tensor([[10.0, 10, 30, 30], [20, 20, 60, 50]])
    instances = InstanceDetections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([0, 0]), masks)
    batch = {"id": ["a"], "target": [target]}
    segments = Segmentation(panoptic=PanopticMap(ids, (Segment(7, 1, False, 0.9),)), instances=instances)
    (_, left), (caption, right) = truth_and_segments(image, batch, 0, segments, LABELS, 90, 0.3)
    assert caption == "prediction"
    first, second, third = (left[30, x].astype(int) for x in (10, 45, 80))
    assert np.abs(first - second).max() > 10  # two cats
    assert (left[30, 30] == 255).all()  # the outline between them
    np.testing.assert_array_equal(third, right[30, 80])  # sky, in the colour of its class
    np.testing.assert_array_equal(right[30, 10], image[0, 0])
    found = Segmentation(instances=instances)
    ((_, drawn),) = truth_and_segments(image, {"id": ["a"], "target": []}, 0, found, LABELS, 90, 0.3)
    assert (drawn[20, 15] != 128).any()
    assert (drawn[45, 50] == 128).all()  # below the threshold
    packed = {"id": ["a"], "target": [{"masks": masks, "labels": torch.tensor([0, 0])}]}
    ((caption, drawn),) = truth_and_segments(image, packed, 0, None, LABELS, 90, 0.3)
    assert caption == "a"
    assert (drawn[45, 50] != 128).any()


def test_colours_of_segments_are_those_of_the_legend_whatever_the_photograph() -> None:
    image = np.full((40, 60, 3), (30, 200, 60), np.uint8)  # a green one
    segments = np.zeros((40, 60), np.int32)
    segments[:, 20:] = 1
    drawn = segment_picture(image, segments, [0], LABELS)
    assert len(set(drawn[20, 5].tolist())) == 1  # what no segment has is grey
    hue, legend_hue = (colorsys.rgb_to_hsv(*(v / 255 for v in c))[0] for c in (drawn[20, 40], (200, 40, 40)))
    assert hue == pytest.approx(legend_hue, abs=0.01)
    assert (drawn[40:] == (200, 40, 40)).all(-1).any()  # in the legend as it is


def test_where_nothing_is_found_the_picture_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(overlays, "shorten", lambda text, *rest: said.append(text) or text)
    image, size = np.full((60, 120, 3), 128, np.uint8), (60, 120)
    nothing = InstanceDetections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, *size) > 0)
    target = {"segment_map": torch.zeros(size, dtype=torch.uint8), "segment_labels": torch.zeros(0).long()}
    batch = {"id": [7], "name": ["a/b.jpg"], "target": [target]}
    for found in (Segmentation(panoptic=PanopticMap(torch.zeros(size).int(), ())), Segmentation(instances=nothing)):
        (caption, truth), (_, drawn) = truth_and_segments(image, batch, 0, found, LABELS, 120, 0.3)
        assert caption == "a/b.jpg: truth"  # the file's name, where the data says it
        assert truth.shape[0] > 60 < drawn.shape[0]  # a line below it
        assert (drawn[60:] < 100).any()
    assert said == ["nothing annotated", "nothing found", "nothing annotated", "nothing of score >= 0.3 found"]


def test_a_network_that_finds_no_segment_says_what_cuts(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(trained)
    made = load_predictor("run/last.ckpt", "cpu")
    none = [{"segments": [], "instances": []}]
    hint = " (the network itself gives none of a score up to model.object_threshold=0.2: "
    assert made.sentence(none).startswith(f"0 segments{hint}")
    assert made.sentence([{"segments": [{}], "instances": [{}]}]) == "1 segments and 1 instances of score >= 0.3"
    words = ["data.workers=0", "model.object_threshold=0.9999", "metrics=[panoptic]", "trainer.limit_test_batches=2"]
    with caplog.at_level("WARNING", logger="vistrain"):
        assert main(["test", "--ckpt", "run/last.ckpt", *words]) == 0
    assert "no segment was found in 2 images (the network itself gives none of a score up to" in caplog.text
