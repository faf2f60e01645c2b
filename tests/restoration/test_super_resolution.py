"""SwinIR, HAT, DRCT, RGT and DLGSANet: published sizes, arguments, gradients, images of any size, refusals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from vistrain.checkpoints import load_weights
from vistrain.devices import on_meta
from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.layers.drop_path import DropPath
from vistrain.restoration import DRCT, HAT, RGT, DLGSANet, RestorationModel, SwinIR
from vistrain.restoration.dlgsanet import _starts
from vistrain.restoration.super_resolver import SuperResolver, drop_path_schedule

SWIN = {"img_size": 16, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 3), "window_size": 4}
TINY: dict[str, Callable[..., SuperResolver]] = {
    "SwinIR": lambda **k: SwinIR(**SWIN | k),
    "HAT": lambda **k: HAT(**SWIN | {"squeeze_factor": 4} | k),
    "DRCT": lambda **k: DRCT(**SWIN | {"num_heads": (2, 4), "gc": 4} | k),
    "RGT": lambda **k: RGT(**{"embed_dim": 32, "depth": (4, 2), "num_heads": (2, 4), "split_size": (4, 8)} | k),
    "DLGSANet": lambda **k: DLGSANet(
        **{"dim": 12, "groups": 2, "blocks": 1, "restormer_num_heads": 3, "tlc_kernel": 12, "upscale": 2} | k
    ),
}
TWELVE = (6,) * 12


def build(name: str, **arguments: object) -> SuperResolver:
    """A tiny network none of whose weights is zero."""
    torch.manual_seed(0)
    model = TINY[name](**arguments).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("cls", "arguments", "published"),
    [
        (HAT, {}, 20_772_507),
        (HAT, {"depths": TWELVE, "num_heads": TWELVE}, 40_846_575),
        (HAT, {"embed_dim": 144, "compress_ratio": 24, "squeeze_factor": 24}, 9_621_183),
        (DRCT, {}, 14_139_579),
        (DRCT, {"depths": TWELVE, "num_heads": TWELVE}, 27_580_719),
        (RGT, {}, 13_365_543),
        (RGT, {"depth": (6,) * 6, "num_heads": (6,) * 6}, 10_198_767),
        (DLGSANet, {}, 4_762_920),
        (DLGSANet, {"dim": 48, "groups": 4, "blocks": 3}, 760_776),
        (DLGSANet, {"dim": 48, "groups": 3, "blocks": 3}, 581_298),
    ],
)
def test_published_numbers_of_parameters(cls: type[nn.Module], arguments: dict, published: int) -> None:
    with on_meta():
        assert sum(p.numel() for p in cls(upscale=4, **arguments).parameters()) == published


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    # Wide enough that no ReLU is dead for this image, and no norm is over a single channel
    wide: dict[str, dict] = {"HAT": {"squeeze_factor": 1}, "RGT": {"embed_dim": 96}}
    model = build(name, upscale=3, **wide.get(name, {})).train()
    model(image(4, 3, 16, 24)).square().mean().backward()  # some images skip a branch: not all four
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not dead
    # Two biases shift all logits of a query alike; nothing else may be without effect.
    still = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() == 0]
    assert not [n for n in still if not n.endswith(("attn.k.bias", "pos3.2.bias"))]


@pytest.mark.parametrize("name", TINY)
def test_an_image_is_enlarged_as_if_it_were_alone(name: str) -> None:
    model, batch = build(name, upscale=2), image(3, 3, 16, 24)
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(x[None]) for x in batch])
    assert together.shape == (3, 3, 32, 48)
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", TINY)
def test_any_size_and_grey_images_through_the_model_around_the_network(name: str) -> None:
    model = RestorationModel(build(name, upscale=2)).eval()
    with torch.no_grad():
        for size in ((1, 1), (3, 19), (17, 5), (21, 34)):
            assert model(image(1, 3, *size)).shape == (1, 3, 2 * size[0], 2 * size[1])
        grey = build(name, upscale=2, in_chans=1)
        assert grey(image(1, 1, 16, 16)).shape == (1, 1, 32, 32)
        assert grey.mean.abs().sum() == 0


@pytest.mark.parametrize("name", TINY)
def test_images_that_do_not_fit_are_refused_in_words(name: str) -> None:
    model = build(name)
    for wrong in (image(1, 1, 16, 16), image(3, 16, 16), image(1, 4, 16, 16)):
        with pytest.raises(DataError, match=rf"image: \[.*\] is not \[B, 3, h, w\], as {name} takes it"):
            model(wrong)
    if name in ("HAT", "DRCT"):
        with pytest.raises(DataError, match=f"18x16, but {name} takes sides that are multiples of 4"):
            model(image(1, 3, 18, 16))
    with pytest.raises(DataError, match="image: "):
        model(image(1, 3, 0, 16))


@pytest.mark.parametrize("name", ["SwinIR", "HAT", "DRCT", "RGT"])
def test_recomputing_groups_changes_no_gradient(name: str) -> None:
    kept = build(name, drop_path_rate=0.0)
    again = build(name, drop_path_rate=0.0, **{"use_chk" if name == "RGT" else "use_checkpoint": True})
    for model in (kept, again):
        model.train()(image(1, 3, 16, 16)).square().mean().backward()
    for p, q in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "HAT")) for name in TINY])
def test_exported_programs_compute_the_same(name: str) -> None:
    model, x = build(name), image(1, 3, 16, 24)
    program = torch.export.export(model, (x,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_half_precision(name: str) -> None:
    model, x = build(name), image(1, 3, 16, 24)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x).float()
        halved = model.to(torch.bfloat16)(x.to(torch.bfloat16)).float()
    for other in (rough, halved):
        assert (other - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("upsampler", "upscale"),
    [
        *(("pixelshuffle", 8), ("pixelshuffle", 3), ("pixelshuffle", 1), ("pixelshuffledirect", 5)),
        *(("nearest+conv", 2), ("nearest+conv", 4), ("none", 1)),
    ],
)
def test_upsamplers(upsampler: str, upscale: int) -> None:
    model = build("SwinIR", upsampler=upsampler, upscale=upscale, resi_connection="3conv")
    x = image(1, 3, 9, 14)
    out = model(x)
    assert out.shape == (1, 3, 9 * upscale, 14 * upscale)
    out.sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_without_an_upsampler_something_is_added_to_the_image() -> None:
    model, x = build("SwinIR", upsampler="none", upscale=1, img_range=255.0), image(2, 3, 8, 8)
    nn.init.zeros_(model.conv_last.weight)
    nn.init.zeros_(model.conv_last.bias)
    torch.testing.assert_close(model(x), x)


def test_dlgsanet_without_an_upsampler_gives_what_it_finds() -> None:
    """As the authors' code does: without the image, whose mean colour alone is added back."""
    model, x = build("DLGSANet", upsampler="none", upscale=1), image(2, 3, 8, 8)
    nn.init.zeros_(model.conv_last.weight)
    nn.init.zeros_(model.conv_last.bias)
    torch.testing.assert_close(model(x), model.mean.expand_as(x))


