"""Deformable encoder and decoder (Deformable-DETR, arXiv 2010.04159).

Authors' code: github.com/fundamentalvision/Deformable-DETR, Apache-2.0 (models/deformable_transformer.py). Post-norm
layers with its names of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vistrain.detr.attention import QuerySelfAttention
from vistrain.layers.boxes import inverse_sigmoid
from vistrain.layers.deformable import MSDeformAttn, Shapes
from vistrain.layers.precision import at_least_float32


def valid_extents(masks: Sequence[Tensor]) -> Tensor:
    """Columns and rows of each level that are image, not padding.

    Args:
        masks: per level `[B, H_l, W_l]` bool, True on padding (bottom and right).

    Returns:
        `[B, L, 2]` float32 counts, (columns, rows); divided by (W_l, H_l) they are the valid ratios.
    """
    return torch.stack([torch.stack(((~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)), -1) for m in masks], 1).float()


def encoder_reference_points(shapes: Shapes, ratios: Tensor | None, device: torch.device) -> Tensor:
    """Every token's own centre, as seen on every level.

    Args:
        shapes: (height, width) of each of the L levels.
        ratios: `[B, L, 2]` shares of (width, height) that are image, or None if nothing is padded.
        device: where to make them.

    Returns:
        `[B, N, L, 2]` (x, y) in 0..1 of the padded maps; B is 1 without ratios.
    """
    points = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1)[None]
        points.append(grid if ratios is None else grid / ratios[:, None, level])
    centres = torch.cat(points, 1)[:, :, None]
    return centres.expand(-1, -1, len(shapes), -1) if ratios is None else centres * ratios[:, None]


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all tokens, then a feed-forward network.

    Args:
        embed_dim, num_heads, num_levels, num_points, core: as in `MSDeformAttn`.
        ffn_dim: width of the feed-forward network.
        dropout: after attention, inside and after the feed-forward network.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        core: str = "auto",
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(embed_dim, num_heads, num_levels, num_points, core)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, position: Tensor, reference_points: Tensor, shapes: Shapes, padding_mask: Tensor | None
    ) -> Tensor:
        """`[B, N, C]` tokens -> `[B, N, C]`.

        Args:
            x: `[B, N, C]`.
            position: `[B or 1, N, C]`, position and level encoding.
            reference_points: `[B or 1, N, L, 2]` from `encoder_reference_points`.
            shapes: (height, width) of each level.
            padding_mask: `[B, N]` bool, True on padding, or None.
        """
        x = self.norm1(x + self.dropout(self.self_attn(x + position, reference_points, x, shapes, padding_mask)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention into the tokens, a feed-forward network.

    `norm2` follows self-attention and `norm1` cross-attention: the official names, kept.

    Args:
        As `DeformableEncoderLayer`.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        core: str = "auto",
    ) -> None:
        super().__init__()
        self.self_attn = QuerySelfAttention(embed_dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.cross_attn = MSDeformAttn(embed_dim, num_heads, num_levels, num_points, core)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """`[B, Q, C]` queries -> `[B, Q, C]`.

        Args:
            x, position: `[B, Q, C]` content and position of the queries.
            reference_points: `[B, Q, L, 2 or 4]`, in 0..1 of the padded maps.
            tokens: `[B, N, C]`, the encoder's output.
            shapes: (height, width) of each level.
            padding_mask: `[B, N]` bool, True on padding, or None.
            attn_mask: `[Q, Q]` bool, True where a query must not see another, or None.
        """
        x = self.norm2(x + self.dropout(self.self_attn(x, position, attn_mask)))
        x = self.norm1(x + self.dropout(self.cross_attn(x + position, reference_points, tokens, shapes, padding_mask)))
        return self.norm3(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))


class DeformableEncoder(nn.Module):
    """A stack of `DeformableEncoderLayer`.

    Args:
        layer: makes one layer.
        num_layers: how many; 0 passes tokens through.
        activation_checkpointing: recompute each layer in the backward pass instead of storing it.
    """

    def __init__(
        self, layer: Callable[[], DeformableEncoderLayer], num_layers: int, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self, x: Tensor, position: Tensor, shapes: Shapes, ratios: Tensor | None, padding_mask: Tensor | None
    ) -> Tensor:
        """Encode `[B, N, C]` tokens; arguments as in the layer, `ratios` as for `encoder_reference_points`."""
        points = encoder_reference_points(shapes, ratios, x.device)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, position, points, shapes, padding_mask, use_reentrant=False)
            else:
                x = layer(x, position, points, shapes, padding_mask)
        return x


class DeformableDecoder(nn.Module):
    """A stack of `DeformableDecoderLayer`, optionally refining the reference points from layer to layer.

    Args:
        layer: makes one layer.
        num_layers: how many.
        inverse_sigmoid_eps: 1e-5 in Deformable-DETR, 1e-3 in detrex and DINO.
        activation_checkpointing: recompute each layer in the backward pass instead of storing it.
    """

    def __init__(
        self,
        layer: Callable[[], DeformableDecoderLayer],
        num_layers: int,
        inverse_sigmoid_eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(num_layers))
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        shapes: Shapes,
        ratios: Tensor | None,
        padding_mask: Tensor | None,
        box_heads: Sequence[nn.Module],
        refine: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode queries into boxes.

        Args:
            x, position: `[B, Q, C]` content and position of the queries.
            reference_points: `[B, Q, 2 or 4]` in 0..1 of the unpadded image.
            tokens: `[B, N, C]`, the encoder's output.
            shapes: (height, width) of each level.
            ratios: `[B, L, 2]` shares of (width, height) that are image, or None if nothing is padded.
            padding_mask: `[B, N]` bool, or None.
            box_heads: one per layer, `[B, Q, C]` -> `[B, Q, 4]` logit offsets from the reference points.
            refine: the next layer starts from this layer's boxes (detached) instead of the first reference points.
            attn_mask: `[Q, Q]` bool, True where a query must not see another, or None.

        Returns:
            states `[layers, B, Q, C]` and boxes `[layers, B, Q, 4]` (cx, cy, w, h in 0..1, float32).
        """
        states, boxes = [], []
        for layer, box_head in zip(self.layers, box_heads, strict=False):
            points = self._on_levels(reference_points, ratios, len(shapes))
            arguments = (x, position, points, tokens, shapes, padding_mask, attn_mask)
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
            states.append(x)
            boxes.append(self._boxes(box_head(x), reference_points))
            if refine:
                reference_points = boxes[-1].detach()
        return torch.stack(states), torch.stack(boxes)

    @staticmethod
    def _on_levels(reference_points: Tensor, ratios: Tensor | None, levels: int) -> Tensor:
        points = reference_points[:, :, None]
        if ratios is None:
            return points.expand(-1, -1, levels, -1)
        return points * (torch.cat((ratios, ratios), -1) if points.shape[-1] == 4 else ratios)[:, None]

    def _boxes(self, offsets: Tensor, reference_points: Tensor) -> Tensor:
        # float32 under autocast: bfloat16 steps of a logit are pixels of a box
        with torch.autocast(offsets.device.type, enabled=False):
            offsets = at_least_float32(offsets)
            origin = inverse_sigmoid(reference_points, self.inverse_sigmoid_eps)
            if origin.shape[-1] == 2:  # the size is predicted as it is
                origin = torch.cat((origin, torch.zeros_like(origin)), -1)
            return (offsets + origin).sigmoid()
