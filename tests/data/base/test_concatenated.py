"""Several sets trained on together: whose classes are whose, how often each comes, and what is evaluated."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from training_tools import make_trainer

from vistrain.config.builder import build
from vistrain.data import (
    CocoDetection,
    CocoSplit,
    Concatenated,
    DataModule,
    DetrAugment,
    GeneratedTextures,
    ImageFolder,
)
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.predictions import Detections
from vistrain.structures import Factory, LabelSpace, Preprocessing
from vistrain.tasks import DetectionTask


def folders(root: Path, name: str, images: dict[str, int]) -> ImageFolder:
    """A set of folders of classes, each with so many training images of its own grey, and one to evaluate on."""
    for split in ("train", "val"):
        for grey, (cls, count) in enumerate(images.items()):
            folder = root / name / split / cls
            folder.mkdir(parents=True)
            for i in range(count if split == "train" else 1):
                cv2.imwrite(str(folder / f"{name}_{i}.png"), np.full((8, 8, 3), grey, np.uint8))
    return ImageFolder(root=str(root / name), image_size=8, workers=0)


@pytest.fixture
def two(tmp_path: Path) -> list[DataModule]:
    return [folders(tmp_path, "a", {"cat": 4, "dog": 2}), folders(tmp_path, "b", {"bird": 3, "hound": 5, "zebra": 1})]


def called(data: Concatenated) -> Counter[tuple[str, str]]:
    """The training images of an epoch as they are batched: their folder, and the class that they are trained as."""
    loader, found = data.train_dataloader(), Counter()
    for index, _ in loader.sampler:
        sample = loader.dataset[(index, 0)]
        found[Path(data.training_samples().where(index)).parent.name, data.labels.names[sample.labels[0]]] += 1
    return found


def test_classes_are_matched_by_name_and_those_of_the_first_stay(two: list[DataModule]) -> None:
    data = Concatenated(sets=two, rename={"hound": "dog"}, batch_size=5, workers=0)
    assert data.labels.names == ("cat", "dog", "bird", "zebra")
    assert data.labels.ids[:2] == two[0].labels.ids
    assert called(data) == {
        ("cat", "cat"): 4, ("dog", "dog"): 2, ("bird", "bird"): 3, ("hound", "dog"): 5, ("zebra", "zebra"): 1
    }  # fmt: skip
    assert data.ground_truth("val") == two[0].ground_truth("val")
    assert len(data.val_dataloader().dataset) == 2
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (5, 3, 8, 8)
    assert batch["labels"].max() < 4


def test_sets_come_as_often_as_is_said(two: list[DataModule]) -> None:
    once, thrice = (Concatenated(sets=two, times=t, batch_size=1, workers=0) for t in (None, (3, 1)))
    assert called(once)["cat", "cat"] == 4
    assert called(thrice)["cat", "cat"] == 12
    assert called(thrice)["bird", "bird"] == 3
    assert len(thrice.training_samples()) == 3 * 6 + 9


def test_weights_balance_what_is_drawn(two: list[DataModule]) -> None:
    data = Concatenated(sets=two, weights=(1.0, 1.0), batch_size=5, workers=0)
    weights = data.train_dataloader().sampler.weights
    assert len(weights) == 15
    assert sum(weights[:6]) == pytest.approx(sum(weights[6:]))
    alone = Concatenated(sets=two, weights=(0.0, 1.0), batch_size=5, workers=0)
    assert {folder for folder, _ in called(alone)} == {"bird", "hound", "zebra"}


def test_sets_and_all_of_them_may_be_cut(two: list[DataModule]) -> None:
    two[1].train_on = 1 / 3
    data = Concatenated(sets=two, batch_size=2, workers=0, seed=3)
    assert len(data.training_samples()) == 6 + 3
    assert two[1].seed == 3
    half = Concatenated(sets=two, batch_size=2, workers=0, train_on=0.5, weights=(1.0, 1.0))
    assert len(half.training_samples()) == 4
    assert len(half.train_dataloader().sampler.weights) == 4


def test_an_epoch_goes_on_where_it_was(two: list[DataModule]) -> None:
    def order(start: int) -> list[Any]:
        data = Concatenated(sets=two, batch_size=5, workers=0)
        data.resume = (0, start)
        return [batch["labels"].tolist() for batch in data.train_dataloader()]

    assert order(0)[2:] == order(10)


def test_what_the_weights_want_reaches_all_sets(two: list[DataModule]) -> None:
    data = Concatenated(sets=two)
    data.preprocessing = Preprocessing(size_divisor=8)
    assert [part.preprocessing.size_divisor for part in two] == [8, 8]


def boxes(root: Path, name: str, categories: dict[int, str]) -> CocoDetection:
    """A set of two images, each with one box of every category."""
    for split in ("train", "val"):
        (root / name / split).mkdir(parents=True)
        images = [{"id": i + 1, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(2)]
        for image in images:
            cv2.imwrite(str(root / name / split / image["file_name"]), np.zeros((30, 40, 3), np.uint8))
        annotations = [
            {"id": 10 * image["id"] + i, "image_id": image["id"], "category_id": c, "bbox": [5 * i, 2, 4, 6],
             "area": 24, "iscrowd": 0}
            for image in images for i, c in enumerate(categories)
        ]  # fmt: skip
        content = {"images": images, "annotations": annotations,
                   "categories": [{"id": c, "name": n} for c, n in categories.items()]}  # fmt: skip
        (root / name / f"{split}.json").write_text(json.dumps(content))
    splits = {split: CocoSplit(split, f"{split}.json") for split in ("train", "val")}
    augment = DetrAugment(scales=(30,), long_side=40, crop=0.0, flip=0.0)
    return CocoDetection(root=str(root / name), augment=augment, workers=0, **splits)


def test_boxes_of_several_sets(tmp_path: Path) -> None:
    sets: list[DataModule] = [boxes(tmp_path, "a", {3: "cat", 7: "dog"}), boxes(tmp_path, "b", {1: "dog", 2: "cow"})]
    added, dropped = (Concatenated(sets=sets, others=others, batch_size=4, workers=0) for others in ("add", "drop"))
    assert (added.labels.names, added.labels.ids) == (("cat", "dog", "cow"), (3, 7, 8))
    assert dropped.labels.names == ("cat", "dog")

    def labels(data: Concatenated) -> list[tuple[int, ...]]:
        batch = next(iter(data.train_dataloader()))
        assert all(len(t["labels"]) == len(t["boxes"]) for t in batch["target"])
        return sorted(tuple(t["labels"].tolist()) for t in batch["target"])

    assert labels(added) == [(0, 1), (0, 1), (1, 2), (1, 2)]
    assert labels(dropped) == [(0, 1), (0, 1), (1,), (1,)]
    assert next(iter(added.train_dataloader()))["num_targets"] == 8
    assert added.largest("train") == (30, 40)
    assert added.ground_truth("val")["categories"] == sets[0].ground_truth("val")["categories"]


class Seen(Network):
    """Finds what is there, but for the first class."""

    def __init__(self, labels: LabelSpace) -> None:
        super().__init__()
        self.labels, self.weight = labels, torch.nn.Parameter(torch.zeros(()))

    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.weight}

    def predict(self, batch: Any) -> list[Detections]:
        found = []
        for target, size, full in zip(batch["target"], batch["size"], batch["original_size"], strict=True):
            kept = target["labels"] > 0
            boxes = target["boxes"][kept] * (full / size).flip(0).repeat(2)
            found.append(Detections(boxes, torch.full((len(boxes),), 0.9), target["labels"][kept]))
        return found


@pytest.mark.parametrize("block", [1, 3])
def test_each_set_has_its_own_numbers_beside_those_of_all(tmp_path: Path, block: int) -> None:
    """Of cats, dogs and cows the dogs and cows are found; one set has cats and dogs, the other dogs and cows."""
    sets: list[DataModule] = [boxes(tmp_path, "a", {3: "cat", 7: "dog"}), boxes(tmp_path, "b", {1: "dog", 2: "cow"})]
    first, each = (
        Concatenated(sets=sets, evaluate=which, batch_size=4, workers=0, eval_batch_size=block)
        for which in ("first", "each")
    )

    def tested(data: Concatenated) -> dict[str, float]:
        task = DetectionTask(Seen(data.labels), Factory(torch.optim.SGD, lr=0.1), metrics=["coco_box"])
        make_trainer(tmp_path, logger=False).test(task, datamodule=data, verbose=False)
        assert all(unit.percent for unit in task.units.values())
        return task.numbers

    assert tested(first)["test/coco/AP"] == pytest.approx(0.5)
    found = tested(each)
    assert next(iter(found)) == "test/coco/AP"
    assert found["test/coco/AP"] == pytest.approx(2 / 3)
    assert found["test/coco/a/AP"] == pytest.approx(0.5)
    assert found["test/coco/b/AP"] == pytest.approx(1.0)
    assert len(found) == 3 * 12
    truth = each.ground_truth("val")
    assert [image["id"] for image in truth["images"]] == [1, 2, 4, 5]
    assert len({object_["id"] for object_ in truth["annotations"]}) == 8
    assert [each.set_of("val", i) for i in (1, 2, 4, 5)] == ["a", "a", "b", "b"]
    assert each.image_path("val", 5) == tmp_path / "b" / "val" / "1.png"
    assert each.image_path("train", 2) == tmp_path / "a" / "train" / "1.png"
    assert first.set_of("val", 2) == ""


def test_classes_of_each_set(two: list[DataModule], tmp_path: Path) -> None:
    data = Concatenated(sets=two, rename={"hound": "dog"}, evaluate="each", workers=0, eval_batch_size=4)
    batches = list(data.val_dataloader())
    assert [i for batch in batches for i in batch["id"]] == [0, 1, 2, 3, 4]
    labels = [tuple(target["labels"]) for batch in batches for target in batch["target"]]
    assert [data.labels.names[label] for (label,) in labels] == ["cat", "dog", "bird", "dog", "zebra"]
    assert data.ground_truth("val") == {"images": 5, "labels": labels}
    assert data.image_path("val", 3).parent.name == "hound"
    assert [data.set_of("val", i) for i in range(5)] == ["a", "a", "b", "b", "b"]
    again = Concatenated(sets=[two[0], two[0]], evaluate="each", workers=0)
    assert again.names == ["a_1", "a_2"]
    textures = GeneratedTextures(root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"data.evaluate: GeneratedTextures's sets are not evaluated together"):
        Concatenated(sets=[textures, textures], evaluate="each").ground_truth("val")


def test_a_config_names_sets(two: list[DataModule]) -> None:
    nodes = [{"type": "data.ImageFolder", "root": str(part.root), "image_size": 8} for part in two]
    node = {"type": "data.Concatenated", "sets": nodes, "times": [2, 1], "batch_size": 3, "workers": 0}
    data = build(node, DataModule, where="data", given={"seed": 4})
    assert isinstance(data, Concatenated)
    data.setup("fit")
    assert data.labels.names == ("cat", "dog", "bird", "hound", "zebra")
    assert torch.is_tensor(next(iter(data.train_dataloader()))["image"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"times": (1,)}, r"times: 1 numbers for 2 sets"),
        ({"times": (0, 1)}, r"times: \[0, 1\] cannot be - use 1 or more"),
        ({"weights": (0.0, 0.0)}, r"weights: .* cannot be"),
        ({"weights": (1.0, 1.0), "times": (1, 1)}, r"weights: are given beside times"),
        ({"rename": {"hund": "dog"}}, r"data.rename: no class 'hund' in the other sets - did you mean 'hound'"),
        ({"others": "drop"}, r"data.others: an image of class 'bird' would be left with none"),
    ],
)
def test_what_makes_no_sense_is_refused(two: list[DataModule], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Concatenated(sets=two, **more).setup("fit")


def test_other_kinds_and_single_sets_are_refused(two: list[DataModule], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sets: 1 are not several"):
        Concatenated(sets=two[:1])
    with pytest.raises(ConfigError, match=r"ImageFolder and GeneratedTextures do not make the same batches"):
        Concatenated(sets=[two[0], GeneratedTextures(root=str(tmp_path))])
