"""Numbers for patches: what CAE's decoder predicts.

CAE takes the codes of DALL-E's variational autoencoder, whose weights are files of their own. `RandomWords` needs no
file: BEST-RQ's quantiser (arXiv 2202.01855, section 3.1; no code of the authors, no licence), a stand-in of ours here.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.pretraining.patches import normalised, patchify


class VisualWords(nn.Module, abc.ABC):
    """Gives each patch of an image a number below `count`.

    Attributes:
        count: of the words.
    """

    count: int

    @abc.abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images `[B, C, H, W]` -> `[B, N]` int64, row by row, without gradients."""


class RandomWords(VisualWords):
    """The nearest of random directions to a random projection of each patch; interpretation: no paper has it with CAE.

    Args:
        patch: height and width of a patch, pixels.
        channels: of the images.
        count: words.
        features: of the projection.
        seed: of both.
    """

    def __init__(
        self, patch: tuple[int, int] = (16, 16), channels: int = 3, count: int = 8192, features: int = 16, seed: int = 0
    ) -> None:
        super().__init__()
        self.patch, self.count = patch, count
        generator = torch.Generator().manual_seed(seed)
        size = patch[0] * patch[1] * channels
        # Not persistent: the seed decides them, and others' files do not have them.
        self.register_buffer(
            "projection", torch.randn(size, features, generator=generator) / size**0.5, persistent=False
        )
        words = F.normalize(torch.randn(count, features, generator=generator), dim=1)
        self.register_buffer("words", words, persistent=False)
        self.projection: Tensor
        self.words: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """See `VisualWords`."""
        rows = normalised(patchify(images.float(), self.patch))[0] @ self.projection
        return (F.normalize(rows, dim=-1) @ self.words.T).argmax(-1)
