"""Semantic segmenters: heads on any backbone, losses, labels of the original size, bad targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity.models import FourMaps, TinyBackbone, contiguous
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone
from vistrain.errors import ConfigError, DataError
from vistrain.layers.conv import resize
from vistrain.losses import OhemCrossEntropy, PixelCrossEntropy
from vistrain.necks import FPN
from vistrain.segmentation import (
    BEVANet,
    DAFormerHead,
    ESPNet,
    ESPNetC,
    FCNHead,
    FPNHead,
    SegFormerHead,
    SemanticSegmenter,
    UPerHead,
    VWCityHead,
    VWHead,
    WNet,
)
from vistrain.segmentation.bevanet import boundaries
from vistrain.segmentation.inference import class_map
from vistrain.segmentation.projections import convolved_enlarged
from vistrain.segmentation.sliding_windows import Windows
from vistrain.segmentation.wnet import spline_resized
from vistrain.structures import Factory, LabelSpace, Preprocessing

STRIDES, CHANNELS = (4, 8, 16, 32), (4, 6, 8, 10)
HEADS: dict[str, Any] = {
    "upernet": Factory(UPerHead, embed_dim=8),
    "upernet of one pool, corners aligned": Factory(UPerHead, embed_dim=8, pool_scales=(2,), align_corners=True),
    "fcn with its input": Factory(FCNHead, embed_dim=8, num_convs=2, dilation=2, concat_input=True),
    "fcn without convolutions": Factory(FCNHead, embed_dim=8, num_convs=0),
    "semantic fpn": Factory(FPNHead, embed_dim=8),
    "segformer": Factory(SegFormerHead, embed_dim=8),
    "daformer": Factory(DAFormerHead, embed_dim=8),
    "daformer, plain and with pooling": Factory(DAFormerHead, embed_dim=8, separable=False, pool=True),
    "vwformer": Factory(VWHead, embed_dim=64, num_heads=2),
    "vwformer of cityscapes": Factory(VWCityHead, embed_dim=64, short_cut=False),
}


def backbone() -> TinyBackbone:
    return TinyBackbone(FourMaps(list(CHANNELS)), CHANNELS, STRIDES, Preprocessing((0.5,) * 3, (0.2,) * 3))


def batch_of(*sizes: tuple[int, int], classes: int = 3, padded: tuple[int, int] | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    height, width = padded or (max(h for h, _ in sizes), max(w for _, w in sizes))
    labels = [torch.randint(classes, size, generator=generator, dtype=torch.uint8) for size in sizes]
    for label in labels:
        label[:2] = 255
    image = torch.randint(256, (len(sizes), 3, height, width), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "size": torch.tensor(sizes),
        "original_size": torch.tensor(sizes) + 7,
        "id": [f"image {i}" for i in range(len(sizes))],
        "target": [{"label_map": label} for label in labels],
    }


@pytest.mark.parametrize("name", list(HEADS))
def test_a_head_trains_every_parameter_and_predicts_in_the_original_size(name: str) -> None:
    torch.manual_seed(0)
    model = SemanticSegmenter(backbone(), contiguous(3), HEADS[name], auxiliary=Factory(FCNHead, embed_dim=4))
    batch = batch_of((64, 64), (64, 64))
    losses = model.losses(batch)
    assert set(losses) == {"loss_seg", "loss_aux"}
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    unseen = "backbone.body.layer4." if name.startswith("fcn") else "none"  # that head looks at stride 16 alone
    assert [n for n in idle if not n.startswith(unseen)] == []
    for found, size in zip(model.eval().predict(batch), batch["original_size"].tolist(), strict=True):
        assert list(found.semantic.shape) == size
        assert 0 <= found.semantic.min() <= found.semantic.max() < 3


@pytest.mark.parametrize("name", ["segformer", "vwformer", "vwformer of cityscapes"])
def test_the_order_that_costs_least_is_exact(name: str) -> None:
    """Against projecting, enlarging, concatenating and then fusing, in double precision."""
    torch.manual_seed(0)
    head = HEADS[name](channels=CHANNELS, strides=STRIDES, num_classes=3).double().eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight)
    maps = [
        torch.randn(2, c, 64 // s * 4, 96 // s * 4, dtype=torch.float64) for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]
    first = 0 if name == "segformer" else 1
    projected = [getattr(head, f"linear_c{i + 1}")(maps[i]) for i in range(first, 4)]
    mode: dict[str, Any] = {"mode": "nearest"} if "cityscapes" in name else {"mode": "bilinear"}
    enlarged = [F.interpolate(x, projected[0].shape[2:], **mode) for x in projected]
    x = head.linear_fuse(torch.cat(enlarged[::-1], 1))
    if first:
        pooled = [head.image_pool(x).expand_as(x)] if name == "vwformer" else []
        x = head.cat(torch.cat((head.short_path(x), *pooled, *head.attend(x, head.contexts(x))), 1))
        x = F.interpolate(x, maps[0].shape[2:], mode="bilinear")
        x = head.low_level_fuse(torch.cat((x, head.linear_c1(maps[0])), 1))
    torch.testing.assert_close(head.features(maps), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_convolution_of_an_enlarged_map_is_exact(align_corners: bool) -> None:
    """And so is UPerNet's head, against enlarging, concatenating and then convolving, in double precision."""
    generator = torch.Generator().manual_seed(0)
    for old, new in (((5, 7), (9, 13)), ((4, 3), (4, 3)), ((3, 4), (24, 16)), ((1, 2), (2, 4))):
        x, weight, gradient = (
            torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
            for shape in ((2, 6, *old), (4, 6, 3, 3), (2, 4, *new))
        )
        plain = F.conv2d(resize(x, new, align_corners), weight, padding=1)
        found = convolved_enlarged(x, weight, new, align_corners)
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(y, (x, weight), gradient) for y in (found, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    torch.manual_seed(0)
    head = UPerHead(CHANNELS, STRIDES, 3, embed_dim=8, align_corners=align_corners).double().eval()
    maps = [torch.randn(1, c, 64 // s, 96 // s, dtype=torch.float64) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    seen: list[torch.Tensor] = []
    for conv in (*head.fpn_convs, head.bottleneck):
        conv.register_forward_hook(lambda _m, _i, y: seen.append(y))
    found = head.features(maps)
    levels = [resize(x, maps[0].shape[2:], align_corners) for x in (*seen[1:], seen[0])]  # the bottleneck comes first
    torch.testing.assert_close(found, head.fpn_bottleneck(torch.cat(levels, 1)), rtol=1e-9, atol=1e-9)


def test_windows_attend_as_torch_does_on_contexts_cut_by_hand() -> None:
    torch.manual_seed(0)
    head = HEADS["vwformer of cityscapes"](channels=CHANNELS, strides=STRIDES, num_classes=3).eval()
    x = torch.randn(1, 64, 16, 24)
    contexts, found = head.contexts(x), head.attend(x, head.contexts(x))
    row, column, ratio, index = 2, 7, 4, 1  # one window of 2 x 3 cells and its context of 8 x 12
    reduced = head.ds[index](F.pad(x, (1, 2, 1, 2)))
    reduced = torch.cat((reduced[..., 7:12], reduced, reduced[..., 12:17]), 3)  # (r + 1) p / 2 to r p, p = 3
    reduced = torch.cat((reduced[:, :, 5:8], reduced, reduced[:, :, 8:11]), 2)  # p = 2
    window = reduced[0, :, row * 2 : row * 2 + 8, column * 3 : column * 3 + 12]
    folded = torch.stack([window[:, i::ratio, j::ratio] for i in range(4) for j in range(4)]).flatten(0, 1)
    torch.testing.assert_close(contexts[index][row * 8 + column], folded)
    query = x[:, :, row * 2 : row * 2 + 2, column * 3 : column * 3 + 3].flatten(2).mT
    keys = folded[None].flatten(2).mT
    out = head.attn[index](query, keys, keys)[0].mT.unflatten(2, (2, 3))
    torch.testing.assert_close(found[index][:, :, row * 2 : row * 2 + 2, column * 3 : column * 3 + 3], out)


def test_a_map_that_cannot_be_cut_into_windows_is_refused() -> None:
    model = SemanticSegmenter(backbone(), contiguous(3), HEADS["vwformer"]).eval()
    with pytest.raises(ConfigError, match="multiples of 64"):
        model(torch.zeros(1, 3, 64, 72))


def test_a_plain_transformer_drives_a_head_of_four_levels() -> None:
    plain = Backbone("vit_tiny_patch16_224", strides=STRIDES, args={"depth": 1, "img_size": 64, "embed_dim": 24})
    model = SemanticSegmenter(plain, contiguous(3), Factory(UPerHead, embed_dim=8))
    assert model.decode_head.strides == STRIDES
    assert model.eval().predict(batch_of((64, 64)))[0].semantic.shape == (71, 71)


def test_an_image_is_predicted_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    model = SemanticSegmenter(backbone(), contiguous(3), HEADS["upernet"]).eval()  # its pooling sees the whole image
    together = batch_of((64, 96), (40, 56))
    alone = {k: v[1:] if k != "image" else v[1:, :, :40, :56] for k, v in together.items()}
    torch.testing.assert_close(model.image_logits(together)[1], model.image_logits(alone)[0], rtol=0, atol=1e-5)


def test_necks_stand_between() -> None:
    model = SemanticSegmenter(backbone(), contiguous(3), HEADS["semantic fpn"], neck=Factory(FPN, embed_dim=12))
    assert model.decode_head.channels == (12,) * 4
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (13, 9), (7, 11), (30, 7)])
def test_class_map_is_the_arg_max_of_enlarged_logits(
    size: tuple[int, int], align_corners: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr("vistrain.segmentation.inference.SLAB", 4 * 48 * 5)  # several slabs
    logits = torch.randn(4, 13, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=align_corners)[0].argmax(0)
    assert torch.equal(class_map(logits, size, align_corners), whole)


def test_sliding_windows_cover_all_and_are_averaged() -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x + torch.arange(len(x)).view(-1, 1, 1, 1) * 0

    image = torch.randn(2, 50, 41)
    windows = Windows((32, 32), (20, 20), batch=3)
    torch.testing.assert_close(windows.logits(network, image, (50, 41)), image)
    assert sum(shape[0] for shape in seen) == 4
    assert windows.logits(network, image[:, :20, :10], (20, 10)).shape == (2, 20, 10)


def test_bad_label_maps_are_refused_with_the_image_and_the_reason() -> None:
    model = SemanticSegmenter(backbone(), contiguous(3), HEADS["segformer"])
    batch = batch_of((32, 32), (32, 32))
    batch["target"][1]["label_map"][5, 5] = 7
    with pytest.raises(DataError, match=r"image 1.*label 7"):
        model.losses(batch)
    batch["target"][1]["label_map"] = torch.zeros(31, 32)
    with pytest.raises(DataError, match="31"):
        model.losses(batch)


def test_an_image_without_labels_costs_nothing_and_breaks_nothing() -> None:
    labels = LabelSpace(("a", "b", "c"), (0, 1, 2), ignore_index=9)
    for loss in (PixelCrossEntropy(), PixelCrossEntropy(over_all=False), OhemCrossEntropy()):
        model = SemanticSegmenter(backbone(), labels, HEADS["segformer"], loss=loss)
        batch = batch_of((32, 32))
        batch["target"][0]["label_map"].fill_(9)
        value = model.losses(batch)["loss_seg"]
        value.backward()
        assert value == 0


def test_cross_entropy_counts_as_mmsegmentation_or_as_torch_does() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    labels[0, :2] = 255
    weights = (0.5, 1.0, 2.0)
    each = F.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255, reduction="none")
    torch.testing.assert_close(PixelCrossEntropy(weights)(logits, labels, 255), each.mean())
    mean = F.cross_entropy(logits, labels, torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(PixelCrossEntropy(weights, over_all=False)(logits, labels, 255), mean)
    count = torch.tensor(50.0)
    counted = PixelCrossEntropy(over_all=False)(logits, labels, 255, count)
    torch.testing.assert_close(counted, F.cross_entropy(logits, labels, ignore_index=255, reduction="sum") / 50)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.3, 1), (0.3, 25), (0.9, 5), (0.0, 1000)])
