"""Decoders of queries into classes and masks: what Mask2Former and PEM share (arXiv 2112.01527, section 3.2).

Authors' code: github.com/facebookresearch/Mask2Former, commit 9b0651c, MIT (modeling/transformer_decoder).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistrain.contract import GuardedContract
from vistrain.detr.attention import QuerySelfAttention
from vistrain.errors import ConfigError
from vistrain.layers.conv import resize
from vistrain.layers.mlp import MLP
from vistrain.layers.position import SinePositionEncoding
from vistrain.losses import MaskPrediction
from vistrain.segmentation.pixel_decoder import LEVELS, PixelFeatures


class CrossAttentionLayer(GuardedContract, nn.Module, abc.ABC):
    """Base of what lets queries look at a level, residual and norms included."""

    @abc.abstractmethod
    def forward(
        self, queries: Tensor, query_position: Tensor, memory: Tensor, position: Tensor, mask: Tensor
    ) -> Tensor:
        """`[B, Q, C]` queries -> `[B, Q, C]`.

        Args:
            queries, query_position: `[B, Q, C]` content and position.
            memory: `[B, C, H, W]`, a level.
            position: `[1, H * W, C]`, its position encoding.
            mask: `[B, Q, H, W]` logits of the masks that the queries predicted so far, without gradient.
        """


class SelfAttentionLayer(nn.Module):
    """Attention among queries, residual and norm.

    Args:
        embed_dim, num_heads, dropout: of the attention.
        pre_norm: the norm comes first.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = QuerySelfAttention(embed_dim, num_heads, dropout)
        self.norm, self.dropout, self.pre_norm = nn.LayerNorm(embed_dim), nn.Dropout(dropout), pre_norm

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """`[B, Q, C]` content and position -> `[B, Q, C]`."""
        if self.pre_norm:
            return x + self.dropout(self.self_attn(self.norm(x), position))
        return self.norm(x + self.dropout(self.self_attn(x, position)))


class FeedForwardLayer(nn.Module):
    """Two linear layers with ReLU between, residual and norm.

    Args:
        embed_dim, ffn_dim, dropout: of the layers.
        pre_norm: the norm comes first.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(embed_dim, ffn_dim), nn.Linear(ffn_dim, embed_dim)
        self.norm, self.dropout, self.pre_norm = nn.LayerNorm(embed_dim), nn.Dropout(dropout), pre_norm
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, Q, C]` -> `[B, Q, C]`."""
        y = self.norm(x) if self.pre_norm else x
        y = x + self.dropout(self.linear2(self.dropout(self.linear1(y).relu())))
        return y if self.pre_norm else self.norm(y)


class QueryDecoder(GuardedContract, nn.Module, abc.ABC):
    """Learnt queries look at the three levels in turn, at each other, and predict after every layer.

    Args:
        in_channels: of the levels.
        num_classes: K.
        mask_dim: width of the mask features.
        embed_dim: width C.
        num_queries, num_layers, num_heads, ffn_dim, dropout: of the layers. Official configs count the prediction
            before the first layer, too: their `DEC_LAYERS` is `num_layers` + 1.
        pre_norm: norms before instead of after each part.
        enforce_input_proj: project levels that have the width already.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        mask_dim: int,
        embed_dim: int = 256,
        num_queries: int = 100,
        num_layers: int = 9,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        pre_norm: bool = False,
        enforce_input_proj: bool = False,
    ) -> None:
        if num_queries < 1:
            raise ConfigError("model.decoder.num_queries", f"{num_queries} is too small", "use 1 or more")
        if embed_dim % num_heads:
            problem = f"{embed_dim} channels are not divisible by {num_heads} heads"
            raise ConfigError("model.decoder.num_heads", problem)
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout, self.pre_norm = embed_dim, num_heads, dropout, pre_norm
        self.position = SinePositionEncoding(embed_dim // 2, offset=0.0)
        layers = range(num_layers)
        self.transformer_cross_attention_layers = nn.ModuleList(self.cross_attention() for _ in layers)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(embed_dim, num_heads, dropout, pre_norm) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(embed_dim, ffn_dim, dropout, pre_norm) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.query_feat = nn.Embedding(num_queries, embed_dim)
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.level_embed = nn.Embedding(LEVELS, embed_dim)
        project = enforce_input_proj or in_channels != embed_dim
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, embed_dim, 1) if project else nn.Identity() for _ in range(LEVELS)
        )
        self.class_embed = nn.Linear(embed_dim, num_classes + 1)
        self.mask_embed = MLP(embed_dim, embed_dim, mask_dim)

    @abc.abstractmethod
    def cross_attention(self) -> CrossAttentionLayer:
        """A layer that lets queries look at a level."""

    def forward(self, pixels: PixelFeatures) -> list[MaskPrediction]:
        """Predictions before the first layer and after each, the last last; suffixes `_0`, `_1` ... and none."""
        batch = pixels.mask_features.shape[0]
        levels, positions, small = [], [], []
        for i, (project, x) in enumerate(zip(self.input_proj, pixels.levels, strict=True)):
            levels.append(project(x) + self.level_embed.weight[i][:, None, None])
            size = (x.shape[2], x.shape[3])
            positions.append(self.position(size, None, x.device).to(x.dtype))
            # The masks that queries attend by are of a level's size. Shrinking the features shrinks every query's mask,
            # as it is linear in them: done three times, where shrinking masks is done for each query and layer.
            small.append(resize(pixels.mask_features.detach(), size))
        x = self.query_feat.weight.expand(batch, -1, -1)
        query_position = self.query_embed.weight.expand(batch, -1, -1)
        predictions = [self.predict(x)]
        for i, (cross, attend, feed) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = i % LEVELS
            with torch.no_grad():
                mask = torch.einsum("bqc,bchw->bqhw", predictions[-1].embeds.to(small[level].dtype), small[level])
            x = cross(x, query_position, levels[level], positions[level], mask)
            x = feed(attend(x, query_position))
            predictions.append(self.predict(x))
        suffixes = [*(f"_{i}" for i in range(len(predictions) - 1)), ""]
        return [MaskPrediction(p.logits, p.embeds, s) for p, s in zip(predictions, suffixes, strict=True)]

    def predict(self, x: Tensor) -> MaskPrediction:
        """Classes and mask embeddings of queries `[B, Q, C]`."""
        x = self.decoder_norm(x)
        return MaskPrediction(self.class_embed(x), self.mask_embed(x))


def mask_logits(prediction: MaskPrediction, pixels: PixelFeatures) -> Tensor:
    """`[B, Q, H, W]` logits of the queries' masks, of the mask features' size."""
    return torch.einsum("bqc,bchw->bqhw", prediction.embeds, pixels.mask_features)


def stacked(predictions: Sequence[MaskPrediction], pixels: PixelFeatures) -> list[dict[str, Tensor]]:
    """All predictions as dicts of `pred_logits` `[B, Q, K + 1]` and `pred_masks` `[B, Q, H, W]`."""
    return [{"pred_logits": p.logits, "pred_masks": mask_logits(p, pixels)} for p in predictions]
