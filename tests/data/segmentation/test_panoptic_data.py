"""Panoptic sets: what is read, what targets are made of it, what is refused, and what a check finds."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from vistrain.data import CityscapesPanoptic, CocoPanoptic, GeneratedPanoptic, PanopticFolders, SegmentAugment
from vistrain.data.segmentation.panoptic import PanopticSplit, SegmentCollate, SegmentedImage
from vistrain.data.segmentation.panoptic_files import examined, read_numbers, read_panoptic, segment_map, write_numbers
from vistrain.data.segmentation.panoptic_sets import ADE20KPanoptic
from vistrain.data.segmentation.segment_transforms import resized
from vistrain.errors import ConfigError, DataError

SAMPLE = Path(__file__).parents[3].parent / "shared/samples/coco_panoptic"
CATEGORIES = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 3, "name": "sky", "isthing": 0}]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> GeneratedPanoptic:
    data = GeneratedPanoptic(root=str(tmp_path_factory.mktemp("data")), train_images=20, val_images=4, scale=0.5)
    data.find("train")
    return data


def test_numbers_are_colours(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 255], [256, 65_536, (1 << 24) - 1]])
    write_numbers(tmp_path / "a.png", numbers)
    assert np.asarray(Image.open(tmp_path / "a.png"))[1, 0].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.png"), numbers)
    found, strangers = segment_map(numbers, np.array([65_536, 1, 9]))
    assert (found.tolist(), found.dtype, strangers) == ([[0, 2, 0], [0, 1, 0]], np.uint8, 3)
    assert segment_map(numbers, np.arange(1, 400))[0].dtype == np.int16
    assert segment_map(numbers, np.zeros(0, np.int64))[0].max() == 0
    Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="no panoptic PNG"):
        read_numbers(tmp_path / "b.png")


def test_the_generated_set_is_read_as_it_was_drawn(generated: GeneratedPanoptic) -> None:
    listed = generated.listed("train")
    assert [c.id for c in listed.categories] == [17, 3, 44, 8, 62, 1, 29, 90, 200]
    assert [c.name for c in listed.categories if not c.thing] == ["crescent", "ground"]
    assert listed.crowds.any()
    for index in range(len(listed)):
        sample = generated.dataset("train").sample(index, index)
        numbers, classes, crowd = listed.of(index)
        assert sample.labels.tolist() == [generated.labels.channel_of[c] for c in classes.tolist()]
        assert classes[~crowd].tolist().count(200) == 1
        whole = segment_map(read_numbers(generated.pairs("train")[index].mask), numbers)[0]
        assert set(np.unique(whole).tolist()) - {0} == set(range(1, len(numbers) + 1))
    assert {p.suffix for p in (generated.root / "annotations/panoptic_train").iterdir()} == {".png"}


def sample_of(segments: list[list[int]], labels: list[int], crowd: list[bool], training: bool = True) -> SegmentedImage:
    ids = np.array(segments, np.uint8)
    image = np.zeros((*ids.shape, 3), np.uint8)
    return SegmentedImage(image, ids, np.array(labels), np.array(crowd), 5, ids.shape, training)


def test_targets() -> None:
    # Two things of class 0, a crowd of it, two segments of stuff 1, and a thing that is not seen.
    sample = sample_of([[1, 1, 2], [3, 4, 5], [0, 5, 5]], [0, 0, 0, 1, 1, 0], [False, False, True, False, False, False])

    def made(targets: Any, **changes: Any) -> tuple[list[int], torch.Tensor]:
        collate = SegmentCollate(4, targets, frozenset({0}), changes.get("keep_hidden", False), 255)
        batch = collate([sample])
        assert batch["image"].shape == (1, 3, 4, 4)
        (target,) = batch["target"]
        return target["labels"].tolist(), target["masks"].unpacked()

    labels, masks = made("panoptic")
    assert labels == [0, 0, 1, 1]
    assert [m.nonzero().tolist() for m in masks] == [[[0, 0], [0, 1]], [[0, 2]], [[1, 1]], [[1, 2], [2, 1], [2, 2]]]
    labels, masks = made("panoptic", keep_hidden=True)
    assert labels == [0, 0, 1, 1, 0]
    assert not masks[-1].any()
    labels, masks = made("instances")
    assert labels == [0, 0]
    labels, masks = made("semantic")  # crowds are of their class, too
    assert labels == [0, 1]
    assert masks.flatten(1).sum(1).tolist() == [4, 4]
    empty = SegmentCollate(1, "panoptic", frozenset({0}), False, 255)([sample_of([[0, 0]], [], [])])
    assert empty["target"][0]["masks"].shape == (0, 1, 2)


def test_truth_in_evaluation() -> None:
    sample = sample_of([[1, 1, 2], [0, 3, 3]], [4, 6, 6], [False, True, False], training=False)
    (target,) = SegmentCollate(1, "panoptic", frozenset(), False, 255)([sample])["target"]
    assert target["label_map"].tolist() == [[4, 4, 6], [255, 6, 6]]
    assert target["segment_labels"].tolist() == [4, 6, 6]
    assert target["segment_crowd"].tolist() == [False, True, False]
    assert target["segment_map"].tolist() == sample.segments.tolist()


def test_a_part_of_a_resized_image_is_that_part_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    image, segments = rng.integers(0, 256, (29, 41, 3), np.uint8), rng.integers(0, 9, (29, 41), np.uint8)
    whole = slice(0, 47), slice(0, 21)
    part = slice(11, 40), slice(3, 20)
    large, large_map = resized(image, (47, 21), whole)
    small, small_map = resized(image, (47, 21), part)
    np.testing.assert_array_equal(large_map.of(segments)[part], small_map.of(segments))
    assert np.abs(large[part].astype(int) - small).max() <= 1
    pillow = Image.fromarray(segments).resize((21, 47), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(large_map.of(segments), np.asarray(pillow))


def test_jitter() -> None:
    rng = np.random.default_rng(0)
    image, segments = rng.integers(1, 256, (30, 40, 3), np.uint8), np.full((30, 40), 3, np.uint8)
    augment = SegmentAugment(crop=(32, 48), jitter=(0.1, 2.0))
    shares = []
    for seed in range(40):
        found, choice = augment(image, seed)
        ids = choice.of(segments)
        assert (found.shape, ids.shape) == ((32, 48, 3), (32, 48))
        beside = ids == 0
        assert (found[beside] == 128).all()
        shares.append(1 - beside.mean())
        np.testing.assert_array_equal(augment(image, seed)[0], found)
    assert min(shares) < 0.05
    assert max(shares) > 0.9
    # The short side is one of those, the crop may be smaller, and padding is the batch's.
    augment = SegmentAugment(crop=(512, 20), jitter=None, short_sides=(15, 60), fill=None, flip=1.0, color=True)
    assert {augment(image, seed)[1].of(segments).shape for seed in range(9)} == {(15, 20), (60, 20)}
    assert SegmentAugment(crop=None, jitter=None, flip=0.0)(image, 0)[0].shape == (30, 40, 3)
    ramp = np.arange(40, dtype=np.uint8)[None].repeat(30, 0)
    flipped, choice = SegmentAugment(crop=None, jitter=None, flip=1.0)(ramp[..., None].repeat(3, 2), 0)
    np.testing.assert_array_equal(choice.of(ramp), flipped[..., 0])
    for wrong in (
        {"crop": None},
        {"short_sides": (5,)},
        {"jitter": (2.0, 1.0)},
        {"crop": (0, 5)},
        {"flip": 2.0},
        {"fill": 300},
        {"jitter": None, "short_sides": (0,)},
    ):
        with pytest.raises(ConfigError, match=r"data\.augment"):
            SegmentAugment(**wrong)


# ---------------------------------------------------------------- what is refused


def content_of() -> dict[str, Any]:
    segments = [{"id": 300, "category_id": 7, "iscrowd": 0}, {"id": 2, "category_id": 3}]
    return {
        "images": [{"id": "a_1", "file_name": "a.jpg"}],
        "annotations": [{"image_id": "a_1", "file_name": "a.png", "segments_info": segments}],
        "categories": copy.deepcopy(CATEGORIES),
    }


def test_what_a_file_lists() -> None:
    content = content_of()
    content["images"] += [{"id": 4, "file_name": "b.jpg"}]
    content["annotations"] += [{"image_id": 9, "file_name": "c.png", "segments_info": []}]
    listed, faults = examined(content, Path("x.json"))
    assert not faults
    assert (listed.ids, listed.images, listed.masks) == (["a_1"], ["a.jpg"], ["a.png"])
    assert [x.tolist() for x in listed.of(0)] == [[300, 2], [7, 3], [False, False]]
    assert {finding.split(",")[0]: count for finding, (_, count) in listed.skipped.items()} == {
        "annotation of an image that is not listed": 1,
        "image without an annotation": 1,
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    content: Any = content_of()
    *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    place = content
    for key in keys:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("images", KeyError, "no list 'images'"),
        ("annotations", {}, "no list 'annotations'"),
        ("images", [], "lists no images"),
        ("annotations", [], "annotates no image"),
        ("categories", [], "lists no categories"),
        ("categories.0.isthing", KeyError, "isthing of 'cat'"),
        ("categories.1.id", 7, "category id 7 is used twice"),
        ("categories.0", 5, "id, name and isthing are needed"),
        ("images.0.file_name", "../a.jpg", "points outside"),
        ("images.0.file_name", "/a.jpg", "points outside"),
        ("images.0.id", 1.5, "neither an integer nor a name"),
        ("images.0.width", -5, "image a_1: width is -5, not a number of pixels"),
        ("images.0.height", 0, "image a_1: height is 0, not a number of pixels"),
        ("images.0.height", 1e12, "image a_1: height is 1000000000000.0, not a number of pixels"),
        ("annotations.0.file_name", "", "not a name"),
        ("annotations.0.segments_info", None, "not a list"),
        ("annotations.0.segments_info.0.id", 0, "must be 1 to"),
        ("annotations.0.segments_info.0.id", 1 << 24, "must be 1 to"),
        ("annotations.0.segments_info.0.id", 2, "segment 2 is listed twice"),
        ("annotations.0.segments_info.0.category_id", 8, "category_id 8 of the segment 300 is not listed"),
        ("annotations.0.segments_info.0.iscrowd", 2, "neither 0 nor 1"),
    ],
)
def test_refused(path: str, value: Any, problem: str, tmp_path: Path) -> None:
    _, faults = examined(changed(path, value), Path("x.json"))
    assert any(problem in str(fault) for fault in faults)
    (tmp_path / "x.json").write_text(json.dumps(changed(path, value)))
    with pytest.raises(DataError, match=r"x\.json"):
        read_panoptic(tmp_path / "x.json")


def folders(root: Path, content: dict[str, Any] | None = None, numbers: Any = ((300, 2), (0, 2))) -> PanopticFolders:
    """A set of one image of 2 x 2 pixels; validation is training."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(root / "images/a.jpg")
    write_numbers(root / "masks/a.png", np.array(numbers))
    (root / "x.json").write_text(json.dumps(content or content_of()))
    split = PanopticSplit("images", "masks", "x.json")
    return PanopticFolders(train=split, val=split, root=str(root), batch_size=1, workers=0)


