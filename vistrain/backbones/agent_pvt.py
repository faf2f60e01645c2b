"""Agent-PVT: PVT whose queries read from agents, and agents from all cells.

Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874, section 3.3; PVT: arXiv
2102.12122 (whai362/PVT, Apache-2.0). Authors' code: LeapLabTHU/Agent-Attention, no licence
(agent_transformer/models/agent_pvt.py): nothing of it is here, it is written from the paper and a description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from vistrain.attention.agent import ReducedAgentAttention
from vistrain.backbones.attention_hosts import HostBlock
from vistrain.backbones.dinat_s import PatchEmbed
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.position import resized_positions

# Authors' names -> ours: patches and positions of a stage, then its blocks.
AUTHORS = KeyMap(
    name="Agent-PVT",
    marker=r"^patch_embed1\.proj\.",
    rules=(
        (r"^patch_embed1\.", "stem."),
        (r"^pos_embed1$", "stem.pos_embed"),
        *((rf"^patch_embed{i + 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        *((rf"^pos_embed{i + 1}$", f"stages.{i}.downsample.pos_embed") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
    ),
)
checkpoint_filter_fn = converter(AUTHORS)


class PositionedPatches(PatchEmbed):
    """Patches as tokens, normalised, with a learnt position each.

    Args:
        patch_size, in_chans, dim: side of a patch, channels before and after.
        grid: side of the table of positions, which is resized bilinearly.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int, grid: int) -> None:
        super().__init__(patch_size, in_chans, dim, patch_norm=True, drop=0.0)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid**2, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_chans, H, W]` -> `[B, dim, ceil(H / p), ceil(W / p)]`."""
        x = super().forward(x)
        return x + resized_positions(self.pos_embed, (x.shape[2], x.shape[3]))


class AgentPVT(StagedBackbone):
    """Agent-PVT (arXiv 2312.08874, section 3.3).

    Args:
        img_size: side of the images, in pixels, that positions and biases are made for; others interpolate them.
        in_chans: channels of the images.
        patch_size: side of the first patches, in pixels.
        embed_dims, depths, num_heads, mlp_ratios: of each stage.
        agent_sr_ratios: cells by cells that become one key, of each stage.
        agent_num: of each stage.
        qkv_bias: whether projections to queries, keys and values have a bias.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        patch_size: int = 4,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        agent_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        agent_num: Sequence[int] = (9, 16, 49, 49),
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        strides = [patch_size * 2**i for i in range(len(depths))]
        sides = [img_size // stride for stride in strides]
        stem = PositionedPatches(patch_size, in_chans, embed_dims[0], sides[0])
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            blocks, dim = [], embed_dims[i]
            shape: dict[str, Any] = {"dim": dim, "num_heads": num_heads[i], "grid": (sides[i], sides[i])}
            shape |= {"sr_ratio": agent_sr_ratios[i], "agent_num": agent_num[i], "qkv_bias": qkv_bias}
            for rate in rates:
                blocks.append(HostBlock(dim, ReducedAgentAttention(**shape), mlp_ratios[i], 0.0, rate, 1e-6))
            down = PositionedPatches(2, embed_dims[i - 1], dim, sides[i]) if i else nn.Identity()
            stages.append(Stage(down, blocks))
        super().__init__(stem, stages, nn.Identity(), channels=embed_dims, strides=strides, **base)
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """None: positions decay, as the authors have it."""
        return set()


PUBLISHED = {
    "agent_pvt_tiny": Published(11.6, 2.0, 78.4),
    "agent_pvt_small": Published(20.6, top1=82.2),
    "agent_pvt_medium": Published(35.9, top1=83.4),
    "agent_pvt_large": Published(48.7, top1=83.7),
}
_CODE = "https://github.com/LeapLabTHU/Agent-Attention"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2312.08874", _CODE, "none", "stem.proj") for name in PUBLISHED}
)


def _agent_pvt(name: str, pretrained: bool, depths: Sequence[int], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(AgentPVT, name, pretrained, checkpoint_filter_fn, {"depths": depths, **kwargs})


@register_model
def agent_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-PVT-T."""
    return _agent_pvt("agent_pvt_tiny", pretrained, (2, 2, 2, 2), kwargs)


@register_model
def agent_pvt_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-PVT-S."""
    return _agent_pvt("agent_pvt_small", pretrained, (3, 4, 6, 3), kwargs)


@register_model
def agent_pvt_medium(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-PVT-M."""
    return _agent_pvt("agent_pvt_medium", pretrained, (3, 4, 18, 3), kwargs)


@register_model
def agent_pvt_large(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-PVT-L."""
    return _agent_pvt("agent_pvt_large", pretrained, (3, 8, 27, 3), kwargs)
