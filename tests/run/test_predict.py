"""Prediction: any picture in, boxes in its own upright coordinates out, nothing overwritten, nothing lost silently."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vistrain.cli import main
from vistrain.data.detection.transforms import EvalResize
from vistrain.devices import choose_device
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.network import Network
from vistrain.pictures import stable_colour
from vistrain.predictions import Detections
from vistrain.run.predict import load_predictor, predict_files, predict_paths
from vistrain.structures import LabelSpace, Preprocessing
from vistrain.tasks.base.inputs import find_images
from vistrain.tasks.detection.predictor import DetectionPredictor

LABELS = LabelSpace(("red thing", "Größe"), (4, 9), name="coco_ids")
ORIENTATION = 0x0112


class Finder(Network):
    """Learns nothing."""

    def losses(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {}


class FindsRed(Finder):
    """A detector of the one red rectangle in a picture: class 9 at 0.8, then a weak, a nameless and a broken one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Size] = []

    def predict(self, batch: dict) -> list[Detections]:
        assert not self.training
        self.seen.append(batch["image"].shape)
        found = []
        for image, size, original in zip(batch["image"], batch["size"], batch["original_size"], strict=True):
            red = (image[0] > 150) & (image[1] < 100) & (image[2] < 100)
            ys, xs = torch.nonzero(red, as_tuple=True)
            box = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float32)
            box = box * (original / size).float().flip(0).repeat(2)
            boxes = torch.stack([box, box, box, torch.full((4,), math.nan)])
            found.append(Detections(boxes, torch.tensor([0.8, 0.2, 0.9, 0.95]), torch.tensor([9, 4, 5, 9])))
        return found


def predictor(short: int = 60, long: int = 100, size_divisor: int = 1, threshold: float = 0.3) -> DetectionPredictor:
    preprocessing, resize = Preprocessing(size_divisor=size_divisor), EvalResize(short, long)
    facts = {"labels": LABELS, "preprocessing": preprocessing, "transform": resize}
    return DetectionPredictor(FindsRed(), "cpu", threshold=threshold, **facts)


def red_picture(width: int = 120, height: int = 80, box: tuple[int, int, int, int] = (12, 20, 60, 50)) -> Image.Image:
    pixels = np.full((height, width, 3), 240, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = (220, 10, 10)
    return Image.fromarray(pixels)


def read(folder) -> dict:
    return json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["path", "text", "pil", "array"])
def test_boxes_come_back_in_the_pictures_own_coordinates(tmp_path, kind: str) -> None:
    image = red_picture()
    image.save(tmp_path / "a.png")
    given = {"path": tmp_path / "a.png", "text": str(tmp_path / "a.png"), "pil": image, "array": np.array(image)}[kind]
    found = predictor().predict(given)
    assert found.boxes.shape == (4, 4)
    torch.testing.assert_close(found.boxes[0], torch.tensor([12.0, 20, 60, 50]), atol=2.5, rtol=0)
    assert found.labels[0] == 9
    assert found.boxes.device.type == "cpu"


def test_grey_arrays_are_pictures_and_other_arrays_are_refused() -> None:
    class Sees(Finder):
        def predict(self, batch: dict) -> list[Detections]:
            self.image = batch["image"]
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]

    model = Sees()
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)
    DetectionPredictor(model, "cpu", labels=LABELS, transform=EvalResize(64, 64)).predict(grey)
    assert (model.image[0] == torch.from_numpy(grey)).all()


def test_pictures_of_two_sizes_in_one_batch_are_padded_to_the_divisor() -> None:
    made = predictor(short=60, long=100, size_divisor=32)
    found = made.predict_batch([np.array(red_picture()), np.array(red_picture(80, 160, (10, 90, 40, 140)))])
    assert made.model.seen == [torch.Size([2, 3, 128, 96])]
    torch.testing.assert_close(found[1].boxes[0], torch.tensor([10.0, 90, 40, 140]), atol=2.5, rtol=0)
    assert made.predict_batch([]) == []


