"""What a decoder of semantic segmentation is: from a backbone's maps to logits."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from vistrain.contract import GuardedContract
from vistrain.errors import ConfigError


class DecodeHead(GuardedContract, nn.Module, abc.ABC):
    """Base of all heads of `SemanticSegmenter`.

    Parameters have the names of mmsegmentation's heads, whose checkpoints load: the classifier is `conv_seg` unless a
    head says otherwise.

    Args:
        channels, strides: of the maps that it is given, fine to coarse.
        num_classes: K.
        embed_dim: width of the map before the classifier.
        dropout: share of the channels that are dropped before the classifier while training.
        align_corners: of the interpolations inside, and of the logits to the labels and the image.

    Attributes:
        unused: regular expressions of tensors in official files that compute nothing.
        transformers: rules from the names of Hugging Face's `transformers`, where it has this head; as in `KeyMap`.
    """

    unused: tuple[str, ...] = ()
    transformers: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        embed_dim: int,
        *,
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ConfigError("model.head", f"{len(channels)} maps and {len(strides)} strides do not pair up")
        self.channels, self.strides, self.align_corners = tuple(channels), tuple(strides), align_corners
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = classifier(embed_dim, num_classes)

    @abc.abstractmethod
    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps `[B, C_i, H_i, W_i]`, fine to coarse -> `[B, embed_dim, H, W]`, what is classified."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps `[B, C_i, H_i, W_i]`, fine to coarse -> logits `[B, K, H, W]`, normally of the finest map's size."""
        return self.conv_seg(self.dropout(self.features(maps)))


def classifier(embed_dim: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution `[B, C, H, W]` -> `[B, K, H, W]`, from small weights as in mmsegmentation."""
    layer = nn.Conv2d(embed_dim, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
