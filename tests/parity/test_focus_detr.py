"""Focus-DETR against the authors' code: weights, outputs, detections, losses with stored noise, gradients, names.

Fixtures of further configurations that follow the same naming are picked up as they appear.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from parity import fixtures
from parity.compare import ATOL, assert_detections, assert_losses, assert_outputs
from parity.dino_models import focus_detr, noise_of, storing
from parity.test_dino import batch_of, loaded
from vistrain.detection import FocusDETR
from vistrain.detection.targets import relative_targets
from vistrain.detr import ContrastiveDenoising

ALL = "dense/focus_detr*.pt"
EVALUATED = storing(ALL, "outputs", "eval_batch2_no_mask", always="dense/focus_detr.pt")
TRAINED = storing(ALL, "outputs", "train_masked_no_dn", always="dense/focus_detr.pt")
DENOISED = storing(ALL, "outputs", "train_masked_dn", always="dense/focus_detr.pt")
WITH_GRADIENTS = storing(ALL, "gradient_norms", "transformer.alpha", always="dense/focus_detr_mixed.pt")


def prepared(name: str) -> tuple[dict[str, Any], FocusDETR, dict[str, Any]]:
    """A fixture, our model with its weights, and its batch."""
    fixture = fixtures.load(name)
    return fixture, loaded(focus_detr(fixture), fixture["state_dict"]), batch_of(fixture)


def assert_kept(model: FocusDETR, batch: dict[str, Any], mask: Tensor | None, stored: Tensor) -> None:
    """The number of tokens that belong to each image."""
    shapes = model.neck(model.backbone(model.normalize(batch["image"], batch["size"])[0]))
    tokens = sum(x.shape[-2] * x.shape[-1] for x in shapes)
    assert torch.tensor(model.token_counts(tokens, mask)[1]).expand(len(stored)).tolist() == stored.tolist()


@pytest.mark.parametrize("name", DENOISED)
def test_denoising_queries(name: str) -> None:
    fixture, model, batch = prepared(name)
    theirs = fixture["outputs"]["train_masked_dn"]["dn_queries"]
    extra = model.denoising(*relative_targets(batch), model.labels.num_classes, noise_of(fixture, "cdn_noise"))
    with torch.no_grad():
        content = model.label_enc(extra.labels) * extra.filled[..., None]
    torch.testing.assert_close(content, theirs["input_query_label"], rtol=0, atol=ATOL)
    torch.testing.assert_close(extra.box_logits, theirs["input_query_bbox"], rtol=0, atol=ATOL)
    assert torch.equal(extra.attn_mask(model.tgt_embed.num_embeddings), theirs["attn_mask"])
    assert extra.groups == theirs["meta"]["dn_num"]


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation(name: str) -> None:
    fixture, model, batch = prepared(name)
    single = {key: value[:1] for key, value in batch.items()}
    for stored, given in (("eval_batch2_no_mask", batch), ("eval_single", single)):
        theirs = fixture["outputs"][stored]
        with torch.no_grad():
            ours = model(model.normalize(given["image"], given["size"])[0])  # no padding is hidden in evaluation
        transformer = theirs["transformer"]
        assert_outputs(ours["foreground_logits"], transformer["foreground_logits"][..., 0])
        assert_outputs(ours["enc_outputs"]["pred_boxes"], transformer["enc_reference"])
        if "focus_token_nums" in theirs:
            assert_kept(model, given, None, theirs["focus_token_nums"])
        for found, detections in zip(model.predict(given), theirs["detections"], strict=True):
            assert_detections(found, detections)


@pytest.mark.parametrize("name", TRAINED)
def test_training_outputs(name: str) -> None:
    fixture, model, batch = prepared(name)
    images, mask = model.normalize(batch["image"], batch["size"])
    theirs = fixture["outputs"]["train_masked_no_dn"]
    with torch.no_grad():
        ours = model.train()(images, mask)
    assert_outputs(ours, expected(theirs["model"]))
    flat = torch.cat([m.flatten(1) for m in theirs["masks"]], 1)
    assert_kept(model, batch, flat, theirs["focus_token_nums"])


@pytest.mark.parametrize("name", DENOISED)
def test_denoising_outputs(name: str) -> None:
    fixture, model, batch = prepared(name)
    theirs = fixture["outputs"]["train_masked_dn"]
    extra = model.denoising(*relative_targets(batch), model.labels.num_classes, noise_of(fixture, "cdn_noise"))
    with torch.no_grad():
        decoded = model.train().decode(*model.normalize(batch["image"], batch["size"]), extra)
    count = extra.labels.shape[1]
    for part, stored in ((slice(count), theirs["dn_out"]), (slice(count, None), expected(theirs["model"]))):
        layers = [
            {"pred_logits": x[:, part], "pred_boxes": y[:, part]}
            for x, y in zip(decoded.logits, decoded.boxes, strict=True)
        ]
        wanted = {k: v for k, v in stored.items() if k in ("pred_logits", "pred_boxes", "aux_outputs")}
        assert_outputs({**layers.pop(), "aux_outputs": layers}, wanted)


@pytest.mark.parametrize("name", DENOISED)
def test_losses(name: str) -> None:
    fixture, model, batch = prepared(name)
    model.train()
    assert_losses(model.losses(batch, noise_of(fixture, "cdn_noise")), fixture["losses"]["dn_weighted"])
    model.denoising = ContrastiveDenoising(0)
    assert_losses(model.losses(batch), fixture["losses"]["no_dn_weighted"])


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name: str) -> None:
    """A large object, one in the corner, an image without any, negative alphas: outputs, losses, every gradient."""
    fixture, model, batch = prepared(name)
    theirs = fixture["outputs"]
    images, mask = model.normalize(batch["image"], batch["size"])
    with torch.no_grad():
        ours = model.train()(images, mask)
    assert_outputs(ours["foreground_logits"], theirs["foreground_logits"][..., 0])
    assert_outputs(ours["enc_outputs"]["pred_boxes"], theirs["enc_reference"])
    losses = model.losses(batch)
    assert_losses(losses, fixture["losses"]["no_dn_weighted"])
    sum(losses.values()).backward()
    norms = {n: torch.tensor(torch.nan) if p.grad is None else p.grad.norm() for n, p in model.named_parameters()}
    exported = model.key_maps[0].export(norms)
    for name, stored in fixture["gradient_norms"].items():
        if name == "backbone.stem.conv1.weight":
            continue  # frozen there
        # The absolute part is for alpha, which the norm behind it all but cancels: exactly 5.2221e-4, stored 5.2374e-4
        torch.testing.assert_close(exported[name], stored, rtol=1e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}")


def expected(stored: dict[str, Any]) -> dict[str, Any]:
    """Outputs under our names."""
    renamed = {k: v for k, v in stored.items() if k != "temp_backbone_mask_prediction"}
    return {**renamed, "foreground_logits": stored["temp_backbone_mask_prediction"][..., 0]}
