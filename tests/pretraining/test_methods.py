"""Every method of pre-training: two steps, resumed to the bit; sizes, channels, masks, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vistrain.backbones.create import create
from vistrain.checkpoints import save_durably
from vistrain.config.builder import build
from vistrain.errors import ConfigError, DataError
from vistrain.network import Network
from vistrain.pretraining import (
    CAE,
    GMML,
    HPM,
    LUT,
    MAE,
    MP3,
    MTO,
    BlockCorruption,
    BlockMasking,
    ColorMasking,
    CroCo,
    FrozenViT,
    HybridDistillation,
    MaskAlign,
    Masking,
    MiniLM,
    PatchEncoder,
    PatchResNet,
    RandomMasking,
    RandomWords,
    SelfDistillation,
    Selfie,
    TubeMasking,
    VideoMAE,
)
from vistrain.pretraining.color_masks import color_noise
from vistrain.pretraining.mto import likeness, recalibrated, relative_entropy
from vistrain.pretraining.selfie import matching_losses
from vistrain.structures import Channels

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL: dict[str, Any] = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def encoder(channels: int = 3, **args: Any) -> PatchEncoder:
    return PatchEncoder("vit_tiny_patch16_224", args=VIT | args, image_channels=Channels(channels))


def teacher(**args: Any) -> FrozenViT:
    return FrozenViT("vit_tiny_patch16_224", False, VIT | args)


def beit() -> PatchEncoder:
    args = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "init_values": 0.1, "global_pool": "token"}
    return PatchEncoder("beit_base_patch16_224", positions="fixed_rows", args=VIT | args)


def small_resnet() -> PatchResNet:
    return PatchResNet("resnet10t", args={"stem_width": 8, "channels": [8, 16, 32, 64]})


METHODS: dict[str, Callable[[], Network]] = {
    "mae": lambda: MAE(encoder(), **SMALL),
    "mae, colours": lambda: MAE(encoder(), ColorMasking(side=16, count=3), **SMALL),
    "hpm": lambda: HPM(encoder(), guided_steps=3, decay_steps=3, **SMALL),
    "lut": lambda: LUT(encoder(), head_hidden=16, decay_steps=4, **SMALL),
    "maskalign": lambda: MaskAlign(encoder(), teacher(embed_dim=48), layers=2),
    "cae": lambda: CAE(beit(), BlockMasking(0.5, 2), RandomWords((8, 8), 3, 20), 1, 1, 2),
    "gmml": lambda: GMML(encoder(), BlockCorruption(0.6), blocks=(1, 2)),
    "mp3": lambda: MP3(encoder()),
    "minilm": lambda: MiniLM(encoder(), teacher(embed_dim=48, num_heads=3), relation_heads=4),
    "self-distillation": lambda: SelfDistillation(encoder(), teacher(), **SMALL),
    "hybrid": lambda: HybridDistillation(encoder(), teacher(embed_dim=48), teacher(), masking_steps=3),
    "mto": lambda: MTO(encoder(), early=1, **SMALL),
    "selfie": lambda: Selfie(small_resnet(), None, (32, 32), 8, 16, 1, 2),
    "croco": lambda: CroCo((32, 32), 8, dim=32, depth=1, heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2),
}


def batch(count: int = 4, height: int = 32, width: int = 32, channels: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, count, channels, height, width), generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * count)
    return {"image": images[0], "views": images[1:], "size": sizes, "id": list(range(count))}


def learn(network: Network, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
    torch.manual_seed(step)
    losses = network.train().losses(batch())
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    network.on_step_end(step + 1)
    return {name: value.item() for name, value in losses.items()}


def optimizer_of(network: Network) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_steps_and_what_a_checkpoint_holds(method: str) -> None:
    torch.manual_seed(0)
    network = METHODS[method]()
    optimizer = optimizer_of(network)
    learn(network, optimizer, 0)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    for step in (1, 2):
        learn(network, optimizer, step)
    torch.manual_seed(9)
    other = METHODS[method]()
    resumed = optimizer_of(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for step in (1, 2):
        learn(other, resumed, step)
    assert [n for n, v in network.state_dict().items() if not torch.equal(v, other.state_dict()[n])] == []
    found = network.eval().predict(batch())
    assert len(found) == 4
    assert all(np.isfinite(list(one.loss.values())).all() for one in found)
    assert network.features(batch()).shape == (4, 32)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 24, 48), (4, 32, 32), (5, 16, 24)])
def test_channels_and_sides(channels: int, height: int, width: int) -> None:
    network = MAE(encoder(channels), **SMALL)
    given = batch(2, height, width, channels)
    assert network.losses(given)["loss_pixels"] > 0
    found = network.predict(given)[0]
    assert found.image.shape == (channels, height, width)
    assert found.hidden.shape == (height // 8, width // 8)
    # A network built for these sides has the tables that the other computes
    built = PatchEncoder("vit_tiny_patch16_224", args=VIT | {"img_size": [height, width]})
    grid = (height // 8, width // 8)
    torch.testing.assert_close(encoder().positions(grid), built.positions(grid))


def test_tokens_before_the_patches() -> None:
    """Registers, a table without rows for them, and no token at all."""
    for args in (
        {"reg_tokens": 4},
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
    ):
        network = MAE(encoder(**args), **SMALL)
        assert network.losses(batch())["loss_pixels"] > 0
        shown = torch.randn(1, 3, 32, 32)
        body = network.backbone.body
        theirs = body.fc_norm(body.forward_features(shown))
        torch.testing.assert_close(network(shown), theirs, rtol=1e-4, atol=1e-5)


def test_the_encoder_costs_what_it_is_shown() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    body, images, costs = encoder(img_size=128), torch.randn(1, 3, 128, 128), []
    for kept in (64, 128, 256):
        with FlopCounterMode(display=False) as counter:
            body(images, torch.arange(kept)[None])
        costs.append(counter.get_total_flops())
    assert costs[0] / costs[2] <= 0.25 * 1.1
    assert costs[1] / costs[2] <= 0.5 * 1.1


MASKS: dict[str, Masking] = {
    "random": RandomMasking(0.75),
    "blocks": BlockMasking(0.5, least=4),
    **{c: ColorMasking(0.6, color=c, side=20, count=4) for c in ("red", "green", "blue", "purple")},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_hide_their_share_and_draw_themselves(name: str) -> None:
    masking = MASKS[name]
    for grid in ((14, 14), (6, 15)):
        split = masking.split(5, grid, torch.Generator().manual_seed(2))
        tokens = grid[0] * grid[1]
        assert split.hidden.sum(1).tolist() == [tokens - int(tokens * (1 - masking.ratio))] * 5
        assert torch.equal(split.order.sort(1).values, torch.arange(tokens).expand(5, -1))
        again = masking.split(5, grid, torch.Generator().manual_seed(2))
        assert torch.equal(split.hidden, again.hidden)
        assert not torch.equal(split.hidden[0], split.hidden[1])
    picture = masking.picture((6, 15), count=3, cell=4)
    assert picture.shape == (6 * 4 + 4, 3 * (15 * 4 + 4), 3)
    assert set(np.unique(picture)) == {40, 128, 255}


def test_colours_have_their_frequencies() -> None:
    """The share of a pattern's energy below a twelfth of the sampling frequency, and above a third."""
    shares = {}
    for color in ("red", "green", "blue", "purple"):
        noise = color_noise(8, 64, color, 2.0, 0.6, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        power = torch.fft.fft2(noise - noise.mean((1, 2), keepdim=True)).abs().square().sum(0)
        axis = torch.fft.fftfreq(64)
        radius = (axis[:, None] ** 2 + axis**2).sqrt()
        total = power.sum()
        shares[color] = (float(power[radius < 1 / 12].sum() / total), float(power[radius > 1 / 3].sum() / total))
    assert shares["red"][0] > 0.5 > shares["green"][0]
    assert shares["blue"][0] < 0.05
    assert shares["green"][1] < shares["blue"][1]
    assert shares["purple"][0] > shares["green"][0]
    assert shares["purple"][1] > shares["green"][1]


def test_patterns_of_a_file(tmp_path: Any) -> None:
    np.savez(tmp_path / "noise.npz", np.random.default_rng(0).random((3, 9, 9)))
    assert ColorMasking(file=str(tmp_path / "noise.npz")).patterns.shape == (3, 9, 9)
    with pytest.raises(ConfigError, match="patterns of 9x9 are smaller than images of 10x4"):
        ColorMasking(file=str(tmp_path / "noise.npz")).split(1, (10, 4))
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(DataError, match=r"text.npz: holds no patterns"):
        ColorMasking(file=str(tmp_path / "text.npz"))


def test_clips() -> None:
    network = VideoMAE(8, 2, TubeMasking(0.75), 32, 1, 2, 16, 1, 2)
    clips = torch.randint(0, 256, (2, 3, 4, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = {"image": clips, "size": torch.tensor([[4, 16, 24]] * 2), "id": ["a", "b"]}
    network.losses(given)["loss_pixels"].backward()
    assert all(p.grad is not None for p in network.parameters())
    found = network.predict(given)
    assert found[0].image.shape == (3, 16, 24)
    assert found[0].hidden.shape == (2, 3)
    shown = ~found[0].hidden.repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(found[0].image[:, shown], clips[0, :, 2][:, shown] / 255, rtol=0, atol=1e-5)
    assert not torch.equal(found[0].image[:, ~shown], clips[0, :, 2][:, ~shown] / 255)
    assert found[1].loss["loss_pixels"] == pytest.approx(network.predict(given)[1].loss["loss_pixels"])
    with pytest.raises(ConfigError, match="clips of 1 frames"):
        network.check_size(1, 16, 24)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    given, images = batch(), None
    student, taught = encoder(), teacher()
    student.load_state_dict(taught.network.state_dict())
    network = MiniLM(student, taught)
    images = network.prepared(given)
    assert all(value.abs().max() < 1e-5 for value in network.compare(images, given))
    other = MiniLM(encoder(), taught)
    assert all(value.min() > 1e-6 for value in other.compare(images, given))
    same = SelfDistillation(student, taught, **SMALL)
    student.load_state_dict(taught.network.state_dict())
    assert same.distances(images, given).max() < 1e-6


@pytest.mark.parametrize("depth", [2, 3])
def test_a_teacher_of_other_patches_and_depth_is_asked_at_as_many_patches(depth: int) -> None:
    """As 196 pixels in patches of 14 beside 224 in patches of 16; its own table is for a third size."""
    network = MaskAlign(encoder(), teacher(embed_dim=48, patch_size=7, img_size=35, depth=depth), layers=2)
    assert network.distill_weights.shape == (depth, 2)
    assert torch.equal(network.distill_weights.sum(1), torch.tensor([1.02 if depth == 2 else 1.0] * depth))
    images = network.teacher.prepared(batch(), (4, 4))
    assert images.shape == (4, 3, 28, 28)
    hidden, attention = network.teacher.hidden(images)
    assert len(hidden) == depth
    assert attention.shape[-1] == hidden[0].shape[1] == 1 + 16
    before = network.distill_weights.detach().clone()
    losses = learn(network, optimizer_of(network), 0)
    assert 0 < losses["loss_align"] < 4
    assert not torch.equal(network.distill_weights, before)
    assert "distill_weights" in network.no_weight_decay()


def test_less_and_less_of_what_is_alike_is_shown() -> None:
    network = HybridDistillation(encoder(), teacher(), teacher(), RandomMasking(0.5), masking_steps=4)
    tokens = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    tokens[:, 3] = tokens.mean(1)
    counts = []
    for step in (0, 2, 4, 8):
        network.on_step_end(step)
        shown = network.least_redundant(tokens)
        counts.append(shown.shape[1])
        assert (shown == 3).any() == (step == 0)
    assert counts == [16, 12, 8, 8]


def test_positions_cannot_be_told_without_neighbours_being_asked() -> None:
    """Equal patches have equal logits, wherever they are: nothing but the others' contents says where one is."""
    network = MP3(encoder()).eval()
    logits = network.logits(torch.ones(1, 3, 32, 32), torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits), rtol=1e-4, atol=1e-5)


def test_words_are_those_of_the_seed() -> None:
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    words = RandomWords((8, 8), 3, 30)
    assert words(images).shape == (2, 6)
    assert torch.equal(words(images), RandomWords((8, 8), 3, 30)(images))
    assert torch.equal(words(images), words(2 * images + 1))  # brightness and contrast of a patch say nothing


def test_corruption_that_can_never_be_ends() -> None:
    with pytest.raises(ConfigError, match="never cover"):
        BlockCorruption(0.75, align=16).blocks((64, 64), np.random.RandomState(0))
    with pytest.raises(ConfigError, match=r"model.corruption.align: blocks of at least 16 pixels"):
        BlockCorruption(0.7, align=16).blocks((32, 32), np.random.RandomState(0))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"its tokens have 48 channels, the student's 32"):
        SelfDistillation(encoder(), teacher(embed_dim=48), **SMALL)
    with pytest.raises(ConfigError, match=r"the student has 2 heads, .* has 4"):
        MiniLM(encoder(), teacher(num_heads=4))
    with pytest.raises(ConfigError, match=r"there are positions for 32x32"):
        MP3(encoder()).check_size(32, 40)
    with pytest.raises(ConfigError, match=r"^model\.layers: 5 of the 3 blocks of vit_tiny_patch16_224 - use 1 to 3"):
        MaskAlign(encoder(), teacher(depth=3))
    with pytest.raises(ConfigError, match="tokens before its patches"):
        MaskAlign(encoder(), teacher(reg_tokens=4))
    one = batch()
    del one["views"]
    with pytest.raises(ConfigError, match=r"data.views: is 1"):
        LUT(encoder(), head_hidden=16, **SMALL).losses(one)
    with pytest.raises(ConfigError, match="leaves too few patches for a second view"):
        LUT(encoder(), RandomMasking(0.4), head_hidden=16, **SMALL)
    with pytest.raises(ConfigError, match="swin_tiny_patch4_window7_224 is no plain ViT"):
        PatchEncoder("swin_tiny_patch4_window7_224")
    with pytest.raises(ConfigError, match="has a bias for all pairs of patches"):
        PatchEncoder("beit_base_patch16_224", args={"use_abs_pos_emb": True, "depth": 1})


CROCO = {"image_size": (32, 32), "patch": 8, "dim": 32, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_heads": 2}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"positions": "sines", "dim": 26, "heads": 1}, "dim"),
        ({"decoder_dim": 27}, "decoder_dim"),
        ({"decoder_dim": 12}, "decoder_dim"),
        ({"heads": 0}, "heads"),
        ({"patch": 0}, "patch"),
    ],
)
def test_widths_that_have_no_positions_are_refused_by_their_keys(given: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^(model\.)?{key}: "):
        CroCo(**(CROCO | given))


def test_counts_below_one_are_refused_by_their_keys() -> None:
    for given in ({"depth": 0}, {"patch": 0}):
        with pytest.raises(ConfigError, match=rf"^{next(iter(given))}: 0 is too small"):
            Selfie(PatchResNet("resnet10t"), None, (32, 32), **({"patch": 8, "dim": 24, "heads": 2} | given))
    with pytest.raises(ConfigError, match=r"shows 0 of the 1 patches - use larger images or smaller pat"):
        RandomMasking(0.25).kept(1)
    with pytest.raises(ConfigError, match=r"^data\.frames: clips of 5 frames - use multiples of 2"):
        VideoMAE(8, 2, TubeMasking(0.75), 32, 1, 2, 16, 1, 2).check_size(5, 32, 32)


# ------------------------------------------------------------------ methods of which only a part is known


def test_masked_tokens_are_told_apart() -> None:
    """Of MTO: cosines and entropies at their extremes, weights of mean 1, and MAE's loss where nothing is added."""
    tokens = torch.eye(6)[None]
    assert likeness(tokens, 4).abs().max() == 0
    assert torch.equal(likeness(tokens[:, [0, 1, 0]], 2), torch.tensor([[[1.0, 0.0]]]))
    assert relative_entropy(torch.zeros(2, 5)).tolist() == pytest.approx([1, 1])
    assert relative_entropy(torch.tensor([[0.0, 200.0]])).item() == pytest.approx(0)
    assert relative_entropy(torch.zeros(3, 1)).tolist() == [0, 0, 0]
    weights = recalibrated(torch.tensor([[0.1, 0.5, 0.9]]))
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0].argsort().tolist() == [0, 1, 2]
    network = MTO(encoder(), early=1, recalibration=0.0, spatial_weight=0.0, entropy_weight=0.0, **SMALL)
    images = network.prepared(batch())
    split = network.draw(images)
    found = network.learn(images, split, {})
    torch.testing.assert_close(found["loss_pixels"], network.patch_losses(images, split).mean())
    assert found["loss_spatial"] == found["loss_entropy"] == 0
    with pytest.raises(ConfigError, match=r"model.early: 2 of 1 blocks"):
        MTO(encoder(), early=2, **SMALL)


