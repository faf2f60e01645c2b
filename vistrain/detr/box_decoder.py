"""The decoder of queries that are boxes: positions from boxes (DAB-DETR, arXiv 2201.12329, section 4), look forward
twice (DINO, arXiv 2203.03605, section 3.5).

Authors' code: github.com/IDEA-Research/DAB-DETR and IDEA-Research/DINO, both Apache-2.0 (models/dino/
deformable_transformer.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistrain.detr.deformable import DeformableDecoder, DeformableDecoderLayer
from vistrain.layers.deformable import Shapes
from vistrain.layers.mlp import MLP
from vistrain.layers.position import sine_embedding


class BoxDecoder(DeformableDecoder):
    """A stack of `DeformableDecoderLayer` whose query positions are made anew from the boxes in every layer.

    Args:
        inverse_sigmoid_eps: 1e-3 in DINO.
        embed_dim: C.
        base: see `DeformableDecoder`.
    """

    def __init__(
        self,
        layer: Callable[[], DeformableDecoderLayer],
        num_layers: int,
        inverse_sigmoid_eps: float = 1e-3,
        embed_dim: int = 256,
        **base: Any,
    ) -> None:
        super().__init__(layer, num_layers, inverse_sigmoid_eps, **base)
        self.features = embed_dim // 2
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim, num_layers=2)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(  # type: ignore[override]  # positions are made here, boxes by the caller
        self,
        x: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        ratios: Tensor | None,
        padding_mask: Tensor | None,
        box_heads: Sequence[nn.Module],
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode queries.

        Args:
            x: `[B, Q, C]` content of the queries.
            reference_points: `[B, Q, 4]` boxes (cx, cy, w, h) in 0..1 of the unpadded image.
            tokens: `[B, N, C]`, the encoder's output.
            shapes: (height, width) of each level.
            ratios: `[B, L, 2]` shares of (width, height) that are image, or None if nothing is padded.
            padding_mask: `[B, N]` bool, or None.
            box_heads: one per layer, `[B, Q, C]` -> `[B, Q, 4]` logit offsets from the reference boxes.
            attn_mask: `[Q, Q]` bool, True where a query must not see another, or None.

        Returns:
            normalised states `[layers, B, Q, C]`, and the boxes that each layer started from, `[layers, B, Q, 4]`
            float32. Gradients flow through these boxes into the layer before (look forward twice), while the layers
            themselves get them detached.
        """
        states, references = [], [reference_points]
        for index, layer in enumerate(self.layers):
            points = self._on_levels(reference_points, ratios, len(shapes))
            position = self.ref_point_head(self._sines(points[:, :, 0]).to(x.dtype))
            arguments = (x, position, points, tokens, shapes, padding_mask, attn_mask)
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
            states.append(self.norm(x))
            if index + 1 < len(self.layers):  # nothing reads the boxes after the last layer
                # Refined from the state before its norm, while boxes are reported from the one after it: faithful.
                references.append(self._boxes(box_heads[index](x), reference_points))
                reference_points = references[-1].detach()
        return torch.stack(states), torch.stack(references)

    def report(self, offsets: Tensor, references: Tensor) -> Tensor:
        """Boxes `[..., 4]` (cx, cy, w, h in 0..1, float32) from logit offsets `[..., 4]` and starting boxes."""
        return self._boxes(offsets, references)

    def _sines(self, boxes: Tensor) -> Tensor:
        """`[B, Q, 4]` boxes in 0..1 -> `[B, Q, 4 * features]`; y comes before x, as in the encoding of tokens."""
        return sine_embedding(boxes[..., [1, 0, 2, 3]] * (2 * math.pi), self.features)
