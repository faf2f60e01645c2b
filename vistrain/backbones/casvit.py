"""CAS-ViT: attention that adds queries and keys, each gated in space and over channels, in place of a product.

CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications, arXiv 2408.03703.
Authors' code: Tianfang-Zhang/CAS-ViT, MIT (classification/model/rcvit.py; for maps it has a batch norm for each, which
`Backbone(output_norm_eps=1e-5, output_norm="batch")` has here). Their weights may have a second classifier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from vistrain.backbones.distilled import DistilledBackbone, average_heads
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    dense_key_map,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap

# Authors' names -> ours. Stages and the embeddings between them stand in one list there.
AUTHORS = KeyMap(
    name="CAS-ViT",
    marker=r"^network\.0\.",
    rules=(
        (r"^patch_embed\.", "stem."),
        *((rf"^network\.{2 * i}\.", f"stages.{i}.blocks.") for i in range(4)),
        *((rf"^network\.{2 * i - 1}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
        (r"\.local_perception\.network\.", ".local."),
        (r"\.oper_([qk])\.([01])\.block\.", r".gates_\1.\2.gate."),
        (r"^dist_head\.", "head_dist."),
    ),
)
DENSE = dense_key_map(AUTHORS, [f"norm{i}" for i in (0, 2, 4, 6)])
_convert = converter(AUTHORS)


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights under our names; two classifiers become their mean in a model with one, which computes the same."""
    state = _convert(weights, model)
    two = "head_dist.weight" in state
    single = isinstance(model, DistilledBackbone) and not model.distillation
    return average_heads(state) if two and single else state


class Gate(nn.Module):
    """A map times numbers in 0..1 that are made of it.

    Args:
        gate: `[B, C, H, W]` -> what can be multiplied with it.
    """

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return x * self.gate(x)


def _gates(dim: int) -> nn.Module:
    """A gate for each cell, then one for each channel (section 3.2): `[B, C, H, W]` -> `[B, C, H, W]`."""
    space = nn.Sequential(
        nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
        nn.BatchNorm2d(dim),
        nn.ReLU(),
        nn.Conv2d(dim, 1, 1, bias=False),
        nn.Sigmoid(),
    )
    channels = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim, 1, bias=False), nn.Sigmoid())
    return nn.Sequential(Gate(space), Gate(channels))


class AdditiveTokenMixer(nn.Module):
    """Convolutional additive self-attention, CATM: `proj(conv(gates(q) + gates(k)) * v)` (section 3.2, equation 6).

    Args:
        dim: channels.
        bias: whether the projection to queries, keys and values has one.
    """

    def __init__(self, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.gates_q, self.gates_k = _gates(dim), _gates(dim)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        q, k, v = self.qkv(x).chunk(3, 1)
        return self.proj(self.dwc(self.gates_q(q) + self.gates_k(k)) * v)


class CASBlock(nn.Module):
    """Local integration, the token mixer and an MLP, each added to what came in (figure 3).

    Args:
        dim: channels.
        mlp_ratio: hidden channels of the MLP by channels.
        attn_bias: see `AdditiveTokenMixer`.
        drop_path: probability that a branch is left out of a sample in training.
    """

    def __init__(self, dim: int, mlp_ratio: float = 4.0, attn_bias: bool = False, drop_path: float = 0.0) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = AdditiveTokenMixer(dim, attn_bias)
        self.norm2 = nn.BatchNorm2d(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Conv2d(dim, hidden, 1), act=nn.GELU(), fc2=nn.Conv2d(hidden, dim, 1))
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        x = x + self.local(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CASViT(DistilledBackbone):
    """CAS-ViT (arXiv 2408.03703, figure 3).

    Args:
        in_chans: channels of the images.
        layers: blocks of each stage.
        embed_dims: channels of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, in all stages.
        attn_bias: see `AdditiveTokenMixer`.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `DistilledBackbone`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        layers: Sequence[int] = (3, 3, 6, 3),
        embed_dims: Sequence[int] = (96, 128, 256, 512),
        mlp_ratios: float = 4.0,
        attn_bias: bool = False,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        half, dim = embed_dims[0] // 2, embed_dims[0]
        stem = nn.Sequential(
            nn.Conv2d(in_chans, half, 3, 2, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, dim, 3, 2, 1),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
        )
        stages = []
        for i, rates in enumerate(drop_path_rates(layers, drop_path_rate)):
            proj, norm = nn.Conv2d(embed_dims[i - 1], embed_dims[i], 3, 2, 1), nn.BatchNorm2d(embed_dims[i])
            down = nn.Sequential(OrderedDict(proj=proj, norm=norm)) if i else nn.Identity()
            blocks = [CASBlock(embed_dims[i], mlp_ratios, attn_bias, rate) for rate in rates]
            stages.append(Stage(down, blocks, channels_last=False))
        norm = nn.BatchNorm2d(embed_dims[-1])
        super().__init__(stem, stages, norm, channels=embed_dims, strides=(4, 8, 16, 32), **base)
        initialise(self)


# Parameters as printed are those with a second classifier, which the authors' training does without.
_TWO = {"distillation": True}
PUBLISHED = {
    "casvit_xs": Published(3.20, None, 78.3, counted=_TWO),
    "casvit_s": Published(5.76, None, 80.9, counted=_TWO),
    "casvit_m": Published(12.42, None, 82.8, counted=_TWO),
    "casvit_t": Published(21.76, None, 83.9, counted=_TWO),
}
_CODE = "https://github.com/Tianfang-Zhang/CAS-ViT"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2408.03703", _CODE, "mit", crop_pct=0.875) for name in PUBLISHED}
)


def _casvit(name: str, pretrained: bool, variant: dict[str, Any], kwargs: dict[str, Any]) -> StagedBackbone:
    return build_variant(CASViT, name, pretrained, checkpoint_filter_fn, {**variant, **kwargs})


@register_model
def casvit_xs(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CAS-ViT-XS."""
    return _casvit("casvit_xs", pretrained, {"layers": (2, 2, 4, 2), "embed_dims": (48, 56, 112, 220)}, kwargs)


@register_model
def casvit_s(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CAS-ViT-S."""
    return _casvit("casvit_s", pretrained, {"embed_dims": (48, 64, 128, 256)}, kwargs)


@register_model
def casvit_m(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CAS-ViT-M."""
    return _casvit("casvit_m", pretrained, {"embed_dims": (64, 96, 192, 384)}, kwargs)


@register_model
def casvit_t(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """CAS-ViT-T."""
    return _casvit("casvit_t", pretrained, {}, kwargs)
