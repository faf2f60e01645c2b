"""Mask2Former, ECO-M2F and PEM against the authors' codes: weights, outputs, losses and what is made of the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import ATOL, assert_losses, assert_outputs
from parity.models import TinyBackbone, TinyResNet, contiguous
from vistrain.checkpoints import KeyMap, load_weights
from vistrain.devices import on_meta
from vistrain.losses import MaskCriterion
from vistrain.losses.mask_criterion import PointNoise
from vistrain.segmentation import PEM, Mask2Former
from vistrain.segmentation.eco_m2f import GATE, GatedPixelDecoder
from vistrain.segmentation.mask2former import MaskedDecoder
from vistrain.segmentation.pem import PEMDecoder, PEMPixelDecoder
from vistrain.segmentation.pixel_decoder import DeformablePixelDecoder
from vistrain.structures import Factory, Preprocessing

NETWORKS = {"official_m2f": Mask2Former, "official_pem": PEM}
# The stored runs had the buffers `pixel_mean` and `pixel_std` filled at random like the weights, and as they are not
# part of a state dict they were not stored. These numbers follow from the outputs (least squares, down to rounding).
STATISTICS = {
    "official_m2f": (
        (1.3919600105799101, -0.23882780587532454, -1.1879885443597498),
        (-0.5880810952258312, -1.884877624474301, 0.8879991326538188),
    ),
    "official_pem": (
        (-0.6662976619965173, -1.5464638931340755, -0.4568208023110761),
        (0.1690024606366762, -0.7080198420290467, 0.1517156326902886),
    ),
}
# So images reach the network at 255 times the usual size. Mask2Former's group norms take that out; in PEM values become
# as large as 2500, where neighbouring float32 numbers are 2.4e-4 apart, and are compared relative to the largest.
RELATIVE = 2e-5


class FourMaps(TinyResNet):
    """The small detectron2 ResNet with its finest map, too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def setting(text: str, name: str) -> float:
    """A number of a fixture's config."""
    line = next(line for line in text.splitlines() if line.strip().startswith(f"{name}:"))
    return float(line.split(":")[1])


def model_of(name: str, fixture: dict[str, Any]) -> Any:
    """Ours in a fixture's configuration, with its weights."""
    state, config = fixture["state_dict"], fixture["config"]
    prefix = "sem_seg_head.predictor."
    layers = len({k.split(".")[3] for k in state if k.startswith(f"{prefix}transformer_ffn_layers")})
    queries, dim = state[f"{prefix}query_feat.weight"].shape
    mask_dim = state[f"{prefix}mask_embed.layers.2.weight"].shape[0]
    heads = int(setting(config, "NHEADS"))
    pixel: Factory[Any]
    if name == "official_m2f":
        encoder = {k.split(".")[5] for k in state if ".encoder.layers." in k}
        pixel = Factory(
            DeformablePixelDecoder, embed_dim=dim, mask_dim=mask_dim, num_layers=len(encoder), num_heads=heads
        )
    else:
        pixel = Factory(PEMPixelDecoder, embed_dim=dim, mask_dim=mask_dim)
    decoder: Factory[Any] = Factory(
        MaskedDecoder if name == "official_m2f" else PEMDecoder,
        embed_dim=dim,
        num_queries=queries,
        num_layers=layers,
        num_heads=heads,
        ffn_dim=state[f"{prefix}transformer_ffn_layers.0.linear1.weight"].shape[0],
        pre_norm="PRE_NORM: true" in config,
        enforce_input_proj="ENFORCE_INPUT_PROJ: true" in config,
    )
    labels = replace(contiguous(6), things=tuple(fixture["inputs"]["thing_ids"]))
    points = int(setting(config, "TRAIN_NUM_POINTS"))
    mean, std = (tuple(x / 255 for x in numbers) for numbers in STATISTICS[name])
    statistics = Preprocessing(mean=mean, std=std)
    model = NETWORKS[name](
        TinyBackbone(FourMaps(state), (16, 32, 64, 128), (4, 8, 16, 32), statistics),
        labels,
        pixel_decoder=pixel,
        decoder=decoder,
        criterion=MaskCriterion(num_points=points),
        outputs=("semantic", "panoptic", "instances"),
        object_threshold=setting(config, "OBJECT_MASK_THRESHOLD"),
        overlap_threshold=setting(config, "OVERLAP_THRESHOLD"),
        detections_per_image=int(setting(config, "DETECTIONS_PER_IMAGE")),
    )
    report = load_weights(model, state, key_maps=model.key_maps)
    assert not report.left_out
    return model.eval()


