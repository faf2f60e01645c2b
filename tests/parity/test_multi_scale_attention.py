"""Multi-scale guided attention and its parts against the authors' code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from parity import fixtures
from parity.compare import RTOL_LOSS, assert_outputs
from parity.filled import AS_THEY_ARE, filled
from parity.models import contiguous
from vistrain.backbones import Backbone, DenseBackbone
from vistrain.checkpoints import load_weights
from vistrain.layers.conv import resize
from vistrain.segmentation import MultiScaleAttention
from vistrain.segmentation.dual_attention import ChannelAttention, PositionAttention
from vistrain.segmentation.multi_scale_attention import AttentionBranch, SemanticAutoencoder

FULL = "dense/msa_guided_attention.pt"
RENAMED = (  # of parts alone; the whole network's key map has the rest
    (r"^enc(\d)\.encode\.", lambda m: f"encoder.{int(m[1]) - 1}."),
    (r"^dec(\d)\.decode\.6\.", lambda m: f"enlarge.{2 - int(m[1])}."),
    (r"^dec(\d)\.decode\.", lambda m: f"decoder.{2 - int(m[1])}."),
    (r"^attn\.", lambda _: ""),
)


class Pointwise(DenseBackbone):
    """The fixture's stand-in for a ResNeXt: convolutions without norm or activation, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer0, width = nn.Conv2d(3, 8, 7, 4, 3), 8
        for i, (out, stride) in enumerate(((256, 1), (512, 2), (1024, 2), (2048, 2)), 1):
            self.add_module(f"layer{i}", nn.Conv2d(width, out, 1, stride))
            width = out
        self.channels, self.strides = (256, 512, 1024, 2048), (4, 8, 16, 32)
        self.preprocessing = AS_THEY_ARE

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x, maps = self.layer0(images), []
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
            maps.append(x)
        return maps


def part(name: str) -> nn.Module:
    """Ours of a fixture of a part, by its `constructor`."""
    form = fixtures.load(name)["constructor"]
    kind, dim = re.match(r"(\w+)\((\d+)", form).groups()
    if kind == "PAM_CAM_Layer":
        position = "False" not in form
        return AttentionBranch(int(dim), PositionAttention(int(dim)) if position else ChannelAttention())
    makers = {"PAM_Module": PositionAttention, "semanticModule": SemanticAutoencoder}
    return makers[kind](int(dim)) if kind in makers else ChannelAttention()


@pytest.mark.parametrize("name", sorted({*fixtures.names("dense/msa_*.pt"), "dense/msa_pam.pt"} - {FULL}))
@torch.no_grad()
def test_parts(name: str) -> None:
    fixture, state = fixtures.load(name), {}
    for key, value in fixture["state_dict"].items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        state[key] = value
    model = part(name).eval()
    load_weights(model, state)
    ours = model(*fixture["inputs"])
    theirs = fixture["outputs"]
    if isinstance(ours, tuple):
        ours = [ours[0].flatten(), ours[1]]
    assert_outputs(ours, theirs)


def stored() -> tuple[MultiScaleAttention, dict[str, Any]]:
    """The whole network with the fixture's weights, in evaluation mode."""
    fixture = fixtures.load(FULL)
    model = MultiScaleAttention(Pointwise(), contiguous(5)).eval()
    published = fixtures.load("dense/keys/msa_daf_stack_full.json")["state_dict"]
    shapes = {key: tuple(published[key]) for key in fixture["keys"] if not key.startswith("resnext.")}
    for key, value in model.backbone.state_dict().items():
        shapes[f"resnext.{key}"] = tuple(value.shape)
    assert list(fixture["keys"]) == sorted(shapes, key=fixture["keys"].index)
    state = filled(shapes)
    renamed = {re.sub(r"^resnext\.", "backbone.", key): value for key, value in state.items()}
    load_weights(model, renamed, key_maps=model.key_maps)
    return model, fixture


@torch.no_grad()
def test_outputs_and_losses() -> None:
    model, fixture = stored()
    images, labels = fixture["inputs"]["x"], fixture["inputs"]["labels"]
    found, theirs = model.findings(images), fixture["outputs"]
    predicts = [resize(x, images.shape[2:])[..., ::4, ::4] for x in found.logits]  # every fourth of the enlarged ones
    assert_outputs(predicts, theirs["train_predicts"])
    assert_outputs(resize(model.prediction(found), images.shape[2:]), theirs["eval"])
    vectors = [x.vector.norm() for pair in zip(found.first[::-1], found.second[::-1], strict=True) for x in pair]
    torch.testing.assert_close(torch.stack(vectors), torch.stack(theirs["sem_vec_norms"]), rtol=1e-5, atol=1e-4)

    losses, weighted = fixture["losses"], model.weighted(found, labels, None)
    for name, key, weight in (
        ("loss_seg", "ce", 1),
        ("loss_vectors", "semantic", 0.25),
        ("loss_reconstruction", "rec", 0.1),
    ):
        total = weight * torch.stack(list(losses[key])).sum()
        torch.testing.assert_close(weighted[name], total, rtol=RTOL_LOSS, atol=0)
    torch.testing.assert_close(sum(weighted.values()), losses["total"], rtol=RTOL_LOSS, atol=0)


def test_names_and_shapes_of_full_size() -> None:
    stored = fixtures.load("dense/keys/msa_daf_stack_full.json")
    with torch.device("meta"):
        backbone = Backbone("resnext101_32x8d", strides=(4, 8, 16, 32), image_channels=1)
        model = MultiScaleAttention(backbone, contiguous(5))
    (key_map,) = model.key_maps
    assert key_map.matches(stored["state_dict"])
    theirs = {ours: tuple(shape) for key, shape in stored["state_dict"].items() if (ours := key_map.rename(key))}
    ours = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert theirs == ours
