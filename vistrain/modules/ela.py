"""Efficient local attention: gates of rows and of columns, each a convolution along the means of the other axis.

ELA: Efficient Local Attention for Deep Convolutional Neural Networks, arXiv 2403.01123, section 3.3. Authors' code:
Xuwei86/ELA_Code, no licence (MbV2/models/attention.py): nothing of it is here, it is written from the formulae;
parameters have its names. timm's `EfficientLocalAttn` computes something else.
"""

from __future__ import annotations

from torch import Tensor, nn

from vistrain.errors import ConfigError
from vistrain.modules.base import ConvModule


class ELA(ConvModule):
    """Gates of rows times gates of columns; one convolution and one norm serve both.

    The paper's variants: T `kernel_size` 5, `channels_per_group` 1, `norm_groups` 32; B 7, 1, 16; S 5, 8, 16; L 7, 8,
    16 (the default, `ELA72` of the authors' code; `ELA73` is 5, null, 32).

    Args:
        dim: channels C.
        kernel_size: of the convolutions, odd.
        channels_per_group: channels that are convolved together, dividing C; None for all.
        norm_groups: groups of the norm, dividing C.

    Raises:
        ConfigError: groups do not divide the channels, or the kernel is even.
    """

    formula = "y = x * sigmoid(GN(conv_k(row means))) * sigmoid(GN(conv_k(column means)))"
    cost = "kCg + 2C parameters, g = channels_per_group; 2NC + (H + W)kCg"

    def __init__(
        self, dim: int, kernel_size: int = 7, channels_per_group: int | None = 8, norm_groups: int = 16
    ) -> None:
        super().__init__()
        together = channels_per_group or dim
        for name, value in (("channels_per_group", together), ("norm_groups", norm_groups)):
            if value < 1 or dim % value:
                raise ConfigError(name, f"{dim} channels are not divisible by {value}", "choose a divisor of them all")
        if kernel_size % 2 == 0:
            raise ConfigError("kernel_size", f"{kernel_size} is even", "use 5 or 7")
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim // together, bias=False)
        self.gn = nn.GroupNorm(norm_groups, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        rows = self.gn(self.conv(x.mean(3))).sigmoid()
        columns = self.gn(self.conv(x.mean(2))).sigmoid()
        return x * rows[..., None] * columns[:, :, None]
