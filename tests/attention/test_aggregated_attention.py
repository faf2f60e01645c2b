"""Aggregated attention at sizes that it was not built for."""

import pytest
import timm
import torch

import vistrain.backbones  # noqa: F401 - registers
from vistrain.attention.aggregated import AggregatedAttention, PositionBias

SMALL = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 1, 1), "num_classes": 3}


def network(**arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("transnext_micro", **SMALL, **arguments).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_extrapolation_computes_what_a_model_built_for_the_size_does() -> None:
    images = torch.randn(2, 3, 96, 96)
    built = network(img_size=96, pretrain_size=64)(images)
    torch.testing.assert_close(network(img_size=64, is_extrapolation=True)(images), built)
    interpolated = network(img_size=64)(images)
    assert (interpolated - built).abs().max() > 1e-3
    at_home = torch.randn(2, 3, 64, 64)
    same = network(img_size=64)(at_home)
    torch.testing.assert_close(network(img_size=64, is_extrapolation=True)(at_home), same)


def test_biases_of_equal_distances_are_equal() -> None:
    bias = PositionBias(2, grid=8, pretrain_grid=8, is_extrapolation=True)((8, 6), (8, 6), (8, 8))
    bias = bias.view(2, 8, 6, 8, 6)
    torch.testing.assert_close(bias[:, 1:, 1:, 1:, 1:], bias[:, :-1, :-1, :-1, :-1])
    assert bias.std() > 0


def test_neighbours_beyond_the_border_take_no_part() -> None:
    torch.manual_seed(0)
    module = AggregatedAttention(8, 2, grid=8, pretrain_grid=8, sr_ratio=4).eval()
    torch.nn.init.zeros_(module.learnable_tokens)
    torch.nn.init.zeros_(module.kv.weight)  # all values are the bias: attention's mean of them, if weights sum to one
    torch.nn.init.normal_(module.kv.bias)
    out = module(torch.randn(1, 64, 8), (8, 8))
    torch.testing.assert_close(out, module.proj(module.kv.bias[8:]).expand_as(out))


def test_pooled_maps_have_a_cell_and_may_be_of_one_size() -> None:
    x = torch.randn(1, 15, 8)
    for arguments in ({"sr_ratio": 8}, {"fixed_pool_size": 2}):
        module = AggregatedAttention(8, 2, grid=8, pretrain_grid=8, **arguments)
        assert module(x, (3, 5)).shape == x.shape


def test_an_image_that_is_one_cell_has_no_distances() -> None:
    with pytest.raises(ValueError, match="img_size and pretrain_size must be at least 64"):
        network(img_size=32)
