"""AGUNet (and DAUNet, whose fixtures are not among the committed ones) against the authors' Keras layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parity import fixtures
from parity.compare import RTOL_LOSS, assert_outputs
from vistrain.checkpoints import load_weights
from vistrain.errors import WeightsError
from vistrain.losses.dice import PixelDice
from vistrain.segmentation import AGUNet, DAUNet
from vistrain.segmentation.agunet import AttentionUNet
from vistrain.segmentation.volume import inside

NAMES = sorted({*fixtures.names("dense/*unet_keras*.pt"), "dense/agunet_keras.pt"})


def model_of(fixture: dict[str, Any]) -> AttentionUNet:
    """Ours in the configuration that the fixture's `constructor` prints."""
    text = fixture["constructor"]
    widths = tuple(map(int, re.search(r"convolutions=\[([\d, ]+)\]", text)[1].split(",")))
    classes = int(re.search(r"nb_classes=(\d+)", text)[1])
    said = {key: f"'{key}': True" in text for key in ("deep_supervision", "input_pyramid", "attention_guiding")}
    form = {"widths": widths, "pyramid": said["input_pyramid"], "deep": said["deep_supervision"]}
    channels = fixture["inputs"]["x"].shape[-1]
    if text.startswith("Dual"):
        return DAUNet(channels, classes, guided=said["attention_guiding"], **form)
    return AGUNet(channels, classes, **form)


def ours(x: Tensor) -> Tensor:
    """`[B, *S, C]` -> `[B, C, *S]`."""
    return x.movedim(-1, 1)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    model = model_of(fixture).eval()
    held = nn.ModuleDict({"network": model})  # as in a `VolumeSegmenter`
    report = load_weights(held, fixture["state_dict"], key_maps=inside("network.", model.key_maps))
    assert report.key_map == "Keras"
    logits = model.levels(ours(fixture["inputs"]["x"]))
    assert_outputs([x.softmax(1).movedim(1, -1) for x in logits], list(fixture["outputs"]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_published_loss_is_ours_but_for_its_fault(name: str) -> None:
    """The authors add up the classes, background too, divide by one less, and cut off at 0: of two classes nothing is
    left. Ours of each class, put together like that, is theirs; without the background it is what one trains with."""
    fixture = fixtures.load(name)
    shares, truth = ours(fixture["outputs"][0]), ours(fixture["inputs"]["target"])
    labels, logits = truth.argmax(1), shares.log()
    torch.testing.assert_close(truth, torch.nn.functional.one_hot(labels, truth.shape[1]).movedim(-1, 1).float())
    classes = truth.shape[1]
    mean = 1 - PixelDice(squared=True)(logits, labels, 255)  # over all classes
    theirs = (1 - mean * classes / (classes - 1)).clamp(0, 1 - 1e-10)
    torch.testing.assert_close(theirs, fixture["losses"]["dice_loss"], rtol=RTOL_LOSS, atol=1e-7)
    assert PixelDice(squared=True, background=False)(logits, labels, 255) > 0.1


def test_a_file_of_another_depth_is_refused() -> None:
    fixture = fixtures.load("dense/agunet_keras.pt")
    other = AGUNet(1, 2, (3, 4, 6), pyramid=True)
    with pytest.raises(WeightsError, match=r"28 layers `conv3d` for 19"):
        load_weights(other, fixture["state_dict"], key_maps=other.key_maps)


def test_daunet_counts_layers_as_its_authors_do() -> None:
    """Of `DualAttentionUnet` with two levels, guided: layers in the order in which its `create` makes them."""
    layers = dict(DAUNet(1, 2, widths=(8, 16), guided=True).key_maps[0].layers)
    assert layers == {
        "conv3d": (
            *("encoder.0.block.0", "encoder.0.block.3", "coarsest.0", "coarsest.3"),
            *("bottom.position.key_conv", "bottom.position.query_conv", "bottom.position.value_conv"),
            *("bottom.position_block.0", "bottom.position_block.4"),
            *("bottom.channel_block.0", "bottom.channel_block.4", "bottom.project.1"),
            *("decoder.0.block.0", "decoder.0.block.3", "heads.0"),
        ),
        "conv3d_transpose": ("decoder.0.enlarge", "decoder.0.guide"),
        "batch_normalization": (
            *("encoder.0.block.1", "encoder.0.block.4", "coarsest.1", "coarsest.4"),
            *("bottom.position_block.1", "bottom.channel_block.1", "bottom.project.2"),
            *("decoder.0.norm", "decoder.0.block.1", "decoder.0.block.4"),
        ),
        "pam": ("bottom.position",),
        "cam": ("bottom.channel",),
    }


@torch.no_grad()
def test_daunet_is_what_its_equations_say() -> None:
    """Attention at the bottom with loops over cells and channels, and weights under Keras's names, from any number."""
    torch.manual_seed(0)
    model = DAUNet(1, 2, widths=(8, 16), pyramid=False, deep=False).eval()
    theirs, names = {}, {"weight": "kernel", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for kind, paths in model.key_maps[0].layers:
        for number, path in enumerate(paths, 7):
            for name, value in model.get_submodule(path).state_dict().items():
                if kind in ("pam", "cam") and name == "gamma":
                    theirs[f"{kind}_{number}/gamma"] = torch.randn(1)
                elif name.count(".") == 0 and name != "num_batches_tracked":
                    random = torch.rand(value.shape) + 0.5 if "var" in name else 0.3 * torch.randn(value.shape)
                    if value.ndim == 5:
                        random = random.movedim((0, 1), (-1, -2))
                    norm = {"weight": "gamma", "bias": "beta"} if kind == "batch_normalization" else {}
                    theirs[f"{kind}_{number}/{kind}/{(names | norm).get(name, name)}:0"] = random
    load_weights(model, theirs, key_maps=model.key_maps)
    x = torch.randn(1, 16, 2, 3, 2)
    position, channel = model.bottom.position, model.bottom.channel
    cells = x.flatten(2)[0]  # [C, N]
    q, k, v = (theirs[f"conv3d_{n}/conv3d/kernel:0"][0, 0, 0].T @ cells for n in (12, 11, 13))
    expected = torch.stack([v @ (q[:, i] @ k).softmax(0) for i in range(cells.shape[1])], 1)
    torch.testing.assert_close(position(x).flatten(2)[0], theirs["pam_7/gamma"] * expected + cells)
    alike = (cells @ cells.T).softmax(1)
    expected = torch.stack([sum(alike[i, j] * cells[i] for i in range(16)) for j in range(16)])
    torch.testing.assert_close(channel(x).flatten(2)[0], theirs["cam_7/gamma"] * expected + cells)