def test_ohem_keeps_the_hard_pixels(threshold: float, min_kept: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(2, 3, 4, 5, generator=generator), torch.randint(3, (2, 4, 5), generator=generator)
    labels[0, 0] = 255
    rows = [
        (F.log_softmax(logits[b, :, y, x], 0)[labels[b, y, x]].item())
        for b in range(2) for y in range(4) for x in range(5) if labels[b, y, x] != 255
    ]  # fmt: skip
    shares = torch.tensor(rows).exp()
    limit = max(shares.sort().values[min(min_kept, len(rows) - 1)].item(), threshold)
    hard = [-row for row, share in zip(rows, shares.tolist(), strict=True) if share < limit]
    torch.testing.assert_close(OhemCrossEntropy(threshold, min_kept)(logits, labels, 255), torch.tensor(hard).mean())


@pytest.mark.parametrize(
    "make",
    [
        lambda labels: ESPNet(labels, alpha3=1, skip="raw"),
        lambda labels: ESPNetC(labels, alpha3=1, statistics="camvid"),
        lambda labels: WNet(labels),
        lambda labels: BEVANet(labels, width=8, pyramid_width=8, head_width=8),
        lambda labels: BEVANet(
            labels, (7, 0, 0), (11, 0), width=8, pyramid_width=8, head_width=8, blocks=(1, 1, 2, 2, 2)
        ),
    ],
    ids=["espnet", "espnet_c", "wnet", "bevanet", "bevanet of other kernels"],
)
def test_whole_networks_train_every_parameter_and_predict(make: Any) -> None:
    torch.manual_seed(0)
    model = make(contiguous(5))
    batch = batch_of((128, 64), (128, 64), classes=5)
    losses = model.losses(batch)
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    for found, size in zip(model.eval().predict(batch), batch["original_size"].tolist(), strict=True):
        assert list(found.semantic.shape) == size


def test_wnet_of_two_classes_has_one_output() -> None:
    model = WNet(contiguous(2), mirrored=False).eval()
    batch = batch_of((32, 32), classes=2)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)
    assert set(model.losses(batch)) == {"loss_first", "loss_seg"}
    share = model.probabilities(torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(share.sum(1), torch.ones(1, 32, 32))


def test_wnet_enlarges_probabilities_by_splines_and_decides() -> None:
    torch.manual_seed(0)
    model = WNet(contiguous(2), mirrored=False, threshold=0.5).eval()
    batch = batch_of((32, 32), classes=2)
    batch["original_size"] = torch.tensor([[45, 50]])
    (found,) = model.predict(batch)
    share = found.probabilities
    assert share.shape == (2, 45, 50)
    torch.testing.assert_close(255 * share[1], (255 * share[1]).round(), rtol=0, atol=1e-4)
    assert ((share[1] > 0.5) == (found.semantic == 1)).all()
    plain = WNet(contiguous(2), mirrored=False, threshold=0.5, quantised=False).eval()
    plain.load_state_dict(model.state_dict())
    images, _ = model.normalize(batch["image"], batch["size"])
    spline = spline_resized(model.probabilities(images)[0, 1:], (45, 50))
    torch.testing.assert_close(plain.predict(batch)[0].probabilities[1:], spline, rtol=0, atol=1e-7)


def test_splines_interpolate_and_stay_between_least_and_greatest() -> None:
    wave = torch.linspace(0, 3, 24).sin()[None, :, None] * torch.linspace(0, 2, 30).cos()[None, None]
    same = spline_resized(wave, (24, 30))
    torch.testing.assert_close(same, wave, rtol=0, atol=1e-6)
    larger = spline_resized(wave, (72, 90))
    torch.testing.assert_close(larger[:, 1::3, 1::3], wave, rtol=0, atol=1e-6)  # of pixels cut in three
    assert larger.min() >= wave.min()
    assert larger.max() <= wave.max()
    step = torch.zeros(1, 8, 8)
    step[:, :, 4:] = 1
    assert spline_resized(step, (5, 5))[0, 2, 1] > 0.01  # smoothed before it shrinks; else it would overshoot, cut to 0


def test_an_uncertain_class_is_shared_out() -> None:
    labels = LabelSpace(("background", "uncertain", "artery", "vein"), (0, 85, 170, 255))
    model = WNet(labels, shared="uncertain").eval()
    shares = torch.tensor([0.3, 0.45, 0.2, 0.05])[:, None, None]
    found = model._decided(shares)
    assert found.semantic.item() == 2  # 0.2 + 0.45 / 2 is most
    torch.testing.assert_close(found.probabilities.flatten(), torch.tensor([0.3, 0.0, 0.425, 0.275]))
    with pytest.raises(ConfigError, match=r"model\.shared: 'background'"):
        WNet(labels, shared="background")


def test_boundaries_lie_where_classes_meet() -> None:
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[:, :, 6:] = 1
    found = boundaries(labels)[0]
    assert found[:, 4:8].any(1).all()
    assert not found[:, :4].any()
    assert not found[:, 9:].any()


def test_deep_supervision_trains_a_head_of_each_stride() -> None:
    torch.manual_seed(0)
    heads = tuple(Factory(FCNHead, embed_dim=4, stride=stride) for stride in (8, 16, 32))
    model = SemanticSegmenter(backbone(), contiguous(3), HEADS["segformer"], auxiliary=heads)
    losses = model.losses(batch_of((64, 64)))
    assert set(losses) == {"loss_seg", "loss_aux_0", "loss_aux_1", "loss_aux_2"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
