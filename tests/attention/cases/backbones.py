"""Operators of published backbones, and windows and neighbourhoods of their own."""

import attention_definitions as by
from attention_contract import Case

from vistrain.attention.aggregated import AggregatedAttention, CosineAttention
from vistrain.attention.bilevel_routing import BiLevelRoutingAttention
from vistrain.attention.neighborhood import DilatedNeighborhoodAttention, NeighborhoodAttention
from vistrain.attention.rank_augmented import GatedRotaryAttention, RankAugmentedAttention
from vistrain.attention.strip import StripSelfAttention
from vistrain.attention.varied_size_window import VariedSizeWindowAttention
from vistrain.attention.window import ShiftedWindowAttention, SwinWindowAttention, WindowAttention

HEADS = {"dim": 8, "num_heads": 2}
GRID = {**HEADS, "grid": 8, "pretrain_grid": 6, "is_extrapolation": True}
WINDOW = {**HEADS, "window_size": 4}
VARIED = {**HEADS, "window_size": 3}
TILED = {"sizes": ((8, 8), (4, 12), (12, 8)), "refused": ((7, 9), (4, 6), (3, 2))}
CASES = (
    Case("aggregated", AggregatedAttention, {**GRID, "sr_ratio": 3}, by.one_by_one(by.aggregated)),
    Case("bilevel", BiLevelRoutingAttention, {**HEADS, "n_win": 3, "topk": 2}, by.one_by_one(by.bilevel_routing)),
    Case(
        "bilevel_nchw",
        BiLevelRoutingAttention,
        {**HEADS, "n_win": 3, "topk": 2, "pad_projected": True},
        by.one_by_one(by.bilevel_routing),
    ),
    Case("cosine", CosineAttention, GRID, by.one_by_one(by.cosine)),
    Case("neighborhood", NeighborhoodAttention, {**HEADS, "kernel_size": 3}, by.neighborhood_module),
    Case("dilated", NeighborhoodAttention, {**HEADS, "kernel_size": 3, "dilation": 2}, by.neighborhood_module),
    Case("strided", NeighborhoodAttention, {**HEADS, "kernel_size": 3, "stride": 2}, by.neighborhood_module),
    Case("blocked", NeighborhoodAttention, {**HEADS, "kernel_size": 3, "stride": 3}, by.neighborhood_module),
    Case(
        "dilated_to_the_grid",
        DilatedNeighborhoodAttention,
        {**HEADS, "kernel_size": 3, "grid": (9, 8)},
        by.neighborhood_module,
    ),
    Case("gated_rotary", GatedRotaryAttention, HEADS, by.one_by_one(by.gated_rotary)),
    Case("rank_augmented", RankAugmentedAttention, HEADS, by.one_by_one(by.rank_augmented)),
    Case("strip", StripSelfAttention, {**HEADS, "sr_ratio": 2}, by.one_by_one(by.strip)),
    Case("swin_window", SwinWindowAttention, WINDOW, by.one_by_one(by.swin_window), **TILED),
    Case("swin_shifted", SwinWindowAttention, {**WINDOW, "shift": 2}, by.one_by_one(by.swin_window), **TILED),
    Case("window", WindowAttention, WINDOW, by.one_by_one(by.swin_window), **TILED),
    Case("shifted_window", ShiftedWindowAttention, WINDOW, by.one_by_one(by.swin_window), **TILED),
    Case("shifted_window_even", ShiftedWindowAttention, {**WINDOW, "layer": 2}, by.one_by_one(by.swin_window), **TILED),
    Case("varied_size", VariedSizeWindowAttention, VARIED, by.one_by_one(by.varied_size_window)),
    Case(
        "varied_size_dense", VariedSizeWindowAttention, {**VARIED, "dense": True}, by.one_by_one(by.varied_size_window)
    ),
)
