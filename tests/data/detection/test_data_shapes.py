"""The generated set: deterministic, in COCO's format on disk, and as hard as promised."""

import hashlib
import json
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools

from vistrain.data import GeneratedShapes, Scenes
from vistrain.data.detection import shapes
from vistrain.errors import ConfigError, DataError
from vistrain.metrics.coco_masks import plain_runs

DIGEST = "f1e0cf292386a4de0376365d6a01b8e99602a3f4acb89f3b57ac24613c9b53be"  # of the default set's annotations
SMALL = {"train_images": 60, "val_images": 20, "workers": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> GeneratedShapes:
    data = GeneratedShapes(root=str(tmp_path_factory.mktemp("data")), **SMALL)
    data.setup("fit")
    return data


def digest(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_is_deterministic(made: GeneratedShapes, tmp_path: Path) -> None:
    again = GeneratedShapes(root=str(tmp_path), **SMALL)
    again.prepare_data()
    assert digest(again.root) == digest(made.root)
    other = GeneratedShapes(root=str(tmp_path), **SMALL, shapes_seed=1)
    assert other.root != again.root
    other.prepare_data()
    assert digest(other.root)["val/000003.jpg"] != digest(made.root)["val/000003.jpg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([again.root.name, other.root.name])  # no drafts left


def test_it_is_not_easy(made: GeneratedShapes) -> None:
    truth = json.loads((made.root / "annotations" / "train.json").read_text())
    ids = [c["id"] for c in truth["categories"]]
    assert len(ids) == 8
    assert ids != sorted(ids)
    assert max(ids) > 2 * len(ids)
    images = {i["id"]: i for i in truth["images"]}
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]
    per_image = Counter(a["image_id"] for a in objects)
    assert 6 < np.mean(list(per_image.values())) < 9  # COCO has 7.3
    assert max(per_image.values()) <= 16
    assert set(Counter(a["category_id"] for a in objects)) == set(ids)
    assert len(crowds) >= 3
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert {type(a["segmentation"]) for a in objects} == {list, dict}
    assert sum(i not in {a["image_id"] for a in truth["annotations"]} for i in images) >= 2
    shapes_seen = {(i["height"], i["width"]) for i in images.values()}
    assert len(shapes_seen) >= 5
    assert any(h > w for h, w in shapes_seen)
    shares = [
        (min(a["bbox"][2:]) / short, max(a["bbox"][2:]) / short)
        for a in objects
        for short in [min(images[a["image_id"]]["height"], images[a["image_id"]]["width"])]
    ]
    assert min(low for low, _ in shares) >= 0.04
    assert max(high for _, high in shares) <= 0.60
    assert min(high for _, high in shares) < 0.08
    assert max(high for _, high in shares) > 0.5
    overlapping = 0
    for image in images:
        boxes = np.array([a["bbox"] for a in objects if a["image_id"] == image], np.float64).reshape(-1, 4)
        overlaps = mask_tools.iou(boxes, boxes, [0] * len(boxes)) if len(boxes) else np.zeros((0, 0))
        overlapping += (np.triu(overlaps, 1) > 0.05).any()
    assert overlapping >= 15


def test_boxes_and_areas_are_those_of_the_masks(made: GeneratedShapes) -> None:
    truth = made.ground_truth("val")
    images = {i["id"]: i for i in truth["images"]}
    union = {i: np.zeros((v["height"], v["width"]), int) for i, v in images.items()}
    for a in truth["annotations"]:
        size = images[a["image_id"]]["height"], images[a["image_id"]]["width"]
        encoded = mask_tools.frPyObjects(a["segmentation"], *size)
        encoded = mask_tools.merge(encoded) if isinstance(encoded, list) else encoded
        assert mask_tools.area(encoded) == a["area"]
        assert mask_tools.toBbox(encoded).tolist() == a["bbox"]
        union[a["image_id"]] += mask_tools.decode(encoded)
    assert max(u.max() for u in union.values()) == 1  # what is seen of one object is not seen of another


def test_run_lengths_invert() -> None:
    rng = np.random.default_rng(0)
    for mask in (np.zeros((3, 4), bool), np.ones((3, 4), bool), *(rng.random((20, 5, 7)) < 0.5)):
        counts = plain_runs(mask, 0, 0, mask.shape)
        assert sum(counts) == mask.size
        decoded = mask_tools.decode(mask_tools.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape))
        np.testing.assert_array_equal(decoded, mask)


def test_some_files_are_grey_and_some_lie_on_their_side(made: GeneratedShapes) -> None:
    for split in ("train", "val"):
        modes, turned = Counter(), 0
        loaded = made.dataset(split)
        for index, name in enumerate(loaded.annotations.files):
            with Image.open(made.folder(split) / name) as image:
                modes[image.mode] += 1
                if image.getexif().get(0x0112, 1) != 1:
                    turned += 1
                    height, width = loaded.annotations.sizes[index].tolist()
                    assert (image.height, image.width) == (width, height)
                    assert height != width
        assert modes["L"] >= 1
        assert turned >= 1
        assert len([loaded.read(i) for i in range(len(loaded))]) == len(loaded)  # the reader turns them back


def test_objects_are_where_their_boxes_say(made: GeneratedShapes) -> None:
    """The turned files, too: along its mask's border an image changes more than elsewhere."""
    data = GeneratedShapes(root=str(made.root.parent), **SMALL, masks=True, keep_empty=True)
    loaded = data.dataset("train")
    for index in (11, 51):
        sample = loaded.read(index)
        masks = sample.masks.packed().unpacked().numpy()
        assert masks.any()
        steps = np.abs(np.diff(sample.image.astype(int), axis=1)).sum(2)
        border = (np.diff(masks.astype(int), axis=2) != 0).any(0)
        assert steps[border].mean() > 2 * steps[~border].mean()


def make_in_process(root: str) -> None:
    GeneratedShapes(root=root, **SMALL).prepare_data()


def test_two_processes_may_make_it_at_once(made: GeneratedShapes, tmp_path: Path) -> None:
    context = get_context("fork")
    processes = [context.Process(target=make_in_process, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [made.root.name]
    assert digest(tmp_path / made.root.name) == digest(made.root)


def test_a_break_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes, "save_scene", full)
    with pytest.raises(
        DataError, match=r"cannot write the generated data: No space left on device - set VISTRAIN_DATA"
    ):
        GeneratedShapes(root=str(tmp_path), **SMALL).prepare_data()
    assert list(tmp_path.iterdir()) == []


def test_classes_are_known_without_files(tmp_path: Path) -> None:
    data = GeneratedShapes(root=str(tmp_path / "absent"), **SMALL)
    assert data.labels.ids == (1, 3, 8, 17, 29, 44, 62, 90)
    assert data.labels.names[0] == "cross"
    assert GeneratedShapes(labels="coco_ids").labels.num_classes == 91
    assert not (tmp_path / "absent").exists()


def test_scale_and_arguments(tmp_path: Path) -> None:
    data = GeneratedShapes(root=str(tmp_path), train_images=2, val_images=2, scale=2, workers=0, batch_size=2)
    assert {max(i["height"], i["width"]) for i in data.ground_truth("train")["images"]} <= {256, 288, 304, 320}
    assert data.eval_transform.short == 256
    with pytest.raises(ConfigError, match="train_images: 0 is too small"):
        GeneratedShapes(train_images=0)


def test_easier_scenes(made: GeneratedShapes, tmp_path: Path) -> None:
    scenes = Scenes(("star", "circle"), more_objects=1.0, sides=(0.25, 0.6), visible=0.9, crowds=False)
    data = GeneratedShapes(root=str(tmp_path), **SMALL, scenes=scenes)
    assert data.labels.names == ("star", "circle")  # by id: 8, 17
    assert data.root.name != made.root.name
    assert GeneratedShapes(root=str(tmp_path), **SMALL, scenes=Scenes()).root.name == made.root.name
    truth = data.ground_truth("train")
    assert {c["name"] for c in truth["categories"]} == {"star", "circle"}
    assert {a["category_id"] for a in truth["annotations"]} == {8, 17}
    assert not any(a["iscrowd"] for a in truth["annotations"])
    assert 1.5 < np.mean(list(Counter(a["image_id"] for a in truth["annotations"]).values())) < 2.5
    short = {i["id"]: min(i["height"], i["width"]) for i in truth["images"]}
    sides = [(min(a["bbox"][2:]), max(a["bbox"][2:]), short[a["image_id"]]) for a in truth["annotations"]]
    assert all(0.25 * of <= low and high <= 0.6 * of for low, high, of in sides)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"classes": ()}, "data.scenes.classes"),
        ({"classes": ("star", "star")}, "data.scenes.classes"),
        ({"classes": ("moon",)}, "moon.*name some of circle"),
        ({"sides": (0.5, 0.5)}, "data.scenes.sides"),
        ({"more_objects": -1.0}, "data.scenes.more_objects"),
        ({"visible": 1.5}, "data.scenes.visible"),
    ],
)
def test_scenes_that_cannot_be_drawn(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Scenes(**arguments)  # type: ignore[arg-type]


def test_the_default_set_never_changes(made: GeneratedShapes) -> None:
    """Annotations byte for byte; the pixels of a JPEG are the library's."""
    assert made.root.name == "shapes-v2-60-20-seed0-x1"
    text = (made.root / "annotations" / "train.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == DIGEST


def test_a_batch_comes_out(made: GeneratedShapes) -> None:
    made.batch_size = 8
    batch = next(iter(made.train_dataloader()))
    assert batch["image"].shape[0] == 8
    assert batch["num_targets"] == sum(len(t["labels"]) for t in batch["target"])
    assert sum(len(b["id"]) for b in made.val_dataloader()) == 20