def test_exif_orientation_is_respected_in_boxes_and_pictures(tmp_path) -> None:
    upright = red_picture(120, 80)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # stored turned left: a viewer turns it right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    summary = predict_files(predictor(), find_images([tmp_path / "turned.jpg"]), tmp_path / "out")
    entry = read(tmp_path / "out")["images"][0]
    assert (entry["width"], entry["height"]) == (120, 80)
    assert entry["detections"][0]["box_xyxy"] == pytest.approx([12, 20, 60, 50], abs=2.5)
    with Image.open(tmp_path / "out" / "pictures" / "turned.jpg") as picture:
        assert picture.size == (300, 200)  # small ones are enlarged
        assert ORIENTATION not in picture.getexif()
    assert len(summary.entries[0]["detections"]) == 1
    found = predictor().predict(Image.open(tmp_path / "turned.jpg"))
    assert found.boxes[0].tolist() == pytest.approx([12, 20, 60, 50], abs=2.5)


def test_the_json_holds_what_is_above_the_threshold_in_both_notations(tmp_path) -> None:
    red_picture().save(tmp_path / "a.png")
    files = find_images([tmp_path / "a.png"])
    predict_files(predictor(), files, tmp_path / "out")
    content = read(tmp_path / "out")
    assert content["threshold"] == 0.3
    assert content["categories"] == [{"id": 4, "name": "red thing"}, {"id": 9, "name": "Größe"}]
    (found,) = content["images"][0]["detections"]
    x1, y1, x2, y2 = found["box_xyxy"]
    assert found["box_xywh"] == [x1, y1, x2 - x1, y2 - y1]
    assert (found["name"], found["category_id"], found["score"]) == ("Größe", 9, pytest.approx(0.8))
    results = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    # Without an annotation file, ids are names, which nobody takes for ids of the truth
    assert content["images"][0]["id"] == "a.png"
    facts = {"category_id": 9, "bbox": found["box_xywh"], "score": found["score"]}
    assert results == [{"image_id": "a.png", **facts, "width": 120, "height": 80}]
    predict_files(predictor(threshold=0.0), files, tmp_path / "all")
    assert [d["score"] for d in read(tmp_path / "all")["images"][0]["detections"]] == pytest.approx([0.8, 0.2])


def test_the_picture_shows_the_box_in_its_class_colour(tmp_path) -> None:
    red_picture().save(tmp_path / "a.png")
    predict_files(predictor(), find_images([tmp_path / "a.png"]), tmp_path / "out")
    pixels = np.array(Image.open(tmp_path / "out" / "pictures" / "a.png"))
    colour = np.array(stable_colour(1))  # the second class
    assert (pixels[63:112, 25:35] == colour).all(axis=2).any(axis=1).all()
    assert not (pixels == np.array(stable_colour(0))).all(axis=2).any()


