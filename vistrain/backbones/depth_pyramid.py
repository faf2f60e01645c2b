"""A pyramid out of a plain transformer's maps of four depths, as pre-trained ones are fine-tuned for dense tasks.

BEiT: BERT Pre-Training of Image Transformers (Bao et al. 2021, arXiv 2106.08254), whose segmentation those of MAE, CAE
and HPM follow. Authors' code: github.com/microsoft/unilm, MIT (beit/semantic_segmentation, `BEiT.fpn1` to `fpn4`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vistrain.backbones.backbone import Backbone
from vistrain.backbones.sizes import fit
from vistrain.errors import ConfigError
from vistrain.structures import Channels


class DepthPyramid(Backbone):
    """Maps of a quarter, half, once and twice a plain model's stride, each of what one of its blocks gives.

    The finest is enlarged by two transposed convolutions with a batch norm between them, the next by one; the coarsest
    is a max pooling. No norm is applied to any.

    Args:
        name, pretrained, args, image_channels: see `Backbone`; a model of one stride, such as a ViT or BEiT.
        blocks: whose outputs are taken, counted from 1, fine to coarse; if None those at a third, a half, two thirds
            and the end of the depth, as the authors have it.

    Raises:
        ConfigError: the model has several strides, or no such blocks.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        args: dict[str, Any] | None = None,
        blocks: tuple[int, int, int, int] | None = None,
        image_channels: Channels = Channels(3),  # noqa: B008 - an int
    ) -> None:
        super().__init__(name, pretrained, (4, 8, 16, 32), args=args, image_channels=image_channels)
        if not self._norm:
            raise ConfigError("name", f"{name} has maps of several strides", "leave out `type`: it makes them itself")
        depth, (dim,), (stride,) = self._indices[0] + 1, self.channels, self.strides
        chosen = blocks or (round(depth / 3), round(depth / 2), round(depth * 2 / 3), depth)
        if list(chosen) != sorted(set(chosen)) or not 1 <= chosen[0] <= chosen[-1] <= depth:
            problem = f"{list(chosen)} are not four of {depth} blocks, ascending"
            raise ConfigError("blocks", problem, f"use 1 to {depth}")
        if stride % 4:
            problem = f"a quarter of the stride {stride} of {name} is no stride"
            raise ConfigError("name", problem, "take one of a multiple of 4")
        self._indices = [block - 1 for block in chosen]
        self.body.prune_intermediate_layers(self._indices, prune_norm=True, prune_head=True)
        self.levels = nn.ModuleList([
            nn.Sequential(_double(dim), nn.BatchNorm2d(dim), nn.GELU(), _double(dim)),
            _double(dim),
            nn.Identity(),
            nn.MaxPool2d(2, ceil_mode=True),
        ])  # fmt: skip
        self.strides = tuple(stride * 2**i // 4 for i in range(4))
        self.channels, self.wanted_strides = (dim,) * 4, ()

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        padded = self._size_rule.pad(images)
        maps = self.body.forward_intermediates(
            padded, indices=self._indices, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        before, after = (images.shape[-2], images.shape[-1]), (padded.shape[-2], padded.shape[-1])
        levels = [level(x) for level, x in zip(self.levels, maps, strict=True)]
        return [fit(x, stride, before, after) for x, stride in zip(levels, self.strides, strict=True)]


def _double(dim: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, dim, 2, 2)
