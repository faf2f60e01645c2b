"""Deformable-DETR where data is unkind: nothing to find, too much to find, tiny images, half precision."""

from typing import Any

import pytest
import torch
from detector_tools import gradients, make_batch, shake
from parity.models import TinyBackbone, TinyBody, contiguous

from vistrain.detection import DeformableDETR
from vistrain.detr import ContrastiveDenoising
from vistrain.errors import ConfigError
from vistrain.structures import Preprocessing

FORMS: dict[str, dict[str, Any]] = {
    "basic": {},
    "refine": {"box_refinement": True},
    "two-stage": {"box_refinement": True, "two_stage": True},
    "denoising": {"box_refinement": True, "two_stage": True, "denoising": ContrastiveDenoising(number=6)},
}
WIDTHS = [8, 12, 16, 20]


def make(form: str = "basic", classes: int = 5, **changes: Any) -> DeformableDETR:
    """A small model with random weights that are at no special value."""
    torch.manual_seed(0)
    sizes = {
        "embed_dim": 32,
        "num_heads": 4,
        "num_queries": 9,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "ffn_dim": 48,
        "dropout": 0.0,
    }
    backbone = TinyBackbone(TinyBody(WIDTHS), tuple(WIDTHS[1:]))
    model = DeformableDETR(backbone, contiguous(classes), **{**sizes, **FORMS[form], **changes})
    shake(model)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ([2, 0], [(64, 96), (48, 40)]),  # an image without objects beside one with
        ([0, 0], [(64, 96), (64, 96)]),  # no object at all
        ([30, 1], [(64, 96), (64, 96)]),  # more objects than queries
        ([1, 1], [(20, 17), (9, 30)]),  # smaller than the coarsest stride; fewer tokens than queries
    ],
    ids=["some empty", "all empty", "crowded", "tiny"],
)
def test_losses_are_finite_and_reach_every_parameter(
    form: str, counts: list[int], sizes: list[tuple[int, int]]
) -> None:
    model, batch = make(form).train(), make_batch(counts, sizes)
    losses = model.losses(batch)
    assert all(value.isfinite() and value.dtype == torch.float32 and value.shape == () for value in losses.values())
    assert ("loss_giou_enc" in losses) == (form in ("two-stage", "denoising"))
    assert ("loss_class_dn_0" in losses) == (form == "denoising")
    if not any(counts):
        assert all(value == 0 for name, value in losses.items() if "class" not in name or "dn" in name)
    without = [name for name, gradient in gradients(model, losses).items() if gradient is None]
    assert not without
    assert all(gradient.isfinite().all() for gradient in gradients(model, model.losses(batch)).values())


