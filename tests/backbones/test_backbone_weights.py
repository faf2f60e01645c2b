"""Weights of backbones: authors' names for models of timm's that lack a converter, and for ours by every way in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vistrain.backbones import Backbone, casvit, ffnet, ppma
from vistrain.backbones.create import convert
from vistrain.backbones.cswin import DENSE
from vistrain.checkpoints import KeyMap, load_weights
from vistrain.devices import on_meta
from vistrain.errors import WeightsError

Weights = dict[str, Tensor]
SMALL = {"embed_dim": 16, "depth": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4), "mlp_ratio": 2.0}


def renamed(weights: Weights, *rules: tuple[str, str]) -> Weights:
    """Names by other rules than the tables under test: what they undo."""

    def name(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return re.sub(r"<(\d+)>", lambda match: str(int(match[1]) + 3), key)

    return {name(key): value for key, value in weights.items()}


def efficientvit(weights: Weights) -> Weights:
    """Names as in Cream's model, where a stage's list begins with its downsampling."""
    weights = renamed(
        weights,
        (r"^stages\.0\.blocks\.", "blocks1."),
        *((rf"^stages\.{i}\.downsample\.res1\.", f"blocks{i + 1}.0.") for i in (1, 2)),
        *((rf"^stages\.{i}\.downsample\.patchmerge\.", f"blocks{i + 1}.1.") for i in (1, 2)),
        *((rf"^stages\.{i}\.downsample\.res2\.", f"blocks{i + 1}.2.") for i in (1, 2)),
        *((rf"^stages\.{i}\.blocks\.(\d+)\.", rf"blocks{i + 1}.<\1>.") for i in (1, 2)),
        (r"^patch_embed\.conv(\d)\.", lambda match: f"patch_embed.{2 * int(match[1]) - 2}."),
        (r"\.conv\.", ".c."),
        (r"^head\.linear\.", "head.l."),
    )
    return weights | {"blocks1.0.mixer.m.attn.attention_bias_idxs": torch.zeros(4, 4)}


def shvit(weights: Weights) -> Weights:
    """Names as in the authors' model."""
    parts = (("0", "0.0"), ("1", "0.1"), ("2", "1"), ("3", "2.0"), ("4", "2.1"))
    return renamed(
        weights,
        (r"^stages\.0\.blocks\.", "blocks1."),
        *((rf"^stages\.{i}\.downsample\.{a}\.", f"blocks{i + 1}.{b}.") for i in (1, 2) for a, b in parts),
        *((rf"^stages\.{i}\.blocks\.(\d+)\.", rf"blocks{i + 1}.<\1>.") for i in (1, 2)),
    )


def crossvit(weights: Weights) -> Weights:
    """Names as in the authors' model."""
    return renamed(weights, (r"^(cls_token|pos_embed)_(\d)$", r"\1.\2"))


def cswin(weights: Weights) -> Weights:
    """Names as in the authors' model."""
    return renamed(
        weights,
        (r"^stem\.0\.", "stage1_conv_embed.0."),
        (r"^stem\.1\.", "stage1_conv_embed.2."),
        *((rf"^stages\.{i}\.downsample\.0\.", f"merge{i}.conv.") for i in (1, 2, 3)),
        *((rf"^stages\.{i}\.downsample\.1\.", f"merge{i}.norm.") for i in (1, 2, 3)),
        *((rf"^stages\.{i}\.blocks\.", f"stage{i + 1}.") for i in range(4)),
    )


