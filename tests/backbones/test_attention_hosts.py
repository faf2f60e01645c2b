"""Hosts of attention operators: any of them, by name, trains in either; what is refused; what stays in float32."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detector_tools import make_batch
from parity.models import contiguous
from torch import Tensor, nn

from vistrain.attention import base
from vistrain.attention.base import AttentionOperator, attend, operators_of, paths_of
from vistrain.attention.choice import choose, names, operators, short_name
from vistrain.attention.softmax import SoftmaxAttention
from vistrain.attention.window import ShiftedWindowAttention, WindowAttention
from vistrain.backbones import Backbone, TimmModel
from vistrain.backbones.create import create
from vistrain.by_name import gathered
from vistrain.classification import Classifier
from vistrain.detection import DINO
from vistrain.detr import ContrastiveDenoising
from vistrain.errors import ConfigError, DataError
from vistrain.segmentation import FPNHead, SemanticSegmenter
from vistrain.structures import Factory

NAMES = sorted(short_name(cls) for cls in operators().values())
PYRAMID = {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "mlp_ratios": (1, 1, 1, 1)}
VIT = {"embed_dim": 16, "num_heads": 2, "mlp_ratio": 1.0}


def step(network: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """One training step's losses, finite, with finite gradients for every operator."""
    network.train()
    found = operators_of(network)
    losses = {**network.losses(batch), **base.auxiliary_losses(found)}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for operator in found:
        gradients = [p.grad for p in operator.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)
        assert any(g.any() for g in gradients)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    optimizer.step()
    return losses


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", ["vit", "pyramid"])
def test_any_operator_trains_a_classifier(host: str, name: str) -> None:
    torch.manual_seed(0)
    args = {**(VIT if host == "vit" else PYRAMID), "attention": name, "img_size": 32}
    network = Classifier(TimmModel(f"attention_{host}_micro", contiguous(3), args=args), contiguous(3))
    batch = {"image": torch.rand(2, 3, 32, 32), "size": torch.tensor([[32, 32]] * 2), "labels": torch.tensor([0, 2])}
    step(network, batch)


@pytest.mark.parametrize("name", NAMES)
def test_any_operator_trains_a_segmenter_and_a_detector_in_the_pyramid(name: str) -> None:
    torch.manual_seed(0)
    args = {**PYRAMID, "attention": name, "img_size": 32}
    batch = make_batch([1, 2], [(32, 48), (40, 24)])

    def backbone(*strides: int) -> Backbone:
        return Backbone("attention_pyramid_micro", strides=strides, args=args)

    segmenter = SemanticSegmenter(backbone(4, 8, 16, 32), contiguous(5), Factory(FPNHead, embed_dim=8))
    maps = [{"label_map": torch.zeros(*size, dtype=torch.uint8)} for size in batch["size"].tolist()]
    step(segmenter, {**batch, "target": maps})
    sizes = {"embed_dim": 32, "num_heads": 2, "num_queries": 4, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 16}
    denoising = ContrastiveDenoising(number=2)
    step(DINO(backbone(16, 32), contiguous(5), num_levels=2, denoising=denoising, **sizes), batch)


def test_each_stage_may_have_an_operator_and_arguments_of_its_own() -> None:
    attention = ["window", {"name": "ShiftedWindowAttention", "window_size": 4}, "axial", SoftmaxAttention]
    model = timm.create_model("attention_pyramid_tiny", attention=attention, depths=(1, 2, 1, 1))
    kinds = [[type(block.attn) for block in stage.blocks] for stage in model.stages]
    assert kinds[:2] == [[WindowAttention], [ShiftedWindowAttention] * 2]
    assert [block.attn.window for block in model.stages[1].blocks] == [(4, 4)] * 2
    assert [block.attn.shift for block in model.stages[1].blocks] == [(2, 2), (0, 0)]  # blocks 1 and 2 of the network
    with_args = timm.create_model("attention_vit_tiny", attention="window", attention_args={"window_size": 2})
    assert {operator.window for operator in operators_of(with_args)} == {(2, 2)}


def test_what_the_host_gave_an_operator_is_not_said_of_its_arguments() -> None:
    with pytest.raises(ConfigError, match=r"^args\.num_heads: .* 64 channels are not divisible by 5"):
        create("attention_vit_micro", False, {"attention": "window", "embed_dim": 64, "num_heads": 5}, 3)


def test_agents_are_swapped_for_averages_and_laid_out_channels_last() -> None:
    model = timm.create_model("attention_vit_micro", attention="agent", num_classes=0).eval()
    image = torch.randn(1, 3, 64, 64)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}  # no Parameters
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(model, weights, (image,)), model(image))
    assert any(parameter.dim() == 5 for parameter in model.parameters())  # of which `Module.to` makes no such order


