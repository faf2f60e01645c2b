"""MOAT against its authors' TensorFlow code, global, windowed, and without biases of positions."""

from typing import Any

import pytest
import torch
from torch import nn

from parity import fixtures
from parity.backbones import constructor
from parity.compare import assert_outputs
from vistrain.backbones.moat import MOAT, average_same, checkpoint_filter_fn
from vistrain.errors import DataError

COMMITTED = {"backbones/moat_global.pt", "backbones/moat_nope.pt"}


def model_of(fixture: dict[str, Any]) -> MOAT:
    """Ours in the fixture's configuration, with its weights; without a norm if these are of a backbone alone."""
    model = MOAT(**constructor(fixture, "input_hw"), num_classes=0)
    state = checkpoint_filter_fn(fixture["state_dict"], model)
    if "norm.weight" not in state:
        model.norm = nn.Identity()
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.mark.parametrize("name", sorted(COMMITTED | set(fixtures.names("backbones/moat*.pt"))))
@torch.no_grad()
def test_every_map(name: str) -> None:
    fixture = fixtures.load(name)
    model = model_of(fixture)
    for images, theirs in zip(fixture["inputs"], fixture["outputs"], strict=True):
        maps = model.forward_intermediates(images, intermediates_only=True)
        assert_outputs([model.stem(images), *maps], theirs)


def test_windows_must_tile_a_map() -> None:
    small = {"stem_size": (4, 4), "hidden_size": (4, 4, 8, 8), "num_blocks": (1, 1, 1, 1), "head_size": 4}
    model = MOAT(**small, window_size=(None, None, (2, 3), (1, 1)), num_classes=0)
    assert model.size_divisor == 96
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 8)
    with pytest.raises(DataError, match="not cut evenly"):
        model(torch.randn(1, 3, 48, 48))
    last = MOAT(**small, window_size=(None, None, (2, 3), None), global_attention_at_end_of_moat_stage=True)
    assert last(torch.randn(1, 3, 48, 48)).shape == (1, 1000)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (6, 5)])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_averages_do_not_count_padding(kernel_size: int, size: tuple[int, int]) -> None:
    x = torch.randn(1, 1, *size)
    pooled = average_same(x, kernel_size, 2)
    for i in range(pooled.shape[2]):
        for j in range(pooled.shape[3]):
            rows, columns = (
                slice(max(2 * k - before, 0), 2 * k - before + kernel_size)
                for k, before in ((i, kernel_size // 3 * (size[0] % 2)), (j, kernel_size // 3 * (size[1] % 2)))
            )
            torch.testing.assert_close(pooled[0, 0, i, j], x[0, 0, rows, columns].mean())
