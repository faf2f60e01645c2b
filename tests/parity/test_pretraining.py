"""Self-supervised pre-training against its authors' code."""

from __future__ import annotations

from typing import Any

import torch

from parity import fixtures
from parity.compare import assert_losses, assert_outputs
from vistrain.checkpoints import load_weights
from vistrain.pretraining import HPM, LUT, MAE, ColorMasking, FrozenViT, MaskAlign, PatchEncoder, TokenSplit
from vistrain.pretraining.color_masks import brightest_first
from vistrain.pretraining.hpm import hard_order
from vistrain.pretraining.maskalign import importance
from vistrain.pretraining.patches import patchify
from vistrain.pretraining.token_masks import by_noise

ROOM = "restoration_pretraining"


def encoder(kwargs: dict[str, Any], name: str = "vit_base_patch16_224", **more: Any) -> PatchEncoder:
    args = {
        k: kwargs[k] for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio") if k in kwargs
    }
    return PatchEncoder(name, args=args | more)


def autoencoder(cls: type[MAE], kwargs: dict[str, Any], **more: Any) -> Any:
    decoder = {name: kwargs[f"decoder_{there}"] for name, there in (
        ("decoder_dim", "embed_dim"), ("decoder_depth", "depth"), ("decoder_heads", "num_heads"))}  # fmt: skip
    return cls(encoder(kwargs), norm_pix=kwargs["norm_pix_loss"], **decoder, **more).eval()


def test_mae() -> None:
    fixture = fixtures.load(f"{ROOM}/mae.pt")
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    model = autoencoder(MAE, fixture["constructor"]["kwargs"])
    fresh = {name: value.clone() for name, value in model.state_dict().items() if name.endswith("pos_embed")}
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    for name, value in fresh.items():  # the tables that a new network starts with are the authors'
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-6)
    x = inputs["x"]
    kept = model.masking.kept(16)
    split = TokenSplit(by_noise(inputs["noise"]), kept)
    with torch.no_grad():
        latent = model.backbone(x, split.shown)
        rows = model.pixel_rows(latent, split, (4, 4))
        found = {
            "latent": latent,
            "pred": rows.gather(1, split.restore[..., None].expand_as(rows)),
            "mask": split.hidden.float(),
            "ids_restore": split.restore,
            "patchify": patchify(x, model.backbone.patch),
        }
        assert_outputs(found, {k: v for k, v in outputs.items() if not k.startswith("loss")})
        losses = {"loss_normpix": model.learn(x, split, {})["loss_pixels"]}
        model.norm_pix = False
        losses["loss_pix"] = model.learn(x, split, {})["loss_pixels"]
    assert_losses(losses, {k: outputs[k] for k in ("loss_normpix", "loss_pix")})


def test_sizes_of_mae() -> None:
    published = fixtures.load(f"{ROOM}/mae.pt")["published"]
    with torch.device("meta"):
        model = MAE(PatchEncoder("vit_base_patch16_224.mae"))
    assert sum(p.numel() for p in model.parameters()) == published["mae_vit_base_patch16"]


def test_color_masks() -> None:
    fixture = fixtures.load(f"{ROOM}/colormae_mask.pt")
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    masking = ColorMasking(fixture["constructor"]["kwargs"]["mask_ratio"])
    masking.patterns = inputs["patterns"]
    split = TokenSplit(brightest_first(inputs["window"]), masking.kept(196))
    assert torch.equal(split.shown, outputs["ids_keep"])
    assert torch.equal(split.restore, outputs["ids_restore"])
    assert torch.equal(split.hidden.float(), outputs["mask"])
    # One crop and flip for all patterns of a pass, the rest of a batch from another pass.
    found = masking.windows(8, (14, 14), torch.Generator().manual_seed(1))
    for begin, end in ((0, 5), (5, 8)):
        patterns = inputs["patterns"][: end - begin]
        flips = ((), (1,), (2,), (1, 2))
        candidates = (patterns[:, y : y + 14, x : x + 14].flip(f) for y in range(7) for x in range(7) for f in flips)
        places = [window for window in candidates if torch.equal(window, found[begin:end])]
        assert len(places) == 1