def test_swinir_reflects_what_its_windows_do_not_divide() -> None:
    model, x = build("SwinIR"), image(1, 3, 9, 14)
    full = nn.functional.pad(x, (0, 2, 0, 3), mode="reflect")
    torch.testing.assert_close(model(x), model(full)[..., :18, :28])
    with pytest.raises(DataError, match="2x14, but SwinIR takes sides that are multiples of 4"):
        model(image(1, 3, 2, 14))


def test_windows_as_large_as_the_patch_are_not_shifted() -> None:
    """The authors' blocks look at the size that they were made for, not at the image."""
    shifted, still = build("SwinIR"), build("SwinIR", img_size=4)
    x = image(1, 3, 8, 8)
    x2 = x.clone()
    x2[..., 4:, 4:] += 0.5  # another window
    reach = [((m(x) - m(x2))[..., :2, :2] != 0).any().item() for m in (shifted, still)]
    assert shifted.shift == 2
    assert still.shift == 0
    assert reach[0]


def test_position_embeddings_and_norms_are_optional() -> None:
    names = {n for n, _ in build("HAT", ape=True, patch_norm=False, qkv_bias=False).named_parameters()}
    assert "absolute_pos_embed" in names
    assert not [n for n in names if n.startswith("patch_embed") or n.endswith("qkv.bias")]
    identity = build("HAT", resi_connection="identity")
    assert not [n for n, _ in identity.named_parameters() if n.startswith(("conv_after_body", "layers.0.conv."))]


def test_official_files_bring_tables_that_are_computed_here() -> None:
    model = build("RGT")
    weights = model.state_dict()
    official = weights | {
        "layers.1.blocks.0.attn.attn_mask_0": torch.zeros(3, 3),
        "layers.0.blocks.0.attn.attns.0.rpe_biases": torch.zeros(7, 2),
    }
    assert load_weights(model, {"params_ema": official}, key_maps=model.key_maps).key_map == "official RGT"
    wrapped = RestorationModel(build("RGT", upscale=2))
    assert load_weights(wrapped, {"params": official}, key_maps=wrapped.key_maps).loaded == len(weights)
    with pytest.raises(WeightsError, match=r"unexpected: layers\.0\.nonsense"):
        load_weights(model, official | {"layers.0.nonsense": torch.zeros(1)}, key_maps=model.key_maps)
    with pytest.raises(RuntimeError, match="nonsense"):
        model.load_state_dict(official | {"layers.0.nonsense": torch.zeros(1)})