@pytest.mark.parametrize(
    ("name", "write", "args", "key"),
    [
        ("efficientvit_m0", efficientvit, {}, "blocks3.4.mixer.m.attn.qkvs.0.c.weight"),
        ("efficientvit_m5", efficientvit, {}, "blocks3.2.1.m.pw1.c.weight"),
        ("shvit_s1", shvit, {}, "blocks2.2.1.m.pw1.c.weight"),
        ("cswin_tiny", cswin, SMALL, "merge3.norm.weight"),
    ],
)
def test_authors_files_load_strictly(
    tmp_path: Path, name: str, write: Callable[[Weights], Weights], args: dict[str, Any], key: str
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **args)
    theirs = write(model.state_dict())
    assert key in theirs
    torch.save({"model": theirs, "epoch": 3}, tmp_path / "w.pth")
    body = Backbone(name, pretrained=str(tmp_path / "w.pth"), strides=(16, 32), args=args).body.state_dict()
    whole = model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in body.items())
    theirs.pop(key)
    torch.save({"model": theirs}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="missing"):
        Backbone(name, pretrained=str(tmp_path / "w.pth"), strides=(16, 32), args=args)


def test_crossvits_lists_of_parameters() -> None:
    with on_meta():
        model = timm.create_model("crossvit_9_240")
    theirs = crossvit(model.state_dict())
    assert "pos_embed.1" in theirs
    assert list(convert(theirs, model, "crossvit_9_240", "file")) == list(model.state_dict())


def test_timm_itself_loads_authors_files_of_ours(tmp_path: Path) -> None:
    model = timm.create_model("cswin_tiny", num_classes=5, **SMALL)
    theirs = {f"module.{key}": value for key, value in cswin(model.state_dict()).items()}
    plain = {key.removeprefix("module."): value for key, value in theirs.items()}
    torch.save({"state_dict_ema": plain}, tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth"), "num_classes": 5}
    again = timm.create_model("cswin_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, **SMALL)
    whole = model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in again.state_dict().items())


def test_a_dense_backbone_of_the_authors_brings_its_norms() -> None:
    args = {**SMALL, "img_size": 64}
    ours = Backbone("cswin_tiny", strides=(4, 8, 16, 32), args=args, output_norm_eps=1e-5)
    assert [norm.eps for norm in ours.norms] == [1e-5] * 4
    for tensor in ours.state_dict().values():
        tensor.normal_()
    state = ours.state_dict()
    theirs = cswin({key.removeprefix("body."): value for key, value in state.items() if key.startswith("body.")})
    theirs |= renamed(state, (r"^norms\.", "norm<"), (r"^norm<(\d)", lambda m: f"norm{int(m[1]) + 1}"))
    theirs = {key: value for key, value in theirs.items() if not key.startswith("body.")}
    other = Backbone("cswin_tiny", strides=(4, 8, 16, 32), args=args, output_norm_eps=1e-5)
    assert load_weights(other, theirs, key_maps=[DENSE]).key_map == "dense CSWin"
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    for x, norm in zip(other(torch.randn(1, 3, 50, 70)), other.norms, strict=True):
        cells = (x - norm.bias[:, None, None]) / norm.weight[:, None, None]
        torch.testing.assert_close(cells.mean(1), torch.zeros_like(x[:, 0]), rtol=0, atol=1e-3)
        torch.testing.assert_close(cells.var(1, unbiased=False), torch.ones_like(x[:, 0]), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("names", "theirs", "ours"),
    [
        (casvit.DENSE, "norm4.running_mean", "norms.2.running_mean"),
        (casvit.DENSE, "network.3.proj.weight", "body.stages.2.downsample.proj.weight"),
        (ffnet.DENSE, "norm3.bias", "norms.3.bias"),
        (ffnet.DENSE, "stages.1.2.token_mixer.0.layer_scale", "body.stages.1.blocks.1.token_mixer.layer_scale"),
        (ffnet.DENSE, "stages.1.2.token_mixer.1.conv_reduce.bias", "body.stages.1.blocks.1.se.conv_reduce.bias"),
        (ppma.DENSE, "outnorm0.weight", "norms.0.weight"),
        (ppma.DENSE, "layers.2.downsample.norm.bias", "body.stages.3.downsample.norm.bias"),
    ],
)
def test_names_of_dense_codes(names: KeyMap, theirs: str, ours: str) -> None:
    assert list(names.apply({theirs: torch.zeros(1)})) == [ours]
