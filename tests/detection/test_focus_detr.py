"""DINO and Focus-DETR where data is unkind, and what their arguments mean."""

import warnings
from typing import Any

import pytest
import torch
from detector_tools import gradients, make_batch, shake
from parity.models import TinyBackbone, TinyBody, contiguous

from vistrain.config import compose
from vistrain.detection import DINO, FocusDETR
from vistrain.detr import ContrastiveDenoising
from vistrain.errors import ConfigError, DataError
from vistrain.losses import foreground_loss, foreground_targets
from vistrain.run.networks import build_without_memory

WIDTHS = [8, 12, 16, 20]
SIZES = {"embed_dim": 32, "num_heads": 4, "num_queries": 9, "encoder_layers": 2, "decoder_layers": 2, "ffn_dim": 48}
DETREX: dict[str, Any] = {"shared_heads": False, "spare_label": False, "position_temperature": 10000.0}
FORMS: dict[str, tuple[type[DINO], dict[str, Any]]] = {
    "authors": (DINO, {}),
    "detrex": (DINO, {**DETREX, "position_offset": -0.5, "mask_padding_in_eval": False}),
    "focus": (FocusDETR, {"cascade": (1.0, 0.5), "topk_sa": 20}),
}


def make(form: str = "focus", classes: int = 5, **changes: Any) -> Any:
    """A small model with random weights that are at no special value."""
    torch.manual_seed(0)
    cls, arguments = FORMS[form]
    backbone = TinyBackbone(TinyBody(WIDTHS), tuple(WIDTHS[1:]))
    denoising = {"denoising": ContrastiveDenoising(number=6)}
    model = cls(backbone, contiguous(classes), **{**SIZES, **denoising, **arguments, **changes})
    shake(model)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("counts", "sizes", "classes"),
    [
        ([2, 0], [(64, 96), (48, 40)], 5),  # an image without objects beside one with
        ([0, 0], [(64, 96), (64, 96)], 5),  # no object at all
        ([30, 1], [(64, 96), (64, 96)], 1),  # more objects than queries; one class
        ([1, 1], [(20, 17), (9, 30)], 5),  # smaller than the coarsest stride; fewer tokens than self-attention takes
        ([12, 1], [(9, 12), (3, 5)], 5),  # 7 tokens: fewer than queries, and than objects
        ([0, 0], [(1, 1), (1, 1)], 1),  # one token a level, one class and nothing to find
    ],
    ids=["some empty", "all empty", "crowded, one class", "tiny", "tinier", "one pixel"],
)
def test_losses_are_finite_and_reach_every_parameter(
    form: str, counts: list[int], sizes: list[tuple[int, int]], classes: int
) -> None:
    model, batch = make(form, classes).train(), make_batch(counts, sizes, classes)
    losses = model.losses(batch)
    assert all(value.isfinite() and value.dtype == torch.float32 and value.shape == () for value in losses.values())
    suffixes = ("", "_0", "_enc", "_dn", "_dn_0")
    expected = {f"loss_{kind}{suffix}" for kind in ("class", "bbox", "giou") for suffix in suffixes}
    assert set(losses) == expected | ({"select_loss"} if form == "focus" else set())
    if not any(counts):
        nothing = [value for name, value in losses.items() if name.startswith("loss_") and "class" not in name]
        assert not torch.stack(nothing).any()
    assert [name for name, gradient in gradients(model, losses).items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients(model, model.losses(batch)).values())


def test_sizes_that_the_host_knows_change_nothing() -> None:
    sizes = [(64, 96), (48, 40)]
    model, batch = make(denoising=ContrastiveDenoising(0)).train(), make_batch([2, 1], sizes)
    waiting, knowing = model.losses(batch), model.losses(batch | {"host_size": sizes})
    assert {name: loss.item() for name, loss in waiting.items()} == {name: x.item() for name, x in knowing.items()}


@pytest.mark.parametrize("form", FORMS)
def test_without_auxiliary_losses_no_parameter_is_left_over(form: str) -> None:
    model = make(form, aux_loss=False, decoder_layers=3).train()
    losses = model.losses(make_batch([2, 1]))
    assert not [name for name in losses if "_0" in name]
    assert [name for name, gradient in gradients(model, losses).items() if gradient is None] == []
    assert "aux_outputs" not in model.eval()(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("form", FORMS)
def test_tiny_images_and_one_class_are_predicted(form: str) -> None:
    found = make(form, classes=1).eval().predict(make_batch([0, 0], [(9, 12), (3, 5)], classes=1))
    tokens = 2 * 2 + 1 + 1 + 1  # of a 9x12 canvas at strides 8 to 64: fewer than the nine queries
    for image in found:
        assert len(image.scores) <= tokens
        assert image.boxes.isfinite().all()
        assert image.scores.diff().le(0).all()
        assert not image.labels.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("wrong", "shown"), [(5, "5"), (-1, "-1"), (91, "91")])
