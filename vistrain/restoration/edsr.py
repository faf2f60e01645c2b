"""EDSR: residual blocks without norms and an enlargement at the end (arXiv 1707.02921), a convolutional baseline.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", section 3. Names of parameters are
those of BasicSR's `edsr_arch.py` (Apache-2.0). No stored results of the authors' code were at hand to compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.errors import ConfigError
from vistrain.layers.imresize import imresize
from vistrain.restoration.restorer import Restorer

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class EDSRBlock(nn.Module):
    """`x + res_scale * conv(relu(conv(x)))`, `[B, C, h, w]` -> the same.

    Args:
        num_feat: channels C.
        res_scale: of what is added.
    """

    def __init__(self, num_feat: int, res_scale: float = 1.0) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.res_scale * self.conv2(F.relu(self.conv1(x)))


class EDSR(Restorer):
    """The network.

    Args:
        upscale: 2, 3 or a power of 2.
        num_feat: channels; 64 in the baseline, 256 in the large network.
        num_block: residual blocks; 16 and 32.
        res_scale: of the residual branches; 1 and 0.1.
        img_range: what the brightest pixel becomes inside; 255 in the published weights.
        bicubic_skip: add the bicubic enlargement to the output, so that only what it lacks is learned. Not in the
            paper; a small network is then better than bicubic from the first steps on.

    Raises:
        ConfigError: it does not enlarge by this factor.
    """

    def __init__(
        self,
        upscale: int = 4,
        num_feat: int = 64,
        num_block: int = 16,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        bicubic_skip: bool = False,
    ) -> None:
        super().__init__()
        if upscale < 2 or (upscale != 3 and upscale & (upscale - 1)):
            raise ConfigError("upscale", f"does not enlarge by {upscale}", "use 3 or a power of 2")
        self.scale, self.img_range, self.bicubic_skip = upscale, img_range, bicubic_skip
        self.register_buffer("mean", torch.tensor(RGB_MEAN)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(EDSRBlock(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        steps = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
        pairs = ((nn.Conv2d(num_feat, s**2 * num_feat, 3, padding=1), nn.PixelShuffle(s)) for s in steps)
        self.upsample = nn.Sequential(*(layer for pair in pairs for layer in pair))
        self.conv_last = nn.Conv2d(num_feat, 3, 3, padding=1)
        if bicubic_skip:
            nn.init.zeros_(self.conv_last.weight)
            nn.init.zeros_(self.conv_last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 3, h, w]`, brightest pixel 1 -> `[B, 3, h * upscale, w * upscale]`."""
        mean: Tensor = self.mean  # type: ignore[assignment]
        features = self.conv_first((x - mean) * self.img_range)
        features = features + self.conv_after_body(self.body(features))
        restored = self.conv_last(self.upsample(features)) / self.img_range
        return restored + (imresize(x, self.scale) if self.bicubic_skip else mean)
