"""Methods of pre-training that are not built upon MAE's decoder, against their authors' code."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from parity import fixtures
from parity.compare import assert_losses, assert_outputs
from vistrain.checkpoints import load_weights
from vistrain.pretraining import (
    CAE,
    GMML,
    BlockCorruption,
    BlockMasking,
    CroCo,
    PatchEncoder,
    RandomWords,
    TokenSplit,
    TubeMasking,
    VideoMAE,
)
from vistrain.pretraining.croco import completion_losses
from vistrain.pretraining.gmml import corrupted_loss
from vistrain.pretraining.mp3 import asked_of, block_asking
from vistrain.pretraining.token_masks import take

ROOM = "restoration_pretraining"


def kwargs_of(fixture: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: fixture["constructor"]["kwargs"][name] for name in names}


@torch.no_grad()
def test_cae() -> None:
    fixture = fixtures.load(f"{ROOM}/cae.pt")
    inputs, outputs, kwargs = fixture["inputs"], fixture["outputs"], fixture["constructor"]["kwargs"]
    args = kwargs_of(fixture, "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")
    plain = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "global_pool": "token"}
    backbone = PatchEncoder("beit_base_patch16_224", positions="fixed_rows", args=args | plain)
    patch = (kwargs["patch_size"],) * 2
    model = CAE(
        backbone,
        words=RandomWords(patch, 3, kwargs["decoder_num_classes"]),
        regressor_depth=kwargs["regressor_depth"],
        decoder_depth=kwargs["decoder_depth"],
        heads=kwargs["decoder_num_heads"],
    ).eval()
    for name in ("rd_pos_embed", "backbone.body.pos_embed"):  # the tables of a new network are the authors'
        stored = fixture["state_dict"][name.replace("backbone.body", "encoder")]
        torch.testing.assert_close(model.state_dict()[name], stored, rtol=0, atol=1e-6)
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    split = TokenSplit.of_hidden(inputs["mask"])
    logits, regressed, target = model.complete(inputs["x"], split)
    found = {
        "encoder": model.backbone(inputs["x"], split.shown),
        "logits": logits.flatten(0, 1),
        "latent_pred": regressed,
        "latent_target": target,
    }
    assert_outputs(found, {name: outputs[name] for name in found})

    class Given(RandomWords):
        def forward(self, images: Tensor) -> Tensor:
            return inputs["labels"]

    model.words = Given(patch)
    losses = model.learn(inputs["x"], split, {})
    wanted = {"loss_words": outputs["loss_main"], "loss_align": outputs["loss_align_w2"]}
    assert_losses(losses, wanted)
    draw, masking = random.Random(0), BlockMasking(0.5)
    ours = np.stack([masking.blocks((14, 14), 98, draw) for _ in range(4)])
    assert np.array_equal(ours, outputs["block_masks_pyseed0_98_min16"].numpy().astype(bool))


@torch.no_grad()
def test_gmml() -> None:
    fixture = fixtures.load(f"{ROOM}/gmml.pt")
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    args = kwargs_of(fixture, "patch_size", "embed_dim", "depth", "num_heads")
    kwargs = fixture["constructor"]["kwargs"]
    backbone = PatchEncoder("vit_base_patch16_224", args=args | {"img_size": kwargs["img_size"][0]})
    blocks = tuple(int(number) for number in kwargs["recons_blocks"].split("-"))
    model = GMML(backbone, blocks=blocks).eval()
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    found = {"features": model.averaged(inputs["x"]), "recons": model.restored(inputs["x"])}
    assert_outputs(found, {name: outputs[name] for name in found})
    loss = corrupted_loss(found["recons"], inputs["target"], inputs["mask"])
    assert_losses({"loss": loss}, {"loss": outputs["loss"]})
    for name, seed, share in (("zeros_mask", 0, 0.7), ("replace_mask", 1, 0.3)):
        mask = BlockCorruption(share, align=8).blocks((64, 64), np.random.RandomState(seed))
        assert np.array_equal(mask, outputs[name][0].numpy().astype(bool))


@torch.no_grad()
def test_mp3_block() -> None:
    fixture = fixtures.load(f"{ROOM}/mp3_block.pt")
    inputs, outputs, kwargs = fixture["inputs"], fixture["outputs"], fixture["constructor"]["kwargs"]
    block = Block(kwargs["dim"], kwargs["num_heads"], qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    load_weights(block, fixture["state_dict"])
    asked = asked_of(inputs["noise"], int(inputs["noise"].shape[1] * (1 - kwargs["eta"])))
    assert torch.equal(asked, outputs["kv_ind"])
    torch.testing.assert_close(block_asking(block, inputs["x"], asked), outputs["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("positions", "stored"), [("sines", "cosine"), ("rotations", "RoPE100")])
@torch.no_grad()
def test_croco(positions: Any, stored: str) -> None:
    fixture = fixtures.load(f"{ROOM}/croco.pt")
    inputs, outputs, kwargs = fixture["inputs"], fixture["outputs"], fixture["constructor"]["kwargs"]
    model = CroCo(
        (kwargs["img_size"],) * 2,
        kwargs["patch_size"],
        positions,
        dim=kwargs["enc_embed_dim"],
        depth=kwargs["enc_depth"],
        heads=kwargs["enc_num_heads"],
        decoder_dim=kwargs["dec_embed_dim"],
        decoder_depth=kwargs["dec_depth"],
        decoder_heads=kwargs["dec_num_heads"],
    ).eval()
    weights = {k.removeprefix(f"{stored}."): v for k, v in fixture["state_dict"].items() if k.startswith(f"{stored}.")}
    if positions == "sines":
        torch.testing.assert_close(model.enc_pos_embed, weights["enc_pos_embed"], rtol=0, atol=1e-6)
    load_weights(model, weights)
    split = TokenSplit.of_hidden(inputs["mask"])
    rows = model.complete(inputs["img1"], inputs["img2"], split)
    assert_outputs(rows, outputs[stored])
    loss = completion_losses(rows, inputs["img1"], split, model.patch).mean()
    assert_losses({"loss": loss}, {"loss": outputs[f"{stored}_loss"]})
    if positions == "rotations":
        assert_outputs(model.encode(inputs["img2"]), outputs["rope_feat2"])


@torch.no_grad()
def test_videomae() -> None:
    fixture = fixtures.load(f"{ROOM}/videomae.pt")
    inputs, outputs, kwargs = fixture["inputs"], fixture["outputs"], fixture["constructor"]["kwargs"]
    model = VideoMAE(
        kwargs["patch_size"],
        kwargs["tubelet_size"],
        TubeMasking(0.75),
        kwargs["encoder_embed_dim"],
        kwargs["encoder_depth"],
        kwargs["encoder_num_heads"],
        kwargs["decoder_embed_dim"],
        kwargs["decoder_depth"],
        kwargs["decoder_num_heads"],
    ).eval()
    load_weights(model, fixture["state_dict"])
    split = TokenSplit.of_hidden(inputs["mask"])
    wanted = take(model.target(inputs["x"]), split.removed)
    rows = model.complete(inputs["x"], split)
    assert_outputs({"y": rows, "labels": wanted}, {name: outputs[name] for name in ("y", "labels")})
    assert_losses({"loss": (rows - wanted).square().mean()}, {"loss": outputs["loss"]})
    # The authors' tubes: the same patches in all eight slots of time; so are ours
    tubes = inputs["mask"].view(1, 8, 16)
    assert (tubes == tubes[:, :1]).all()
    ours = model.masking.tubes(2, 8, (4, 4), torch.Generator().manual_seed(0)).hidden.view(2, 8, 16)
    assert (ours == ours[:, :1]).all()
    assert ours.sum().item() == 2 * tubes.sum().item()