@pytest.mark.parametrize(("listed", "annotated"), [(1, "1"), ("1", 1)])
def test_ids_that_are_text_in_one_place_alone(listed: Any, annotated: Any) -> None:
    content = content_of()
    content["images"][0]["id"], content["annotations"][0]["image_id"] = listed, annotated
    _, (fault,) = examined(content, Path("x.json"))
    assert f"image_id {annotated!r} is" in fault.problem
    assert f"the image's id {listed!r} is" in fault.problem
    assert fault.remedy == "write ids as integers in both"


def test_a_size_that_the_json_alone_has(tmp_path: Path) -> None:
    content = content_of()
    content["images"][0] |= {"width": 3, "height": 2}
    data = folders(tmp_path, content)
    for split in ("train", "val"):
        error = data.dataset(split)[0]
        assert isinstance(error, DataError)
        assert "a.png: is 2x2 pixels, its JSON says 3x2 of image a_1" in str(error)
    report = data.check(tmp_path / "out")
    assert not report.ok
    assert "its JSON says 3x2" in report.splits["train"].bad_files[str(tmp_path / "masks/a.png")]
    content["images"][0]["width"] = 2
    assert folders(tmp_path, content).check(tmp_path / "out").ok


def test_pngs_of_which_the_json_lists_nothing(tmp_path: Path) -> None:
    content = content_of()
    content["annotations"][0]["segments_info"] = []
    data = folders(tmp_path, content)
    error = data.dataset("val")[0]
    assert isinstance(error, DataError)
    assert "the JSON lists no segments of this image" in str(error)
    report = data.check(tmp_path / "out")
    assert not report.ok
    assert report.splits["train"].unlisted == [str(tmp_path / "masks/a.png")]
    assert not report.splits["train"].strangers


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    data = folders(tmp_path)
    data.find("train")
    assert data.labels.names == ("cat", "sky")
    assert data.labels.things == (0,)
    assert data.image_path("val", "a_1").name == "a.jpg"
    error = folders(tmp_path, numbers=((300, 2, 2),)).dataset("val")[0]
    assert isinstance(error, DataError)
    assert "the mask is 3x1 pixels, its image 2x2" in str(error)
    error = folders(tmp_path, numbers=((7, 7), (7, 9))).dataset("train")[0]
    assert isinstance(error, DataError)
    assert "none of the segments that the JSON lists is in this PNG" in str(error)
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 listed images are not in .*masks"):
        data.find("train")
    other = content_of()
    other["categories"][0]["name"] = "dog"
    (tmp_path / "y.json").write_text(json.dumps(other))
    split = data.splits["train"]
    data = PanopticFolders(train=split, val=PanopticSplit("images", "masks", "y.json"), root=str(tmp_path))
    with pytest.raises(DataError, match="category 7 is 'dog', a thing; the classes say 'cat', a thing"):
        data.listed("val")
    with pytest.raises(ConfigError, match=r"data\.targets"):
        PanopticFolders(train=split, val=split, targets="boxes")  # type: ignore[arg-type]


