"""Every attention operator of ours keeps the contract. A new operator is one line, and its definition in a loop."""

from __future__ import annotations

import importlib
import pkgutil

import attention_definitions as by
import pytest
from attention_contract import CHECKS, Case
from torch import nn

import vistrain.attention
from vistrain.attention import (
    AggregatedAttention,
    BiLevelRoutingAttention,
    CosineAttention,
    GatedRotaryAttention,
    NeighborhoodAttention,
    RankAugmentedAttention,
    StripSelfAttention,
    SwinWindowAttention,
    VariedSizeWindowAttention,
)

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
    Case("gated_rotary", GatedRotaryAttention, HEADS, by.one_by_one(by.gated_rotary)),
    Case("rank_augmented", RankAugmentedAttention, HEADS, by.one_by_one(by.rank_augmented)),
    Case("strip", StripSelfAttention, {**HEADS, "sr_ratio": 2}, by.one_by_one(by.strip)),
    Case("swin_window", SwinWindowAttention, WINDOW, by.one_by_one(by.swin_window), **TILED),
    Case("swin_shifted", SwinWindowAttention, {**WINDOW, "shift": 2}, by.one_by_one(by.swin_window), **TILED),
    Case("varied_size", VariedSizeWindowAttention, VARIED, by.one_by_one(by.varied_size_window)),
    Case(
        "varied_size_dense", VariedSizeWindowAttention, {**VARIED, "dense": True}, by.one_by_one(by.varied_size_window)
    ),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case: Case, check: object) -> None:
    check(case)


def test_every_operator_has_a_case() -> None:
    room = vistrain.attention
    files = [importlib.import_module(f"{room.__name__}.{file.name}") for file in pkgutil.iter_modules(room.__path__)]
    there = {c for file in files for c in vars(file).values() if isinstance(c, type) and c.__module__ == file.__name__}
    operators = {cls for cls in there if issubclass(cls, nn.Module) and cls.__name__.endswith("Attention")}
    assert operators == {case.cls for case in CASES} == {vars(room)[name] for name in room.__all__}
