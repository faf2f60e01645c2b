"""SG-Former against its authors' code, block by block: end to end, rounding reorders its sorts."""

from typing import Any

import pytest
import torch
from torch import Tensor

from parity import fixtures
from parity.backbones import constructor
from parity.compare import assert_outputs
from vistrain.backbones.sgformer import (
    AUTHORS,
    HybridAttention,
    ReallocatedAttention,
    SGBlock,
    SGFormer,
    checkpoint_filter_fn,
)

BLOCKS = "backbones/sgformer_blocks.pt"


def block(row: dict[str, Any], state: dict[str, Tensor]) -> SGBlock:
    """A block as a row of the fixture describes it, its weights loaded strictly."""
    kind = ReallocatedAttention if row["name"].endswith("reuse") else HybridAttention
    attention = kind(row["dim"], row["num_heads"], row["sr_ratio"], row["qkv_bias"])
    made = SGBlock(row["dim"], attention, row["mlp_ratio"])
    prefix = f"{row['name']}."
    own = {f"block1.0.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    ours = {key.removeprefix("stages.0.blocks.0."): value for key, value in AUTHORS.apply(own).items()}
    made.load_state_dict(ours, strict=True)
    return made.eval()


@torch.no_grad()
def test_every_block() -> None:
    fixture = fixtures.load(BLOCKS)
    rows = fixture["constructor"]["blocks"]
    for row, (tokens, *mask), theirs in zip(rows, fixture["inputs"], fixture["outputs"], strict=True):
        made = block(row, fixture["state_dict"])
        x, after = made(tokens.unflatten(1, (row["H"], row["W"])), tuple(mask) or None)
        assert_outputs([x.flatten(1, 2), *(after or ())], theirs, row["name"])


@torch.no_grad()
def test_the_whole() -> None:
    """As near as rounding leaves it: the fixture's own float32 and float64 differ by 0.055."""
    fixture = fixtures.load("backbones/sgformer.pt")
    model = SGFormer(**constructor(fixture, "patch_size", "norm_layer")).eval()
    model.load_state_dict(checkpoint_filter_fn(fixture["state_dict"], model), strict=True)
    (images,), (theirs,) = fixture["inputs"], fixture["outputs"]
    assert (model(images) - theirs).abs().max() < 0.1


def test_positions_begin_as_sines() -> None:
    position = SGFormer(embed_dims=(16, 16, 16, 16), depths=(2, 2, 2, 1)).stem.pos_embed[0].detach()
    assert position[0].tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    assert position[1, 0] == pytest.approx(torch.tensor(1.0).sin().item())  # the column comes first
