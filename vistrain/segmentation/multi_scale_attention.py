"""Multi-scale self-guided attention for medical image segmentation (Sinha and Dolz 2020, arXiv 1906.02849).

Authors' code: github.com/sinAshish/Multi-Scale-Attention, commit 96d76f2, which has no licence: written from the
paper's equations and from recorded numbers; their weights load through a key map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.checkpoints import KeyMap, under
from vistrain.errors import ConfigError
from vistrain.layers.conv import resize
from vistrain.layers.loss_weights import refuse_negative
from vistrain.segmentation.dual_attention import ChannelAttention, PositionAttention
from vistrain.segmentation.semantic import SemanticNetwork
from vistrain.structures import LabelSpace

LEVELS = 4
DIVISOR = 4  # the autoencoders halve the finest map twice


def convolved(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    """Convolution, batch norm and PReLU: `[B, C, H, W]` -> `[B, C', H, W]`."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return [conv, nn.BatchNorm2d(out_channels), nn.PReLU()]


class AttentionBranch(nn.Sequential):
    """An attention of a map beside the fused one, between two convolutions: `[B, 2C, H, W]` -> `[B, C, H, W]`.

    Args:
        dim: C.
        attention: keeps the shape.
    """

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__(*convolved(2 * dim, dim, 3), attention, *convolved(dim, dim, 3))


class SemanticAutoencoder(nn.Module):
    """Halves a map twice and doubles it twice; what lies between is the map's semantic vector.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(self._pair(a, 2 * a) for a in (dim, 2 * dim))
        self.decoder = nn.ModuleList(self._pair(2 * a, a) for a in (2 * dim, dim))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, a, 2, 2) for a in (2 * dim, dim))

    @staticmethod
    def _pair(in_channels: int, out_channels: int) -> nn.Sequential:
        pairs = ((in_channels, out_channels), (out_channels, out_channels))
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairs]
        return nn.Sequential(*(layer for group in layers for layer in group))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` -> the semantic vector `[B, 4C, H / 4, W / 4]`, and the reconstruction `[B, C, H, W]`.

        Sides are multiples of 4 (others give a reconstruction of another size).
        """
        fine = F.max_pool2d(self.encoder[0](x), 2)
        vector = F.max_pool2d(self.encoder[1](fine), 2)
        out = resize(self.enlarge[0](self.decoder[0](vector)), fine.shape[2:])
        return vector, self.enlarge[1](self.decoder[1](out))


@dataclass
class Refined:
    """What one stage finds at one level.

    Attributes:
        seen: what its attention and its autoencoder see, `[B, 2C, H, W]`.
        vector, reconstruction: of the autoencoder.
        attention: `[B, C, H, W]`.
    """

    seen: Tensor
    vector: Tensor
    reconstruction: Tensor
    attention: Tensor


