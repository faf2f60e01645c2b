"""Classification sets: layouts and small formats, crops held against timm and torchvision, repeats, bad input."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import RandomResizedCrop, v2

from vistrain.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    Digits,
    EuroSAT,
    EvalCrop,
    FashionMNIST,
    GeneratedPatterns,
    ImageAugment,
    ImageFolder,
    ImageList,
    ImageNet,
)
from vistrain.data.base.samplers import ResumableSampler
from vistrain.data.classification import sources, transforms
from vistrain.data.classification.imagenet import _classes
from vistrain.data.classification.sets import EUROSAT_CLASSES
from vistrain.errors import ConfigError, DataError
from vistrain.structures import Preprocessing


def picture(seed: int = 0, height: int = 60, width: int = 80) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def write(path: Path, seed: int = 0, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(path, quality=95)
    return path


@pytest.fixture
def folders(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for number, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.jpg", 10 * number + i)
    return tmp_path


def batch_of(data, split="val"):
    return next(iter(data.val_dataloader() if split == "val" else data.train_dataloader()))


# ------------------------------------------------------------------ folders


def test_folders_of_classes(folders):
    data = ImageFolder(root=str(folders), workers=0, image_size=32, batch_size=4, eval_batch_size=6)
    assert data.labels.names == ("ant", "bee", "cat")
    batch = batch_of(data)
    assert batch["image"].shape == (6, 3, 32, 32)
    assert batch["image"].dtype == torch.uint8
    assert batch["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert [t["labels"] for t in batch["target"]] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert batch["original_size"].tolist() == [[60, 80]] * 6
    assert batch["id"] == list(range(6))
    train = batch_of(data, "train")
    assert train["num_targets"] == 4
    assert data.image_path("val", 2) == folders / "val/bee/0.jpg"
    assert data.ground_truth("val")["labels"][-1] == (2,)


def test_a_split_that_lacks_a_class_shifts_nothing(folders):
    for file in (folders / "val/ant").iterdir():
        file.unlink()
    (folders / "val/ant").rmdir()
    data = ImageFolder(root=str(folders), workers=0, image_size=16, eval_batch_size=4)
    assert batch_of(data)["labels"].tolist() == [1, 1, 2, 2]


def test_a_held_out_part_is_stratified_and_apart(folders):
    data = ImageFolder(root=str(folders), val=None, holdout=0.34, workers=0)
    train, val = data.split("train"), data.split("val")
    names = [{str(s.source.path(i)) for i in range(len(s))} for s in (train, val)]
    assert len(names[0]) == 6
    assert len(names[1]) == 3
    assert not names[0] & names[1]
    assert sorted(val.of(i)[0] for i in range(3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("mischief", "message"),
    [
        (lambda f: [p.unlink() for p in (f / "train/bee").iterdir()], r"train/bee: class 'bee' has no image in it"),
        (lambda f: write(f / "val/dog/1.jpg"), r"val/dog: is no class of the training folder \(3 classes\)"),
        (lambda f: (f / "train").rename(f / "trian"), r"train: no such folder - correct data.root[^;]*$"),
        (
            lambda f: (f / "val").rename(f / "test"),
            r"val: no such folder - .*data.val=null to have 10% of the training",
        ),
    ],
)
def test_folders_that_are_wrong(folders, mischief, message):
    mischief(folders)
    with pytest.raises(DataError, match=message):
        ImageFolder(root=str(folders)).setup("fit")


def test_a_list_of_classes_that_does_not_match(folders):
    (folders / "classes.txt").write_text("cat\nant\nbee\n")
    assert ImageFolder(root=str(folders), classes="classes.txt").labels.names == ("cat", "ant", "bee")
    (folders / "classes.txt").write_text("cat\nant\nwasp\n")
    with pytest.raises(DataError, match=r"1 listed classes have no folder \(wasp, ...\); 1 folders are not listed"):
        _ = ImageFolder(root=str(folders), classes="classes.txt").labels
    (folders / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(DataError, match="'cat' is listed twice"):
        _ = ImageFolder(root=str(folders), classes="classes.txt").labels


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_an_unreadable_image_is_named(folders, content):
    (folders / "val/bee/0.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"val/bee/0\.jpg"):
        batch_of(ImageFolder(root=str(folders), workers=0, image_size=16, eval_batch_size=6))


def test_images_of_every_kind_become_rgb(tmp_path):
    image = picture()
    kinds = {"grey.png": image.convert("L"), "palette.gif": image.convert("P"), "cmyk.jpg": image.convert("CMYK")}
    kinds |= {"alpha.png": image.convert("RGBA"), "bits.png": Image.fromarray(np.full((9, 9), 40000, np.uint16))}
    for name, kind in kinds.items():
        for split in ("train", "val"):
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            kind.save(tmp_path / split / "a" / name)
    data = ImageFolder(root=str(tmp_path), workers=0, image_size=16, batch_size=5, eval_batch_size=5)
    assert batch_of(data)["image"].shape == (5, 3, 16, 16)
    assert batch_of(data, "train")["image"].shape == (5, 3, 16, 16)


# ------------------------------------------------------------------ lists


def test_lists_with_one_and_with_many_labels(folders):
    (folders / "train.csv").write_text("file,label,who\ntrain/ant/0.jpg,10,x\ntrain/bee/0.jpg,9,y\n")
    (folders / "val.csv").write_text("file,label\nval/bee/1.jpg,9\n")
    data = ImageList("train.csv", "val.csv", root=str(folders), workers=0, image_size=16)
    assert data.labels.names == ("9", "10")  # as numbers
    assert batch_of(data)["labels"].tolist() == [0]
    assert not data.multi_label
    (folders / "train.csv").write_text("file,labels\ntrain/ant/0.jpg,red|small\ntrain/bee/0.jpg,\n")
    (folders / "val.csv").write_text("file,labels\nval/bee/1.jpg,small\nval/bee/0.jpg,\n")
    data = ImageList("train.csv", "val.csv", root=str(folders), workers=0, image_size=16)
    assert data.multi_label
    batch = batch_of(data)
    assert batch["labels"].tolist() == [[0, 1], [0, 0]]
    assert [t["labels"] for t in batch["target"]] == [(1,), ()]


def test_classes_of_lists_are_listed_once(folders):
    (folders / "names.txt").write_text("ant\nbee\nant\n")
    with pytest.raises(DataError, match=r"names\.txt: class 'ant' is listed twice"):
        _ = ImageList("train.csv", "val.csv", root=str(folders), classes="names.txt").labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na,b\n", "its columns are name, label - write file,label"),
        ("file,label,label\na,b,c\n", "has the column .label. twice"),
        ("file,label\nval/ant/0.jpg,wasp\n", "line 2: class 'wasp' is not among the 1 classes of train.csv"),
        ("file,label\nval/ant/77.jpg,ant\n", "1 of 1 listed images are not in"),
        ("file,label\nval/ant/0.jpg,\n", "line 2 has no file or no label"),
    ],
)
def test_lists_that_are_wrong(folders, text, message):
    (folders / "train.csv").write_text("file,label\ntrain/ant/0.jpg,ant\n")
    (folders / "val.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        ImageList("train.csv", "val.csv", root=str(folders)).setup("validate")


# ------------------------------------------------------------------ ImageNet


@pytest.fixture
def imagenet(tmp_path):
    """A training folder with every class (empty files: nothing is decoded), and an unsorted `val/` of two images."""
    root = tmp_path / "imagenet"
    for wnid, _ in _classes():
        (root / "train" / wnid).mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(b"")
    for i in (1, 2):
        write(root / f"val/ILSVRC2012_val_0000000{i}.JPEG", i)
    return tmp_path


def test_imagenet_needs_no_file_for_its_classes_and_says_what_to_download(tmp_path):
    data = ImageNet(str(tmp_path))
    assert data.labels.num_classes == 1000
    assert len(set(data.labels.names)) == 1000
    assert data.labels.names[0] == "tench"
    with pytest.raises(DataError, match=r"imagenet/train: no such folder - download ILSVRC2012_img_train.tar"):
        data.setup("fit")


@pytest.mark.parametrize("kind", ["number", "wnid", "kaggle", "devkit"])
def test_imagenet_with_a_file_of_truth(imagenet, kind):
    root, wnids = imagenet / "imagenet", [w for w, _ in _classes()]
    names = [f"ILSVRC2012_val_0000000{i}" for i in (1, 2)]
    if kind == "number":
        (root / "val.txt").write_text(f"{names[0]}.JPEG 65\n{names[1]}.JPEG 970\n")
    elif kind == "wnid":
        (root / "val.txt").write_text(f"{names[0]}.JPEG {wnids[65]}\n{names[1]}.JPEG {wnids[970]}\n")
    elif kind == "kaggle":
        rows = [f"{n},{wnids[k]} 1 2 3 4 {wnids[k]} 5 6 7 8" for n, k in zip(names, (65, 970), strict=True)]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows) + "\n")
    else:
        from scipy.io import savemat

        folder = root / "ILSVRC2012_devkit_t12/data"
        folder.mkdir(parents=True)
        (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n")
        dtype = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
        savemat(folder / "meta.mat", {"synsets": np.array([(490, wnids[65]), (361, wnids[970])], dtype=dtype)})
    data = ImageNet(str(imagenet), workers=0)
    data.setup("fit")
    assert len(data.split("train")) == 1000
    assert data.split("train").of(999) == (999,)
    val = data.split("val")
    assert [val.of(i) for i in range(2)] == [(65,), (970,)]
    assert batch_of(data)["image"].shape == (2, 3, 224, 224)


def test_imagenet_is_read_as_it_is_stored(imagenet):
    """Whatever EXIF says, at full size and smaller: published numbers were measured so. Other sets are upright."""
    root, name = imagenet / "imagenet", "ILSVRC2012_val_00000001.JPEG"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "val" / name, exif=exif)
    (root / "val.txt").write_text(f"{name} 65\nILSVRC2012_val_00000002.JPEG 970\n")
    data = ImageNet(str(imagenet), workers=0)
    data.setup("fit")
    stored = data.split("val").source.open(0)
    assert (stored.size, stored.decode(2.0).shape) == ((64, 96), (32, 48, 3))
    assert data.split("val").source.open(0).decode().shape == (64, 96, 3)
    upright = sources.Files(root / "val", [name]).open(0)
    assert (upright.size, upright.decode(2.0).shape) == ((96, 64), (48, 32, 3))


def test_imagenet_that_is_incomplete(imagenet):
    root = imagenet / "imagenet"
    with pytest.raises(DataError, match=r"there is no file with their classes - put val.txt"):
        ImageNet(str(imagenet)).setup("validate")
    (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 1000\n")
    with pytest.raises(DataError, match="'1000' is neither a wnid of ImageNet nor a number from 0 to 999"):
        ImageNet(str(imagenet)).setup("validate")
    (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 1\n")
    with pytest.raises(DataError, match=r"has no class for 1 of 2 images \(first: ILSVRC2012_val_00000002\)"):
        ImageNet(str(imagenet)).setup("validate")
    wnid = _classes()[3][0]
    (root / "train" / wnid / f"{wnid}_1.JPEG").unlink()
    with pytest.raises(DataError, match=f"{wnid}: has no image in it"):
        ImageNet(str(imagenet)).split("train")
    (root / "train" / wnid).rmdir()
    with pytest.raises(DataError, match=f"1 of 1000 classes are missing .first: {wnid}"):
        ImageNet(str(imagenet)).split("train")


# ------------------------------------------------------------------ small sets


def test_cifar_in_both_versions(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (4, 3072), dtype=np.uint8), [3, 0, 9, 3]
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        path = tmp_path / "cifar-10-batches-py" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=2))
        binary = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / f"{name}.bin").write_bytes(binary.tobytes())
    python, binary = CIFAR10(root=str(tmp_path)), CIFAR10(root=str(tmp_path / "bin"))
    for data in (python, binary):
        assert len(data.split("train")) == 20
        val = data.split("val")
        assert [val.of(i)[0] for i in range(4)] == labels
        expected = pixels[2].reshape(3, 32, 32).transpose(1, 2, 0)
        assert np.array_equal(val.source.open(2).decode(), expected)
    with pytest.raises(DataError, match=r"cifar-100-python: no such folder - download https://www.cs.toronto.edu"):
        CIFAR100(root=str(tmp_path)).setup("fit")


def test_cifar_executes_nothing(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()

    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match="asks to execute"):
        CIFAR10(root=str(tmp_path)).split("val")


def test_mnist_compressed_or_not(tmp_path):
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    head = b"\0\0\x08\x03" + np.array([2, 28, 28], ">u4").tobytes()
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
    (tmp_path / "mnist/t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02" + bytes([7, 2]))
    val = MNIST(root=str(tmp_path)).split("val")
    assert [val.of(i) for i in range(2)] == [(7,), (2,)]
    assert np.array_equal(val.source.open(1).decode()[..., 2], images[1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: no such file - download"):
        MNIST(root=str(tmp_path)).split("train")
    (tmp_path / "mnist/t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02" + bytes([7]))
    with pytest.raises(DataError, match="holds 1 of 2 bytes"):
        MNIST(root=str(tmp_path)).split("val")
    assert FashionMNIST(root=str(tmp_path)).labels.names[9] == "ankle boot"
    with pytest.raises(DataError, match="fashion-mnist"):
        FashionMNIST(root=str(tmp_path)).split("val")


def test_eurosat_is_split_alike_every_time(tmp_path):
    for name in EUROSAT_CLASSES:
        for i in range(5):
            (tmp_path / "2750" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "2750" / name / f"{name}_{i}.jpg").write_bytes(b"")
    data = EuroSAT(str(tmp_path))
    assert (len(data.split("train")), len(data.split("val"))) == (40, 10)
    assert [data.split("val").source.path(i) for i in range(10)] == [
        EuroSAT(str(tmp_path)).split("val").source.path(i) for i in range(10)
    ]
    with pytest.raises(DataError, match=r"EuroSAT_RGB.zip from https://zenodo.org"):
        EuroSAT(str(tmp_path / "2750/River")).setup("fit")


def test_digits_from_a_file(tmp_path):
    rows = [[*(i % 17 for _ in range(64)), i % 10] for i in range(50)]
    text = "\n".join(",".join(f"{v:.1f}" for v in row) for row in rows)
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(text.encode()))
    data = Digits(root=str(tmp_path))
    assert (len(data.split("train")), len(data.split("val"))) == (40, 10)
    assert data.split("train").source.open(0).decode().shape == (8, 8, 3)


def test_generated_patterns_are_the_same_each_time(tmp_path):
    first, second = (GeneratedPatterns(str(tmp_path / n), 2, 1, workers=0) for n in "ab")
    for data in (first, second):
        data.prepare_data()
        data.setup("fit")
    assert len(first.split("train")) == 20
    files = sorted(p.relative_to(first.root) for p in first.root.rglob("*.jpg"))
    assert len(files) == 30
    assert all((first.root / f).read_bytes() == (second.root / f).read_bytes() for f in files)


# ------------------------------------------------------------------ transforms


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(120, 171), (171, 120), (40, 300), (64, 64), (33, 50)])
def test_the_evaluation_crop_has_timms_pixels(size, interpolation, crop_pct):
    image = picture(1, *size)
    for mode in ("center", "squash", "border"):
        theirs = create_transform(
            (3, 64, 64), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, mean=(0.5,) * 3, std=(1,) * 3
        )
        wanted = ((theirs(image) + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        found = EvalCrop((64, 64), crop_pct, interpolation, mode, (0.5,) * 3)(np.array(image))
        assert np.array_equal(found, wanted), mode


def test_evaluation_sizes_come_from_the_weights(folders):
    data = ImageFolder(root=str(folders))
    data.preprocessing = Preprocessing(crop_pct=0.95, input_size=(32, 32), test_size=(48, 48), test_crop_pct=1.0)
    assert (data.train_size, data.eval_transform.size, data.eval_transform.crop_pct) == ((32, 32), (48, 48), 1.0)
    assert data.largest("val") == (48, 48)
    data.image_size = (40, 40)
    assert (data.eval_transform.size, data.eval_transform.crop_pct) == ((40, 40), 0.95)


class Whole:
    """Pixels in the guise of an encoded image."""

    def __init__(self, pixels):
        self.pixels, self.size = pixels, pixels.shape[:2]

    def decode(self, shrink=1.0):
        return self.pixels


def test_augmentation_depends_on_the_seed_alone():
    image = Whole(np.array(picture(3)))
    augment = ImageAugment(policy="rand-m9-mstd0.5-inc1", color=0.4, hue=0.1, vertical_flip=0.5)
    torch.manual_seed(0)
    first = augment.apply(image, (32, 40), (0.5,) * 3, 5)
    np.random.seed(1)
    assert np.array_equal(first, augment.apply(image, (32, 40), (0.5,) * 3, 5))
    assert first.shape == (32, 40, 3)
    others = [augment.apply(image, (32, 40), (0.5,) * 3, seed) for seed in range(6, 12)]
    assert all(not np.array_equal(first, other) for other in others)


def test_the_strongest_policies_never_fail():
    """timm's posterizing asks newer Pillows for 0 bits, which they refuse."""
    image = Whole(np.array(picture(0, 16, 16)))
    for policy in ("rand-m9-mstd0.5-inc1", "rand-m10-n4-inc1", "augmix-m10-w3-d3"):
        augment = ImageAugment(policy=policy)
        assert all(augment.apply(image, (16, 16), (0.5,) * 3, seed).shape == (16, 16, 3) for seed in range(150))