def test_folders_are_searched_and_equal_names_stay_apart(tmp_path) -> None:
    for name in ("b/x.jpg", "a/x.jpg", "a/x.png", "a/x.bmp", "a/deep/img10.JPG", "a/deep/img2.jpg", "a/.hidden.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        red_picture().save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    output = tmp_path / "photos" / "out"
    expected = ["a/deep/img2.jpg", "a/deep/img10.JPG", "a/x.bmp", "a/x.jpg", "a/x.png", "b/x.jpg"]
    for _ in range(2):  # the second run must not look at the pictures of the first
        files = find_images([tmp_path / "photos"], exclude=output / "pictures")
        assert [f.name for f in files] == expected
        predict_files(predictor(), files, output, batch_size=4)
    assert [e["file"] for e in read(output)["images"]] == expected
    written = sorted(p.relative_to(output / "pictures").as_posix() for p in (output / "pictures").rglob("*.*"))
    assert written == ["a/deep/img10.JPG", "a/deep/img2.jpg", "a/x.bmp.png", "a/x.jpg", "a/x.png", "b/x.jpg"]


def test_a_converted_name_never_meets_an_inputs_name(tmp_path) -> None:
    for name in ("a.bmp", "a.bmp.png"):
        red_picture().save(tmp_path / name)
    predict_files(predictor(), find_images([tmp_path]), tmp_path / "out", save_json=False)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.png")) == ["a.bmp.png", "a.bmp_.png"]
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_patterns_files_and_several_inputs(tmp_path) -> None:
    for name in ("one/a.png", "one/b.jpg", "two/deep/a.png", "odd [1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        red_picture().save(tmp_path / name)

    def names(*inputs: str) -> list[str]:
        return [f.name for f in find_images([tmp_path / i for i in inputs])]

    assert names("*/*.png") == ["one/a.png"]
    assert names("**/*.png") == ["odd [1].png", "one/a.png", "two/deep/a.png"]
    assert names("one/?.jpg") == ["b.jpg"]
    assert names("odd [1].png") == ["odd [1].png"]  # exists, so it is no pattern
    assert names("one", "two/deep/a.png", "one/a.png") == ["one/a.png", "one/b.jpg", "two/deep/a.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.jpg", "no such file or folder"),
        ("empty", "holds no pictures"),
        ("absent/*.jpg", "nothing matches"),
        ("empty/*.t?t", "none of the 1 matches is a picture"),
    ],
)
def test_inputs_without_pictures_end_in_one_line(tmp_path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError) as error:
        find_images([tmp_path / given])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_kind_of_file_is_read_and_damaged_ones_are_named_and_skipped(tmp_path, caplog) -> None:
    image = red_picture()
    image.save(tmp_path / "good.jpg", quality=95)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.convert("P").save(tmp_path / "palette.gif")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:400])
    (tmp_path / "zero.jpg").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        summary = predict_files(predictor(), find_images([tmp_path]), tmp_path / "out", batch_size=3)
    assert [len(e["detections"]) for e in summary.entries] == [1, 1, 1, 1]
    assert sorted(name for name, _ in summary.failed) == ["cut.jpg", "zero.jpg"]
    content = read(tmp_path / "out")
    assert [e["file"] for e in content["images"]] == ["alpha.png", "cmyk.jpg", "good.jpg", "palette.gif"]
    assert {f["file"] for f in content["failed"]} == {"cut.jpg", "zero.jpg"}
    assert len({e["id"] for e in content["images"]}) == 4
    skipped = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(skipped) == 2
    assert all("\n" not in line for line in skipped)
    assert "4 pictures, 4 objects of score >= 0.3, 2 pictures skipped" in caplog.text


def test_the_networks_own_least_score_is_said_where_it_cuts() -> None:
    entries: list[dict] = [{"detections": []}]
    made = predictor(threshold=0)
    assert made.sentence(entries) == "0 objects of score >= 0"
    made.model.score_threshold = 0.05
    own = "0 objects of score >= 0 (the network itself gives none below model.score_threshold=0.05)"
    assert made.sentence(entries) == own
    made.threshold = 0.05
    assert made.sentence(entries) == "0 objects of score >= 0.05"


def test_sixteen_bit_and_grey_files_are_read(tmp_path) -> None:
    class Sees(Finder):
        def predict(self, batch: dict) -> list[Detections]:
            self.image = batch["image"]
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]

    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "deep.png")
    model = Sees()
    files = find_images([tmp_path / "deep.png"])
    made = DetectionPredictor(model, "cpu", labels=LABELS, transform=EvalResize(64, 64))
    summary = predict_files(made, files, tmp_path / "out")
    assert [e["detections"] for e in summary.entries] == [[]]
    assert (model.image[0] == torch.from_numpy((values >> 8).astype(np.uint8))).all()