class GuidedStage(nn.Module):
    """Both attentions of each level, weighted by what an autoencoder, shared by all levels, makes of the same map.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.position = nn.ModuleList(AttentionBranch(dim, PositionAttention(dim)) for _ in range(LEVELS))
        self.channel = nn.ModuleList(AttentionBranch(dim, ChannelAttention()) for _ in range(LEVELS))
        self.autoencoder = SemanticAutoencoder(2 * dim)
        self.semantic = nn.ModuleList(nn.Conv2d(2 * dim, dim, 3, padding=1) for _ in range(LEVELS))
        self.project = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in range(LEVELS))

    def forward(self, maps: Sequence[Tensor], fused: Sequence[Tensor]) -> list[Refined]:
        """Maps `[B, C, H, W]` of all levels, and the fused one as each level sees it."""
        found = []
        for i, (level, guide) in enumerate(zip(maps, fused, strict=True)):
            seen = torch.cat((level, guide), 1)
            vector, reconstruction = self.autoencoder(seen)
            attended = self.position[i](seen) + self.channel[i](seen)
            found.append(
                Refined(seen, vector, reconstruction, self.project[i](attended * self.semantic[i](reconstruction)))
            )
        return found


@dataclass
class Findings:
    """All that the losses are made of.

    Attributes:
        logits: `[B, K, H, W]` at the finest map's size: of the plain maps, fine to coarse, then of the second stage.
        first, second: what the stages find, fine to coarse.
    """

    logits: list[Tensor]
    first: list[Refined]
    second: list[Refined]


class MultiScaleAttention(SemanticNetwork):
    """Four maps of a backbone at the finest one's size, refined by two stages of guided attention.

    The prediction is the mean of the second stage's four logits. Trained are eight cross-entropies, the distance of the
    two stages' semantic vectors, and the autoencoders' reconstructions.

    Args:
        backbone: gives four maps; the authors' is ResNeXt-101 of 32 groups, 8 channels each.
        labels: the classes.
        embed_dim: C of all maps.
        vector_weight, reconstruction_weight: of the mean squared distances, beside cross-entropies of weight 1.
        base: see `SemanticNetwork`.

    Raises:
        ConfigError: the backbone does not give four maps.
    """

    class_layers = (r"^classify\.",)
    sets_itself = ("preprocessing",)
    measured_size = (256, 256)

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        embed_dim: int = 64,
        vector_weight: float = 0.25,
        reconstruction_weight: float = 0.1,
        **base: Any,
    ) -> None:
        divisor = math.lcm(backbone.preprocessing.size_divisor, DIVISOR * backbone.strides[0])
        super().__init__(labels, replace(backbone.preprocessing, size_divisor=divisor), **base)
        if len(backbone.strides) != LEVELS:
            problem = f"{len(backbone.strides)} maps, of strides {list(backbone.strides)}"
            raise ConfigError("model.backbone.strides", problem, "give four: [4, 8, 16, 32]")
        self.backbone: DenseBackbone = backbone
        refuse_negative(vector_weight=vector_weight, reconstruction_weight=reconstruction_weight)
        self.vector_weight, self.reconstruction_weight = vector_weight, reconstruction_weight
        self.reduce = nn.ModuleList(nn.Sequential(*convolved(c, embed_dim, 1)) for c in backbone.channels)
        self.fuse = nn.Sequential(
            *convolved(LEVELS * embed_dim, embed_dim, 3),
            *convolved(embed_dim, embed_dim, 3),
            *convolved(embed_dim, embed_dim, 1),
        )
        self.stages = nn.ModuleList(GuidedStage(embed_dim) for _ in range(2))
        self.classify = nn.ModuleList(nn.Conv2d(embed_dim, labels.num_classes, 1) for _ in range(2 * LEVELS))
        self.input_layers = under("backbone.", backbone.input_layers)
        self.key_maps = (KeyMap("official", r"^semanticModule_1_1\.", tuple(_rules()), drop=_UNUSED),)

    def findings(self, images: Tensor) -> Findings:
        """Normalised images `[B, C, H, W]`, sides multiples of four times the finest map's stride."""
        maps = [reduce(x) for reduce, x in zip(self.reduce, self.backbone(images), strict=True)]
        maps = [resize(x, maps[0].shape[2:]) for x in maps]
        fused = self.fuse(torch.cat(maps[::-1], 1))
        first = self.stages[0](maps, [fused] * LEVELS)
        second = self.stages[1](maps, [level.attention * fused for level in first])
        classified = [*maps, *(level.attention for level in second)]
        return Findings([head(x) for head, x in zip(self.classify, classified, strict=True)], first, second)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, C, H, W]` -> logits `[B, K, h, w]` of the finest map's size."""
        return self.prediction(self.findings(images))

    def prediction(self, found: Findings) -> Tensor:
        """The mean of the second stage's logits, `[B, K, h, w]`."""
        return torch.stack(found.logits[LEVELS:]).mean(0)

    def training_losses(self, images: Tensor, labels: Tensor, count: Tensor | None) -> dict[str, Tensor]:
        """See `SemanticNetwork`; `loss_seg` sums the eight cross-entropies."""
        return self.weighted(self.findings(images), labels, count)

    def weighted(self, found: Findings, labels: Tensor, count: Tensor | None) -> dict[str, Tensor]:
        """The losses of `training_losses`."""
        stages = (found.first, found.second)
        vectors = [_distance(a.vector, b.vector) for a, b in zip(*stages, strict=True)]
        reconstructions = [_distance(x.seen, x.reconstruction) for stage in stages for x in stage]
        return {
            "loss_seg": torch.stack([self.pixel_loss(x, labels, count) for x in found.logits]).sum(),
            "loss_vectors": self.vector_weight * torch.stack(vectors).sum(),
            "loss_reconstruction": self.reconstruction_weight * torch.stack(reconstructions).sum(),
        }


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return F.mse_loss(a.float(), b.float())


_UNUSED = (r"^conv[67]_\d\.", r"^attention\d\.", r"^refine\d\.", r"num_batches_tracked$")


def _rules() -> Iterator[tuple[str, str]]:
    """The authors count levels from 1, the finest, and some layers of them the other way round."""
    yield r"^resnext\.layer0\.0\.", "backbone.body.conv1."
    yield r"^resnext\.layer0\.1\.", "backbone.body.bn1."
    yield r"^resnext\.layer1\.1\.", "backbone.body.layer1."
    yield r"^resnext\.layer", "backbone.body.layer"
    yield r"^fuse1\.fuse_attn\.", "fuse."
    for i in range(LEVELS):
        yield rf"^down{i + 1}\.", f"reduce.{i}."
        yield rf"^predict{i + 1}\.", f"classify.{i}."
        yield rf"^predict{i + 1}_2\.", f"classify.{LEVELS + i}."
        for stage in range(2):
            yield rf"^pam_attention_{stage + 1}_{i + 1}\.attn\.", f"stages.{stage}.position.{i}."
            yield rf"^cam_attention_{stage + 1}_{i + 1}\.attn\.", f"stages.{stage}.channel.{i}."
            yield rf"^conv_sem_{stage + 1}_{LEVELS - i}\.", f"stages.{stage}.semantic.{i}."
            yield rf"^conv8_{'1' * stage}{LEVELS - i}\.", f"stages.{stage}.project.{i}."
    for stage in range(2):
        yield rf"^semanticModule_{stage + 1}_1\.", f"stages.{stage}.autoencoder."
    for i, (encoder, decoder) in enumerate(((1, 2), (2, 1))):
        yield rf"\.enc{encoder}\.encode\.", f".encoder.{i}."
        yield rf"\.dec{decoder}\.decode\.6\.", f".enlarge.{i}."
        yield rf"\.dec{decoder}\.decode\.", f".decoder.{i}."
