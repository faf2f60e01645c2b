"""Instance and batch normalisation in one network: appearance is removed where it is shallow, and kept where deep.

Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net, arXiv 1807.09441, section 3.2. Authors' code:
XingangPan/IBN-Net, MIT (ibnnet/modules.py, ibnnet/resnet_ibn.py); parameters have its names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistrain.modules.base import ConvModule


class IBN(ConvModule):
    """IBN-a: the first half of the channels is normalised by image, the second by batch.

    The authors' networks have it in the first three of four stages: `module: [ibn, ibn, ibn, null]`.

    Args:
        dim: channels C.
    """

    formula = "y = [IN(x_1), BN(x_2)], x_1 and x_2 the halves of the channels"
    cost = "2C parameters; no multiply-adds of its own"
    place = "norm"
    sizes = "two cells or more"
    least_cells = 2

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.by_image = dim // 2
        self.IN = nn.InstanceNorm2d(self.by_image, affine=True)
        self.BN = nn.BatchNorm2d(dim - self.by_image)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return torch.cat((self.IN(x[:, : self.by_image]), self.BN(x[:, self.by_image :])), 1)


class IBNB(ConvModule):
    """IBN-b: instance normalisation behind the last sum of a stage.

    The authors' networks have it in the first two of four stages, and an instance norm in the stem: `module: [ibnb,
    ibnb, null, null]` and `stem_norm: instance`.

    Args:
        dim: channels C.
    """

    formula = "y = relu(IN(x + f(x)))"
    cost = "2C parameters; no multiply-adds of its own"
    place = "end"
    sizes = "two cells or more"
    least_cells = 2

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(dim, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H, W]`."""
        return self.IN(x)