def test_only_damaged_files_is_an_error_and_the_json_says_why(tmp_path, caplog) -> None:
    (tmp_path / "zero.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"zero\.jpg: empty file"):
        predict_files(predictor(), find_images([tmp_path]), tmp_path / "out")
    assert read(tmp_path / "out")["failed"][0]["file"] == "zero.jpg"
    assert "skipped" not in caplog.text  # the error says it
    (tmp_path / "one.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"one\.jpg: is one of 2 pictures, none of which can be read"):
        predict_files(predictor(), find_images([tmp_path / "one.jpg", tmp_path / "zero.jpg"]), tmp_path / "out")
    assert caplog.text.count("skipped: ") == 2


def test_an_input_is_never_replaced(tmp_path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    red_picture().save(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    with pytest.raises(DataError, match="would replace an input"):
        predict_files(predictor(), find_images([folder], exclude=folder), tmp_path)
    assert (folder / "a.png").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        predict_files(predictor(), find_images([folder]), tmp_path / "file")


def test_what_earlier_runs_wrote_among_the_inputs_is_no_input(tmp_path) -> None:
    for name in ("a.png", "pictures/b.png"):  # a folder of the name alone is looked into
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        red_picture().save(tmp_path / "photos" / name)
    for output in ("first", "second"):
        for given in (tmp_path / "photos", f"{tmp_path}/photos/**/*.png"):
            files = DetectionPredictor.find([given], tmp_path / "photos" / output)
            assert [file.name for file in files] == ["a.png", "pictures/b.png"]
            predict_files(predictor(), files, tmp_path / "photos" / output)
    asked = DetectionPredictor.find([tmp_path / "photos/first/pictures"], tmp_path / "photos/second")
    assert [file.name for file in asked] == ["a.png", "pictures/b.png"]


@pytest.mark.parametrize("command", ["predict", "export", "import-data", "average", "check"])
def test_an_output_without_a_name_is_refused(command: str, capsys) -> None:
    assert main([command, "--output", ""]) == 2
    assert "vistrain: --output: is empty" in capsys.readouterr().err


def test_wrong_arguments_are_config_errors(tmp_path) -> None:
    red_picture().save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="1 or more"):
        predict_paths(tmp_path / "none.ckpt", tmp_path / "a.png", tmp_path / "out", batch_size=0)
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        predictor(threshold=1.5)
    with pytest.raises(ConfigError, match="--window: means nothing"):
        DetectionPredictor.from_facts(FindsRed(), {}, "cpu", window=64)
    with pytest.raises(ConfigError, match="'warp' is not available"):
        choose_device("warp")
    assert choose_device("cpu") == torch.device("cpu")
    assert isinstance(choose_device("auto"), torch.device)
    with pytest.raises(WeightsError):
        predict_paths(tmp_path / "none.ckpt", tmp_path / "a.png", tmp_path / "out")


def test_a_checkpoint_alone_rebuilds_the_predictor(tmp_path) -> None:
    from vistrain import run

    config = {
        "task": {"type": "tasks.DetectionTask"},
        "model": {
            "type": "detection.DeformableDETR",
            "backbone": {"name": "test_resnet.r160_in1k", "pretrained": False, "strides": [8, 16, 32]},
            "num_levels": 3, "embed_dim": 32, "num_heads": 2, "num_queries": 7, "encoder_layers": 1,
            "decoder_layers": 1, "ffn_dim": 32,
        },
        "data": {
            "type": "data.GeneratedShapes", "root": str(tmp_path / "absent"),
            "eval_short_side": 64, "eval_long_side": 96,
        },
    }  # fmt: skip
    labels = LabelSpace(("a", "b", "c"), (1, 5, 6))
    torch.manual_seed(0)
    model = run.build_model(config, labels).eval()
    torch.save(
        {
            "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
            "vistrain": {
                "version": "0",
                "config": config,
                "labels": labels.to_dict(),
                "preprocessing": Preprocessing(interpolation="bicubic").to_dict(),
            },
        },
        tmp_path / "best.ckpt",
    )
    made = load_predictor(tmp_path / "best.ckpt", "cpu")
    resize = made.transform
    assert (resize.short, resize.long, resize.interpolation) == (64, 96, "bicubic")
    assert made.labels == labels
    red_picture(300, 200).save(tmp_path / "a.jpg")
    summary = predict_paths(tmp_path / "best.ckpt", tmp_path / "a.jpg", tmp_path / "out", threshold=0.0, device="cpu")
    found = made.predict(tmp_path / "a.jpg")
    assert len(summary.entries[0]["detections"]) == len(found.scores) > 0
    detections = read(tmp_path / "out")["images"][0]["detections"]
    assert [d["score"] for d in detections] == found.scores.tolist()
    assert {d["category_id"] for d in detections} <= {1, 5, 6}
    assert not (tmp_path / "absent").exists()


def listed(folder, *images: tuple[int, str, int, int]):
    path = folder / "truth.json"
    entries = [{"id": i, "file_name": name, "width": w, "height": h} for i, name, w, h in images]
    categories = [{"id": 4, "name": "red thing"}, {"id": 9, "name": "Größe"}]
    box = {"id": 1, "image_id": images[0][0], "category_id": 9, "bbox": [12, 20, 48, 30]}
    path.write_text(json.dumps({"images": entries, "annotations": [box], "categories": categories}))
    return path


def test_predictions_carry_the_ids_of_an_annotation_file_and_evaluate_against_it(tmp_path, caplog) -> None:
    from vistrain.tasks.detection.evaluate import evaluate_file

    for name in ("photos/a.png", "photos/b.png", "photos/more/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        red_picture().save(tmp_path / name)
    truth = listed(tmp_path, (77, "a.png", 120, 80), (5, "b.png", 120, 80))
    facts = {"labels": LABELS, "transform": EvalResize(60, 100)}
    made = DetectionPredictor(FindsRed(), "cpu", annotations=truth, **facts)
    summary = predict_files(made, find_images([tmp_path / "photos"]), tmp_path / "out")
    assert [e["id"] for e in summary.entries] == [77, 5]
    assert summary.failed == [("more/a.png", "would be the same image as a.png (id 77)")]
    numbers = [evaluate_file(tmp_path / "out" / f"{n}.json", truth).numbers for n in ("coco_results", "predictions")]
    predict_files(predictor(), find_images([tmp_path / "photos" / "a.png"]), tmp_path / "names")
    assert "1 of the 2 images have no result" not in caplog.text
    numbers.append(evaluate_file(tmp_path / "names" / "coco_results.json", truth).numbers)
    assert "1 of the 2 images have no result" in caplog.text
    assert numbers[0] == numbers[1] == evaluate_file(tmp_path / "out", truth).numbers  # the folder will do, too
    assert "detections of score >= 0.3 alone, and AP is of those: `vistrain predict --threshold 0`" in caplog.text
    assert numbers[2]["coco/AP50"] == pytest.approx(1.0)


def test_pictures_are_read_as_an_annotation_file_lists_them(tmp_path) -> None:
    from vistrain.tasks.detection.evaluate import evaluate_file

    exif = Image.Exif()
    exif[ORIENTATION] = 6
    red_picture(120, 80).save(tmp_path / "a.jpg", exif=exif, quality=95)  # annotated lying, as stored
    truth = listed(tmp_path, (1, "a.jpg", 120, 80))
    files = find_images([tmp_path / "a.jpg"])
    facts = {"labels": LABELS, "transform": EvalResize(60, 100)}
    predict_files(DetectionPredictor(FindsRed(), "cpu", annotations=truth, **facts), files, tmp_path / "out")
    assert evaluate_file(tmp_path / "out" / "coco_results.json", truth).numbers["coco/AP50"] == pytest.approx(1.0)
    predict_files(predictor(), files, tmp_path / "upright")
    for name in ("coco_results", "predictions"):
        with pytest.raises(DataError, match=r"of another size than the ground truth lists \(first: a\.jpg, 120x80"):
            evaluate_file(tmp_path / "upright" / f"{name}.json", truth)
    with pytest.raises(DataError, match=r"truth\.json: no such annotation file"):
        DetectionPredictor(FindsRed(), "cpu", annotations=tmp_path / "absent" / "truth.json", **facts)


def test_names_that_no_encoding_takes_and_long_ones_stop_nothing(tmp_path) -> None:
    names = [os.fsdecode(b"\xff\xfe.png"), "x" * 251 + ".bmp", "[red].png", "ordinary.png"]
    (tmp_path / "photos").mkdir()
    for name in names:
        red_picture().save(tmp_path / "photos" / name)
    summary = predict_files(predictor(), find_images([tmp_path / "photos"]), tmp_path / "out")
    assert sorted(e["file"] for e in summary.entries) == sorted(names)
    assert summary.failed == summary.unwritten == []
    assert sorted(e["file"] for e in read(tmp_path / "out")["images"]) == sorted(names)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 4


def test_a_picture_that_cannot_be_written_is_named_and_the_rest_goes_on(tmp_path, caplog) -> None:
    for name in ("a.png", "b.png"):
        red_picture().save(tmp_path / name)
    (tmp_path / "out" / "pictures" / "a.png").mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        summary = predict_files(predictor(), find_images([tmp_path / "a.png", tmp_path / "b.png"]), tmp_path / "out")
    assert [e["file"] for e in summary.entries] == ["a.png", "b.png"]
    assert [file for file, _ in summary.unwritten] == [str(tmp_path / "out" / "pictures" / "a.png")]
    assert read(tmp_path / "out")["unwritten"][0]["file"].endswith("a.png")
    assert "1 pictures could not be written" in caplog.text
    with pytest.raises(DataError, match="cannot be written"):
        predict_files(predictor(), find_images([tmp_path / "a.png"]), tmp_path / "out")


class Stumbles(FindsRed):
    """Raises at batches of several pictures, and at pictures of one width."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def predict(self, batch: dict) -> list[Detections]:
        if len(batch["image"]) > 1 or int(batch["original_size"][0, 1]) == 200:
            raise self.error
        return super().predict(batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), DataError("x", "odd")])
def test_an_input_that_a_network_cannot_take_is_skipped(tmp_path, error: BaseException) -> None:
    for name, width in (("a.png", 120), ("b.png", 200), ("c.png", 120)):
        red_picture(width).save(tmp_path / name)
    made = DetectionPredictor(Stumbles(error), "cpu", labels=LABELS)
    summary = predict_files(made, find_images([tmp_path]), tmp_path / "out", batch_size=3)
    assert [e["file"] for e in summary.entries] == ["a.png", "c.png"]
    assert [name for name, _ in summary.failed] == ["b.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_what_was_found_before_a_stop_is_kept(tmp_path, error: BaseException) -> None:
    for name, width in (("a.png", 120), ("b.png", 200), ("c.png", 120)):
        red_picture(width).save(tmp_path / name)
    with pytest.raises(type(error)):
        predict_files(
            DetectionPredictor(Stumbles(error), "cpu", labels=LABELS), find_images([tmp_path]), tmp_path / "out"
        )
    assert [e["file"] for e in read(tmp_path / "out")["images"]] == ["a.png"]


def test_what_was_found_before_a_sigterm_is_kept_and_the_code_says_so(tmp_path, monkeypatch, capsys) -> None:
    for name, width in (("a.png", 120), ("b.png", 200), ("c.png", 120)):
        red_picture(width).save(tmp_path / name)

    class Told(Stumbles):
        def predict(self, batch: dict) -> list[Detections]:
            if batch["image"].shape[-1] == 200:
                os.kill(os.getpid(), signal.SIGTERM)
            return FindsRed.predict(self, batch)

    told = DetectionPredictor(Told(ValueError()), "cpu", labels=LABELS)
    monkeypatch.setattr("vistrain.run.predict.load_predictor", lambda *_, **__: told)
    before = signal.getsignal(signal.SIGTERM)
    words = ["predict", "--ckpt", "any.ckpt", "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(words) == 75
    assert "vistrain: told to stop - run the same command again" in capsys.readouterr().err.splitlines()
    assert [e["file"] for e in read(tmp_path / "out")["images"]] == ["a.png"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_very_large_pictures_are_drawn_smaller() -> None:
    image = np.full((4, 9000, 3), 240, np.uint8)
    found = Detections(torch.tensor([[0.0, 0, 9000, 4]]), torch.tensor([0.9]), torch.tensor([9]))
    assert predictor().draw(image, found).shape == (4, 8192, 3)


def test_several_pictures_are_read_as_one_is(tmp_path) -> None:
    red_picture().save(tmp_path / "a.png")
    made, pixels = predictor(), np.array(red_picture())
    one = made.predict(pixels)
    for given in (
        [tmp_path / "a.png"],
        [pixels],
        (pixels / 255,),
        [pixels.astype("float32")],
        [(tmp_path / "a.png").read_bytes()],
    ):
        (found,) = made.predict_batch(given)
        torch.testing.assert_close(found.boxes, one.boxes, rtol=0, atol=0, equal_nan=True)
    for bad in (pixels, str(tmp_path / "a.png"), None, torch.zeros(3, 8, 8)):
        with pytest.raises(DataError, match="is not a list of pictures"):
            made.predict_batch(bad)
    with pytest.raises(DataError, match=r"values from 10\.5 to 240\.5"):
        made.predict_batch([pixels.astype("float32") + 0.5])
