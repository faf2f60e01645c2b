"""DINO and Focus-DETR in the configurations of their fixtures."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from parity import fixtures
from parity.models import TinyBackbone, TinyResNet, contiguous, official_backbone
from vistrain.detection import DINO, FocusDETR
from vistrain.detr import ContrastiveDenoising, DenoisingNoise
from vistrain.necks import ChannelMapper
from vistrain.structures import Factory


def storing(pattern: str, section: str, key: str, *, always: str) -> list[str]:
    """Fixtures of a pattern that hold weights and `section[key]`, and the one that is `always` expected."""
    found = {name: fixtures.load(name) for name in fixtures.names(pattern)}
    kept = {n for n, f in found.items() if f.get("state_dict") is not None and key in f.get(section, {})}
    return sorted({always, *kept})


def transformer_sizes(state: dict[str, Tensor], heads: int) -> dict[str, Any]:
    """What the shapes of a state dict tell of a DINO-like model."""
    level_embed = next(v for k, v in state.items() if re.match(r"transformer\.level_embeds?$", k))
    levels, width = level_embed.shape
    offsets = next(v for k, v in state.items() if k.endswith("sampling_offsets.bias"))
    ffn = next(v for k, v in state.items() if re.search(r"(linear1|ffns\.0\.layers\.0\.0)\.bias$", k))
    return {
        "num_levels": levels,
        "embed_dim": width,
        "num_heads": heads,
        "num_points": offsets.numel() // (heads * levels * 2),
        "num_queries": state["transformer.tgt_embed.weight"].shape[0],
        "encoder_layers": _count(state, r"transformer\.encoder\.layers\.(\d+)\."),
        "decoder_layers": _count(state, r"transformer\.decoder\.layers\.(\d+)\."),
        "ffn_dim": ffn.shape[0],
    }


def detrex_parts(state: dict[str, Tensor], num_groups: int) -> dict[str, Any]:
    """Backbone, labels and neck of a detrex fixture."""
    channels = tuple(v.shape[1] for k, v in state.items() if re.match(r"neck\.convs\.\d+\.conv\.weight$", k))
    return {
        "backbone": TinyBackbone(TinyResNet(state), channels, (4, 8, 16, 32)[-len(channels) :]),
        "labels": contiguous(state["class_embed.0.bias"].shape[0]),
        "neck": Factory(ChannelMapper, num_groups=num_groups),
    }


def detrex_dino(fixture: dict[str, Any], **changes: Any) -> DINO:
    """Ours in the configuration of a `dino*_detrex` fixture, weights not loaded."""
    state, text, position = fixture["state_dict"], fixture["constructor"], fixture["config"]["position_embedding"]
    heads, num_groups, kept = (int(re.search(rf"{n} (\d+)", text)[1]) for n in ("heads", "groups", "select_box_nums"))
    arguments = {
        **detrex_parts(state, num_groups),
        **transformer_sizes(state, heads),
        "shared_heads": False,
        "spare_label": False,
        "position_temperature": position["temperature"],
        "position_offset": position["offset"],
        "denoising": denoising_of(fixture, "noise"),
        "detections_per_image": kept,
        "clip_boxes": True,
        "mask_padding_in_eval": False,
    }
    return DINO(**{**arguments, **changes})


def official_dino(fixture: dict[str, Any], **changes: Any) -> DINO:
    """Ours in the configuration of an `official_dino*` fixture, weights not loaded."""
    state, config = fixture["state_dict"], fixture["config"]
    groups = len(fixture["inputs"]["noise"][0][1]) // (2 * sum(len(x["labels"]) for x in _official_targets(fixture)))
    arguments = {
        **transformer_sizes(state, config["nheads"]),
        # So few that the authors' rule for few positives holds: twice as many groups, however many objects there are
        "denoising": ContrastiveDenoising(
            groups // 2, config["dn_label_noise_ratio"], config["dn_box_noise_scale"], group_threshold=100
        ),
        "detections_per_image": config["num_select"],
    }
    labels = contiguous(state["class_embed.0.bias"].shape[0])
    backbone = official_backbone(state, len(config["return_interm_indices"]))
    return DINO(backbone, labels, **{**arguments, **changes})


def _official_targets(fixture: dict[str, Any]) -> list[dict[str, Tensor]]:
    return fixture["inputs"]["targets_cxcywh_norm"]


def focus_detr(fixture: dict[str, Any], **changes: Any) -> FocusDETR:
    """Ours in the configuration of a `focus_detr*` fixture, weights not loaded."""
    state, config = fixture["state_dict"], _whole_config(fixture)
    arguments = {
        **detrex_parts(state, config["groupnorm_groups"]),
        **transformer_sizes(state, config["num_heads"]),
        "position_temperature": config["pos"]["temperature"],
        "position_offset": config["pos"]["offset"],
        "denoising": denoising_of(fixture, "cdn_noise", box_noise_scale=config["box_noise_scale"]),
        "detections_per_image": config["select_box_nums_for_evaluation"],
        "keep_ratio": config["focus_rho"],
        "cascade": tuple(config["cascade"]),
        "topk_sa": config["topk_sa"],
    }
    return FocusDETR(**{**arguments, **changes})


def _whole_config(fixture: dict[str, Any]) -> dict[str, Any]:
    config = fixture["config"]
    base = fixtures.load(f"dense/{config['same_as']}.pt")["config"] if "same_as" in config else {}
    return {**base, **config}


def denoising_of(fixture: dict[str, Any], key: str, **ratios: float) -> ContrastiveDenoising:
    """Denoising with as many groups as were stored; none where nothing was."""
    draws, counts = fixture["inputs"].get(key), [len(t["labels"]) for t in fixture["inputs"]["targets"]]
    groups = len(draws[0][1]) // (2 * sum(counts)) if draws else 0
    return ContrastiveDenoising(groups * max(counts), _label_noise_ratio(fixture), **ratios)


def noise_of(fixture: dict[str, Any], key: str) -> DenoisingNoise:
    """The stored draws; new labels were drawn for the chosen ones alone."""
    draws = [torch.as_tensor(draw[1]) for draw in fixture["inputs"][key]]
    new_labels = torch.zeros(len(draws[0]), dtype=torch.int64)
    new_labels[draws[0] < 0.5 * _label_noise_ratio(fixture)] = draws[1]
    return DenoisingNoise(draws[0], new_labels, draws[2] * 2 - 1, draws[3])


def _label_noise_ratio(fixture: dict[str, Any]) -> float:
    return fixture["config"].get("label_noise_ratio", 0.5)


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return len({m[1] for k in state if (m := re.match(pattern, k))})
