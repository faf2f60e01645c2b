"""Twelve residual blocks with coordinate and channel attention, for satellite images of 64 pixels.

Balanced Multi-Task Attention for Satellite Image Classification, arXiv 2510.15527, section 3. Authors'
code: virAditya/satellite-image-classification-eurosat, MIT (models/balanced_12layer.py), which fails as it
is: it sets the bias of layers without one. Nothing of it is here; DropBlock (arXiv 1810.12890) is timm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import DropBlock2d, DropPath
from timm.models import generate_default_cfgs
from torch import Tensor, nn

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
from vistrain.modules.coordinate_excitation import CoordinateExcitation

AUTHORS = KeyMap(
    name="EuroSAT",
    marker=r"^stage1\.0\.attention\.alpha$",
    rules=(*((rf"^stage{i}\.", f"stages.{i - 1}.blocks.") for i in range(1, 5)), (r"^fc\.", "head.")),
)
checkpoint_filter_fn = converter(AUTHORS)


class BalancedBlock(nn.Module):
    """Two 3x3 convolutions, DropBlock between them, and the module on what they add.

    Args:
        dim_in, dim: channels before and after it.
        stride: of the block.
        drop_block: share of the cells that training drops, in squares of 7x7.
        drop_path: probability that the branch is left out of a sample in training.
    """

    def __init__(self, dim_in: int, dim: int, stride: int = 1, drop_block: float = 0.1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim_in, dim, 3, stride, 1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.attention = CoordinateExcitation(dim)
        self.dropblock, self.drop_path = DropBlock2d(drop_block), DropPath(drop_path)
        changes = stride != 1 or dim_in != dim
        shortcut = (nn.Conv2d(dim_in, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, dim_in, H, W]` -> `[B, dim, H', W']`."""
        hidden = self.dropblock(self.bn1(self.conv1(x)).relu())
        added = self.drop_path(self.attention(self.bn2(self.conv2(hidden))))
        return (added + self.shortcut(x)).relu()


class BalancedNet(StagedBackbone):
    """The twelve-layer network (arXiv 2510.15527, section 3), of strides 1 to 8.

    Args:
        in_chans: channels of the images.
        dims, depths: channels and blocks of each stage.
        drop_blocks: see `BalancedBlock`, of each stage.
        drop_rate: dropout before the classifier.
        drop_path_rate: of the last block; it grows evenly from 0 at the first. The paper has none.
        base: see `StagedBackbone`.
    """

    size_divisor = 1

    def __init__(
        self,
        in_chans: int = 3,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 3, 3, 2),
        drop_blocks: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
        drop_rate: float = 0.5,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], 3, padding=1, bias=False), nn.BatchNorm2d(dims[0]), nn.ReLU())
        stages, before = [], dims[0]
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            blocks = []
            for j, rate in enumerate(rates):
                blocks.append(BalancedBlock(before, dims[i], 2 if i and not j else 1, drop_blocks[i], rate))
                before = dims[i]
            stages.append(Stage(nn.Identity(), blocks, channels_last=False))
        strides = [2**i for i in range(len(dims))]
        super().__init__(stem, stages, nn.Identity(), channels=dims, strides=strides, drop_rate=drop_rate, **base)
        initialise(self, "fan_out")


# The authors' page says 11.2 million; their class has 13,115,813 parameters
PUBLISHED = {"eurosat_12layer": Published(13.1, size=64, counted={"num_classes": 10})}
_CODE = "https://github.com/virAditya/satellite-image-classification-eurosat"
default_cfgs = generate_default_cfgs({"eurosat_12layer": default_cfg("2510.15527", _CODE, "mit", size=64)})


@register_model
def eurosat_12layer(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """The balanced network of twelve layers for EuroSAT."""
    return build_variant(BalancedNet, "eurosat_12layer", pretrained, checkpoint_filter_fn, kwargs)
