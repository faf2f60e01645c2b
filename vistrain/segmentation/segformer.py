"""SegFormer's head (Xie et al. 2021, arXiv 2105.15203), section 3.2.

Authors' code: github.com/NVlabs/SegFormer, commit 65fa8cf, NVIDIA non-commercial licence: written from the paper, with
the names of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vistrain.layers.conv import ConvModule
from vistrain.segmentation.head import DecodeHead, classifier
from vistrain.segmentation.projections import LevelProjection, fused, merged, shares, total


class SegFormerHead(DecodeHead):
    """A linear layer per level, all levels enlarged and fused by another, and a classifier.

    Args:
        embed_dim: width (256 for B0 and B1, 768 for the larger ones).
        base: see `DecodeHead`.
    """

    # The authors' class derives from one with a classifier `conv_seg`, which computes nothing.
    unused = (r"conv_seg\.",)
    transformers = (
        (r"^linear_c\.(\d)\.", r"linear_c<\1>."),
        *((f"<{i}>", str(i + 1)) for i in range(4)),
        (r"^linear_fuse\.", "linear_fuse.conv."),
        (r"^batch_norm\.", "linear_fuse.bn."),
        (r"^classifier\.", "linear_pred."),
    )

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], num_classes: int, embed_dim: int = 256, **base: Any
    ) -> None:
        super().__init__(channels, strides, num_classes, embed_dim=embed_dim, **base)
        del self.conv_seg
        self.embed_dim = embed_dim
        for i, width in enumerate(channels):
            self.add_module(f"linear_c{i + 1}", LevelProjection(width, embed_dim))
        self.linear_fuse = ConvModule(len(channels) * embed_dim, embed_dim)
        self.linear_pred = classifier(embed_dim, num_classes)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        projections = [p for p in self.children() if isinstance(p, LevelProjection)]
        # The official order of the concatenation is coarse to fine.
        cut = shares(self.linear_fuse.conv.weight, [self.embed_dim] * len(maps))[::-1]
        weights, biases = zip(*(merged(share, p) for share, p in zip(cut, projections, strict=True)), strict=True)
        return self.linear_fuse.finish(fused(maps, weights, total(biases), self.align_corners))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See `DecodeHead`."""
        return self.linear_pred(self.dropout(self.features(maps)))
