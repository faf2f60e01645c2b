"""One file per attention operator or token mixer, all called `forward(x: [B, N, C], size: (H, W))`. Pure torch."""

from vistrain.attention.aggregated import AggregatedAttention, CosineAttention
from vistrain.attention.bilevel_routing import BiLevelRoutingAttention
from vistrain.attention.neighborhood import NeighborhoodAttention
from vistrain.attention.rank_augmented import GatedRotaryAttention, RankAugmentedAttention
from vistrain.attention.strip import StripSelfAttention
from vistrain.attention.swin_window import SwinWindowAttention
from vistrain.attention.varied_size_window import VariedSizeWindowAttention

__all__ = [
    "AggregatedAttention",
    "BiLevelRoutingAttention",
    "CosineAttention",
    "GatedRotaryAttention",
    "NeighborhoodAttention",
    "RankAugmentedAttention",
    "StripSelfAttention",
    "SwinWindowAttention",
    "VariedSizeWindowAttention",
]
