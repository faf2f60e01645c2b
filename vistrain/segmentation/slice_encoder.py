"""Slices of a volume through any backbone for pictures and any head."""

from __future__ import annotations

import math

from torch import Tensor

from vistrain.backbones import Backbone
from vistrain.checkpoints import under
from vistrain.layers.conv import resize
from vistrain.segmentation.head import DecodeHead
from vistrain.segmentation.volume import SliceNetwork
from vistrain.structures import Factory


class SliceEncoder(SliceNetwork):
    """A backbone's maps of a slice, and a head.

    Slices reach it as the data set normalises them: means and deviations that a backbone's weights were trained with
    have no meaning for magnetic resonance or Hounsfield units.

    Args:
        in_channels, out_channels: C and K.
        backbone: unbuilt; built with `image_channels`. Weights for pictures are adapted to C channels by timm.
        head: unbuilt, as in `SemanticSegmenter`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, backbone: Factory[Backbone], head: Factory[DecodeHead]
    ) -> None:
        super().__init__()
        self.backbone = backbone(image_channels=in_channels)
        facts = {"channels": self.backbone.channels, "strides": self.backbone.strides}
        self.decode_head = head(**facts, num_classes=out_channels)
        side = math.lcm(self.backbone.preprocessing.size_divisor, *self.backbone.strides)
        self.divisors = (side, side)
        self.class_layers = (r"^decode_head\.conv_seg\.",)
        self.input_layers = under("backbone.", self.backbone.input_layers)

    def forward(self, images: Tensor) -> Tensor:
        """See `SliceNetwork`."""
        logits = self.decode_head(self.backbone(images))
        return resize(logits, images.shape[2:], self.decode_head.align_corners)