def test_hpm() -> None:
    fixture = fixtures.load(f"{ROOM}/hpm.pt")
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    model = autoencoder(HPM, fixture["constructor"]["kwargs"])
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    split = TokenSplit.of_hidden(inputs["mask"])
    x = inputs["x"]
    with torch.no_grad():
        latent = model.backbone(x, split.shown)
        rows, hardness = model.pixel_rows(latent, split, (4, 4)), model.hardness(latent, split, (4, 4))
        whole = TokenSplit(torch.arange(16).expand(2, -1), 16)
        full = model.teacher.network.hardness(model.teacher.network.backbone(x), whole, (4, 4))
        found = {"pix_pred": rows, "loss_pred": hardness, "loss_pred_full_visible": full}
        assert_outputs(found, {name: outputs[name] for name in found})
        matrix = model.patch_losses(x, split)
        assert_outputs(matrix, outputs["loss_matrix"])
        losses = model.losses_of(x, split)
        model.relative = False
        absolute = model.losses_of(x, split)["loss_order"]
    found = {"loss_mean": losses["loss_pixels"], "learn_relative": losses["loss_order"], "learn_absolute": absolute}
    assert_losses(found, {name: outputs[name] for name in found})
    # The authors' mask at epoch 149 of 200 hides the hardest four; so does ours, and as many in all.
    theirs = outputs["gen_mask_epoch149_of_200_npseed0"].bool()
    ours = TokenSplit(hard_order(full, int(12 * 0.375), torch.rand(2, 16)), 4).hidden
    for mask in (theirs, ours):
        assert mask.sum(1).tolist() == [12, 12]
        assert mask.gather(1, full.argsort(1)[:, -4:]).all()


def test_lut() -> None:
    fixture = fixtures.load(f"{ROOM}/lut.pt")
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    kwargs = fixture["constructor"]["kwargs"]
    model = autoencoder(LUT, kwargs, head_hidden=kwargs["head_mlp_dim"])
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    split = TokenSplit(by_noise(inputs["noise"]), 4)
    with torch.no_grad():
        losses, said, taught = model.compare(inputs["x1"], inputs["x2"], split)
        total = 0.25 * (2 - 2 * torch.nn.functional.cosine_similarity(said, taught, dim=1)).mean()
        rows = model.pixel_rows(model.backbone(inputs["x1"], split.shown), split, (4, 4))
    assert_outputs(said, outputs["q"])
    assert_outputs(rows.gather(1, split.restore[..., None].expand_as(rows)), outputs["pred"])
    assert_outputs(split.hidden.float(), outputs["mask1"])
    assert torch.equal(outputs["mask2"].logical_not().nonzero()[:, 1].view(2, 4), split.order[:, 4:8].sort(1).values)
    assert_outputs(taught.roll(2, 0), outputs["teacher"])  # theirs are in the order of the views
    found = {"mae_loss": losses.mean(), "bc_loss": total / 0.25, "total_wbc025": losses.mean() + total}
    assert_losses(found, {name: outputs[name] for name in found})


def test_maskalign() -> None:
    fixture = fixtures.load(f"{ROOM}/maskalign.pt")
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    kwargs = fixture["constructor"]["kwargs"]
    teacher = FrozenViT(
        "vit_base_patch16_224", False, {"img_size": 32, "patch_size": 8, "embed_dim": 40, "depth": 3, "num_heads": 4}
    )
    model = MaskAlign(encoder(kwargs), teacher, layers=2)
    own = {name: value for name, value in model.state_dict().items() if name.startswith("teacher.")}
    names = model.key_maps[0].apply(fixture["state_dict"])
    load_weights(model, names | own)
    assert model.masking.kept(16) == 4
    shown = inputs["ids_shuffle"][:, :4]
    with torch.no_grad():
        found = {
            "student": model.student(inputs["x"], shown),
            "teacher": model.taught(inputs["teacher_hidden_states"][1:], shown),
            "importance": importance(inputs["teacher_attn_last"]),
            "ids_keep": shown,
        }
        assert_outputs(found, {name: outputs[name] for name in found})
        loss = model.align(found["student"], found["teacher"]).mean()
    assert_losses({"loss": loss}, {"loss": outputs["loss"]})
