"""Which image sizes a timm model takes, and how any other size is brought to one of these and back.

Images are padded with zeros at the bottom and right (after normalisation, as batches are), maps are cropped to
`ceil(size / stride)`. A convolutional ResNet needs no padding and gets none: its maps equal the official codes'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vistrain.backbones.timm_body import fixed_size
from vistrain.errors import ConfigError

# timm marks these `fixed_input_size`, but they interpolate, pad or need no positions; tried at odd sizes.
_ANY_SIZE = {"EfficientVitMsra", "MultiScaleVit", "Sequencer2d", "SwiftFormer", "Twins", "VisionTransformerSAM", "Xcit"}
# These cut maps into blocks at every stage, down to the coarsest: block size's attribute, by the layer that cuts.
_BLOCKS = {
    "HaloAttn": "block_size",
    "PartitionAttention2d": "partition_size",
    "PartitionAttentionCl": "partition_size",
    "ParallelPartitionAttention": "partition_size",
}
# Layers that look as if they rounded down, but sizes are padded before them, or they make keys and values alone.
_ROUNDS_UP = {"DaVit", "PyramidVisionTransformerV2"}
# Upsampled maps are added to finer ones; a space-to-depth stem.
_WHOLE_STRIDES = {"HighResolutionNet", "TResNet"}
# Cells by which convolutions without padding (Inception, Xception, NASNet) may fall short of `ceil(size / stride)`.
_SHORTFALL = 4


@dataclass(frozen=True)
class SizeRule:
    """Image sizes that a model takes.

    Attributes:
        divisor: height and width must be multiples of it.
        fixed: the one `(height, width)` that it takes; None if it takes many.
    """

    divisor: int = 1
    fixed: tuple[int, int] | None = None

    def pad(self, images: Tensor) -> Tensor:
        """Pads images to a size that the model takes.

        Args:
            images: `[B, C, H, W]`.

        Returns:
            `[B, C, H', W']`, zeros at the bottom and right.

        Raises:
            ConfigError: the model takes one size, and these images are larger.
        """
        height, width = images.shape[-2:]
        if self.fixed is None:
            bottom, right = -height % self.divisor, -width % self.divisor
        else:
            bottom, right = self.fixed[0] - height, self.fixed[1] - width
            if bottom < 0 or right < 0:
                raise ConfigError(
                    "args.img_size",
                    f"the backbone takes images of up to {self.fixed[0]}x{self.fixed[1]}, this one is {height}x{width}",
                    "set img_size to the largest image, or resize images to less",
                )
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def size_rule(body: Any, strides: Sequence[int], flexible: bool) -> SizeRule:
    """Finds out which sizes a timm model takes.

    Args:
        body: the model.
        strides: all that it has.
        flexible: whether it was built to take any multiple of its patch size.
    """
    if divisor := getattr(body, "size_divisor", None):  # ours say it where their convolutions do not tell
        return SizeRule(divisor=divisor)
    coarsest = max(strides)
    if blocks := _blocks(body):
        sides = {side for block in blocks for side in (block if isinstance(block, tuple | list) else (block,))}
        return SizeRule(divisor=coarsest * math.lcm(*sides))
    if not takes_any_size(body, flexible):
        return SizeRule(fixed=fixed_size(body))
    if len(set(strides)) == 1:
        return SizeRule(divisor=coarsest)
    if flexible:  # Swin pads its windows and odd maps as the authors' dense code does, but not the first patches
        return SizeRule(divisor=math.lcm(*_pair(body.patch_embed.patch_size)))
    rounds_up = type(body).__name__ in _ROUNDS_UP or all(_rounds_up(module) for module in body.modules())
    return SizeRule(divisor=1 if rounds_up and type(body).__name__ not in _WHOLE_STRIDES else coarsest)


def takes_any_size(body: Any, flexible: bool) -> bool:
    """Whether a timm model can be brought to give maps of images of any size, by padding them if need be.

    Args:
        body: the model.
        flexible: whether it was built to take any multiple of its patch size.
    """
    if flexible or _blocks(body) or type(body).__name__ in _ANY_SIZE:
        return True
    return not body.pretrained_cfg.get("fixed_input_size")


def _blocks(body: nn.Module) -> list[Any]:
    """Sizes of the blocks that a model's layers cut their maps into."""
    return [getattr(m, _BLOCKS[type(m).__name__]) for m in body.modules() if type(m).__name__ in _BLOCKS]


def fit(x: Tensor, stride: int, image: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """Brings a map to `ceil(image / stride)`.

    Args:
        x: `[B, C, h, w]`, computed from the padded image.
        stride: its distance of cells in pixels.
        image, padded: `(H, W)` before and after padding.

    Returns:
        `[B, C, ceil(H / stride), ceil(W / stride)]`.

    Raises:
        ConfigError: the map is so small that the stride cannot be what timm says it is.
    """
    short = [math.ceil(side / stride) - cells for side, cells in zip(padded, x.shape[-2:], strict=True)]
    if max(short) > _SHORTFALL:
        height, width = x.shape[-2:]
        raise ConfigError("strides", f"the map of stride {stride} is {height}x{width} for an image of {image}")
    if max(short) > 0:
        # Convolutions without padding lose the border evenly on all sides: so it is given back.
        top, left = max(short[0], 0) // 2, max(short[1], 0) // 2
        x = F.pad(x, (left, max(short[1], 0) - left, top, max(short[0], 0) - top), mode="replicate")
    return x[..., : math.ceil(image[0] / stride), : math.ceil(image[1] / stride)]


def _rounds_up(module: nn.Module) -> bool:
    """Whether a strided layer gives `ceil(size / stride)` cells for every size: if its padding is half its kernel."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return True
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), module.padding
    if max(stride) == 1 or isinstance(padding, str) or type(module).__name__.endswith("Same"):
        return True
    if getattr(module, "ceil_mode", False):
        return all(p == 0 and k <= s for k, p, s in zip(kernel, _pair(padding), stride, strict=True))
    dilation = _pair(getattr(module, "dilation", 1))
    return all(2 * p == d * (k - 1) for k, p, d in zip(kernel, _pair(padding), dilation, strict=True))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
