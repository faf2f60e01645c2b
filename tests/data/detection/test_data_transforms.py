"""Sizes as the official code computes them, the evaluation resize to the pixel, and what augmentation does to boxes."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as torchvision_functional

from vistrain.data.coco.instance_masks import InstanceMasks
from vistrain.data.detection import transforms
from vistrain.data.detection.collate import Sample
from vistrain.data.detection.transforms import SCALES, DetrAugment, EvalResize, ScaleJitter, output_size
from vistrain.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "short", "long", "detr", "detectron2"),
    [
        # The most common COCO size: DETR cuts 1066.67 off, detectron2 rounds it.
        ((480, 640), 800, 1333, (800, 1066), (800, 1067)),
        ((640, 480), 800, 1333, (1066, 800), (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199), (800, 1199)),
        ((500, 500), 800, 1333, (800, 800), (800, 800)),
        ((800, 1000), 800, 1333, (800, 1000), (800, 1000)),
        # Capped: DETR rounds the short side first and then cuts, so its long side may miss the cap.
        ((333, 1000), 800, 1333, (444, 1333), (444, 1333)),
        ((375, 1242), 800, 1333, (402, 1331), (402, 1333)),
        ((1242, 375), 800, 1333, (1331, 402), (1333, 402)),
        ((83, 1731), 480, 1333, (64, 1334), (64, 1333)),
        ((1, 3000), 800, 1333, (1, 3000), (1, 1333)),
        ((480, 640), 480, None, (480, 640), (480, 640)),
    ],
)
def test_output_size_of_known_images(
    size: tuple[int, int], short: int, long: int | None, detr: tuple[int, int], detectron2: tuple[int, int]
) -> None:
    assert output_size(*size, short, long, "detr") == detr
    assert output_size(*size, short, long, "detectron2") == detectron2


def test_output_size_properties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = (int(n) for n in rng.integers(40, 2000, 2))
        short = int(rng.choice(SCALES))
        for rule in ("detr", "detectron2"):
            h, w = output_size(height, width, short, 1333, rule)
            ratio = max(height, width) / min(height, width)
            # DETR's short side is off by up to half a pixel before the long one is computed from it.
            assert max(h, w) <= 1333 + (0.5 * ratio if rule == "detr" else 0)
            assert min(h, w) == short or (min(h, w) < short and max(h, w) >= 1332 - 0.5 * ratio)
            assert math.isclose(h / w, height / width, rel_tol=0.51 / min(h, w) + 1.01 / max(h, w))
            assert output_size(width, height, short, 1333, rule) == (w, h)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (150, 200), (30, 90)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_resize_is_pillows_to_the_bit(size: tuple[int, int], interpolation: str) -> None:
    image = texture(*size)
    found = EvalResize(80, 133, interpolation=interpolation)(image)
    height, width = output_size(*size, 80, 133)
    mode = torchvision_functional.InterpolationMode(interpolation)
    expected = torchvision_functional.resize(Image.fromarray(image), [height, width], mode)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_eval_resize_leaves_an_image_of_the_right_size_alone() -> None:
    image = texture(80, 100)
    assert EvalResize(80, 133)(image) is image


def test_training_resize_is_within_one_grey_level_of_pillows() -> None:
    for size, short in (((60, 80), 97), ((150, 200), 97), ((97, 140), 97), ((90, 300), 97)):
        augment = DetrAugment(scales=[short], long_side=150, flip=0, crop=0)
        image = texture(*size)
        found = augment.apply(Sample(image, 1, size), 0).image
        expected = EvalResize(short, 150)(image)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 1


COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])


def blocks() -> Sample:
    """Four blocks of one colour each on black, 120 x 160; the label is the colour."""
    boxes = np.array([(5, 5, 45, 35), (100, 10, 150, 70), (20, 60, 80, 110), (110, 90, 158, 118)], np.float32)
    image = np.zeros((120, 160, 3), np.uint8)
    masks = np.zeros((4, 120, 160), bool)
    for mask, box, color in zip(masks, boxes.astype(int), COLORS, strict=True):
        image[box[1] : box[3], box[0] : box[2]] = color
        mask[box[1] : box[3], box[0] : box[2]] = True
    return Sample(image, 9, (120, 160), boxes, np.arange(4), InstanceMasks.encoded(masks, (120, 160)), "a.jpg")


RECIPE = {"scales": (96, 128, 160), "long_side": 230, "crop_resize": (80, 100, 120), "crop_range": (60, 110)}


@pytest.mark.parametrize("crop", [0.0, 1.0])
def test_boxes_and_masks_follow_their_objects(crop: float) -> None:
    augment = DetrAugment(**RECIPE, crop=crop)
    sample = blocks()
    dropped = 0
    for seed in range(60):
        out = augment.apply(sample, seed)
        height, width = out.image.shape[:2]
        assert len(out.boxes) == len(out.labels) == len(out.masks)
        assert (out.id, out.name) == (9, "a.jpg")
        dropped += 4 - len(out.boxes)
        for box, label, mask in zip(out.boxes, out.labels, out.masks.packed().unpacked().numpy(), strict=True):
            assert (box[:2] >= 0).all()
            assert (box[2:] <= (width, height)).all()
            assert (box[2:] > box[:2]).all()
            near = np.abs(out.image.astype(int) - COLORS[label]).sum(2) < 150
            rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            if not len(rows):  # a sliver, blended away
                assert min(box[2:] - box[:2]) < 3
                continue
            seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            np.testing.assert_allclose(box, seen, atol=2.5)
            assert (mask != near).mean() < 0.03
    assert (dropped > 0) == (crop > 0)
    np.testing.assert_array_equal(sample.image, blocks().image)  # the given sample is not changed
    np.testing.assert_array_equal(sample.boxes, blocks().boxes)


def test_large_scale_jitter_cuts_or_pads_to_a_square() -> None:
    jitter, kept = ScaleJitter(100, (0.3, 2.5)), 0
    for seed in range(40):
        out = jitter.apply(blocks(), seed)
        assert out.image.shape == (100, 100, 3)
        assert out.name == "a.jpg"
        kept += len(out.boxes)
        for box, label, mask in zip(out.boxes, out.labels, out.masks.packed().unpacked().numpy(), strict=True):
            near = np.abs(out.image.astype(int) - COLORS[label]).sum(2) < 150
            assert (mask != near).mean() < 0.03
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if len(rows):
                seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                np.testing.assert_allclose(box, seen, atol=1.5)
    assert 80 < kept < 160
    np.testing.assert_array_equal(jitter.apply(blocks(), 7).image, jitter.apply(blocks(), 7).image)
    padded = ScaleJitter(100, (0.5, 0.5), flip=0).apply(blocks(), 0)
    assert (padded.image[38:] == 128).all()
    assert (padded.image[:, 50:] == 128).all()
    with pytest.raises(ConfigError, match="scale"):
        ScaleJitter(100, (2.0, 0.1))


def test_the_seed_alone_decides() -> None:
    first, second = DetrAugment(**RECIPE, color=0.5), DetrAugment(**RECIPE, color=0.5)
    second.apply(blocks(), 123)  # another history
    outcomes = set()
    for seed in range(12):
        a, b = first.apply(blocks(), seed), second.apply(blocks(), seed)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        outcomes.add((a.image.shape, a.image.tobytes()))
    assert len(outcomes) == 12


def test_sizes_are_those_of_the_recipe() -> None:
    plain = DetrAugment(scales=(96, 128), long_side=150, crop=0)
    shapes = {plain.apply(blocks(), seed).image.shape[:2] for seed in range(40)}
    assert shapes == {(96, 128), (112, 149)}  # 128 x 170 exceeds the cap: round(150 * 120 / 160), cut(112 * 160 / 120)
    assert plain.largest == (128, 150)
    cropped = DetrAugment(**RECIPE, crop=1)
    shorts = {min(cropped.apply(blocks(), seed).image.shape[:2]) for seed in range(40)}
    assert {96, 128, 160} <= shorts


def test_flips_half_of_the_images() -> None:
    augment = DetrAugment(scales=[120], long_side=160, crop=0)
    flipped = 0
    for seed in range(400):
        out = augment.apply(blocks(), seed)
        mirrored = out.boxes[0, 0] > 80
        flipped += mirrored
        np.testing.assert_array_equal(out.image, blocks().image[:, ::-1] if mirrored else blocks().image)
        np.testing.assert_array_equal(out.boxes[0], [115, 5, 155, 35] if mirrored else [5, 5, 45, 35])
    assert 160 < flipped < 240


def test_a_crop_larger_than_the_image_keeps_it_whole() -> None:
    augment = DetrAugment(scales=[120], long_side=None, flip=0, crop=1, crop_resize=[120], crop_range=(384, 600))
    np.testing.assert_array_equal(augment.apply(blocks(), 3).image, blocks().image)


def test_an_image_without_objects_stays_one() -> None:
    empty = Sample(texture(120, 160), 1, (120, 160), masks=InstanceMasks.encoded([], (120, 160)))
    for seed in range(6):
        out = DetrAugment(**RECIPE).apply(empty, seed)
        assert out.boxes.shape == (0, 4)
        assert out.boxes.dtype == np.float32
        assert out.masks.packed().shape == (0, *out.image.shape[:2])


@pytest.mark.parametrize(
    "arguments", [{"flip": 1.5}, {"crop": -0.1}, {"color": 2}, {"scales": ()}, {"crop_range": (600, 384)}]
)
def test_impossible_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        DetrAugment(**arguments)
    with pytest.raises(ConfigError, match="unknown filter"):
        EvalResize(interpolation="nearest")
    with pytest.raises(ConfigError, match="unknown rule"):
        EvalResize(arithmetic="mmdet")


def test_albumentations_is_imported_in_one_file_and_only_for_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(transforms.__file__).parents[1]
    users = {p for p in package.rglob("*.py") if re.search(r"^\s*(import|from) albumentations", p.read_text(), re.M)}
    assert users == {Path(transforms.__file__)}
    monkeypatch.setitem(sys.modules, "albumentations", None)  # importing it fails now
    DetrAugment(**RECIPE).apply(blocks(), 0)
    colored = DetrAugment(**RECIPE, color=0.5)
    with pytest.raises(ImportError):
        [colored.apply(blocks(), seed) for seed in range(9)]


def test_colors_vary_the_image_alone() -> None:
    plain, colored = (DetrAugment(scales=[120], long_side=160, crop=0, color=c) for c in (0.0, 0.5))
    sample = Sample(texture(120, 160), 1, (120, 160), blocks().boxes, np.arange(4))
    changed = 0
    for seed in range(20):
        a, b = plain.apply(sample, seed), colored.apply(sample, seed)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert b.image.dtype == np.uint8
        changed += (a.image != b.image).any()
    assert 10 <= changed <= 19
