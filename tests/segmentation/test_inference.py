"""Inference against the long way: every enlargement whole, every view and window one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity.models import FourMaps, TinyBackbone, contiguous
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.axis import Axis
from vistrain.segmentation import SegFormerHead, SemanticSegmenter
from vistrain.segmentation.inference import (
    View,
    best_classes,
    probabilities,
)
from vistrain.segmentation.sliding_windows import Windows
from vistrain.structures import Factory, Preprocessing

CHANNELS, STRIDES = (4, 6, 8, 10), (4, 8, 16, 32)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def segmenter(divisor: int = 1, **more: Any) -> SemanticSegmenter:
    torch.manual_seed(0)
    preprocessing = Preprocessing((0.5,) * 3, (0.2,) * 3, size_divisor=divisor)
    backbone = TinyBackbone(FourMaps(list(CHANNELS)), CHANNELS, STRIDES, preprocessing)
    return SemanticSegmenter(backbone, contiguous(5), Factory(SegFormerHead, embed_dim=8), **more).eval()


def batch_of(size: tuple[int, int], original: tuple[int, int]) -> dict[str, Any]:
    image = torch.randint(256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"image": image, "size": torch.tensor([size]), "original_size": torch.tensor([original])}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("cells", "padded", "cut", "wanted"), [(9, 36, 33, 50), (9, 36, 36, 36), (1, 4, 3, 11), (13, 40, 40, 7)]
)
def test_an_axis_is_what_interpolate_does_step_by_step(
    cells: int, padded: int, cut: int, wanted: int, align_corners: bool
) -> None:
    x = noise(1, 2, cells)
    steps: dict[str, Any] = {"mode": "linear", "align_corners": align_corners}
    whole = F.interpolate(F.interpolate(x, padded, **steps)[..., :cut], wanted, **steps)[0]
    axis = Axis.resized(cells, padded, align_corners).first(cut).then(Axis.resized(cut, wanted, align_corners))
    place, matrix = axis.between(0, wanted, x)
    torch.testing.assert_close(x[0][:, place] @ matrix.mT, whole)
    place, matrix = axis.mirrored().between(1, wanted, x)
    torch.testing.assert_close(x[0][:, place] @ matrix.mT, whole.flip(-1)[..., 1:])


def test_classes_of_one_view_and_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vistrain.segmentation.inference.CACHED", 5 * 16 * 3)
    monkeypatch.setattr("vistrain.segmentation.inference.COLUMNS", 16)  # many tiles
    logits = [noise(5, 6, 8) * 3, noise(5, 9, 12).roll(1, 0) * 3]
    views = [View(x, *(Axis.resized(a, b) for a, b in zip(x.shape[1:], (21, 40), strict=True))) for x in logits]
    enlarged = [F.interpolate(x[None], (21, 40), mode="bilinear")[0] for x in logits]
    assert torch.equal(best_classes(views[:1]), enlarged[0].argmax(0))
    mean = torch.stack([x.softmax(0) for x in enlarged]).mean(0)
    assert torch.equal(best_classes(views), mean.argmax(0))
    torch.testing.assert_close(probabilities(views), mean)
    torch.testing.assert_close(probabilities(views[:1]), enlarged[0].softmax(0))


@pytest.mark.parametrize("merge", ["mean", "blend", "cut"])
def test_windows_of_what_does_not_look_around_give_it_back(merge: Any) -> None:
    image = noise(2, 50, 41).float()
    for window, stride in (((32, 32), (20, 20)), ((16, 41), (16, 10)), ((64, 20), (64, 13))):
        found = Windows(window, stride, 3, merge).logits(lambda x: x, image, (50, 41))
        torch.testing.assert_close(found, image)


def test_where_windows_overlap() -> None:
    """Two windows of 8 pixels that overlap by 4; each says its own number everywhere."""
    calls: list[int] = []

    def network(x: Tensor) -> Tensor:
        numbers = torch.arange(len(calls), len(calls) + len(x), dtype=torch.float32)
        calls.extend(range(len(x)))
        return numbers.view(-1, 1, 1, 1).expand(-1, 1, 1, 2)  # coarser than the window

    rows = {}
    for merge in ("mean", "cut", "blend"):
        calls.clear()
        windows = Windows((4, 8), (4, 4), 4, merge)  # type: ignore[arg-type]
        rows[merge] = windows.logits(network, torch.zeros(3, 4, 12), (4, 12))[0, 0].tolist()
    assert rows["mean"] == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
    assert rows["cut"] == [0.0] * 6 + [1.0] * 6
    assert rows["blend"] == pytest.approx([0.0] * 4 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 4)


def test_rows_of_windows_are_forgotten() -> None:
    image = noise(3, 96, 40).float()
    for size in ((96, 40), (140, 61), (37, 20)):
        windows = Windows((32, 32), (16, 16))
        bands = list(windows.bands(lambda x: x, image, (96, 40), size))
        assert [top for top, _ in bands] == [0, *(top + band.size[0] for top, band in bands[:-1])]
        assert sum(band.size[0] for _, band in bands) == size[0]
        # Of two rows of windows, two in each; of a third one, where pixels are between those of two.
        assert [len(band.parts) for _, band in bands] == ([2, 4, 4, 4, 4] if size == (96, 40) else [2, 4, 6, 6, 6])
        whole = F.interpolate(image[None], size, mode="bilinear")[0].argmax(0)
        assert torch.equal(windows.class_map(lambda x: x, image, (96, 40), size), whole)


@pytest.mark.parametrize("window", [None, (32, 32)])
@pytest.mark.parametrize("divisor", [1, 16])
def test_predictions_are_those_of_the_long_way(window: tuple[int, int] | None, divisor: int) -> None:
    size, original = (42, 51), (61, 47)
    batch = batch_of(size, original)
    model = segmenter(divisor, window=window)
    logits = F.interpolate(model.image_logits(batch)[0][None], original, mode="bilinear")[0]
    assert (model.predict(batch)[0].semantic == logits.argmax(0)).float().mean() > 0.999
    torch.testing.assert_close(model.image_probabilities(batch)[0], logits.softmax(0), rtol=0, atol=1e-5)
    tiles, seen = torch.full((5, *original), -1.0), torch.zeros(original)
    for rows, columns, tile in model.probability_tiles(batch):
        tiles[:, rows, columns] = tile
        seen[rows, columns] += 1
    assert bool((seen == 1).all())
    torch.testing.assert_close(tiles, logits.softmax(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, (32, 32)])
def test_several_scales_mirrored(window: tuple[int, int] | None) -> None:
    size, original = (40, 52), (60, 47)
    batch = batch_of(size, original)
    model = segmenter(window=window, scales=(0.75, 1.25), flip=True)
    plain = segmenter(window=window)
    images, _ = plain.normalize(batch["image"], batch["size"])
    total = torch.zeros(5, *original)
    for sides in ((30, 39), (50, 65)):
        scaled = F.interpolate(images, sides, mode="bilinear")
        for flip in (False, True):
            view = scaled.flip(-1) if flip else scaled
            if window is None:
                logits = F.interpolate(plain(view), sides, mode="bilinear")
            else:
                logits = Windows(window, window).logits(plain, view[0], sides)[None]
            share = F.interpolate(logits, original, mode="bilinear").softmax(1)[0]
            total += share.flip(-1) if flip else share
    with torch.no_grad():
        assert (model.predict(batch)[0].semantic == total.argmax(0)).float().mean() > 0.999
        torch.testing.assert_close(model.image_probabilities(batch)[0], total / 4, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.0,)}, {"window": (32, 32), "window_stride": (32, 33)}])
def test_wrong_choices_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.(scales|window_stride)"):
        segmenter(**wrong)
