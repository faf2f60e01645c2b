"""Networks for volumes: windows, regions, deep supervision, slices."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints import load_weights
from vistrain.errors import ConfigError
from vistrain.losses import PixelCrossEntropy, PixelDice, PixelLosses
from vistrain.segmentation import Slices, UNet2d, UNet3d, VolumeNetwork, VolumeSegmenter, volume_windows
from vistrain.segmentation.volume_windows import enlarged_planes, sliding_planes, window_starts, window_weights
from vistrain.structures import Factory, LabelSpace

CLASSES = LabelSpace(("background", "one", "two"), (0, 1, 2))
TUMOUR = LabelSpace(
    ("background", "necrosis", "oedema", "enhancing"),
    (0, 1, 2, 4),
    regions=(("WT", (1, 2, 3)), ("TC", (1, 3)), ("ET", (3,))),
)


class Pointwise(VolumeNetwork):
    """Logits of each voxel by itself."""

    divisors = (2, 2, 2)

    def __init__(self, in_channels: int, out_channels: int, levels: int = 1) -> None:
        super().__init__()
        self.levels, self.conv = levels, nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        logits = self.conv(images)
        if not self.training or self.levels == 1:
            return logits
        return [logits, *(F.avg_pool3d(logits, 2**level) for level in range(1, self.levels))]


def batch_of(*shapes: tuple[int, ...], channels: int = 1, classes: int = 3) -> dict:
    """Cases of random voxels, padded to the largest."""
    sides = [max(shape[axis] for shape in shapes) for axis in range(3)]
    images = torch.zeros(len(shapes), channels, *sides)
    targets = []
    for image, (d, h, w) in zip(images, shapes, strict=True):
        image[:, :d, :h, :w] = torch.randn(channels, d, h, w)
        targets.append({"label_map": torch.randint(classes, (d, h, w), dtype=torch.uint8)})
    size = torch.tensor(shapes)
    return {"image": images, "size": size, "original_size": size, "target": targets, "id": list(range(len(shapes)))}


@pytest.mark.parametrize(
    ("side", "window", "overlap"), [(20, 8, 0.5), (9, 8, 0.5), (8, 8, 0.5), (5, 8, 0.25), (31, 8, 0.0)]
)
def test_windows_cover_a_side_and_weigh_1(side: int, window: int, overlap: float) -> None:
    starts = window_starts(side, window, overlap)
    weights = window_weights(side, window, starts)
    total = torch.zeros(max(side, window), dtype=torch.float64)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + window] += row
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(b - a <= max(1, int(window * (1 - overlap))) for a, b in itertools.pairwise(starts))
    assert starts[-1] == max(side - window, 0)


@pytest.mark.parametrize("shape", [(13, 11, 9), (3, 11, 4)])
def test_planes_are_the_gaussian_mean_of_windows(shape: tuple[int, ...]) -> None:
    """Against weights in three axes, written out."""
    torch.manual_seed(0)
    window, mixed = (6, 4, 8), torch.randn(4, 2, 3, 3, 3)

    def network(images: Tensor) -> Tensor:
        return F.conv3d(images, mixed, padding=1)

    image = torch.randn(2, *shape)
    found = torch.stack(list(sliding_planes(network, image, window, 0.5, 4, batch=3)), 1)
    extra = [max(0, b - a) for a, b in zip(shape, window, strict=True)]
    border = [n for more in reversed(extra) for n in (more // 2, more - more // 2)]
    padded = F.pad(image, border)
    axes = [torch.arange(s) - (s - 1) / 2 for s in window]
    square = sum(
        (a * 8 / s).square()[(...,) + (None,) * (2 - i)] for i, (a, s) in enumerate(zip(axes, window, strict=True))
    )
    bell = torch.exp(-0.5 * square.double())
    total, weight = (
        torch.zeros(4, *padded.shape[1:], dtype=torch.float64),
        torch.zeros(padded.shape[1:], dtype=torch.float64),
    )
    places = [window_starts(side, length, 0.5) for side, length in zip(padded.shape[1:], window, strict=True)]
    for z in places[0]:
        for y in places[1]:
            for x in places[2]:
                part = (slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
                total[:, *part] += network(padded[None, :, *part])[0] * bell
                weight[part] += bell
    low = [more // 2 for more in extra]
    wanted = (total / weight)[:, *(slice(a, a + s) for a, s in zip(low, shape, strict=True))]
    torch.testing.assert_close(found, wanted.float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("new", [(7, 9, 5), (3, 4, 12), (5, 6, 7)])
def test_planes_are_enlarged_as_interpolate_does(new: tuple[int, int, int]) -> None:
    volume = torch.randn(2, 5, 6, 7)
    found = torch.stack(list(enlarged_planes(iter(volume.unbind(1)), (5, 6, 7), new)), 1)
    wanted = F.interpolate(volume[None], new, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_windows_of_a_pointwise_network_change_nothing() -> None:
    torch.manual_seed(0)
    whole = VolumeSegmenter(CLASSES, Factory(Pointwise)).eval()
    cut = VolumeSegmenter(CLASSES, Factory(Pointwise), window=(4, 4, 4), window_batch=3, mirror=(0, 2)).eval()
    cut.load_state_dict(whole.state_dict())
    batch = batch_of((7, 9, 5), (3, 9, 2))
    for one, other in zip(whole.predict(batch), cut.predict(batch), strict=True):
        assert torch.equal(one.semantic, other.semantic)
    assert [tuple(p.semantic.shape) for p in whole.predict(batch)] == [(7, 9, 5), (3, 9, 2)]


def test_many_windows_are_said_before_they_are_computed(caplog: pytest.LogCaptureFixture) -> None:
    """Once; planes are computed as they are asked for, and none is here."""
    cut = VolumeSegmenter(CLASSES, Factory(Pointwise), window=(4, 4, 4), overlap=0.99, mirror=(0, 2)).eval()
    for side in (24, 26, 28):  # 21, 23, 25 windows along each axis
        cut.planes(torch.zeros(1, side, side, side), [(0, side)] * 3)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        "26x26x26 voxels are cut into 12167 windows of 4x4x4 (model.window, model.overlap=0.99), each"
    )
    assert "in 4 mirror images" in said
    caplog.clear()
    VolumeSegmenter(CLASSES, Factory(Pointwise)).planes(torch.zeros(1, 28, 28, 28), [(0, 28)] * 3)
    assert not caplog.records


def test_a_box_is_put_back_into_its_case() -> None:
    model = VolumeSegmenter(CLASSES, Factory(Pointwise)).eval()
    batch = batch_of((4, 6, 8))
    batch |= {"original_size": torch.tensor([[9, 8, 10]]), "box": torch.tensor([[[2, 6], [1, 7], [0, 8]]])}
    (found,) = model.predict(batch)
    wanted = model(batch["image"])[0].argmax(0)
    assert torch.equal(found.semantic[2:6, 1:7, :8].long(), wanted)
    outside = found.semantic.clone()
    outside[2:6, 1:7, :8] = 0
    assert not outside.any()
    (shares,) = model.case_probabilities(batch)
    torch.testing.assert_close(shares.float().sum(0), torch.ones(9, 8, 10), atol=2e-3, rtol=0)
    assert torch.equal(shares.argmax(0)[2:6, 1:7, :8], wanted)


def test_regions_are_painted_in_their_order() -> None:
    model = VolumeSegmenter(TUMOUR, Factory(Pointwise), outputs="regions")
    assert model.painted == (2, 1, 3)
    assert model.num_outputs == 3
    scores = torch.tensor([[-1.0, 1, 1, 1], [-1, -1, 1, 1], [-1, -1, -1, 1]])
    assert model.plane_classes(scores).tolist() == [0, 2, 1, 3]


def test_the_loss_of_regions_is_that_of_each_by_itself() -> None:
    loss = PixelLosses([PixelCrossEntropy(over_all=False), PixelDice(background=False)])
    model = VolumeSegmenter(TUMOUR, Factory(Pointwise), outputs="regions", loss=loss)
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(4, (2, 4, 4, 4))
    labels[0, 0] = 255
    kept = labels != 255
    parts = []
    for index, members in enumerate(((1, 2, 3), (1, 3), (3,))):
        truth = torch.isin(labels, torch.tensor(members))[kept].float()
        share = logits[:, index][kept]
        p = share.sigmoid()
        dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        parts.append(F.binary_cross_entropy_with_logits(share, truth) + dice)
    torch.testing.assert_close(model.output_loss(logits, labels), torch.stack(parts).mean())


def test_deep_supervision_weighs_levels() -> None:
    torch.manual_seed(0)
    model = VolumeSegmenter(CLASSES, Factory(Pointwise, levels=3), loss=PixelCrossEntropy(over_all=False))
    batch = batch_of((8, 8, 8))
    found = model.losses(batch)
    assert list(found) == ["loss_seg", "loss_deep1", "loss_deep2"]
    labels = batch["target"][0]["label_map"].long()[None]
    coarse = F.interpolate(labels[:, None].float(), (4, 4, 4), mode="nearest-exact")[:, 0].long()
    wanted = F.cross_entropy(F.avg_pool3d(model(batch["image"]), 2), coarse) * (0.5 / 1.75)
    torch.testing.assert_close(found["loss_deep1"], wanted)
    uneven = VolumeSegmenter(CLASSES, Factory(Pointwise, levels=3), deep_weights=(1.0, 0.5))
    with pytest.raises(ConfigError, match="3 levels"):
        uneven.losses(batch)


@pytest.mark.parametrize("residual", [False, True])
def test_unet_in_three_and_two_axes(residual: bool) -> None:
    torch.manual_seed(0)
    sizes = {"widths": (4, 6, 8), "residual": residual}
    anisotropic = Factory(UNet3d, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), **sizes)
    for network, divisors in (
        (Factory(UNet3d, **sizes), (4, 4, 4)),
        (anisotropic, (2, 4, 4)),
        (Factory(Slices, network=Factory(UNet2d, **sizes)), (1, 4, 4)),
    ):
        model = VolumeSegmenter(CLASSES, network, window=(4, 8, 8), channels=2)
        assert model.network.divisors == divisors
        batch = batch_of((4, 8, 8), (4, 8, 8), channels=2)
        losses = model.losses(batch)
        assert set(losses) == {"loss_seg", "loss_deep1"}
        sum(losses.values()).backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "bias" not in n
        )
        model.eval()
        assert model(batch["image"]).shape == (2, 3, 4, 8, 8)
        assert model.predict(batch_of((5, 9, 7), channels=2))[0].semantic.shape == (5, 9, 7)


def test_slices_do_not_know_of_each_other() -> None:
    model = VolumeSegmenter(CLASSES, Factory(Slices, network=Factory(UNet2d, widths=(4, 8)))).eval()
    image = torch.randn(2, 1, 3, 8, 8)
    whole = model(image)
    torch.testing.assert_close(model(image[:, :, 1:2]), whole[:, :, 1:2])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"multiples of \[2, 2, 2\].*such as \[6, 4, 8\]"):
        VolumeSegmenter(CLASSES, Factory(Pointwise), window=(5, 4, 8))
    with pytest.raises(ConfigError, match="names none"):
        VolumeSegmenter(CLASSES, Factory(Pointwise), outputs="regions")
    inner_first = LabelSpace(("b", "x", "y"), (0, 1, 2), regions=(("X", (1,)), ("XY", (1, 2))))
    with pytest.raises(ConfigError, match="larger region first"):
        VolumeSegmenter(inner_first, Factory(Pointwise), outputs="regions")
    with pytest.raises(ConfigError, match="one for each level"):
        UNet3d(1, 2, widths=(4, 8), depths=(1, 1, 1))


def test_slabs_that_are_too_large_are_held_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixed, image = torch.randn(4, 1, 3, 3, 3), torch.randn(1, 12, 9, 9)

    def found() -> Tensor:
        planes = sliding_planes(lambda x: F.conv3d(x, mixed, padding=1), image, (4, 4, 4), 0.5, 4)
        return torch.stack(list(planes), 1)

    whole = found()
    monkeypatch.setattr(volume_windows, "HELD", 0)
    half = found()
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "network", [Factory(UNet3d, widths=(4, 6)), Factory(Slices, network=Factory(UNet2d, widths=(4, 6)))]
)
def test_weights_for_other_classes_start_a_run(network: Factory) -> None:
    torch.manual_seed(0)
    old, new = VolumeSegmenter(CLASSES, network), VolumeSegmenter(TUMOUR, network)
    found = load_weights(new, old.state_dict(), class_layers=new.class_layers)
    assert {item.name.rpartition("heads.")[2] for item in found.left_out} == {"0.weight", "0.bias"}
    kept = {name for name in old.state_dict() if "heads" not in name}
    assert all(torch.equal(old.state_dict()[name], new.state_dict()[name]) for name in kept)
