"""Mask classification: training without objects, points, costs, padding, what is made of the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.models import FourMaps, TinyBackbone, contiguous
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError, DataError
from vistrain.layers.conv import resize
from vistrain.layers.packed_masks import PackedMasks
from vistrain.layers.points import sample_maps, sample_masks
from vistrain.losses import MaskCriterion
from vistrain.matching import MaskMatcher
from vistrain.segmentation import (
    PEM,
    DeformablePixelDecoder,
    ECOMask2Former,
    GatedPixelDecoder,
    Mask2Former,
    MaskedDecoder,
    PEMDecoder,
    PEMPixelDecoder,
)
from vistrain.segmentation.mask_classifier import boxes_of
from vistrain.structures import Factory, Preprocessing

CHANNELS, STRIDES = (4, 6, 8, 10), (4, 8, 16, 32)
DECODER = {"embed_dim": 32, "num_queries": 5, "num_layers": 3, "num_heads": 4, "ffn_dim": 16}
PIXELS = {"embed_dim": 32, "mask_dim": 8}
ENCODER = {"num_layers": 3, "num_heads": 4, "ffn_dim": 16}
MASKED = Factory(MaskedDecoder, **DECODER)
GATED = Factory(GatedPixelDecoder, num_gates=2, **PIXELS, **ENCODER)
KINDS: dict[str, Any] = {
    "mask2former": (Mask2Former, Factory(DeformablePixelDecoder, **PIXELS, **ENCODER), MASKED),
    "eco": (ECOMask2Former, GATED, MASKED),
    "pem": (PEM, Factory(PEMPixelDecoder, **PIXELS), Factory(PEMDecoder, **DECODER)),
}


def network(name: str = "mask2former", **changes: Any) -> Any:
    torch.manual_seed(0)
    kind, pixels, decoder = KINDS[name]
    body = TinyBackbone(FourMaps(list(CHANNELS)), CHANNELS, STRIDES, Preprocessing())
    labels = replace(contiguous(4), things=(1, 3))
    arguments = {"criterion": MaskCriterion(num_points=20), **changes}
    return kind(body, labels, pixel_decoder=pixels, decoder=decoder, **arguments)


def batch_of(*counts: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(64, 96), (50, 40)][: len(counts)]
    targets = [
        {
            "labels": torch.randint(4, (n,), generator=generator),
            "masks": torch.rand((n, *size), generator=generator) > 0.5,
        }
        for n, size in zip(counts, sizes, strict=True)
    ]
    image = torch.randint(256, (len(counts), 3, 64, 96), generator=generator, dtype=torch.uint8)
    size = torch.tensor(sizes)
    return {"image": image, "size": size, "original_size": size + 9, "target": targets}


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
def test_every_parameter_has_a_gradient_however_many_objects_there_are(name: str, counts: tuple[int, int]) -> None:
    model = network(name)
    losses = model.losses(batch_of(*counts))
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # A gate that stops early leaves the layers behind it untrained.
    assert [n for n in idle if not n.startswith("pixel_decoder.encoder.layers.")] == []
    assert all(loss.isfinite() for loss in losses.values())


def test_losses_under_autocast_are_near() -> None:
    model, batch = network(), batch_of(2, 1)
    torch.manual_seed(1)
    exact = model.losses(batch)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.losses(batch)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], value, rtol=0.1, atol=0.1)


def test_broken_predictions_give_nan_and_not_an_exception() -> None:
    model = network()
    with torch.no_grad():
        model.decoder.mask_embed.layers[-1].bias.fill_(torch.nan)
    assert all(loss.isnan() for loss in model.losses(batch_of(2, 1)).values())


@pytest.mark.parametrize("name", list(KINDS))
def test_predictions_are_of_the_original_size(name: str) -> None:
    model = network(name, outputs=("semantic", "panoptic", "instances"), object_threshold=0.1, overlap_threshold=0.1)
    batch = batch_of(1, 1)
    for found, size in zip(model.eval().predict(batch), batch["original_size"].tolist(), strict=True):
        assert list(found.semantic.shape) == size
        assert list(found.panoptic.ids.shape) == size
        values = set(found.panoptic.ids.unique().tolist()) - {0}
        assert values == {s.id for s in found.panoptic.segments}
        assert all(s.thing == (s.label in (1, 3)) for s in found.panoptic.segments)
        stuff = [s.label for s in found.panoptic.segments if not s.thing]
        assert len(stuff) == len(set(stuff))
        assert found.instances.masks.shape[1:] == found.semantic.shape
        assert set(found.instances.labels.tolist()) <= {1, 3}
        assert (found.instances.scores[:-1] >= found.instances.scores[1:]).all()
    model.outputs = ("semantic",)
    assert list(model.predict(batch)[0].semantic.shape) == batch["original_size"][0].tolist()


class Encoded(nn.Module):
    """What a decoder of exits makes of four maps, and after how many layers."""

    def __init__(self, decoder: GatedPixelDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        found = self.decoder(maps)
        return found.mask_features, found.extras["exits"]


@pytest.mark.slow
def test_an_exported_decoder_gives_each_image_what_its_exit_gave() -> None:
    torch.manual_seed(0)
    channels, sides = (8, 8, 16, 16), (16, 8, 4, 2)
    sizes = {"embed_dim": 32, "mask_dim": 16, "ffn_dim": 16, "num_layers": 3, "num_gates": 2}
    network = Encoded(GatedPixelDecoder(channels, (4, 8, 16, 32), **sizes).eval())
    nn.init.normal_(network.decoder.gate.weight, std=3)

    def maps(count: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(count, c, side, side) for c, side in zip(channels, sides, strict=True))

    free = ({0: torch.export.Dim.DYNAMIC},) * 4
    with torch.no_grad():
        program = torch.export.export(network, maps(2), dynamic_shapes=(free,), strict=False).module()
        images = maps(7)
        (wanted, exits), (got, chosen) = network(*images), program(*images)
    assert exits.unique().tolist() == [1, 2, 3]
    assert torch.equal(chosen, exits)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_bad_targets_and_outputs_are_refused() -> None:
    batch = batch_of(2, 1)
    batch["target"][0]["labels"][0] = 4
    with pytest.raises(DataError, match="label 4 of 4 classes"):
        network().losses(batch)
    batch = batch_of(2, 1)
    batch["target"][1]["masks"] = torch.zeros(1, 64, 96, dtype=torch.bool)
    with pytest.raises(DataError, match="image 1"):
        network().losses(batch)
    with pytest.raises(ConfigError, match=r"model\.outputs"):
        network(outputs=())


def test_masks_are_sampled_as_padded_maps_are() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((3, 13, 9), generator=generator) > 0.5
    points = torch.rand((3, 200, 2), generator=generator) * 1.2 - 0.1
    padded = F.pad(masks.float(), (0, 7, 0, 3))
    expected = sample_maps(padded[:, None], points)[:, 0]
    torch.testing.assert_close(sample_masks(masks, points, (16, 16)), expected, rtol=0, atol=1e-5)
    shared = sample_masks(masks, points[:1], (16, 16))
    torch.testing.assert_close(shared, sample_maps(padded[None], points[:1])[0], rtol=0, atol=1e-5)


def test_matching_costs_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, points = torch.randn(3, 5, generator=generator), torch.randn(3, 7, generator=generator)
    labels, targets = torch.tensor([2, 0]), (torch.rand(2, 7, generator=generator) > 0.5).float()
    found = MaskMatcher().costs(logits, points, labels, targets)
    for q in range(3):
        for n in range(2):
            share = points[q].sigmoid()
            bce = F.binary_cross_entropy(share, targets[n])
            dice = 1 - (2 * (share * targets[n]).sum() + 1) / (share.sum() + targets[n].sum() + 1)
            expected = 5 * bce - 2 * logits[q].softmax(0)[labels[n]] + 5 * dice
            torch.testing.assert_close(found[q, n], expected)


def test_boxes_around_masks() -> None:
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[2, 9, 11] = True
    expected: Tensor = torch.tensor([[3.0, 2, 9, 5], [0, 0, 0, 0], [11, 9, 12, 10]])
    assert torch.equal(boxes_of(masks), expected)


def test_enlarged_masks_are_looked_at_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows at a time: the same segments, instances and classes, and never all masks at once."""
    model = network(outputs=("semantic", "panoptic", "instances"), object_threshold=0.3, overlap_threshold=0.3)
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn((5, 5), generator=generator) * 3
    masks = F.interpolate(torch.randn((1, 5, 4, 6), generator=generator) * 4, scale_factor=4, mode="bilinear")[0]
    arguments = logits, masks, torch.Size((64, 96)), (60, 90), (121, 181)
    whole = model.describe(*arguments)
    sizes = []
    monkeypatch.setattr("vistrain.segmentation.inference.resize", lambda *x: sizes.append(x[0].shape[2]) or resize(*x))
    monkeypatch.setattr("vistrain.segmentation.inference.SLAB", 5 * 181 * 10)
    monkeypatch.setattr("vistrain.segmentation.mask_classifier.SLAB", 5 * 181 * 10)
    parts = model.describe(*arguments)
    assert max(sizes) < 121
    assert parts.panoptic.segments == whole.panoptic.segments
    assert len(whole.panoptic.segments) > 1
    assert (parts.panoptic.ids != whole.panoptic.ids).float().mean() < 1e-3
    assert (parts.semantic != whole.semantic).float().mean() < 1e-3
    assert torch.equal(parts.instances.labels, whole.instances.labels)
    torch.testing.assert_close(parts.instances.scores, whole.instances.scores, atol=1e-5, rtol=1e-4)
    assert (parts.instances.masks != whole.instances.masks).float().mean() < 1e-3


def test_packed_masks_give_the_same_losses() -> None:
    batch = batch_of(2, 1)
    packed = {
        **batch,
        "target": [
            {**t, "masks": PackedMasks.of([(0, 0, m.numpy()) for m in t["masks"]], tuple(t["masks"].shape[1:]))}
            for t in batch["target"]
        ],
    }
    model = network()
    found = []
    for one in (batch, packed):
        torch.manual_seed(0)
        found.append(model.losses(one))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