def batch_of(fixture: dict[str, Any]) -> dict[str, Any]:
    """A fixture's images, 0 to 255, padded to multiples of 32."""
    inputs = fixture["inputs"]
    size = torch.tensor([x.shape[1:] for x in inputs["images"]])
    image = torch.zeros((len(size), 3, *(-(-size.amax(0) // 32) * 32).tolist()))
    for whole, x in zip(image, inputs["images"], strict=True):
        whole[:, : x.shape[1], : x.shape[2]] = x / 255
    original = (size * inputs["post_scale"]).long()
    return {"image": image, "size": size, "original_size": original, "target": inputs["targets"]}


def noise_of(draws: list[Tensor], images: int) -> list[PointNoise]:
    """The stored points: theirs begin with the last prediction, ours with the first."""
    step = images + 2
    groups = [draws[i : i + step] for i in range(0, len(draws), step)]
    noise = [PointNoise([x[0] for x in group[:images]], *group[images:]) for group in groups]
    return [*noise[1:], noise[0]]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs(name: str) -> None:
    fixture = fixtures.load(f"dense/{name}.pt")
    model, batch, theirs = model_of(name, fixture), batch_of(fixture), fixture["outputs"]["eval"]
    images, _ = model.normalize(batch["image"], batch["size"])
    with torch.no_grad():
        pixels = model.pixel_decoder(model.backbone(images))
        outputs = model(images)
    features, encoded, levels = theirs["pixel_decoder"]
    for aux in outputs["aux_outputs"]:
        aux["pred_masks"] = aux["pred_masks"][..., ::4, ::4]
    if name == "official_m2f":
        assert_outputs([*pixels.levels, pixels.mask_features, pixels.levels[0]], [*levels, features, encoded])
        assert_outputs(outputs, theirs["head"])
        return
    pairs = list(zip([*pixels.levels, pixels.mask_features], [*levels, features], strict=True))
    stored_heads = [*theirs["head"]["aux_outputs"], theirs["head"]]
    for ours, stored in zip([*outputs["aux_outputs"], outputs], stored_heads, strict=True):
        assert_outputs(ours["pred_logits"], stored["pred_logits"])
        pairs.append((ours["pred_masks"], stored["pred_masks"]))
    for ours, stored in pairs:
        assert (ours - stored).abs().max() <= max(ATOL, RELATIVE * stored.abs().max())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_names_and_shapes_of_full_size(name: str) -> None:
    kind: Any = NETWORKS[name]
    theirs = fixtures.load(f"dense/keys/{name}_r50_ade20k.json")["state_dict"]
    with on_meta():
        ours = kind(TinyBackbone(nn.Identity(), (256, 512, 1024, 2048), (4, 8, 16, 32)), contiguous(150))
    renamed = {kind.key_maps[0].rename(key): shape for key, shape in theirs.items()}
    expected = {key: shape for key, shape in renamed.items() if key is not None and not key.startswith("backbone.")}
    found = {key: list(value.shape) for key, value in ours.state_dict().items() if "num_batches" not in key}
    assert found == expected


@pytest.mark.parametrize("name", list(NETWORKS))
def test_predictions(name: str) -> None:
    fixture = fixtures.load(f"dense/{name}.pt")
    model, batch, theirs = model_of(name, fixture), batch_of(fixture), fixture["outputs"]["eval"]
    for i, found in enumerate(model.predict(batch)):
        assert torch.equal(found.semantic, theirs["sem_seg_argmax"][i].long())
        ids, segments = theirs["panoptic"][i]
        assert torch.equal(found.panoptic.ids, ids)
        ours = [{"id": s.id, "isthing": s.thing, "category_id": s.label} for s in found.panoptic.segments]
        assert ours == segments
        instances = theirs["instances"][i]
        scores, order = instances["scores"].sort(descending=True, stable=True)
        assert_outputs(found.instances.scores, scores)
        areas = found.instances.masks.flatten(1).sum(1)
        assert sorted(zip(found.instances.labels.tolist(), areas.tolist(), strict=True)) == sorted(
            zip(instances["labels"][order].tolist(), instances["masks_area"][order].long().tolist(), strict=True)
        )


@pytest.mark.parametrize("name", list(NETWORKS))
def test_losses(name: str) -> None:
    fixture = fixtures.load(f"dense/{name}.pt")
    model = model_of(name, fixture)
    ours = model.losses(batch_of(fixture), noise_of(fixture["inputs"]["torch_rand_draws"], 2))
    theirs = {k.replace("loss_ce", "loss_class"): v for k, v in fixture["losses"]["weighted"].items()}
    assert_losses(ours, theirs)


def test_gated_pixel_decoder() -> None:
    fixture = fixtures.load("dense/official_ecom2f_pixel_decoder.pt")
    state = fixture["state_dict"]
    decoder = GatedPixelDecoder(
        (8, 12, 16, 20), (4, 8, 16, 32), embed_dim=64, mask_dim=64, num_heads=4, num_layers=6, ffn_dim=32
    ).eval()
    official = KeyMap("official", r"^transformer\.", ((r"^transformer\.", ""), GATE))
    load_weights(decoder, state, key_maps=[official])
    for maps, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        with torch.no_grad():
            pixels = decoder([maps[f"res{i}"] for i in (2, 3, 4, 5)])
        assert_outputs(pixels.extras["gates"], theirs["gates"])
        assert pixels.extras["exits"].tolist() == [theirs["i_exit"]]
        assert_outputs(
            [pixels.mask_features, pixels.levels[0], pixels.levels], [theirs[k] for k in ("mask_features", "enc", "ms")]
        )
    # Images of one batch stop each where they would alone.
    together = [torch.cat([maps[f"res{i}"] for maps in fixture["inputs"]]) for i in (2, 3, 4, 5)]
    with torch.no_grad():
        pixels = decoder(together)
    assert pixels.extras["exits"].tolist() == [theirs["i_exit"] for theirs in fixture["outputs"]]
    assert_outputs(pixels.mask_features, torch.cat([theirs["mask_features"] for theirs in fixture["outputs"]]))