def test_names_are_classes_short_classes_and_files() -> None:
    assert names()["window"] is names()["WindowAttention"] is WindowAttention
    assert names()["shifted_window"] is ShiftedWindowAttention
    assert names()["bilevel_routing"] is names()["bi_level_routing"]  # a file, and its class in short
    assert set(names().values()) == set(operators().values())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"attention": "sotfmax"}, r"args\.attention: no attention operator 'sotfmax' - did you mean 'softmax'"),
        ({"attention": "WindowAtention"}, r"args\.attention: no attention operator .* did you mean 'WindowAttention'"),
        (
            {"attention": "window", "attention_args": {"windowsize": 7}},
            r"args\.attention_args\.windowsize: WindowAttention has no such argument - did you mean 'window_size'",
        ),
        (
            {"attention": "window", "attention_args": {"window_size": "7"}},
            r"args\.attention_args\.window_size: '7' is not a whole number",
        ),
        (
            {"attention": ["softmax", {"name": "halo", "halo": 3}, "softmax", "softmax"]},
            r"args\.attention\[1\]\.halo: HaloAttention has no such argument - did you mean 'halo_size'",
        ),
        ({"attention": ["softmax", "window"]}, r"args\.attention: 2 operators for 4 stages"),
        ({"attention": {"window_size": 3}}, r"args\.attention: `name` is missing"),
        ({"attention": 3}, r"args\.attention: 3 names no operator"),
        ({"attention": "softmax", "attention_args": {"dim": 3}}, r"args\.attention_args\.dim: is not set by hand"),
        (
            {"attention": "softmax", "attention_args": {"num_heads": 5}},
            r"args\.attention_args\.num_heads: SoftmaxAttention: \d+ channels are not divisible by 5 heads",
        ),
    ],
)
@pytest.mark.parametrize("host", ["vit", "pyramid"])
def test_what_is_refused(host: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Backbone(f"attention_{host}_micro", strides=(8,), args=args)


@pytest.mark.parametrize(
    ("attention", "arguments", "said"),
    [
        ({"name": "softmax", "num_heads": 5}, None, r"^args\.attention\.num_heads: SoftmaxAttention: 32 channels"),
        (["window", {"name": "softmax", "num_heads": 5}], None, r"^args\.attention\[1\]\.num_heads: Softmax"),
        ("window", [3], r"^args\.attention_args: \[3\] is not a mapping - write a mapping of the operator's arguments"),
        ("eca", None, r"no attention operator 'eca' - it is one of `vistrain list modules`"),
        ("nothing_like_it", None, r"`vistrain list attention` shows all$"),
        ("sotfmax", None, r"did you mean 'softmax' .*\? `vistrain list attention` shows all$"),
        ("heads", None, r"vistrain/attention/heads\.py has no class below AttentionOperator with a formula$"),
        ("mine.row.RowAttention", None, r"a class by its path stands here in Python alone, .* docs/adding\.md"),
        (["window", None], None, r"null names no attention operator"),
    ],
)
def test_a_choice_is_refused_at_the_key_as_it_was_written(attention: Any, arguments: Any, said: str) -> None:
    stages = len(attention) if isinstance(attention, list) else 1
    with pytest.raises(ConfigError, match=said):
        [chosen.build(32, 4, (8, 8), 0, 1) for chosen in choose(attention, arguments, stages)]


class Own(AttentionOperator):
    """Somebody's own, with a mistake that is chosen.

    Args:
        dim: C.
        mistake: which.
    """

    def __init__(self, dim: int, mistake: str = "none") -> None:
        super().__init__()
        self.mistake = mistake
        if mistake == "name":
            raise NameError("name 'nowhere' is not defined")

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Any:
        return {"none": x, "nothing": None, "shape": x[:, 1:]}[self.mistake]


class Unmade(Own):
    """One that is never made."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, "name")


def test_mistakes_of_ones_own_operator_name_it() -> None:
    with pytest.raises(
        ConfigError, match=r"args\.attention: .*Unmade cannot be made: NameError: .* \(test_att.*, line"
    ):
        create("attention_vit_micro", False, {"attention": Unmade}, 3)
    x = torch.rand(1, 4, 8)
    with pytest.raises(TypeError, match=r"Own\.forward gives NoneType for tokens \[1, 4, 8\]: give the same shape"):
        attend(Own(8, "nothing"), x, (2, 2))
    with pytest.raises(TypeError, match=r"Own\.forward gives \[1, 3, 8\] for tokens \[1, 4, 8\]"):
        attend(Own(8, "shape"), x, (2, 2))
    assert attend(Own(8), x, (2, 2)) is x


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"growth": "N^7"}, "Mine.growth: 'N^7' is none of N, N log N, N sqrt N, N^2"),
        ({"formula": "y = x", "__doc__": "Mine."}, "Mine states its formula and lacks `cost`"),
        ({"formula": "y = x", "cost": "0"}, "Mine states its formula and lacks a docstring"),
    ],
)
def test_what_an_operator_must_say_is_asked_when_its_class_is_made(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=re.escape(problem)):
        type("Mine", (AttentionOperator,), {"__qualname__": "Mine", **said})


def test_a_file_of_the_room_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_room").mkdir()
    (tmp_path / "a_room" / "__init__.py").touch()
    (tmp_path / "a_room" / "broken.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"^a_room/broken\.py: cannot be imported: Zero.* \(broken\.py, line 2\) - mend"
    ):
        gathered("a_room", [str(tmp_path / "a_room")], base.is_operator)


def test_much_padding_is_said(caplog: pytest.LogCaptureFixture) -> None:
    base._warn_of_padding.cache_clear()
    with caplog.at_level(logging.WARNING):
        attend(WindowAttention(4, window_size=7), torch.rand(1, 4, 4), (2, 2))  # few cells, however many times as many
        assert not caplog.records
        attend(WindowAttention(4, window_size=40), torch.rand(1, 64, 4), (8, 8))
    said = "WindowAttention takes multiples of window_size: a map of 8x8 is padded to 40x40, 25 times its cells"
    assert [record.getMessage() for record in caplog.records] == [said]


class Overflowing(AttentionOperator):
    """An operator that must stay in float32, for square maps alone, with a loss of its own."""

    float32, sizes = True, "squares"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.seen: list[torch.dtype] = []

    def fitting(self, size: tuple[int, ...]) -> tuple[int, ...]:
        if size[0] > 8:
            raise self.refusal(size, (8, 8), (4, 4))
        return (max(size), max(size))

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        self.check_size(size)
        out = self.proj(x)
        self.seen.append(out.dtype)
        if self.training:
            self.auxiliary["loss_own"] = out.square().mean()
        return out


def test_hosts_keep_operators_in_float32_that_must_stay_there_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    base._warn_of_float32.cache_clear()
    model = timm.create_model("attention_pyramid_micro", **PYRAMID, attention=Overflowing)
    with torch.autocast("cpu", torch.bfloat16), caplog.at_level(logging.WARNING):
        model(torch.rand(1, 3, 32, 32))
    assert {dtype for operator in operators_of(model) for dtype in operator.seen} == {torch.float32}
    assert [record.getMessage() for record in caplog.records] == [
        "Overflowing stays in float32: half types overflow in it, or are too coarse for it"
    ]


def test_maps_that_an_operator_cannot_take_are_padded_or_refused_with_those_that_it_can() -> None:
    torch.manual_seed(0)
    operator, x = Overflowing(4).eval(), torch.rand(2, 15, 4)
    assert torch.equal(attend(operator, x, (3, 5)), operator.proj(x))
    with pytest.raises(DataError, match=r"Overflowing: takes no map of 3x5 - it takes squares: 5x5"):
        operator(x, (3, 5))
    with pytest.raises(DataError, match=r"takes no map of 9x2 - it takes squares: 8x8 or 4x4"):
        attend(operator, torch.rand(2, 18, 4), (9, 2))
    with pytest.raises(DataError, match="maps have 2 axes, not 3"):
        attend(operator, x, (3, 5, 1))


def test_padding_of_maps_takes_no_part_where_the_operator_has_a_mask() -> None:
    torch.manual_seed(0)
    halo = names()["halo"](8, num_heads=2, block_size=4, mask_border=True).eval()
    x = torch.rand(2, 30, 8)
    whole = torch.nn.functional.pad(x.unflatten(1, (5, 6)), (0, 0, 0, 2, 0, 3), value=7.0).flatten(1, 2)
    mask = torch.nn.functional.pad(torch.ones(2, 5, 6, dtype=torch.bool), (0, 2, 0, 3)).flatten(1)
    expected = halo(whole, (8, 8), mask).unflatten(1, (8, 8))[:, :5, :6].flatten(1, 2)
    torch.testing.assert_close(attend(halo, x, (5, 6)), expected)


def test_losses_of_operators_are_summed_and_given_once() -> None:
    model = timm.create_model("attention_pyramid_micro", **PYRAMID, attention=Overflowing).train()
    model(torch.rand(1, 3, 32, 32))
    own = [operator.auxiliary["loss_own"] for operator in operators_of(model)]
    assert torch.equal(base.auxiliary_losses(operators_of(model))["loss_own"], sum(own))
    assert base.auxiliary_losses(operators_of(model)) == {}


def test_paths_are_named() -> None:
    model = timm.create_model("attention_pyramid_micro", **PYRAMID, attention=["window", "window", "axial", "softmax"])
    assert paths_of(model, torch.device("cuda")) == [
        "WindowAttention x 2: windows, scaled_dot_product_attention",
        "AxialAttention x 1: lines, scaled_dot_product_attention",
        "SoftmaxAttention x 1: scaled_dot_product_attention",
    ]
    assert "products in training" in paths_of(model, torch.device("cpu"))[0]
