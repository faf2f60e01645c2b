"""Agent-Swin: Swin whose first stages attend through agents over the whole map, its last ones within windows.

Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874, section 3.3. Authors' code:
LeapLabTHU/Agent-Attention, no licence (agent_transformer/models/agent_swin.py): nothing of it is here, it is written
from the paper and a description. Windows that are smaller than the map are shifted in every second block without a
mask, which is an interpretation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.agent import AgentAttention
from vistrain.attention.window import SwinWindowAttention
from vistrain.backbones.attention_hosts import HostBlock
from vistrain.backbones.dinat_s import PatchEmbed, PatchMerging
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
from vistrain.backbones.swin_keys import TABLES
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d
from vistrain.layers.windows import window_merge, window_partition

# Authors' names -> ours: theirs end a stage with the merging of patches.
AUTHORS = KeyMap(
    name="Agent-Swin",
    marker=r"^patch_embed\.proj\.",
    rules=(
        (r"^patch_embed\.", "stem."),
        *((rf"^layers\.{i}\.downsample\.", f"stages.{i + 1}.downsample.") for i in range(3)),
        (r"^layers\.", "stages."),
    ),
    drop=TABLES,
)
checkpoint_filter_fn = converter(AUTHORS)


class WindowedAgents(AgentAttention):
    """Agent attention within windows; windows as large as the map that the model is built for are any whole map.

    Args:
        window: side of the windows; None for the whole map.
        shift: rows and columns that windows are shifted by.
        base: see `AgentAttention`.
    """

    formula = ""  # the operator is `AgentAttention`

    def __init__(self, window: int | None, shift: int, **base: Any) -> None:
        super().__init__(**base)
        self.window, self.shift = window, shift

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """`[B, H * W, C]` -> `[B, H * W, C]`; `size` is (H, W)."""
        if self.window is None:
            return super().forward(x, size)
        window = (self.window, self.window)
        height, width = size
        x = F.pad(x.unflatten(1, (height, width)), (0, 0, 0, -width % self.window, 0, -height % self.window))
        whole = (x.shape[1], x.shape[2])
        x = x.roll((-self.shift, -self.shift), (1, 2))
        x = window_merge(super().forward(window_partition(x, window), window), window, whole)
        return x.roll((self.shift, self.shift), (1, 2))[:, :height, :width].flatten(1, 2)


class AgentSwin(StagedBackbone):
    """Agent-Swin (arXiv 2312.08874, section 3.3 and table 10).

    Args:
        img_size: side of the images, in pixels, that windows and biases are made for; other sizes interpolate biases.
        in_chans: channels of the images.
        embed_dim: channels of the first stage; they double from stage to stage.
        depths, num_heads: blocks and heads of each stage.
        window_size: side of the windows; the whole map where that is no larger.
        agent_num: of each stage.
        attn_type: of each stage, `A` for agents or `B` for plain windows.
        mlp_ratio: hidden channels of the MLPs by channels.
        qkv_bias: whether projections to queries, keys and values have a bias.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 56,
        agent_num: Sequence[int] = (9, 16, 49, 49),
        attn_type: str = "AAAB",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        def attention(stage: int, index: int) -> AgentAttention | SwinWindowAttention:
            side = math.ceil(img_size / 4 / 2**stage)
            window = min(window_size, side)
            shift = window // 2 if index % 2 and window < side else 0
            dim, heads = embed_dim * 2**stage, num_heads[stage]
            if attn_type[stage] == "B":
                return SwinWindowAttention(dim, window, heads, qkv_bias, shift=shift)
            shape: dict[str, Any] = {"dim": dim, "num_heads": heads, "qkv_bias": qkv_bias}
            agents = {"grid": (window, window), "agent_num": int(agent_num[stage])}
            return WindowedAgents(window if window < side else None, shift, **shape, **agents)

        dims = [embed_dim * 2**i for i in range(4)]
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            blocks = [HostBlock(dims[i], attention(i, j), mlp_ratio, 0.0, rate, 1e-5) for j, rate in enumerate(rates)]
            stages.append(Stage(PatchMerging(dims[i - 1]) if i else nn.Identity(), blocks))
        stem = PatchEmbed(4, in_chans, embed_dim, True, 0.0)
        norm = LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem, stages, norm, channels=dims, strides=(4, 8, 16, 32), **base)
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Biases of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}


PUBLISHED = {
    "agent_swin_tiny": Published(29, 4.5, 82.6),
    "agent_swin_small": Published(50, top1=83.7),
    "agent_swin_base": Published(88, top1=84.0),
}
# Which stages have agents is told by the numbers of parameters alone: three of them would be 51 and 90 million.
_DEEP: dict[str, Any] = {"depths": (2, 2, 18, 2), "attn_type": "AABB"}
_CODE = "https://github.com/LeapLabTHU/Agent-Attention"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2312.08874", _CODE, "none", "stem.proj") for name in PUBLISHED}
)


def _agent_swin(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(AgentSwin, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def agent_swin_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-Swin-T."""
    return _agent_swin("agent_swin_tiny", pretrained, {}, kwargs)


@register_model
def agent_swin_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-Swin-S."""
    return _agent_swin("agent_swin_small", pretrained, _DEEP, kwargs)


@register_model
def agent_swin_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-Swin-B."""
    variant = {**_DEEP, "embed_dim": 128, "num_heads": (4, 8, 16, 32)}
    return _agent_swin("agent_swin_base", pretrained, variant, kwargs)
