"""AGUNet and DAUNet: Meningioma segmentation in T1-weighted MRI leveraging global context and attention mechanisms
(Bouget et al. 2021, arXiv 2101.07715).

Authors' code: github.com/dbouget/mri_brain_tumor_segmentation, commit 7af4e77, BSD-2-Clause, in Keras; its weights load
by the order in which layers were made (`checkpoints.KerasMap`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints.keras import KerasMap, creation_order
from vistrain.errors import ConfigError
from vistrain.segmentation.dual_attention import ChannelAttention, PositionAttention
from vistrain.segmentation.volume import VolumeNetwork

EPS = 1e-3  # Keras's, of batch norms
LEAST = 4  # an axis of no more cells is not halved
Steps = tuple[int, ...]


class Block(nn.Sequential):
    """Two 3x3x3 convolutions with batch norm and ReLU.

    Args:
        in_channels, out_channels: C and C'.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        pairs = ((in_channels, out_channels), (out_channels, out_channels))
        layers = [(nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b, EPS), nn.ReLU()) for a, b in pairs]
        super().__init__(*(layer for group in layers for layer in group))


class EncoderStage(nn.Module):
    """A block on the map of the finer level, beside features of the reduced image itself if `pyramid`.

    Args:
        channels: of the image.
        in_channels, out_channels: of the map.
        pyramid: see above.
    """

    def __init__(self, channels: int, in_channels: int, out_channels: int, pyramid: bool) -> None:
        super().__init__()
        self.pyramid = nn.Conv3d(channels, out_channels, 3, padding=1) if pyramid else None
        self.block = Block(in_channels + out_channels * pyramid, out_channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """`[B, N, *S]` and the image `[B, C, *S]` -> `[B, M, *S]`."""
        if self.pyramid is not None:
            x = torch.cat((self.pyramid(image).relu(), x), 1)
        return self.block(x)


class Enlarge(nn.ConvTranspose3d):
    """A transposed 3x3x3 convolution that enlarges by whole factors, aligned as TensorFlow's of padding `same`.

    Args:
        in_channels, out_channels: C and C'.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:  # type: ignore[override]
        """`[B, C, *S]` -> `[B, C', *S * steps]`."""
        padding, missing = [1 if step == 1 else 0 for step in steps], [max(0, step - 3) for step in steps]
        full = F.conv_transpose3d(x, self.weight, self.bias, stride=steps, padding=padding, output_padding=missing)
        d, h, w = (side * step for side, step in zip(x.shape[2:], steps, strict=True))
        return full[..., :d, :h, :w]


class Gate(nn.Module):
    """A weight in 0..1 for each voxel of a skip connection, from it and from what comes from below.

    Args:
        channels: C, of either.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 2
        self.below, self.below_norm = nn.Conv3d(channels, narrow, 1), nn.BatchNorm3d(narrow, EPS)
        self.skip, self.skip_norm = nn.Conv3d(channels, narrow, 1), nn.BatchNorm3d(narrow, EPS)
        self.both, self.both_norm = nn.Conv3d(2 * narrow, 1, 1), nn.BatchNorm3d(1, EPS)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """Two `[B, C, *S]` -> the gated skip connection `[B, C, *S]`."""
        both = torch.cat((self.below_norm(self.below(below)), self.skip_norm(self.skip(skip))), 1)
        return skip * self.both_norm(self.both(both.relu())).sigmoid()


class GatedStage(nn.Module):
    """AGUNet's decoder: enlarge, gate the skip connection, convolve both.

    Args:
        coarse, fine: channels of the two maps.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.enlarge, self.norm = Enlarge(coarse, fine), nn.BatchNorm3d(fine, EPS)
        self.gate, self.block = Gate(fine), Block(2 * fine, fine)

    def forward(self, x: Tensor, skip: Tensor, steps: Steps, bottom: Tensor) -> Tensor:
        """`[B, N, *S]` and `[B, M, *S * steps]` -> `[B, M, *S * steps]`; the bottom's map plays no part."""
        x = self.norm(self.enlarge(x, steps)).relu()
        return self.block(torch.cat((x, self.gate(x, skip)), 1))


class GuidedStage(nn.Module):
    """DAUNet's decoder: the bottom's attention map enlarged beside the other two if `guide`, norm after them.

    Args:
        coarse, fine: channels of the two maps.
        guide: channels of the attention map; 0 leaves it out.
    """

    def __init__(self, coarse: int, fine: int, guide: int) -> None:
        super().__init__()
        self.enlarge = Enlarge(coarse, fine)
        self.guide = Enlarge(guide, fine) if guide else None
        width = (3 if guide else 2) * fine
        self.norm, self.block = nn.BatchNorm3d(width, EPS), Block(width, fine)

    def forward(self, x: Tensor, skip: Tensor, steps: Steps, bottom: Tensor) -> Tensor:
        """`[B, N, *S]`, `[B, M, *S * steps]` and the attention map `[B, G, *s]` -> `[B, M, *S * steps]`."""
        maps = [skip, self.enlarge(x, steps)]
        if self.guide is not None:
            factors = tuple(fine // side for fine, side in zip(skip.shape[2:], bottom.shape[2:], strict=True))
            maps.insert(0, self.guide(bottom, factors))
        return self.block(self.norm(torch.cat(maps, 1)).relu())


class DualAttention(nn.Module):
    """Position and channel attention at the bottom, each convolved twice, and their sum projected.

    Args:
        dim: C.
        dropout: share of the channels dropped in each branch and after the sum, while training.
    """

    def __init__(self, dim: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.position, self.position_block = PositionAttention(dim, 3, bias=False), self._branch(dim, dropout)
        self.channel, self.channel_block = ChannelAttention("plain"), self._branch(dim, dropout)
        self.project = nn.Sequential(nn.Dropout3d(dropout), nn.Conv3d(dim, dim, 1), nn.BatchNorm3d(dim, EPS))

    @staticmethod
    def _branch(dim: int, dropout: float) -> nn.Sequential:
        first, last = (nn.Conv3d(dim, dim, 3, padding=1) for _ in range(2))
        return nn.Sequential(first, nn.BatchNorm3d(dim, EPS), nn.ReLU(), nn.Dropout3d(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, *S]` -> `[B, C, *S]`."""
        return self.project(self.position_block(self.position(x)) + self.channel_block(self.channel(x)))


class AttentionUNet(VolumeNetwork):
    """What both networks share: the encoder, with or without a pyramid of the image, and a classifier at each level.

    Modules stand in the order in which the authors make theirs: that is how their files name weights.

    Args:
        in_channels, out_channels: C and K.
        widths: channels of each level, fine to coarse.
        pyramid: the image itself, reduced by averages, enters at every level (multi-scale input in the paper).
        deep: every level of the decoder is trained (deep supervision).

    Raises:
        ConfigError: less than two levels.
    """

    kinds: Mapping[str, type[nn.Module]] = {
        "conv3d": nn.Conv3d,
        "conv3d_transpose": Enlarge,
        "batch_normalization": nn.BatchNorm3d,
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, ...] = (16, 32, 128, 256, 256),
        pyramid: bool = True,
        deep: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ConfigError("model.network.widths", f"{list(widths)}", "write two levels at least")
        self.deep = deep
        self.encoder = nn.ModuleList([EncoderStage(in_channels, in_channels, widths[0], False)])
        self.encoder.extend(EncoderStage(in_channels, a, b, pyramid) for a, b in pairwise(widths[:-1]))
        self.coarsest = Block(widths[-2], widths[-1])
        self.bottom = self._bottom(widths[-1])
        self.decoder = nn.ModuleList(self._stage(b, a, widths[-1]) for a, b in reversed(list(pairwise(widths))))
        used = widths[-2::-1] if deep else widths[:1]
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, 1) for width in used)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):  # Keras's start
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        side = 2 ** (len(widths) - 1)
        self.divisors = (side, side, side)
        self.class_layers = (r"^heads\.",)
        self.input_layers = (r"^encoder\.0\.block\.0\.weight$", r"^encoder\.\d+\.pyramid\.weight$")
        gammas = tuple((kind, "gamma", "gamma") for kind in ("pam", "cam"))
        layers = creation_order(self, self.kinds)
        self.key_maps = (KerasMap("Keras", r"(^|/)conv3d(_\d+)?/", layers=layers, own=gammas),)

    def _bottom(self, dim: int) -> nn.Module:
        """What the coarsest map `[B, dim, *S]` goes through."""
        return nn.Identity()

    @abc.abstractmethod
    def _stage(self, coarse: int, fine: int, bottom: int) -> nn.Module:
        """A stage of the decoder, called with the map from below, the skip connection, the steps between them and the
        coarsest map."""

    def levels(self, images: Tensor) -> list[Tensor]:
        """Images `[B, C, D, H, W]` -> logits `[B, K, *S]`, the finest first, of all levels that have a classifier."""
        x, image, skips, steps = images, images, [], []
        for stage in self.encoder:
            skips.append(stage(x, image))
            steps.append(tuple(1 if side <= LEAST else 2 for side in skips[-1].shape[2:]))
            x, image = F.max_pool3d(skips[-1], steps[-1]), F.avg_pool3d(image, steps[-1])
        x = bottom = self.bottom(self.coarsest(x))
        decoded = []
        for stage, skip, step in zip(self.decoder, reversed(skips), reversed(steps), strict=True):
            x = stage(x, skip, step, bottom)
            decoded.append(x)
        found = [head(y) for head, y in zip(self.heads, decoded[-len(self.heads) :], strict=True)]
        return found[::-1]

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """See `VolumeNetwork`."""
        found = self.levels(images)
        return found if self.training and self.deep else found[0]


class AGUNet(AttentionUNet):
    """Attention-gated U-Net: what comes from below decides which voxels of a skip connection pass.

    Args:
        base: see `AttentionUNet`.
    """

    def _stage(self, coarse: int, fine: int, bottom: int) -> nn.Module:
        return GatedStage(coarse, fine)


class DAUNet(AttentionUNet):
    """U-Net with position and channel attention at the bottom, whose map may guide every level of the decoder.

    Args:
        guided: it does.
        base: see `AttentionUNet`.
    """

    kinds: Mapping[str, type[nn.Module]] = {
        **AttentionUNet.kinds, "pam": PositionAttention, "cam": ChannelAttention,
    }  # fmt: skip

    def __init__(self, in_channels: int, out_channels: int, guided: bool = False, **base: Any) -> None:
        self.guided = guided
        super().__init__(in_channels, out_channels, **base)

    def _bottom(self, dim: int) -> nn.Module:
        return DualAttention(dim)

    def _stage(self, coarse: int, fine: int, bottom: int) -> nn.Module:
        return GuidedStage(coarse, fine, bottom if self.guided else 0)