def test_check_counts_what_disagrees(tmp_path: Path) -> None:
    report = folders(tmp_path / "good").check(tmp_path / "out")
    assert report.ok
    train = report.splits["train"]
    assert (train.images, train.segments, train.void) == (1, 2, 0.25)
    assert train.pixels == {"cat": 1, "sky": 2}
    console = Console(record=True, width=200)
    console.print(replace(report, classes=[*report.classes, "dog"]).table())
    assert "\n  dog" not in (said := console.export_text())
    assert "1 class without segments is left out" in said
    assert {Path(p).name for p in report.pictures} >= {"samples-train.png", "classes-train.png"}
    report = folders(tmp_path / "odd", numbers=((5, 2), (0, 2))).check(tmp_path / "out")
    assert not report.ok
    train = report.splits["train"]
    assert list(train.hidden.values()) == [[300]]
    assert list(train.strangers.values()) == [1]
    console = Console(record=True, width=200)
    console.print(report.table())
    said = console.export_text()
    assert "have segments that their PNG lacks" in said
    assert "have pixels whose number the JSON lacks" in said
    report = folders(tmp_path / "size", numbers=((300, 2, 2),)).check(tmp_path / "out")
    assert "its image 2x2" in next(iter(report.splits["train"].bad_files.values()))
    wrong = changed("annotations.0.segments_info.0.category_id", 8)
    report = folders(tmp_path / "ids", wrong).check(tmp_path / "out")
    assert not report.ok
    assert "category_id 8" in report.splits["train"].refused[0]
    empty = changed("annotations", [])
    report = folders(tmp_path / "empty", empty).check(tmp_path / "out")
    assert any("annotates no image" in why for why in report.splits["val"].refused)


