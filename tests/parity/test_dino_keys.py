"""Full-size weights of DINO and Focus-DETR fit name by name, shape by shape, and are written under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.dino_models import detrex_dino, focus_detr
from parity.models import contiguous
from vistrain.backbones import Backbone
from vistrain.checkpoints import load_weights
from vistrain.detection import DINO, FocusDETR
from vistrain.devices import on_meta
from vistrain.errors import WeightsError
from vistrain.necks import ChannelMapper
from vistrain.structures import Factory, LabelSpace

COCO_IDS = LabelSpace(tuple(f"class {i}" for i in range(1, 91)), tuple(range(1, 91)), "coco_ids")
DETREX: dict[str, Any] = {"shared_heads": False, "spare_label": False}
LISTS = {
    "official_dino": (DINO, COCO_IDS, {}),
    "dino_detrex": (DINO, contiguous(80), DETREX),
    "focus_detr_r50_4scale": (FocusDETR, contiguous(80), {}),
}
quiet = pytest.mark.filterwarnings("ignore:for .*:UserWarning")  # torch says that loading into nothing does nothing


def full_size(
    cls: type, labels: LabelSpace, name: str = "resnet50", strides: Any = (8, 16, 32), **arguments: Any
) -> Any:
    """A model without storage."""
    with on_meta():
        return cls(Backbone(name, strides=strides, frozen_norm=name == "resnet50"), labels, **arguments)


def stored(name: str) -> tuple[dict[str, Tensor], int]:
    """A full-size state dict of zeros that take no memory, and the number of parameters."""
    content = fixtures.load(f"dense/keys/{name}.json")
    return {k: torch.zeros(()).expand(shape) for k, shape in content["state_dict"].items()}, content["params"]


def load(model: nn.Module, state: dict[str, Tensor]) -> Any:
    return load_weights(model, {"model": state}, key_maps=model.key_maps, class_layers=model.class_layers)


@quiet
@pytest.mark.parametrize("name", LISTS)
def test_full_size_names(name: str) -> None:
    state, count = stored(name)
    cls, labels, arguments = LISTS[name]
    model = full_size(cls, labels, **arguments)
    assert sum(p.numel() for p in model.parameters()) == count
    report = load(model, state)
    assert report.loaded == len(model.state_dict())
    assert not report.left_out
    naming = next(key_map for key_map in model.key_maps if key_map.name == report.key_map)
    exported = naming.export(model.state_dict())
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("name", ["dense/dino_detrex.pt", "dense/focus_detr.pt", "dense/focus_detr_mixed.pt"])
def test_weights_come_out_as_they_went_in(name: str) -> None:
    fixture = fixtures.load(name)
    model = (focus_detr if "focus" in name else detrex_dino)(fixture)
    report = load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    naming = next(key_map for key_map in model.key_maps if key_map.name == report.key_map)
    exported = naming.export(model.state_dict())
    assert exported.keys() == fixture["state_dict"].keys()
    assert all(torch.equal(value, fixture["state_dict"][key]) for key, value in exported.items())


@quiet
@pytest.mark.parametrize("kept", ["class_embed.6.", "transformer.encoder.enhance_MCSP.3.", "enhance_MCSP_layerlist.0."])
def test_one_spelling_of_the_category_head_is_enough(kept: str) -> None:
    state, _ = stored("focus_detr_r50_4scale")
    spellings = ("class_embed.6.", "transformer.decoder.class_embed.6.", "enhance_MCSP")
    fewer = {k: v for k, v in state.items() if k.startswith(kept) or not any(s in k for s in spellings)}
    assert len(fewer) == len(state) - 2 * (2 + 12) + 2
    assert not load(full_size(FocusDETR, contiguous(80)), fewer).left_out


@quiet
def test_spellings_that_differ_are_refused() -> None:
    state, _ = stored("focus_detr_r50_4scale")
    state["transformer.encoder.enhance_MCSP.2.bias"] = torch.ones(80)
    with pytest.raises(WeightsError, match=r"enhance_MCSP\.2\.bias.*differs"):
        load(full_size(FocusDETR, contiguous(80)), state)
    shared, _ = stored("official_dino")
    shared["class_embed.3.bias"] = torch.ones(91)
    with pytest.raises(WeightsError, match=r"class_embed\.3\.bias.*differs"):
        load(full_size(DINO, COCO_IDS), shared)


@quiet
@pytest.mark.parametrize("name", LISTS)
def test_another_label_space_leaves_out_the_class_layers_alone(name: str) -> None:
    state, _ = stored(name)
    cls, _, arguments = LISTS[name]
    report = load(full_size(cls, contiguous(3), **arguments), state)
    layers = {item.name.split(".")[0] for item in report.left_out}
    assert layers == {"class_embed", "label_enc"} | ({"enc_out_class_embed"} if name == "official_dino" else set())


@quiet
@pytest.mark.parametrize(("cls", "arguments"), [(DINO, {}), (DINO, DETREX), (FocusDETR, {})])
@pytest.mark.parametrize("levels", [4, 5])
def test_swin_names_and_five_scales(cls: type, arguments: dict[str, Any], levels: int) -> None:
    """The authors' dense Swin: norms of the maps in the backbone, merging of patches at the end of a stage."""
    neck = Factory(ChannelMapper, input_norm=True)
    strides = (4, 8, 16, 32)[4 - (levels - 1) :]
    model = full_size(
        cls, contiguous(5), "swin_tiny_patch4_window7_224", strides, neck=neck, num_levels=levels, **arguments
    )
    naming = model.key_maps[bool(arguments)]
    exported = naming.export({k: torch.zeros(()).expand(v.shape) for k, v in model.state_dict().items()})
    prefix = "backbone." if arguments or cls is FocusDETR else "backbone.0."
    norms = [k for k in exported if k.startswith(f"{prefix}norm") and k.endswith("weight")]
    assert norms == [f"{prefix}norm{i}.weight" for i in range(5 - levels, 4)]
    assert exported[f"{prefix}layers.0.downsample.reduction.weight"].shape == (192, 384)
    assert f"{prefix}layers.3.downsample.reduction.weight" not in exported
    made = "neck.extra_convs.0.conv" if arguments or cls is FocusDETR else f"input_proj.{levels - 1}.0"
    assert exported[f"{made}.weight"].shape == (256, 768, 3, 3)
    exported[f"{prefix}layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    assert load(model, exported).key_map == naming.name
