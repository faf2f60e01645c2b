"""Self-supervised pre-training against its authors' code."""

from __future__ import annotations

from typing import Any

import torch

from parity import fixtures
from parity.compare import assert_losses, assert_outputs
from vistrain.checkpoints import load_weights
from vistrain.pretraining import MAE, PatchEncoder, TokenSplit
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