def test_labels_outside_the_label_space_are_refused(form: str, wrong: int, shown: str) -> None:
    batch = make_batch([2, 2])
    batch["target"][1]["labels"][0] = wrong
    with pytest.raises(DataError, match=rf"target 1 of the batch: label {shown} is not among the 5 channels"):
        make(form).losses(batch)


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
    if form == "focus":
        assert outputs["foreground_logits"].dtype == torch.float32  # bfloat16 would tie most of them


@pytest.mark.parametrize("form", ["authors", "focus"])
def test_recomputed_activations_give_the_same_gradients(form: str) -> None:
    batch, none = make_batch([2, 1]), ContrastiveDenoising(0)
    plain, again = (make(form, denoising=none, activation_checkpointing=x).train() for x in (False, True))
    expected = gradients(plain, plain.losses(batch))
    for name, gradient in gradients(again, again.losses(batch)).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("levels", "strides"), [(1, (32,)), (2, (16, 32)), (5, (8, 16, 32, 64, 128))])
def test_any_number_of_levels(form: str, levels: int, strides: tuple[int, ...]) -> None:
    model, batch = make(form, num_levels=levels).train(), make_batch([2, 1])
    assert model.neck.strides == strides
    assert None not in gradients(model, model.losses(batch)).values()
    outputs = model.eval()(torch.rand(1, 3, 64, 96))
    tokens = sum(-(-64 // s) * -(-96 // s) for s in strides)
    assert outputs["enc_outputs"]["pred_boxes"].shape == (1, min(9, tokens), 4)
    if form == "focus":
        assert outputs["foreground_logits"].shape == (1, tokens)
        assert model.select_limits == (*(8.0 * s for s in strides[:-1]), float("inf"))


def test_one_level_is_built_of_a_config() -> None:
    changes = ["model.num_levels=1", "model.backbone={name: test_resnet, strides: [32], args: null}"]
    model = build_without_memory(compose(["vistrain:demo/detection"], changes))
    assert model.neck.strides == (32,)
    assert all(parameter.numel() for parameter in model.parameters())


def test_equal_heads_in_all_layers_compute_what_one_shared_head_does() -> None:
    shared, own = make("authors").eval(), make("authors", shared_heads=False).eval()
    state = shared.state_dict()
    for kind in ("class", "bbox"):
        head = {k.partition(".0.")[2]: v for k, v in state.items() if k.startswith(f"{kind}_embed.0.")}
        proposals = {k.removeprefix(f"enc_out_{kind}_embed."): v for k, v in state.items() if f"out_{kind}" in k}
        for index, source in enumerate((head, head, proposals)):
            state |= {f"{kind}_embed.{index}.{k}": v for k, v in source.items()}
    own.load_state_dict({k: v for k, v in state.items() if "enc_out_" not in k})
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = shared(images), own(images)
    for key in ("pred_logits", "pred_boxes"):
        assert torch.equal(ours[key], theirs[key])
        assert torch.equal(ours["enc_outputs"][key], theirs["enc_outputs"][key])


def test_an_images_detections_do_not_depend_on_its_neighbours() -> None:
    """The authors hide padding in evaluation; detrex and Focus-DETR evaluate single images."""
    model, batch = make("authors").eval(), make_batch([1, 1, 1], [(64, 96), (40, 96), (64, 56)])
    for index, ours in enumerate(model.predict(batch)):
        (expected,) = model.predict({key: batch[key][index : index + 1] for key in ("image", "size", "original_size")})
        torch.testing.assert_close(ours.boxes, expected.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(ours.scores, expected.scores, rtol=0, atol=1e-5)


def test_padding_that_is_not_hidden_is_said() -> None:
    """As published, a batch of images of several sizes gives misplaced boxes; one image, or one size, does not."""
    model = make("focus").eval()
    with pytest.warns(UserWarning, match="eval_batch_size=1"):
        model.predict(make_batch([1, 1], [(64, 96), (40, 96)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(make_batch([1, 1], [(64, 96), (64, 96)]))


@pytest.mark.parametrize(
    ("number", "threshold", "groups"), [(6, 0, 2), (6, 100, 12), (49, 100, 98), (50, 100, 16), (1, 0, 1), (1, 100, 2)]
)
def test_how_many_denoising_groups(number: int, threshold: int, groups: int) -> None:
    """Three objects at most; the authors' code takes few positives for the number of groups."""
    labels, boxes = [torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)], torch.full((3, 4), 0.5)
    extra = ContrastiveDenoising(number, group_threshold=threshold)(labels, [boxes, boxes[:1]], 5)
    assert extra.groups == groups
    assert extra.labels.shape == (2, 2 * 3 * groups)


@pytest.mark.parametrize("form", [pytest.param("authors", marks=pytest.mark.slow), "focus"])
def test_the_evaluated_network_can_be_exported(form: str) -> None:
    model, images = make(form).eval(), torch.rand(2, 3, 64, 96)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        exported, ours = program.module()(images), model(images)
    torch.testing.assert_close(exported["pred_logits"], ours["pred_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(exported["pred_boxes"], ours["pred_boxes"], rtol=0, atol=1e-5)


# ------------------------------------------------------------------- Focus-DETR alone


def test_keep_counts_are_cut_off_and_never_exceed_the_tokens() -> None:
    model = make(cascade=(1.0, 0.7), keep_ratio=0.5)
    mask = torch.zeros(2, 21, dtype=torch.bool)
    mask[1, 10:] = True
    counts, kept = model.token_counts(21, mask)
    assert (counts, kept) == ([11, 7], [11, 6])  # 7.7 is cut off
    model.keep_ratio, model.cascade = 1.0, (1.0, 0.01)
    counts, kept = model.token_counts(21, None)
    assert (counts, kept) == ([21, 1], [21])


def test_tokens_that_are_not_selected_stay_as_they_are() -> None:
    model, captured = make(keep_ratio=0.25).eval(), {}
    model.encoder.register_forward_hook(lambda module, given, out: captured.update(given=given, out=out))
    outputs = model(torch.rand(1, 3, 64, 96))
    before, after = captured["given"][0], captured["out"]
    tokens = before.shape[1]
    changed = (before != after).any(-1)[0]
    best = outputs["foreground_logits"][0].topk(int(tokens * 0.25) + 1).indices
    assert set(changed.nonzero().flatten().tolist()) == set(best.tolist())


def test_foreground_is_inside_an_object_of_the_levels_size() -> None:
    """Strides 8 and 16; centres at 4, 12, 20, 28 and at 8, 24."""
    shapes, strides, limits = [(4, 4), (2, 2)], (8, 16), (20.0, float("inf"))
    found = foreground_targets(torch.tensor([[4.0, 0.0, 21.0, 14.0]]), shapes, strides, limits)
    fine = torch.zeros(4, 4, dtype=torch.bool)
    fine[:2, 1:3] = True  # x = 4 lies on the edge, and does not count; y = 20 is below
    assert torch.equal(found[:16].view(4, 4), fine)
    assert not found[16:].any()  # 13 pixels at most from (8, 8), this level begins above 20
    whole = foreground_targets(torch.tensor([[0.0, 0.0, 32.0, 32.0]]), shapes, strides, limits)
    assert whole[:16].view(4, 4)[1:3, 1:3].all()
    assert whole[:16].sum() == 4  # from the other centres it is more than 20 pixels to a side
    assert whole[16:].all()
    assert not foreground_targets(torch.zeros(0, 4), shapes, strides, limits).any()


def test_the_selection_loss_stays_finite_where_logits_saturate() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[False, True, True]])
    loss = foreground_loss(logits, targets)
    expected = (0.75 * 200 + 0.25 * 200 + 0.25 * 0.25 * torch.log(torch.tensor(2.0))) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_the_selector_starts_in_its_range_and_learns() -> None:
    backbone = TinyBackbone(TinyBody(WIDTHS), tuple(WIDTHS[1:]))
    alpha = FocusDETR(backbone, contiguous(3), cascade=(1.0, 0.5), alpha_range=0.1, **SIZES).selector.alpha
    assert alpha.shape == (3,)
    assert 0 < alpha.abs().max() <= 0.1
    model, batch = make().train(), make_batch([2, 1])
    grads = gradients(model, {"select_loss": model.losses(batch)["select_loss"]})
    for name in ("selector.alpha", "enc_output.weight", "neck.convs.0.conv.weight", "backbone.body.stem.weight"):
        assert grads[name].any(), name
    assert grads["class_embed.2.weight"] is None  # the category score only chooses


@pytest.mark.parametrize(
    ("form", "changes", "key"),
    [
        ("authors", {"decoder_layers": 0}, "model.decoder_layers"),
        ("authors", {"num_queries": 0}, "model.num_queries"),
        ("authors", {"num_levels": 0}, "model.num_levels"),
        ("focus", {"embed_dim": 40}, "model.embed_dim"),
        ("focus", {"cascade": (1.0,)}, "model.cascade"),
        ("focus", {"cascade": (1.0, 0.0)}, "model.cascade"),
        ("focus", {"keep_ratio": 1.5}, "model.keep_ratio"),
        ("focus", {"topk_sa": 0}, "model.topk_sa"),
        ("focus", {"select_limits": (64.0,)}, "model.select_limits"),
    ],
)
def test_what_cannot_be_built_names_its_key(form: str, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        make(form, **changes)
    assert error.value.where == key
