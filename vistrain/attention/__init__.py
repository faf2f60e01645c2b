"""One file per attention operator or token mixer, all called `forward(x: [B, N, C], size: (H, W))`. Pure torch."""

from vistrain.attention.aggregated import AggregatedAttention, CosineAttention
from vistrain.attention.bilevel_routing import BiLevelRoutingAttention
from vistrain.attention.neighborhood import NeighborhoodAttention
from vistrain.attention.swin_window import SwinWindowAttention

__all__ = [
    "AggregatedAttention",
    "BiLevelRoutingAttention",
    "CosineAttention",
    "NeighborhoodAttention",
    "SwinWindowAttention",
]
