"""Agent-DeiT: a plain transformer whose queries read from agents, and agents from all tokens.

Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874, section 3.3; DeiT: arXiv
2012.12877 (facebookresearch/deit, Apache-2.0). Authors' code: LeapLabTHU/Agent-Attention, no licence
(agent_transformer/models/agent_deit.py): nothing of it is here, it is written from the paper and a description.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistrain.attention.agent import AgentAttention
from vistrain.attention.base import AttentionOperator
from vistrain.attention.softmax import SoftmaxAttention
from vistrain.backbones.class_token import ClassTokenBackbone, as_map, as_tokens, class_and_cells
from vistrain.backbones.staged import (
    Published,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours, but for the number of a block, which is turned into one of a stage and of a block in it.
AUTHORS = KeyMap(name="Agent-DeiT", marker=r"^patch_embed\.proj\.", rules=((r"^patch_embed\.", "stem."),))
_renamed = converter(AUTHORS)


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """See `converter`; blocks are dealt out to stages."""
    state = _renamed(weights, model)
    places = list(dict.fromkeys(key.split(".attn.")[0] for key in model.state_dict() if ".attn." in key))
    numbered = {f"blocks.{number}.": f"{place}." for number, place in enumerate(places)}
    converted = {}
    for key, value in state.items():
        block = ".".join(key.split(".")[:2]) + "."
        converted[numbered[block] + key.removeprefix(block) if block in numbered else key] = value
    return converted


class DeiTBlock(nn.Module):
    """Attention and an MLP, each on normalised tokens and added to what came in; the first token is the class's.

    Args:
        dim: channels C.
        attn: the operator; it takes `[B, 1 + N, C]`.
        mlp_ratio: hidden channels of the MLP by channels.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(self, dim: int, attn: AttentionOperator, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = attn
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, 1 + H * W, C]` -> the same shape; `size` is (H, W)."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DeiTStage(nn.Module):
    """Blocks of tokens, the class's before those of the map.

    Args:
        blocks: each `[B, 1 + H * W, C]` and (H, W) -> the same shape.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """A map `[B, C, H, W]` and the class's token `[B, C, 1, 1]` -> the same shapes."""
        size, tokens = (x.shape[2], x.shape[3]), as_tokens(x, token)
        for block in self.blocks:
            again = self.grad_checkpointing and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, size, use_reentrant=False) if again else block(tokens, size)
        return as_map(tokens, size)


class AgentDeiT(ClassTokenBackbone):
    """Agent-DeiT (arXiv 2312.08874, section 3.3), in stages of about a quarter each. Classes are told by a token.

    Args:
        img_size: side of the images, in pixels, that positions and biases are made for; others interpolate them.
        in_chans: channels of the images.
        patch_size: side of a patch, the stride of all maps.
        embed_dim, depth, num_heads, mlp_ratio: channels, blocks, heads, and hidden channels by channels.
        agent_num: of each sixth of twelve blocks, in four groups as the authors have them: blocks 0-1, 2-3, 4-9, 10-11.
        agent_layer: how many of the first blocks have agents, and others softmax attention; None for all.
        qkv_bias: whether projections to queries, keys and values have a bias.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        agent_num: Sequence[int] = (49, 49, 49, 49),
        agent_layer: int | None = None,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        side, count = img_size // patch_size, min(4, depth)
        agents = depth if agent_layer is None else agent_layer

        def attention(layer: int) -> AttentionOperator:
            if layer >= agents:
                return SoftmaxAttention(embed_dim, num_heads, qkv_bias)
            number = agent_num[(0, 1, 2, 2, 2, 3)[min(layer // 2, 5)]]
            return AgentAttention(embed_dim, num_heads, (side, side), qkv_bias, cls_token=True, agent_num=number)

        depths = [(depth + count - 1 - i) // count for i in range(count)]
        stages, layer = [], 0
        for rates in drop_path_rates(depths, drop_path_rate):
            blocks = []
            for rate in rates:
                blocks.append(DeiTBlock(embed_dim, attention(layer), mlp_ratio, rate))
                layer += 1
            stages.append(DeiTStage(blocks))
        stem = nn.Sequential(OrderedDict(proj=nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)))
        norm = LayerNorm2d(embed_dim, eps=1e-6)
        super().__init__(stem, stages, norm, channels=[embed_dim] * count, strides=[patch_size] * count, **base)
        self.size_divisor = self.smallest_side = patch_size
        initialise(self)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dim), std=0.02))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + side**2, embed_dim), std=0.02))

    def start(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `StagedBackbone`; the class's token is there from the start, and positions are added."""
        x, _ = super().start(images)
        return class_and_cells(x, self.cls_token, self.pos_embed)

    def advance(self, stage: nn.Module, x: Tensor, token: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `StagedBackbone`."""
        found: tuple[Tensor, Tensor] = stage(x, token)
        return found

    def no_weight_decay(self) -> set[str]:
        """Positions, and the class's token."""
        return {"cls_token", "pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """See `StagedBackbone`; positions and the class's token are of the stem."""
        return {**super().group_matcher(coarse), "stem": r"^(?:stem|cls_token|pos_embed)"}


PUBLISHED = {
    "agent_deit_tiny": Published(6.0, 1.2, 74.9),
    "agent_deit_small": Published(22.7, 4.4, 80.5),
    "agent_deit_base": Published(87.2, top1=82.0),
}
_CODE = "https://github.com/LeapLabTHU/Agent-Attention"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2312.08874", _CODE, "none", "stem.proj") for name in PUBLISHED}
)


def _agent_deit(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(AgentDeiT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def agent_deit_tiny(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-DeiT-T."""
    return _agent_deit("agent_deit_tiny", pretrained, {}, kwargs)


@register_model
def agent_deit_small(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-DeiT-S."""
    return _agent_deit("agent_deit_small", pretrained, {"embed_dim": 384, "num_heads": 6}, kwargs)


@register_model
def agent_deit_base(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """Agent-DeiT-B: agents in the first four of its twelve blocks."""
    variant = {"embed_dim": 768, "num_heads": 12, "agent_layer": 4, "agent_num": (81, 81, 81, 81)}
    return _agent_deit("agent_deit_base", pretrained, variant, kwargs)
