"""Data modules: batch arithmetic, loaders under Lightning, and everything that can be wrong before or during a run."""

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import Coco2017, CocoDetection, CocoSplit, DetrAugment, Sample
from vistrain.data.base import workers
from vistrain.data.detection.collate import collate
from vistrain.errors import ConfigError, DataError
from vistrain.structures import Preprocessing

AUGMENT = DetrAugment(scales=(32, 40), long_side=64, crop_resize=(32, 40), crop_range=(20, 32))


def write_set(folder: Path, name: str, count: int, **changes: Any) -> CocoSplit:
    """`count` images of 40 x 30 (every fourth 30 x 40), image i with i % 4 boxes, of categories 9 and 5 in turn."""
    (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(count)
    images, annotations = [], []
    for i in range(count):
        width, height = (30, 40) if i % 4 == 1 else (40, 30)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
        images.append({"id": 100 + i, "file_name": f"{i}.jpg", "width": width, "height": height})
        for j in range(i % 4):
            box = {"bbox": [2 * j, 3, 12, 10], "area": 120, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": 100 + i, "category_id": (9, 5)[j % 2], **box})
    categories = [{"id": 9, "name": "nine"}, {"id": 5, "name": "five"}]
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return CocoSplit(name, f"{name}.json")


def make(folder: Path, **arguments: Any) -> CocoDetection:
    train = CocoSplit("train", "train.json")
    val = CocoSplit("val", "val.json")
    if not (folder / "train").exists():
        train, val = write_set(folder, "train", 24), write_set(folder, "val", 10)
    defaults: dict[str, Any] = {
        "root": str(folder),
        "batch_size": 4,
        "workers": 0,
        "augment": AUGMENT,
        "eval_short_side": 32,
        "eval_long_side": 64,
    }
    return CocoDetection(train, val, **{**defaults, **arguments})


def test_construction_reads_nothing(tmp_path: Path) -> None:
    data = CocoDetection(CocoSplit("a", "a.json"), CocoSplit("b", "b.json"), root=str(tmp_path / "absent"))
    assert data.accumulation(4) == 1
    assert data.channels == 3


def test_label_space_and_names(tmp_path: Path) -> None:
    data = make(tmp_path)
    assert data.class_names == ("five", "nine")
    assert data.labels.channel_of == {5: 0, 9: 1}
    assert make(tmp_path, labels="coco_ids").labels.num_classes == 10
    sample = make(tmp_path, labels="coco_ids").dataset("val")[2]
    assert sample.labels.tolist() == [9, 5]


def test_a_training_batch_is_what_networks_expect(tmp_path: Path) -> None:
    data = make(tmp_path)
    data.preprocessing = Preprocessing(size_divisor=32)
    loader = data.train_dataloader()
    assert len(loader) == 18 // 4  # six of 24 images have no object
    seen = []
    for batch in loader:
        images = batch["image"]
        assert images.dtype == torch.uint8
        assert images.shape[:2] == (4, 3)
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        assert batch["size"].dtype == batch["original_size"].dtype == torch.int64
        for image, (h, w), original, target in zip(
            images, batch["size"].tolist(), batch["original_size"].tolist(), batch["target"], strict=True
        ):
            assert sorted(original) == [30, 40]
            assert image[:, :h, :w].any()
            assert not image[:, h:].any()
            assert not image[:, :, w:].any()
            assert target["boxes"].dtype == torch.float32
            assert target["labels"].dtype == torch.int64
            assert target["boxes"].shape == (len(target["labels"]), 4)
            assert (target["boxes"] <= torch.tensor([w, h, w, h])).all()
        seen += batch["id"]
    assert len(set(seen)) == len(seen) == 16
    assert all((i - 100) % 4 for i in seen)


def test_evaluation_keeps_every_image_in_order(tmp_path: Path) -> None:
    data = make(tmp_path, eval_batch_size=4)
    batches = list(data.val_dataloader())
    assert [b["id"] for b in batches] == [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109]]
    assert batches[0]["size"].tolist() == [[32, 42], [42, 32], [32, 42], [32, 42]]
    assert len(batches[0]["target"][0]["labels"]) == 0
    assert "num_targets" not in batches[0]
    np.testing.assert_allclose(
        batches[0]["target"][1]["boxes"], [[0, 3 * 42 / 40, 12 * 32 / 30, 13 * 42 / 40]], rtol=1e-6
    )
    assert data.image_path("val", 103) == tmp_path / "val" / "3.jpg"
    assert [b["id"] for b in data.test_dataloader()] == [b["id"] for b in batches]  # no test split: validation
    truth = data.ground_truth("val")
    assert len(truth["images"]) == 10
    assert truth["categories"] == [{"id": 9, "name": "nine"}, {"id": 5, "name": "five"}]
    with pytest.raises(DataError, match="no image with id 7"):
        data.image_path("val", 7)


def test_keep_empty_trains_on_images_without_objects(tmp_path: Path) -> None:
    assert len(make(tmp_path, keep_empty=True).dataset("train")) == 24


@pytest.mark.parametrize(
    ("batch_size", "per_device", "world", "steps"), [(16, None, 1, 1), (16, None, 8, 1), (16, 2, 1, 8), (16, 2, 4, 2)]
)
def test_accumulation_comes_out_whole(
    tmp_path: Path, batch_size: int, per_device: int | None, world: int, steps: int
) -> None:
    assert make(tmp_path, batch_size=batch_size, per_device=per_device).accumulation(world) == steps


def test_accumulation_that_does_not_is_refused_with_valid_values(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.per_device: 16 images on 2 device\(s\) are 8 each.*use one of 1, 2, 4, 8"
    ):
        make(tmp_path, batch_size=16, per_device=3).accumulation(2)
    with pytest.raises(
        ConfigError, match=r"data\.batch_size: 16 images .* 3 devices - use a multiple of 3, such as 15 or 18"
    ):
        make(tmp_path, batch_size=16).accumulation(3)
    for name in ("batch_size", "per_device", "workers", "eval_batch_size"):
        with pytest.raises(ConfigError, match=f"{name}: -1 is too small"):
            make(tmp_path, **{name: -1})


def counts(batches: list[dict[str, Any]]) -> list[int]:
    return [sum(len(t["labels"]) for t in b["target"]) for b in batches]


def test_num_targets_is_the_mean_over_the_accumulation_group(tmp_path: Path) -> None:
    data = make(tmp_path, batch_size=6, per_device=2, augment=DetrAugment((32,), crop=0))
    batches = list(data.train_dataloader())
    assert len(batches) == 9
    found = counts(batches)
    for i, batch in enumerate(batches):
        group = found[i // 3 * 3 : i // 3 * 3 + 3]
        assert batch["num_targets"] == pytest.approx(sum(group) / 3)
    # Resumed inside a group: its rest is counted by itself, the groups after it as ever.
    data.resume = (0, 8)
    rest = list(data.train_dataloader())
    assert [b["id"] for b in rest] == [b["id"] for b in batches[4:]]
    assert rest[0]["num_targets"] == rest[1]["num_targets"] == pytest.approx(sum(found[4:6]) / 2)
    assert [b["num_targets"] for b in rest[2:]] == [b["num_targets"] for b in batches[6:]]


def test_workers_do_not_change_a_batch(tmp_path: Path) -> None:
    alone, helped = (list(make(tmp_path, workers=w).train_dataloader()) for w in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert a["id"] == b["id"]
        assert torch.equal(a["image"], b["image"])
        assert all(torch.equal(s["boxes"], t["boxes"]) for s, t in zip(a["target"], b["target"], strict=True))


def test_a_workers_error_reaches_the_user_as_one_line(tmp_path: Path) -> None:
    data = make(tmp_path, workers=1)
    (tmp_path / "val" / "2.jpg").write_bytes((tmp_path / "val" / "2.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"val/2\.jpg: damaged image") as caught:
        list(data.val_dataloader())
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_masks_are_loaded_on_request(tmp_path: Path) -> None:
    train = write_set(tmp_path, "train", 8)
    content = json.loads((tmp_path / "train.json").read_text())
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = CocoDetection(train, train, root=str(tmp_path), masks=True, eval_short_side=30, workers=0)
    sample = data.dataset("val")[3]
    masks = collate([sample])["target"][0]["masks"]
    assert masks.shape == (3, 30, 40)
    assert masks.unpacked().sum((1, 2)).tolist() == [120, 120, 120]
    damaged = next(a for a in content["annotations"] if a["image_id"] == int(sample.id) and not a["iscrowd"])
    damaged["segmentation"] = {"size": [30, 40], "counts": [0, 7]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = CocoDetection(train, train, root=str(tmp_path), masks=True, eval_short_side=30, workers=0)
    named = rf"{tmp_path / 'train.json'}: annotation {damaged['id']} of \S+\.jpg: run lengths do not add up"
    with pytest.raises(DataError, match=named):
        data.dataset("val").sample(3)


def test_collate_pads_bottom_and_right() -> None:
    samples = [
        Sample(np.full((3, 5, 3), (1, 2, 3), np.uint8), 4, (30, 50)),
        Sample(
            np.full((6, 2, 3), (4, 5, 6), np.uint8), 5, (60, 20), np.ones((1, 4), np.float32), np.zeros(1, np.int64)
        ),
    ]
    batch = collate(samples, size_divisor=4)
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["image"].is_contiguous()
    assert batch["image"][0, :, :3, :5].unique(dim=1).flatten(1)[:, 0].tolist() == [1, 2, 3]
    assert batch["image"].sum() == 3 * 5 * 6 + 6 * 2 * 15
    assert batch["size"].tolist() == [[3, 5], [6, 2]]
    assert batch["original_size"].tolist() == [[30, 50], [60, 20]]
    assert batch["id"] == [4, 5]
    assert collate([replace(s, name=n) for s, n in zip(samples, "ab", strict=True)])["name"] == ["a", "b"]
    assert [len(t["labels"]) for t in batch["target"]] == [0, 1]
    assert collate([samples[0]])["image"].shape == (1, 3, 3, 5)


class Probe(lightning.LightningModule):
    """Notes what it is trained and evaluated on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.trained: list[list[int]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.trained.append(batch["id"])
        return self.layer(batch["image"].float().mean().view(1, 1)).sum() / batch["num_targets"]

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.evaluated += batch["id"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class StopAt(lightning.Callback):
    """Saves a checkpoint in the middle of an epoch and stops."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def trainer(folder: Path, **arguments: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, use_distributed_sampler=False, default_root_dir=folder, **arguments,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_under_lightning_with_resume(tmp_path: Path) -> None:
    probe = Probe()
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(probe, datamodule=make(tmp_path))
    assert len(probe.trained) == 8
    assert probe.trained[:4] != probe.trained[4:]  # another order in the second epoch
    assert probe.evaluated == [*range(100, 110)] * 2
    stopped, resumed = Probe(), Probe()
    stop = StopAt(6, tmp_path / "a.ckpt")
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0, callbacks=[stop]).fit(stopped, datamodule=make(tmp_path))
    data = make(tmp_path)
    data.resume = (1, 8)
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(
        resumed, datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert stopped.trained + resumed.trained == probe.trained
    assert torch.equal(resumed.layer.weight, probe.layer.weight)


@pytest.mark.filterwarnings("ignore")
def test_lightning_may_limit_batches(tmp_path: Path) -> None:
    probe = Probe()
    trainer(tmp_path, fast_dev_run=True).fit(probe, datamodule=make(tmp_path))
    assert len(probe.trained) == 1
    probe = Probe()
    trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=3).fit(probe, datamodule=make(tmp_path))
    assert len(probe.trained) == 2


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json: no such annotation file - correct data\.train or data\.root"):
        CocoDetection(CocoSplit("train", "train.json"), CocoSplit("v", "v.json"), root=str(tmp_path)).setup("fit")
    data = make(tmp_path)
    (tmp_path / "val" / "3.jpg").rename(tmp_path / "val" / "x.jpg")
    with pytest.raises(DataError, match=r"val\.json: 1 of 10 listed images are not in .*val \(first: 3\.jpg\)"):
        data.setup("fit")
    data = CocoDetection(CocoSplit("images", "train.json"), CocoSplit("val", "val.json"), root=str(tmp_path))
    with pytest.raises(DataError, match="images: no such image folder"):
        data.setup("fit")


def test_splits_must_agree_on_categories(tmp_path: Path) -> None:
    train = write_set(tmp_path, "train", 8)
    swapped = write_set(tmp_path, "swapped", 8, categories=[{"id": 9, "name": "five"}, {"id": 5, "name": "nine"}])
    more = write_set(
        tmp_path, "more", 8, categories=[{"id": 9, "name": "nine"}, {"id": 5, "name": "five"}, {"id": 1, "name": "one"}]
    )
    for split, message in (
        (swapped, "category 9 is 'five' here and 'nine'"),
        (more, "category 1 is 'one' here and unknown"),
    ):
        with pytest.raises(DataError, match=message):
            CocoDetection(train, split, root=str(tmp_path), workers=0).val_dataloader()


def test_what_is_skipped_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = write_set(tmp_path, "train", 8)
    content = json.loads((tmp_path / "train.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["image_id"] = 7
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = CocoDetection(train, write_set(tmp_path, "val", 8), root=str(tmp_path), workers=0, batch_size=2)
    with caplog.at_level(logging.WARNING, logger="vistrain"):
        data.setup("fit")
        data.train_dataloader()
        data.val_dataloader()
    mine = [r.getMessage() for r in caplog.records if "train.json" in r.getMessage()]
    assert len(mine) == 1
    assert "1 x annotation of an image that is not listed" in mine[0]
    assert "1 x box without area" in mine[0]
    assert sum(data.problems["train"].counts.values()) == 2
    assert not data.problems["val"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_too_little_shared_memory_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 64 * 2**20  # what Docker gives

    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: Usage)
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    data = make(tmp_path, batch_size=8, workers=8, augment=DetrAugment())
    with pytest.raises(
        DataError, match=r"64 MB of shared memory are free, 8 data workers may need 391 MB.*--shm-size=2g"
    ):
        data.train_dataloader()
    make(tmp_path, batch_size=8, workers=0, augment=DetrAugment()).train_dataloader()  # nothing is shared
    make(tmp_path, batch_size=8, workers=8).train_dataloader()  # small images fit


def test_datasets_can_be_sent_to_spawned_workers(tmp_path: Path) -> None:
    data = make(tmp_path)
    loader = data.train_dataloader()
    dataset, function = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    again = dataset[(3, 5)]
    np.testing.assert_array_equal(again.image, loader.dataset[(3, 5)].image)
    assert function([again])["id"] == [again.id]


def test_coco_2017_is_known_without_files(tmp_path: Path) -> None:
    data = Coco2017(root=str(tmp_path))
    assert len(data.labels.names) == 80
    assert data.labels.num_classes == 80
    assert data.labels.channel_of[90] == 79
    assert dict(zip(data.labels.ids, data.labels.names, strict=True))[64] == "potted plant"
    raw = Coco2017(root=str(tmp_path), labels="coco_ids").labels
    assert raw.num_classes == 91
    assert raw.name_of[90] == "toothbrush"
    assert raw.name_of[13] == "stop sign"
    for stage in ("fit", "test"):
        with pytest.raises(DataError) as caught:
            data.setup(stage)
        message = str(caught.value)
        assert "\n" not in message
        for word in (
            "train2017.zip",
            "val2017.zip",
            "annotations_trainval2017.zip",
            "cocodataset.org",
            str(tmp_path / "coco"),
        ):
            assert word in message


def test_coco_2017_is_found_in_its_folder_or_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    expected.parent.mkdir(parents=True)
    assert Coco2017(root=str(tmp_path)).annotation_file("val") == expected
    assert Coco2017(root=str(tmp_path / "coco")).annotation_file("test") == expected
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    assert Coco2017().folder("train") == tmp_path / "coco" / "train2017"
    monkeypatch.delenv("VISTRAIN_DATA")
    assert Coco2017().root == Path("data/coco")