@pytest.mark.parametrize("form", ["refine", "two-stage"])
def test_without_auxiliary_losses_no_parameter_is_left_over(form: str) -> None:
    model = make(form, aux_loss=False).train()
    losses = model.losses(make_batch([2, 1]))
    assert {name.removesuffix("_enc") for name in losses} == {"loss_class", "loss_bbox", "loss_giou"}
    assert None not in gradients(model, losses).values()
    assert "aux_outputs" not in model.eval()(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("form", ["basic", "two-stage"])
def test_tiny_images_and_one_class_are_predicted(form: str) -> None:
    model = make(form, classes=1).eval()
    batch = make_batch([0, 0], [(9, 12), (3, 5)], classes=1)
    found = model.predict(batch)
    tokens = 2 * 2 + 1 + 1 + 1  # of a 9x12 canvas at strides 8 to 64
    assert [len(x.scores) for x in found] == [min(9, tokens) if form == "two-stage" else 9] * 2
    for image in found:
        assert image.boxes.isfinite().all()
        assert image.scores.diff().le(0).all()
        assert not image.labels.any()


@pytest.mark.parametrize("form", FORMS)
def test_an_images_detections_do_not_depend_on_its_neighbours(form: str) -> None:
    model, batch = make(form).eval(), make_batch([1, 1, 1], [(64, 96), (40, 96), (64, 56)])
    together = model.predict(batch)
    for index, ours in enumerate(together):
        alone = {key: batch[key][index : index + 1] for key in ("image", "size", "original_size")}
        (expected,) = model.predict(alone)
        torch.testing.assert_close(ours.boxes, expected.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(ours.scores, expected.scores, rtol=0, atol=1e-5)


def test_what_lies_in_the_padding_does_not_matter() -> None:
    model, batch = make("two-stage").eval(), make_batch([1, 1], [(64, 96), (40, 56)])
    clean = model.predict(batch)[1]
    batch["image"][1, :, 40:], batch["image"][1, :, :, 56:] = 255, 128
    assert torch.equal(model.predict(batch)[1].boxes, clean.boxes)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_keeps_boxes_losses_and_matching_in_float32(form: str) -> None:
    model, batch = make(form).train(), make_batch([3, 0])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*model.normalize(batch["image"], batch["size"]))
        losses = model.losses(batch)
    assert outputs["pred_logits"].dtype == torch.bfloat16
    assert outputs["pred_boxes"].dtype == torch.float32
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert all(g is not None and g.isfinite().all() for g in gradients(model, losses).values())
    torch.manual_seed(0)
    exact = sum(model.losses(batch).values())
    assert abs(sum(losses.values()) - exact) < 0.15 * exact


def test_recomputed_activations_give_the_same_gradients() -> None:
    batch = make_batch([2, 1])
    plain, recomputed = (make("two-stage", activation_checkpointing=x).train() for x in (False, True))
    expected = gradients(plain, plain.losses(batch))
    for name, gradient in gradients(recomputed, recomputed.losses(batch)).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize(("levels", "strides"), [(1, (32,)), (2, (16, 32)), (5, (8, 16, 32, 64, 128))])
def test_any_number_of_levels(levels: int, strides: tuple[int, ...]) -> None:
    model = make("two-stage", num_levels=levels).eval()
    assert model.neck.strides == strides
    outputs = model(torch.rand(1, 3, 64, 96))
    tokens = sum(-(-64 // s) * -(-96 // s) for s in strides)
    assert outputs["enc_outputs"]["pred_boxes"].shape == (1, tokens, 4)
    assert outputs["pred_boxes"].shape == (1, min(9, tokens), 4)


def test_accumulated_batches_use_the_whole_batchs_count() -> None:
    model, batch = make().train(), make_batch([2, 1])
    own, whole = model.losses(batch), model.losses({**batch, "num_targets": 6.0})
    for name, value in own.items():
        torch.testing.assert_close(whole[name] * 2, value)


def test_clipped_detections_lie_in_the_image() -> None:
    model = make("refine", clip_boxes=True, detections_per_image=1000).eval()
    with torch.no_grad():
        model.bbox_embed[-1].layers[-1].bias[:] = torch.tensor([-4.0, 0.0, 0.0, 0.0])
    (found,) = model.predict(make_batch([0], [(64, 96)]))
    assert 0 < len(found.scores) <= 9 * 5
    assert found.boxes.min() == 0
    assert (found.boxes <= torch.tensor([192, 128, 192, 128])).all()


@pytest.mark.parametrize("form", ["basic", pytest.param("two-stage", marks=pytest.mark.slow)])
def test_the_network_can_be_exported(form: str) -> None:
    model = make(form).eval()
    images, mask = torch.rand(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 40:] = True
    program = torch.export.export(model, (images, mask))
    with torch.no_grad():
        exported, ours = program.module()(images, mask), model(images, mask)
    torch.testing.assert_close(exported["pred_logits"], ours["pred_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(exported["pred_boxes"], ours["pred_boxes"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"two_stage": True}, "model.two_stage"),
        ({"denoising": ContrastiveDenoising()}, "model.denoising"),
        ({"decoder_layers": 0}, "model.decoder_layers"),
        ({"num_levels": 0}, "model.num_levels"),
        ({"embed_dim": 40}, "model.embed_dim"),
        ({"num_heads": 5}, "model.embed_dim"),
        ({"sampling_core": "cuda"}, "model.sampling_core"),
    ],
)
def test_what_cannot_be_built_names_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(**changes)
    assert error.value.where == key


def test_preprocessing_is_the_backbones_but_for_the_resize() -> None:
    of_weights = Preprocessing(mean=(0.5, 0.5, 0.5), interpolation="bicubic")
    backbone = TinyBackbone(TinyBody(WIDTHS), tuple(WIDTHS[1:]), preprocessing=of_weights)
    model = DeformableDETR(backbone, contiguous(2), embed_dim=32, num_heads=4, encoder_layers=1, decoder_layers=1)
    assert model.preprocessing == Preprocessing(mean=(0.5, 0.5, 0.5), interpolation="bilinear")
    assert model.normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert "normalize.mean" not in model.state_dict()