def test_faults_are_said_of_their_own_split(tmp_path: Path) -> None:
    data = folders(tmp_path)
    (tmp_path / "y.json").write_text(json.dumps(changed("categories.1.isthing", "no")))
    good, bad = data.splits["train"], PanopticSplit("images", "masks", "y.json")
    arguments: dict[str, Any] = {"root": str(tmp_path), "batch_size": 1, "workers": 0}
    splits = PanopticFolders(train=bad, val=good, **arguments).check(tmp_path / "out").splits
    assert any("y.json" in why for why in splits["train"].refused)
    assert not splits["val"].refused
    splits = PanopticFolders(train=good, val=bad, **arguments).check(tmp_path / "out").splits
    assert not splits["train"].refused
    assert any("y.json" in why for why in splits["val"].refused)


def test_what_png_and_json_do_not_share_is_said_before_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders(tmp_path / "good").find("train")
    assert not caplog.text
    folders(tmp_path / "odd", numbers=((5, 2), (0, 2))).find("train")
    assert "train: in 1 of 1 PNGs that were looked at, 1 segments of the JSON are missing" in caplog.text
    assert "1 pixels have a number that the JSON lacks" in caplog.text


def test_a_set_without_targets_is_refused(tmp_path: Path) -> None:
    content = content_of()
    del content["annotations"][0]["segments_info"][0]
    data = folders(tmp_path, content)
    data.find("train")
    data.targets = "instances"
    with pytest.raises(DataError, match="lists no thing to train on"):
        data.find("train")
    assert any("no thing to train on" in why for why in data.check(tmp_path / "out").splits["train"].refused)