def test_rgt_reduces_more_in_training_and_says_what_is_too_long() -> None:
    model = build("RGT")
    assert [model.reductions((side, side)) for side in (16, 64, 1023, 1024, 4096)] == [2, 2, 2, 3, 4]
    model.train()
    assert [model.reductions((side, side)) for side in (8, 16, 64, 256)] == [0, 1, 2, 3]
    model.eval()
    with pytest.raises(DataError, match="15x40, but RGT reduces by 16, so that no side may be shorter"):
        model(image(1, 3, 15, 40))
    with pytest.raises(DataError, match="20x1024, but RGT reduces by 64"):
        model.reductions((20, 1024))


@pytest.mark.parametrize("side", [1, 12, 13, 24, 25, 37, 48, 100])
def test_dlgsanets_windows_cover_every_pixel_and_fit(side: int) -> None:
    starts = _starts(side, 12)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] + min(12, side) == side
    assert all(b - a <= 12 for a, b in pairwise(starts))
    assert len(starts) <= -(-side // 12)


def test_dlgsanets_local_windows_act_in_evaluation_alone() -> None:
    model = build("DLGSANet")
    small, large = image(1, 3, 12, 9), image(2, 3, 20, 31)
    windowed = [model(x) for x in (small, large)]
    assert model.tlc_flag
    model.tlc_flag = False
    whole = [model(x) for x in (small, large)]
    torch.testing.assert_close(windowed[0], whole[0])
    assert (windowed[1] - whole[1]).abs().max() > 1e-3
    model.tlc_flag = True
    torch.testing.assert_close(model.train()(large), whole[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"buildblock_type": "edge"},
        {"activation": "none"},
        {"buildblock_type": "idynamic", "idynamic": False},
        {"buildblock_type": "restormer", "restormer_ffn_type": "BaseFFN"},
        {"idynamic_ffn_type": "BaseFFN", "activation": "sigmoid", "body_norm": True},
        {"upsampler": "none", "upscale": 1, "activation": "gelu"},
    ],
)
def test_dlgsanet_in_all_forms(changes: dict) -> None:
    model = build("DLGSANet", **changes).train()
    out = model(image(1, 3, 14, 10))
    assert out.shape[2:] == (14 * model.scale, 10 * model.scale)
    out.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("SwinIR", {"upsampler": "bicubic"}, "upsampler"),
        ("SwinIR", {"upscale": 6}, "upscale"),
        ("SwinIR", {"upsampler": "nearest+conv", "upscale": 3}, "upscale"),
        ("SwinIR", {"upsampler": "none", "upscale": 2}, "upscale"),
        ("SwinIR", {"resi_connection": "2conv"}, "resi_connection"),
        ("SwinIR", {"num_heads": (2, 5)}, "num_heads"),
        ("SwinIR", {"depths": (2,)}, "depths"),
        ("SwinIR", {"depths": (), "num_heads": ()}, "depths"),
        ("SwinIR", {"window_size": 32}, "window_size"),
        ("HAT", {"overlap_ratio": 0.25}, "overlap_ratio"),
        ("HAT", {"compress_ratio": 13}, "compress_ratio"),
        ("HAT", {"squeeze_factor": 0}, "squeeze_factor"),
        ("DRCT", {"gc": 0}, "gc"),
        ("RGT", {"num_heads": (2, 3)}, "num_heads"),
        ("RGT", {"c_ratio": 0.01}, "num_heads"),
        ("DLGSANet", {"buildblock_type": "swin"}, "buildblock_type"),
        ("DLGSANet", {"idynamic_ffn_type": "MLP"}, "idynamic_ffn_type"),
        ("DLGSANet", {"activation": "softmax"}, "activation"),
        ("DLGSANet", {"activation": "silu"}, "activation"),
        ("DLGSANet", {"restormer_num_heads": 5}, "restormer_num_heads"),
        ("DLGSANet", {"idynamic_num_heads": 5}, "idynamic_num_heads"),
    ],
)
def test_constructors_refuse(name: str, changes: dict, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TINY[name](**changes)
    assert caught.value.where == key


def test_stochastic_depth() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25).train(), torch.ones(4000, 2)
    kept = layer(x)
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert layer.eval()(x) is x
    assert drop_path_schedule(0.3, (1, 2, 1)) == [[0.0], [pytest.approx(0.1), pytest.approx(0.2)], [pytest.approx(0.3)]]
