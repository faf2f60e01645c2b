"""Images with class maps: pairs are found, read and augmented together; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.data import (
    ADE20K,
    CamVid,
    Cityscapes,
    COCOStuff,
    EvalScale,
    GeneratedMasks,
    MaskAugment,
    MaskFolders,
    MaskSplit,
    PascalContext,
    PascalVOC,
    Scenes,
    SegmentAugment,
)
from vistrain.data.segmentation.known_sets import ADE20K_NAMES, voc_colour
from vistrain.data.segmentation.mask_pairs import find_pairs
from vistrain.data.segmentation.transforms import distorted, scaled_size
from vistrain.errors import ConfigError, DataError
from vistrain.structures import LabelSpace

SMALL = {"train_images": 24, "val_images": 18, "scale": 0.5, "workers": 0}


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def pair(root: Path, name: str, size: tuple[int, int] = (20, 30), value: int = 1, split: str = "train") -> None:
    colour = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    save(root / "images" / split / f"{name}.png", colour)
    save(root / "masks" / split / f"{name}.png", np.full(size, value, np.uint8))


def folders(root: Path, **arguments) -> MaskFolders:
    train, val = (MaskSplit(f"images/{s}", f"masks/{s}") for s in ("train", "val"))
    given = {"classes": ("a", "b"), "batch_size": 2, "workers": 0, "augment": MaskAugment(crop=(16, 16), scale=None)}
    return MaskFolders(train, val, **{**given, "root": str(root), **arguments})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> GeneratedMasks:
    data = GeneratedMasks(root=str(tmp_path_factory.mktemp("data")), **SMALL, batch_size=4)
    data.setup("fit")
    return data


def test_the_generated_set_is_ade20ks_layout(made, tmp_path):
    assert sorted(p.name for p in made.root.iterdir()) == ["annotations", "classes.txt", "images"]
    lines = (made.root / "classes.txt").read_text().splitlines()
    assert lines[0] == "1\tground"
    assert (len(lines), made.labels.num_classes, made.labels.ids) == (9, 9, tuple(range(1, 10)))
    again = GeneratedMasks(root=str(tmp_path), **SMALL)
    again.prepare_data()
    files = [p.relative_to(made.root) for p in made.root.rglob("*.png")]
    assert all((made.root / f).read_bytes() == (again.root / f).read_bytes() for f in files)
    values = {v for f in files for v in np.unique(np.asarray(Image.open(made.root / f))).tolist()}
    assert values == set(range(10))  # 0: heaps of small shapes, which are not judged
    easy = GeneratedMasks(root=str(tmp_path), **SMALL, scenes=Scenes(classes=("ring", "star")))
    assert easy.labels.names == ("ground", "star", "ring")
    assert easy.root != again.root


def test_batches_hold_what_the_task_needs(made):
    train = next(iter(made.train_dataloader()))
    assert train["image"].shape[:2] == (4, 3)
    assert train["image"].dtype == torch.uint8
    for target, size in zip(train["target"], train["size"].tolist(), strict=True):
        assert list(target["label_map"].shape) == size
        assert set(target["label_map"].unique().tolist()) <= {*range(9), 255}
    labelled = sum(int((t["label_map"] != 255).sum()) for t in train["target"])
    assert float(train["num_targets"]) == labelled
    found = list(made.val_dataloader())
    assert len(found) == 18
    for batch in found:
        assert list(batch["target"][0]["label_map"].shape) == batch["original_size"][0].tolist()
    turned = found[11]  # stored lying on its side: masks are drawn on what people see
    with Image.open(made.image_path("val", turned["id"][0])) as image:
        assert (image.width, image.height) == tuple(turned["original_size"][0].tolist())


def test_regions_are_the_pixels_of_each_class(made):
    data = GeneratedMasks(root=str(made.root.parent), **SMALL, batch_size=4, regions=True)
    batch = next(iter(data.train_dataloader()))
    for target in batch["target"]:
        labels, masks, classes = target["labels"], target["masks"], target["label_map"]
        assert set(labels.tolist()) == set(classes.unique().tolist()) - {255}
        assert (masks.dtype, masks.sum(0).max().item()) == (torch.bool, 1)
        for label, mask in zip(labels, masks, strict=True):
            assert torch.equal(mask, classes == label)
    assert float(batch["num_targets"]) == sum(len(t["labels"]) for t in batch["target"])


def test_a_seed_gives_the_same_sample_wherever_it_is_drawn(made):
    dataset = made.dataset("train")
    first, again, other = dataset[3, 5], dataset[3, 5], dataset[3, 6]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_image_and_mask_stay_together(tmp_path):
    """A mask that is a threshold of its image still is one after scaling, cropping and flipping, but at edges."""
    rows, columns = np.mgrid[:90, :120]
    image = np.repeat((((rows // 30 + columns // 30) % 2) * 200).astype(np.uint8)[..., None], 3, 2)
    mask = (image[..., 0] > 100).astype(np.uint8)
    augment = MaskAugment(crop=(48, 64), scale=None, ratio=(0.8, 1.7), color=False, vertical_flip=0.5)
    sizes = set()
    for seed in range(12):
        shown, labels = augment(image, mask, 255, seed)
        sizes.add(labels.shape)
        assert ((shown[..., 0] > 100) == labels.astype(bool)).mean() > 0.9
    assert sizes == {(48, 64)}


def test_a_crop_is_not_of_one_class_if_another_can_be_had():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    shares = {}
    for ratio in (1.0, 0.75):
        augment = MaskAugment(crop=(24, 24), scale=None, ratio=(1, 1), category_ratio=ratio, color=False)
        crops = [augment(image, labels, 255, seed)[1] for seed in range(60)]
        shares[ratio] = np.mean([max(c.mean(), 1 - c.mean()) >= 0.75 for c in crops])
    assert shares[1.0] > 0.5
    assert shares[0.75] < 0.05
    ignored = np.full((64, 64), 255, np.uint8)
    assert augment(image, ignored, 255, 0)[1].shape == (24, 24)  # nothing labelled


def test_colours_vary_and_labels_do_not():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    versions = [distorted(image, np.random.default_rng(seed)) for seed in range(16)]
    assert len({v.tobytes() for v in versions}) > 10
    assert all((v.shape, v.dtype) == (image.shape, np.uint8) for v in versions)
    assert np.mean([np.abs(v.astype(int) - image).mean() for v in versions]) > 5


def test_sizes_are_mmsegmentations():
    assert scaled_size(512, 683, (2048, 512)) == (512, 683)
    assert scaled_size(300, 1500, (2048, 512)) == (410, 2048)
    assert scaled_size(1500, 300, (512, 2048)) == (2048, 410)
    assert EvalScale((2048, 512), 64).size(300, 400) == (512, 704)
    assert EvalScale().size(7, 9) == (7, 9)
    assert EvalScale((64, 32))(np.zeros((10, 10, 3), np.uint8)).shape == (32, 32, 3)


def test_the_known_sets(tmp_path):
    assert len(set(ADE20K_NAMES)) == 150
    ade = ADE20K(root=str(tmp_path))
    assert (ade.labels.ids[0], ade.labels.ids[-1], ade.labels.names[:2]) == (1, 150, ("wall", "building"))
    assert ade.largest("val") == (512, 2048)
    assert (CamVid(root=".").labels.num_classes, CamVid(root=".", void=True).labels.names[-1]) == (11, "void")
    voc = PascalVOC(root=".")
    assert (voc.labels.num_classes, voc_colour(1), voc_colour(20)) == (21, (128, 0, 0), (0, 64, 128))
    for files, value in (("labelIds", 26), ("labelTrainIds", 13)):
        town = tmp_path / "leftImg8bit/val/town"
        save(town / "town_0_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
        for kind, stored in (("labelIds", 26), ("labelTrainIds", 13), ("instanceIds", 99)):
            save(tmp_path / f"gtFine/val/town/town_0_gtFine_{kind}.png", np.full((4, 6), stored, np.uint8))
        streets = Cityscapes(files, root=str(tmp_path))
        sample = streets.dataset("val")[0]
        assert (sample.id, set(sample.label_map.flat)) == ("town/town_0", {13})
        assert streets.labels.names[13] == "car"
        assert streets.labels.ids[13] == value


def test_voc_takes_the_images_that_its_lists_name(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_1", "2007_2", "2007_3"):
        save(root / f"JPEGImages/{name}.jpg", np.zeros((4, 6, 3), np.uint8))
    for name in ("2007_1", "2007_2"):
        save(root / f"SegmentationClass/{name}.png", np.full((4, 6), 255, np.uint8))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_1\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("JPEGImages/2007_2.jpg SegmentationClass/2007_2.png\n")
    data = PascalVOC(root=str(tmp_path))
    assert [p.name for p in data.pairs("train")] == ["2007_1"]
    assert [p.name for p in data.pairs("val")] == ["2007_2"]
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_9\n")
    with pytest.raises(DataError, match=r"train\.txt: lists '2007_9', which is no image"):
        PascalVOC(root=str(tmp_path)).pairs("train")


def test_pairs_in_one_folder(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"all/{name}.png", np.zeros((4, 6, 3), np.uint8))
        save(tmp_path / f"all/{name}_mask.png", np.zeros((4, 6), np.uint8))
    found = find_pairs(tmp_path, MaskSplit("all", "all", mask_suffix="_mask"))
    assert [(p.name, p.image.name, p.mask.name) for p in found.pairs] == [
        ("a", "a.png", "a_mask.png"),
        ("b", "b.png", "b_mask.png"),
    ]
    assert (found.bare, found.lonely) == ((), ())


def test_what_has_no_partner_is_named(tmp_path, caplog):
    for name in ("a", "b"):
        pair(tmp_path, name)
        pair(tmp_path, name, split="val")
    save(tmp_path / "images/train/c.png", np.zeros((4, 6, 3), np.uint8))
    save(tmp_path / "masks/train/d.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"no masks for c\.png") as caught:
        folders(tmp_path).pairs("train")
    assert "data.unpaired=skip" in str(caught.value)
    assert [p.name for p in folders(tmp_path, unpaired="skip").pairs("train")] == ["a", "b"]
    assert "train: 1 images without a mask left out, such as" in caplog.text
    assert "train: 1 masks without an image left out, such as" in caplog.text


def test_folders_that_do_not_fit_are_refused(tmp_path):
    pair(tmp_path, "a")
    save(tmp_path / "other/a_mask.png", np.zeros((4, 6), np.uint8))
    save(tmp_path / "jpeg/a.jpg", np.zeros((4, 6), np.uint8))
    for masks, problem in (
        ("other", r"none of its 1 images has a mask .* give mask_suffix"),
        ("jpeg", "JPEG, which changes the values of labels"),
        ("nowhere", "no such folder of masks"),
    ):
        with pytest.raises(DataError, match=problem):
            find_pairs(tmp_path, MaskSplit("images/train", masks))
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(DataError, match=r"none\.txt: lists no names"):
        find_pairs(tmp_path, MaskSplit("images/train", "masks/train", names="none.txt"))
    Image.open(tmp_path / "images/train/a.png").save(tmp_path / "images/train/a.jpg")
    with pytest.raises(DataError, match="is called as"):
        find_pairs(tmp_path, MaskSplit("images/train", "masks/train"))
    with pytest.raises(ConfigError, match="name each class once"):
        folders(tmp_path, classes=("a", "a"))


@pytest.mark.parametrize(
    ("palette", "problem"),
    [
        (((1, 2, 3), (1, 2, 3), (3, 0, 0)), r"data\.palette: \[1, 2, 3\] stands there twice"),
        (((1, 2, 3), (1, 2, 4), (300, 0, 0)), r"data\.palette: \[300, 0, 0\] is no colour"),
        (((1, 2, 3), (1, 2, 4), (0, -1, 0)), r"data\.palette: \[0, -1, 0\] is no colour"),
    ],
)
def test_palettes_that_are_none_are_refused(tmp_path, palette, problem):
    pair(tmp_path, "a")
    with pytest.raises(ConfigError, match=problem):
        _ = folders(tmp_path, classes=("a", "b", "c"), palette=palette).rule


def test_sizes_that_nobody_has_the_memory_for_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.augment\.scale: \[100000, 100000\] makes images of 200000 x 200000"):
        MaskAugment(scale=(100000, 100000))
    MaskAugment(scale=(100000, 512))  # a bound that only long images reach
    with pytest.raises(ConfigError, match=r"data\.eval_scale: "):
        folders(tmp_path, eval_scale=(100000, 100000))
    for key, wrong in (
        ("jitter", {"jitter": (1.0, 1000.0)}),
        ("short_sides", {"jitter": None, "short_sides": (99999,)}),
    ):
        with pytest.raises(ConfigError, match=rf"data\.augment\.{key}: "):
            SegmentAugment(**wrong)


def test_a_bad_sample_is_an_error_with_the_files_name(tmp_path):
    pair(tmp_path, "good")
    pair(tmp_path, "smaller")
    save(tmp_path / "masks/train/smaller.png", np.ones((20, 15), np.uint8))
    pair(tmp_path, "unknown", value=7)
    pair(tmp_path, "void", value=255)
    pair(tmp_path, "colour")
    save(tmp_path / "masks/train/colour.png", np.random.default_rng(0).integers(0, 9, (20, 30, 3), np.uint8))
    dataset = folders(tmp_path).dataset("train")
    found = {p.name: dataset[i, 0] for i, p in enumerate(dataset.pairs)}
    assert "the mask is 15x20 pixels, its image 30x20" in str(found["smaller"])
    assert "the value 7 (100 % of its pixels) is no class: classes have 0-1" in str(found["unknown"])
    assert "holds colours" in str(found["colour"])
    assert all(f"{name}.png" in str(found[name]) for name in ("smaller", "unknown", "colour"))
    assert set(found["void"].label_map.flat) == {255}  # nothing to learn from, but nothing wrong
    assert found["good"].label_map.shape == (16, 16)


def test_a_crop_larger_than_the_image_takes_all_of_it(tmp_path):
    pair(tmp_path, "a", (20, 30))
    pair(tmp_path, "b", (24, 26))
    augment = MaskAugment(crop=(64, 64), scale=None, ratio=(1.0, 1.0))
    (batch,) = folders(tmp_path, augment=augment).train_dataloader()
    assert batch["image"].shape == (2, 3, 24, 30)
    assert sorted(batch["size"].tolist()) == [[20, 30], [24, 26]]


def test_classes_from_a_file_keep_their_values(tmp_path):
    pair(tmp_path, "a", value=4)
    (tmp_path / "classes.txt").write_text("4 sky 0 0 255\n9 road 128 64 128\n")
    data = folders(tmp_path, classes="classes.txt")
    assert data.labels == LabelSpace(("sky", "road"), (4, 9), ignore_index=255, palette=((0, 0, 255), (128, 64, 128)))
    assert set(data.dataset("train")[0, 0].label_map.flat) == {0}


def test_cityscapes_polygons_are_drawn_one_over_the_other(tmp_path):
    save(tmp_path / "leftImg8bit/val/town/town_0_leftImg8bit.png", np.zeros((8, 10, 3), np.uint8))
    square = [[0, 0], [5, 0], [5, 5], [0, 5]]
    objects = [
        {"label": "road", "polygon": [[0, 0], [9, 0], [9, 7], [0, 7]]},
        {"label": "cargroup", "polygon": square},
        {"label": "person", "polygon": square, "deleted": 1},
        {"label": "license plate", "polygon": square},
        {"label": "unlabeled", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]},
    ]
    file = tmp_path / "gtFine/val/town/town_0_gtFine_polygons.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"imgWidth": 10, "imgHeight": 8, "objects": objects}))
    labels = Cityscapes("polygons", root=str(tmp_path)).dataset("val")[0].label_map
    assert labels[3, 3] == 13  # car
    assert labels[7, 9] == 0  # road
    assert labels[0, 0] == 255
    for wrong, problem in (
        ({"label": "submarine", "polygon": square}, "no class of Cityscapes"),
        ({"label": "car", "polygon": [[1], [2]]}, "no polygon of pairs"),
    ):
        file.write_text(json.dumps({"imgWidth": 10, "imgHeight": 8, "objects": [wrong]}))
        assert problem in str(Cityscapes("polygons", root=str(tmp_path)).dataset("val")[0])
    file.write_text('{"imgWidth": 10, "objects": []}')
    assert "imgWidth and imgHeight are 10 and None" in str(Cityscapes("polygons", root=str(tmp_path)).dataset("val")[0])


def test_cityscapes_instances_reach_the_batch_in_evaluation(tmp_path):
    for kind, values in (("labelIds", [[26, 24]]), ("instanceIds", [[26001, 24]])):
        save(tmp_path / f"gtFine/val/town/town_0_gtFine_{kind}.png", np.array(values, np.uint16))
    save(tmp_path / "leftImg8bit/val/town/town_0_leftImg8bit.png", np.zeros((1, 2, 3), np.uint8))
    data = Cityscapes(with_instances=True, root=str(tmp_path))
    target = data.collate([data.dataset("val")[0]])["target"][0]
    assert target["instance_map"].tolist() == [[14001, 0]]
    assert target["label_map"].tolist() == [[13, 11]]


def test_context_and_coco_stuff(tmp_path):
    context = PascalContext(root=str(tmp_path))
    assert (context.labels.num_classes, context.labels.ids[0], context.labels.names[-1]) == (59, 1, "wood")
    assert PascalContext(background=True, root=".").labels.names[:2] == ("background", "aeroplane")
    stuff = COCOStuff(root=str(tmp_path))
    assert (stuff.labels.num_classes, stuff.labels.ids[11], stuff.labels.names[11]) == (171, 12, "stop sign")
    assert dict(zip(stuff.labels.names, stuff.labels.ids, strict=True))["wood"] == 181
    save(tmp_path / "images/val2017/1.png", np.zeros((1, 3, 3), np.uint8))
    save(tmp_path / "annotations/val2017/1.png", np.array([[0, 181, 255]], np.uint8))
    assert stuff.dataset("val")[0].label_map.tolist() == [[0, 170, 255]]