def test_patches_find_their_places(tmp_path: Path) -> None:
    """Of Selfie: equal patches cannot be told apart; the loss falls when the right one has the greatest product; a
    patch's vector depends on nothing else; what is handed over has timm's names."""
    network = METHODS["selfie"]().eval()
    assert isinstance(network, Selfie)
    same = network.losses(batch() | {"image": torch.full((4, 3, 32, 32), 90, dtype=torch.uint8)})["loss_patches"]
    assert same.item() == pytest.approx(np.log(4), abs=1e-4)  # a quarter of 16 patches is hidden
    assert matching_losses(50 * torch.eye(3)[None]).item() < 1e-6
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[:, :, :8, :8] = 0
    torch.testing.assert_close(network(images)[:, 1:], network(other)[:, 1:])
    names = {name.removeprefix("backbone.body.") for name in network.state_dict() if "backbone" in name}
    assert names == set(small_resnet().body.state_dict())
    save_durably({"state_dict": {f"model.{n}": v for n, v in network.state_dict().items()}}, tmp_path / "best.ckpt")
    args = {"stem_width": 8, "channels": [8, 16, 32, 64]}
    body, _ = create("resnet10t", str(tmp_path / "best.ckpt"), args, 3)
    assert all(
        torch.equal(value, network.backbone.body.state_dict()[name]) for name, value in body.state_dict().items()
    )
    with pytest.raises(ConfigError, match="hides one of 4 patches"):
        Selfie(small_resnet(), None, (16, 16), 8, 16, 1, 2)
    with pytest.raises(ConfigError, match="vit_tiny_patch16_224 is no ResNet"):
        PatchResNet("vit_tiny_patch16_224")


