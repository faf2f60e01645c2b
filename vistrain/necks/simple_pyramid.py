"""A pyramid out of one map, for backbones that have one stride.

Exploring Plain Vision Transformer Backbones for Object Detection (ViTDet), Li et al. 2022, arXiv 2203.16527, section 3;
authors' code: github.com/facebookresearch/detectron2, Apache-2.0 (detectron2/modeling/backbone/vit.py,
`SimpleFeaturePyramid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vistrain.backbones import DenseBackbone
from vistrain.errors import ConfigError
from vistrain.layers.norms import LayerNorm2d
from vistrain.necks.channel_mapper import ChannelMapper
from vistrain.structures import Factory


class SimplePyramid(nn.Module):
    """Levels of several strides, each made from the backbone's last map alone.

    A level of twice the resolution is one transposed convolution, of four times two of them, of half a max pooling;
    then a 1x1 and a 3x3 convolution, each with a layer norm. Levels beyond the scales are every second cell of the
    level before (detectron2's `LastLevelMaxPool`).

    Args:
        channels, strides: of the backbone's maps; the last is used.
        num_levels: levels to give out.
        embed_dim: their width.
        scales: resolution of the first levels against the map, descending; the paper's by default. With `(2, 1, 0.5)`,
            4 levels and stride 16 one gets the strides 8 to 64 of deformable detectors.

    Attributes:
        channels, strides: of the levels given out, fine to coarse.

    Raises:
        ConfigError: fewer levels than scales, or a scale that is unknown, out of order or gives no whole stride.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_levels: int = 4,
        embed_dim: int = 256,
        scales: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5),
    ) -> None:
        super().__init__()
        if num_levels < len(scales):
            raise ConfigError("scales", f"{len(scales)} scales for {num_levels} levels", "give one per level, or fewer")
        for scale in scales:
            if scale not in _SAMPLERS or strides[-1] % scale:
                raise ConfigError("scales", f"no scale {scale} of a map of stride {strides[-1]}", "use 4, 2, 1, 0.5")
        if list(scales) != sorted(scales, reverse=True):
            raise ConfigError("scales", f"{list(scales)} is not descending", "levels go from fine to coarse")
        self.levels = nn.ModuleList(_level(channels[-1], embed_dim, scale) for scale in scales)
        self.num_extra = num_levels - len(scales)
        self.channels = (embed_dim,) * num_levels
        made = [round(strides[-1] / scale) for scale in scales]
        self.strides = (*made, *(made[-1] * 2 ** (i + 1) for i in range(self.num_extra)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, the last `[B, C, H, W]` -> levels `[B, embed_dim, ceil(scale H), ceil(scale W)]`."""
        levels = [level(maps[-1]) for level in self.levels]
        for _ in range(self.num_extra):
            levels.append(levels[-1][..., ::2, ::2])
        return levels


def default_neck(backbone: DenseBackbone, num_levels: int) -> Factory[nn.Module]:
    """The neck of a detector that was told none: `SimplePyramid` where the backbone gives one map for several strides.

    Args:
        backbone: whose maps it is for.
        num_levels: levels that the detector wants.

    Returns:
        A pyramid whose levels come as close to the wanted strides as doubling and halving can, or `ChannelMapper`; to
        be called with `channels`, `strides`, `num_levels` and `embed_dim`.
    """
    wanted = backbone.wanted_strides or backbone.strides
    if len(backbone.strides) == 1 < len(wanted):
        nearest = {2.0 ** round(math.log2(backbone.strides[0] / stride)) for stride in wanted}
        scales = sorted((x for x in nearest if x in _SAMPLERS and backbone.strides[0] % x == 0), reverse=True)
        return Factory(SimplePyramid, scales=tuple(scales[-num_levels:]))
    return Factory(ChannelMapper)


def _up4(dim: int) -> list[nn.Module]:
    up = [nn.ConvTranspose2d(dim, dim // 2, 2, 2), LayerNorm2d(dim // 2), nn.GELU()]
    return [*up, nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2)]


# How a level is sampled, and by what its channels are divided. The pooling rounds up: the authors' images are padded to
# a multiple of every stride, where this makes no difference, and one cell must not become none.
_SAMPLERS: dict[float, tuple[Callable[[int], list[nn.Module]], int]] = {
    4.0: (_up4, 4),
    2.0: (lambda dim: [nn.ConvTranspose2d(dim, dim // 2, 2, 2)], 2),
    1.0: (lambda dim: [], 1),
    0.5: (lambda dim: [nn.MaxPool2d(2, 2, ceil_mode=True)], 1),
}


def _level(dim: int, embed_dim: int, scale: float) -> nn.Sequential:
    sample, divisor = _SAMPLERS[scale]
    return nn.Sequential(
        *sample(dim),
        nn.Conv2d(dim // divisor, embed_dim, 1, bias=False),
        LayerNorm2d(embed_dim),
        nn.Conv2d(embed_dim, embed_dim, 3, padding=1, bias=False),
        LayerNorm2d(embed_dim),
    )
