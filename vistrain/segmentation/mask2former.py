"""Mask2Former: Masked-attention Mask Transformer for Universal Image Segmentation (Cheng et al., arXiv 2112.01527).

Authors' code: github.com/facebookresearch/Mask2Former, commit 9b0651c, MIT.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.segmentation.mask_classifier import MaskClassifier
from vistrain.segmentation.pixel_decoder import DeformablePixelDecoder
from vistrain.segmentation.query_decoder import CrossAttentionLayer, QueryDecoder
from vistrain.structures import Factory, LabelSpace


class MaskedAttention(nn.MultiheadAttention):
    """torch's attention, with its parameters, whose queries see a part of the keys each and never wait for weights.

    Args:
        embed_dim, num_heads, dropout: of the attention.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(embed_dim, num_heads, dropout, batch_first=True)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """`[B, Q, C]`, `[B, N, C]`, `[B, N, C]` and `[B, Q, N]` bool, the same for all heads -> `[B, Q, C]`."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MaskedCrossAttention(CrossAttentionLayer):
    """Attention to what lies in the mask that the query predicted so far (section 3.2.1).

    Args:
        embed_dim, num_heads, dropout: of the attention.
        pre_norm: the norm comes first.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.multihead_attn = MaskedAttention(embed_dim, num_heads, dropout)
        self.norm, self.dropout, self.pre_norm = nn.LayerNorm(embed_dim), nn.Dropout(dropout), pre_norm

    def forward(
        self, queries: Tensor, query_position: Tensor, memory: Tensor, position: Tensor, mask: Tensor
    ) -> Tensor:
        """See `CrossAttentionLayer`."""
        visible = mask.flatten(2).sigmoid() >= 0.5
        visible = visible | ~visible.any(2, keepdim=True)  # an empty mask hides nothing
        tokens = memory.flatten(2).transpose(1, 2)
        x = self.norm(queries) if self.pre_norm else queries
        out = self.multihead_attn.attend(x + query_position, tokens + position, tokens, visible)
        out = queries + self.dropout(out)
        return out if self.pre_norm else self.norm(out)


class MaskedDecoder(QueryDecoder):
    """Mask2Former's decoder.

    Args:
        base: see `QueryDecoder`.
    """

    def cross_attention(self) -> CrossAttentionLayer:
        """See `QueryDecoder`."""
        return MaskedCrossAttention(self.embed_dim, self.num_heads, self.dropout, self.pre_norm)


class Mask2Former(MaskClassifier):
    """Mask2Former.

    Args:
        base: see `MaskClassifier`.
    """

    default_pixel_decoder = Factory(DeformablePixelDecoder)
    default_decoder = Factory(MaskedDecoder)

    def __init__(self, backbone: Backbone | DenseBackbone, labels: LabelSpace, **base: Any) -> None:
        super().__init__(backbone, labels, **base)
