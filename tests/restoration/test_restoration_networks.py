"""DnCNN, NAFNet, MAXIM and weighted convolutions: published sizes, arguments, images of any size, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vistrain.checkpoints.flax import FLAX
from vistrain.devices import on_meta
from vistrain.errors import ConfigError
from vistrain.layers.weighted_conv import TrainableWeightedConv2d, WeightedConv2d, weight_convolutions
from vistrain.restoration import MAXIM, DnCNN, NAFNet, NAFNetLocal

TINY_MAXIM = {"features": 4, "channels_reduction": 2, "num_supervision_scales": 2}
TINY_CUTS = {"block_size_hr": (2, 2), "block_size_lr": (2, 2), "grid_size_hr": (2, 2)}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("cls", "arguments", "published"),
    [
        (DnCNN, {}, 557_057),
        (DnCNN, {"nb": 20}, 668_225),
        (DnCNN, {"in_nc": 3, "out_nc": 3, "nb": 20}, 670_531),
        (
            NAFNet,
            {"width": 32, "middle_blk_num": 12, "enc_blk_nums": (2, 2, 4, 8), "dec_blk_nums": (2,) * 4},
            29_159_715,
        ),
        (
            NAFNet,
            {"width": 64, "middle_blk_num": 1, "enc_blk_nums": (1, 1, 1, 28), "dec_blk_nums": (1,) * 4},
            67_888_835,
        ),
        (
            MAXIM,
            {"features": 32, "num_stages": 3, "num_groups": 2, "num_bottleneck_blocks": 2, "num_supervision_scales": 3},
            22_212_795,
        ),
    ],
)
def test_published_numbers_of_parameters(cls, arguments, published):
    with on_meta():
        assert parameters(cls(**arguments)) == published


@pytest.mark.parametrize("act_mode", ["BR", "R", "BL", "L", "IR"])
def test_dncnn_takes_each_mode_and_any_size(act_mode):
    model = DnCNN(nc=4, nb=4, act_mode=act_mode).eval()
    noisy = image(2, 1, 7, 5)
    assert torch.equal(model(noisy), noisy)  # before training, nothing is taken for noise
    nn.init.ones_(model.model[-1].weight)
    assert model(noisy).shape == noisy.shape
    assert not torch.equal(model(noisy), noisy)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"act_mode": "X"}, "act_mode"),
        ({"act_mode": "RB"}, "act_mode"),
        ({"act_mode": ""}, "act_mode"),
        ({"nb": 1}, "nb"),
        ({"den": (0.1, 0.2)}, "den"),
    ],
)
def test_dncnn_refuses(arguments, where):
    with pytest.raises(ConfigError) as caught:
        DnCNN(**arguments)
    assert caught.value.where == where


def test_nafnet_pads_what_its_levels_do_not_divide():
    torch.manual_seed(0)
    model = NAFNet(3, 4, 1, (1, 1), (1, 1)).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    small = image(1, 3, 6, 9)
    padded = nn.functional.pad(small, (0, 3, 0, 2))
    assert model.multiple == 4
    torch.testing.assert_close(model(small), model(padded)[..., :6, :9])
    with pytest.raises(ConfigError, match="levels"):
        NAFNet(3, 4, 1, (1, 1), (1,))


def test_local_nafnet_is_the_plain_one_where_its_window_covers_the_image():
    torch.manual_seed(0)
    arguments = {"width": 4, "enc_blk_nums": (1, 1), "dec_blk_nums": (1, 1)}
    plain, local = NAFNet(**arguments), NAFNetLocal(**arguments, train_size=(16, 16))
    for p in plain.parameters():
        nn.init.normal_(p, std=0.2)
    local.load_state_dict(plain.state_dict())
    within, beyond = image(1, 3, 24, 20), image(1, 3, 40, 20)
    torch.testing.assert_close(local(within), plain(within))
    assert (local(beyond) - plain(beyond)).abs().max() > 1e-4


def test_weights_of_one_make_a_plain_convolution():
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 5, stride=2, padding=2, groups=2)
    ours = weight_convolutions(nn.Sequential(plain), (1.0, 1.0))
    assert isinstance(ours[0], WeightedConv2d)
    assert ours[0].weight is plain.weight
    torch.testing.assert_close(ours(image(1, 4, 9, 9)), plain(image(1, 4, 9, 9)))


def test_weighted_networks_keep_their_names_and_learn_their_density_if_asked():
    plain, weighted = NAFNet(3, 4, 1, (1,), (1,)), NAFNet(3, 4, 1, (1,), (1,), den=(0.7,))
    assert dict(plain.named_parameters()).keys() == dict(weighted.named_parameters()).keys()
    assert weighted.encoders[0][0].conv2.groups == 8
    torch.testing.assert_close(weighted.intro.Phi[0], torch.tensor([0.49, 0.7, 0.49]))
    learned = DnCNN(nc=4, nb=3)
    nn.init.normal_(learned.model[-1].weight)
    weight_convolutions(learned, (0.7,), trainable=True)
    learned(image(1, 1, 8, 8)).sum().backward()
    densities = [m.den.grad for m in learned.modules() if isinstance(m, TrainableWeightedConv2d)]
    assert len(densities) == 3
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in densities)


@pytest.mark.parametrize(("size", "den", "where"), [(4, (0.5,), "kernel_size"), (5, (0.5,), "den"), (9, None, "den")])
def test_weighted_convolutions_refuse(size, den, where):
    with pytest.raises(ConfigError) as caught:
        TrainableWeightedConv2d(2, 2, size, den)
    assert caught.value.where == where


@pytest.mark.parametrize(
    "changes", [{}, {"use_cross_gating": False}, {"use_global_mlp": False, "use_bias": False}, {"depth": 2}]
)
def test_maxim_in_all_forms(changes):
    """Odd sizes come back; every parameter is reached by the losses of all stages."""
    torch.manual_seed(0)
    model = MAXIM(**TINY_MAXIM, **TINY_CUTS, **changes)
    assert model(image(1, 3, 9, 14)).shape == (1, 3, 9, 14)
    pairs = model.pairs(image(1, 3, 16, 16), image(1, 3, 16, 16))
    assert [tuple(output.shape[-2:]) for output, _ in pairs] == [(8, 8), (16, 16)] * 2
    assert all(output.shape == target.shape for output, target in pairs)
    sum((output - target).square().sum() for output, target in pairs).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_convolutions_in_place_of_cross_gating_have_flax_names():
    with on_meta():
        names = MAXIM(**TINY_MAXIM, use_cross_gating=False).state_dict()
    assert {n.partition(".")[0] for n in names if n.startswith("Conv_")} == {f"Conv_{i}" for i in range(12)}
    assert names["Conv_10.weight"].shape == (4, 12, 1, 1)
    assert names["Conv_11.weight"].shape == (4, 4, 3, 3)
    assert names["stage_1_input_catconv_0.weight"].shape == (4, 8, 1, 1)


def test_flax_kernels_of_every_kind():
    kernel = torch.arange(24.0).view(2, 2, 2, 3)
    foreign = {
        "opt/target/a/Conv_0/kernel": kernel,
        "opt/target/a/ConvTranspose_0/kernel": kernel,
        "opt/target/Dense_0/kernel": kernel[0, 0],
        "opt/target/LayerNorm/scale": torch.ones(3),
        "opt/state/a/Conv_0/kernel": kernel,
    }
    ours = FLAX.apply(foreign)
    assert set(ours) == {"a.Conv_0.weight", "a.ConvTranspose_0.weight", "Dense_0.weight", "LayerNorm.weight"}
    x, y = image(1, 2, 4, 4), image(1, 2, 3, 3)
    expected = torch.einsum("bihw,io->bohw", x, kernel[0, 0]) + 0
    torch.testing.assert_close(nn.functional.linear(x.movedim(1, -1), ours["Dense_0.weight"]).movedim(-1, 1), expected)
    assert nn.functional.conv2d(x, ours["a.Conv_0.weight"]).shape == (1, 3, 3, 3)
    # What `lax.conv_transpose` computes: the input spread out, and correlated with the kernel as it is.
    spread = torch.zeros(1, 2, 7, 7)
    spread[..., 1:6:2, 1:6:2] = y
    correlated = torch.einsum("bihwkl,klio->bohw", spread.unfold(2, 2, 1).unfold(3, 2, 1), kernel)
    torch.testing.assert_close(
        nn.functional.conv_transpose2d(y, ours["a.ConvTranspose_0.weight"], stride=2), correlated
    )