def test_the_last_block_computes_what_is_read_alone() -> None:
    network = MAE(encoder(), **SMALL)
    images = network.prepared(batch())
    split = network.draw(images)
    grid = network.backbone.grid(32, 32)
    rows = network.pixel_rows(network.backbone(images, split.shown), split, grid)[:, split.kept :]
    target = network.compared(images, split.removed)[0]
    torch.testing.assert_close(network.patch_losses(images, split), (rows - target).square().mean(-1))
    with pytest.raises(ConfigError, match=r"model.decoder_depth: 0 is too small"):
        MAE(encoder(), decoder_depth=0)
    with pytest.raises(ConfigError, match=r"model.decoder_dim: 25 is no multiple of 4"):
        MAE(encoder(), decoder_dim=25)
    with pytest.raises(ValueError, match="24 channels are not divisible by 5 heads"):  # the builder names the key
        MAE(encoder(), decoder_dim=24, decoder_heads=5)


def test_masks_without_a_type_are_one_line_with_their_kinds() -> None:
    for ratio in (0, 1):
        with pytest.raises(ConfigError, match=r"^model\.masking\.ratio: \d\.0 (hides|shows) nothing"):
            build({"type": "pretraining.RandomMasking", "ratio": ratio}, Masking, where="model.masking")
    with pytest.raises(ConfigError, match=r"^model\.masking\.type: is missing - one of ") as caught:
        build({"ratio": 0.5}, Masking, where="model.masking")
    assert "pretraining.RandomMasking" in caught.value.remedy.removeprefix("one of ").split(", ")
    assert "pretraining.Masking" not in caught.value.remedy