# ---------------------------------------------------------------- the known sets


def test_the_known_sets_know_their_classes() -> None:
    coco, cityscapes, ade = CocoPanoptic(root="nowhere"), CityscapesPanoptic(root="x"), ADE20KPanoptic(root="x")
    for data, classes, things in ((coco, 133, 80), (cityscapes, 19, 8), (ade, 150, 100)):
        assert (data.labels.num_classes, len(data.labels.things or ())) == (classes, things)
    assert coco.labels.ids[-1] == 200
    assert [cityscapes.labels.names[i] for i in cityscapes.labels.things or ()][:3] == ["person", "rider", "car"]
    found = cityscapes.image_file("val", "frankfurt_000000_000294", "frankfurt_000000_000294_gtFine_leftImg8bit.png")
    assert found.as_posix() == "x/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png"
    with pytest.raises(DataError, match=r"panoptic_annotations_trainval2017\.zip"):
        coco.find("train")


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no {SAMPLE}")
def test_coco_itself() -> None:
    data = CocoPanoptic(root=str(SAMPLE), batch_size=2)
    data.find("val")
    listed = data.listed("val")
    assert len(listed) == 40
    content = json.loads((SAMPLE / "annotations/panoptic_val2017.json").read_text())
    areas = {s["id"]: s["area"] for a in content["annotations"] for s in a["segments_info"]}
    for index in (0, 7, 20):
        numbers, _, crowd = listed.of(index)
        truth = data.dataset("val").sample(index)
        counted = np.bincount(truth.segments.reshape(-1), minlength=len(numbers) + 1)[1:]
        assert counted.tolist() == [areas[n] for n in numbers.tolist()]
        assert min(truth.image.shape[:2]) == 800 or max(truth.image.shape[:2]) == 1333
        batch = data.collate([data.dataset("train").sample(index, 3)])
        assert batch["image"].shape == (1, 3, 1024, 1024)
        assert batch["name"] == [data.listed("train").images[index]]
        assert batch["target"][0]["masks"].shape[1:] == (1024, 1024)
        assert crowd.dtype == bool