def test_policies_leave_the_global_generators_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    ImageAugment(policy="original").apply(Whole(np.array(picture())), (16, 16), (0.5,) * 3, 1)
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "v0", "augmix-m5-w4-d2", "3a"])
def test_every_policy_of_timm_works(policy):
    assert ImageAugment(policy=policy).apply(Whole(np.array(picture())), (24, 24), (0.5,) * 3, 0).shape == (24, 24, 3)


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_crops_give_the_size_asked_for(crop):
    for shape in ((5, 200), (200, 5), (1, 1), (64, 64)):
        image = Whole(np.zeros((*shape, 3), np.uint8))
        for seed in range(5):
            assert ImageAugment(crop=crop).apply(image, (24, 32), (0.5,) * 3, seed).shape == (24, 32, 3)


def test_windows_have_the_areas_and_shapes_that_were_asked_for():
    rng = np.random.default_rng(0)
    windows = np.array([transforms.random_window(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    top, left, height, width = windows.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    share = height * width / 120_000
    assert share.min() > 0.075
    assert (width / height > 0.74).all()
    assert (width / height < 1.35).all()
    torch.manual_seed(0)
    blank, limits = torch.zeros(1, 300, 400), ([0.08, 1.0], [3 / 4, 4 / 3])
    theirs = np.array([RandomResizedCrop.get_params(blank, *limits)[2:] for _ in range(2000)])
    assert abs(share.mean() - theirs.prod(1).mean() / 120_000) < 0.02


def test_resizing_is_pillows_within_a_grey_level():
    image = np.array(picture(2, 90, 120))
    for size in ((40, 50), (130, 200)):
        for interpolation, theirs in transforms.FILTERS.items():
            wanted = np.array(Image.fromarray(image).resize(size[::-1], theirs)).astype(int)
            assert np.abs(transforms.resize(image, size, interpolation) - wanted).max() <= 1


@pytest.mark.parametrize(("strength", "worst"), [(0.4, 3), (0.8, 6)])
def test_colours_vary_as_torchvision_varies_them(strength, worst):
    """Pillow cuts off what OpenCV rounds; later steps enlarge that."""
    image = np.array(picture(4))
    rng, seen = np.random.default_rng(7), []
    low, high = 1 - strength, 1 + strength
    factors = np.random.default_rng(7).uniform(low, high, 3)
    order = np.random.default_rng(7)
    order.uniform(low, high, 3)
    theirs = Image.fromarray(image)
    steps = [v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation]
    for number in order.permutation(3).tolist():
        theirs = steps[number](theirs, factors[number])
        seen.append(number)
    found = transforms.jitter(image, strength, 0.0, rng)
    assert np.abs(found.astype(int) - np.array(theirs)).max() <= worst
    turned = transforms._turn_hue(image, 0.2)
    wanted = np.array(v2.functional.adjust_hue(Image.fromarray(image), 0.2)).astype(int)
    assert np.abs(turned - wanted).mean() < 2.5


def test_large_jpegs_are_decoded_smaller_and_show_the_same(tmp_path):
    path = write(tmp_path / "large.jpg", 5, height=800, width=1000)
    encoded = sources.ImageFile(path)
    assert encoded.size == (800, 1000)
    assert encoded.decode(4.7).shape == (200, 250, 3)
    assert sources.ImageFile(path).decode(1.9).shape == (800, 1000, 3)
    augment = ImageAugment(scale=(0.5, 0.9), flip=0.0)
    for seed in range(6):
        small = augment.apply(sources.ImageFile(path), (64, 64), (0.5,) * 3, seed)
        whole = augment.apply(Whole(np.array(Image.open(path))), (64, 64), (0.5,) * 3, seed)
        assert np.abs(small.astype(int) - whole).mean() < 2


def test_without_simplejpeg_pillow_decodes_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "simplejpeg", None)
    encoded = sources.ImageFile(write(tmp_path / "large.jpg", 5, height=800, width=1000))
    assert encoded.size == (800, 1000)
    assert encoded.decode(2.0).shape == (400, 500, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip": 2.0}, r"flip: 2.0 is not in 0..1"),
        ({"scale": (0.9, 0.1)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"policy": "randy"}, "policy: timm has no policy 'randy'"),
        ({"color": -1.0}, "color"),
    ],
)
def test_wrong_augmentation_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ImageAugment(**arguments)


# ------------------------------------------------------------------ repeats


def test_repeated_augmentation_keeps_the_epochs_length():
    for world in (1, 3):
        ranks = [list(ResumableSampler(30, 6, 1, rank, world, repeats=3)) for rank in range(world)]
        flat = [item for group in zip(*ranks, strict=True) for item in group]
        assert len(flat) == 30
        indices = [index for index, _ in flat]
        assert len(set(indices)) == 10
        assert all(indices.count(i) == 3 for i in set(indices))
        assert len(set(flat)) == 30  # three versions, three seeds


def test_repeated_augmentation_resumes_in_the_middle():
    whole = list(ResumableSampler(20, 4, 1, repeats=3))
    assert list(ResumableSampler(20, 4, 1, resume=(0, 8), repeats=3)) == whole[8:]
    assert [i for i, _ in ResumableSampler(20, 4, 1)] != [i for i, _ in whole]
