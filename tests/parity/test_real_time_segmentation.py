"""BEVANet and SCNN against the authors' code and its port."""

from __future__ import annotations

import torch

from parity import fixtures
from parity.compare import assert_outputs
from parity.filled import AS_THEY_ARE, filled, shapes_of
from parity.models import contiguous
from vistrain.checkpoints import load_weights
from vistrain.devices import on_meta
from vistrain.layers.padding import Normalize
from vistrain.segmentation import SCNN, BEVANet
from vistrain.segmentation.scnn import MessagePassing


def test_bevanet() -> None:
    fixture = fixtures.load("dense/official_bevanet.pt")
    model = BEVANet(contiguous(5), width=8, pyramid_width=12, head_width=16).eval()
    state = filled(shapes_of(model))
    assert set(state) == set(fixture["keys"])
    load_weights(model, state)
    with torch.no_grad():
        assert_outputs(model.all_logits(fixture["inputs"]["x"]), fixture["outputs"]["outs"])


def test_bevanet_names_and_shapes_of_full_size() -> None:
    theirs = fixtures.load("dense/keys/official_bevanet_cityscapes.json")["state_dict"]
    with on_meta():
        model = BEVANet(contiguous(19))
    assert {key: list(shape) for key, shape in shapes_of(model).items()} == theirs


def test_message_passing() -> None:
    fixture = fixtures.load("dense/scnn_message_passing.pt")
    module = MessagePassing(8)
    module.load_state_dict({k.removeprefix("message_passing."): v for k, v in fixture["state_dict"].items()})
    with torch.no_grad():
        torch.testing.assert_close(module(fixture["inputs"]["x"]), fixture["outputs"]["y"], rtol=0, atol=1e-5)


def test_scnn() -> None:
    fixture = fixtures.load("dense/scnn_pytorch_port.pt")
    inputs, theirs = fixture["inputs"], fixture["outputs"]
    with on_meta():  # a quarter of the time goes into weights that are replaced
        model = SCNN(input_size=(96, 160)).eval()
    model = model.to_empty(device="cpu")
    state = filled(shapes_of(model))
    state = {k: v * 0.3 if k.startswith("message_passing.") else v for k, v in state.items()}
    assert {*state, "ce_loss.weight"} == set(fixture["keys"])
    load_weights(model, {**state, "ce_loss.weight": torch.zeros(5)}, key_maps=model.key_maps)
    with torch.no_grad():
        maps, exist = model(inputs["img"])
    assert_outputs(maps[..., ::4, ::4], theirs["seg_pred"])
    assert_outputs(exist.sigmoid(), theirs["exist"])
    model.normalize = Normalize(AS_THEY_ARE)
    # The stored run had the loss's weights filled like all others.
    model.class_weights = tuple(filled({"ce_loss.weight": (5,)})["ce_loss.weight"].tolist())
    targets = [{"label_map": x, "exist": y} for x, y in zip(inputs["seg"], inputs["exist"], strict=True)]
    size = torch.tensor([inputs["img"].shape[2:]] * len(targets))
    losses = model.losses({"image": inputs["img"], "size": size, "target": targets})
    torch.testing.assert_close(losses["loss_seg"], fixture["losses"]["seg"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["loss_exist"], 0.1 * fixture["losses"]["exist"], rtol=1e-4, atol=0)
    torch.testing.assert_close(sum(losses.values()), fixture["losses"]["total"], rtol=1e-4, atol=0)
