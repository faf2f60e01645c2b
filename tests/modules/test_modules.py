"""Modules of convolutional networks: the properties that their formulae have, and the hosts that take any by name."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from detector_tools import make_batch
from parity.models import contiguous
from torch import nn
from torch.nn import functional as F

from vistrain.backbones import Backbone, TimmModel
from vistrain.backbones.module_hosts import checkpoint_filter_fn
from vistrain.classification import Classifier
from vistrain.contract import constructor
from vistrain.errors import ConfigError, DataError
from vistrain.modules import ECA, ELA, IBN, ULSAM, CoordinateExcitation, FDConv, TVConv
from vistrain.modules.base import FACTS, MODULES, ConvModule
from vistrain.modules.fdconv import BandModulation, frequencies
from vistrain.segmentation import FPNHead, SemanticSegmenter
from vistrain.structures import Factory

NAMES = sorted(MODULES.short_name(cls) for cls in MODULES.classes().values())
RESNET = {"width": 32, "depths": (1, 1, 1, 1), "block": "basic"}
MOBILE = {"stem_dims": (8, 8), "plan": (((8, 1),), ((8, 1),), ((8, 1), (16, 1)), ((16, 1),)), "features": 32}
HOSTS = {"module_resnet18": RESNET, "module_mobilenetv2": MOBILE}
SMALL: dict[str, Any] = {
    "dim": 32,
    "in_channels": 32,
    "out_channels": 32,
    "kernel_size": 3,
    "padding": 1,
    "grid": (6, 5),
}


def made(name: str, **changes: Any) -> ConvModule:
    """A small one, with weights that are at no special value, in evaluation mode."""
    torch.manual_seed(0)
    cls = MODULES.names()[name]
    taken = constructor(cls)[0]
    module = cls(**{key: value for key, value in SMALL.items() if key in taken}, **changes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_computes_and_keeps_the_shape(name: str) -> None:
    module = made(name)
    assert all((module.formula, module.cost, module.sizes))
    needed = {key for key, p in constructor(type(module))[0].items() if p.default is p.empty}
    assert needed <= set(FACTS[module.place])
    x = torch.randn(3, 32, 6, 5, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    for i in range(3):  # in evaluation an image does not depend on its neighbours
        torch.testing.assert_close(module(x[i : i + 1]), out[i : i + 1], rtol=0, atol=1e-5)
    out.square().mean().backward()
    silent = [key for key, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not silent
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_equal_cells(name: str) -> None:
    module, x = made(name), torch.randn(2, 32, 6, 5)
    full = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(x)
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()
    for value in (0.0, 1.0):
        assert module(torch.full_like(x, value)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_it_exports_with_a_free_batch(name: str) -> None:
    module, x = made(name), torch.randn(2, 32, 6, 5)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    more = torch.randn(3, 32, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), module(more), rtol=0, atol=1e-5)


def test_gates_are_what_their_formulae_say() -> None:
    x = torch.randn(2, 32, 6, 5)
    eca, means = made("eca", k_size=3), x.mean((2, 3))
    padded = F.pad(means, (1, 1))
    taps = eca.conv.weight.flatten()
    gates = sum(taps[i] * padded[:, i : i + 32] for i in range(3)).sigmoid()
    torch.testing.assert_close(eca(x), x * gates[:, :, None, None])
    assert ECA(64).conv.kernel_size == (3,)
    assert ECA(512).conv.kernel_size == (5,)
    fusion = made("coordinate_excitation")
    with torch.no_grad():
        fusion.alpha.fill_(50.0)
        torch.testing.assert_close(fusion(x), fusion.coord_attention(x))
        fusion.alpha.fill_(-50.0)
        torch.testing.assert_close(fusion(x), fusion.se_attention(x))
    # Gates of rows serve columns, too: turning the map turns the result
    ela = made("ela")
    torch.testing.assert_close(ela(x.mT), ela(x).mT)


def test_ulsam_adds_a_share_of_each_cell_that_sums_to_one() -> None:
    module, x = made("ulsam"), torch.rand(2, 32, 6, 5) + 1
    share = (module(x) / x - 1).unflatten(1, (4, 8))
    torch.testing.assert_close(share, share[:, :, :1].expand_as(share), rtol=0, atol=1e-5)
    torch.testing.assert_close(share[:, :, 0].sum((2, 3)), torch.ones(2, 4))


def test_ibn_normalises_halves() -> None:
    module, x = IBN(32).train(), 3 * torch.randn(4, 32, 6, 5) + 1
    out = module(x)
    torch.testing.assert_close(out[:, :16].mean((2, 3)), torch.zeros(4, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:, 16:].mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-5)
    assert out[:, 16:].mean((2, 3)).abs().max() > 0.01


def test_tvconv_is_a_depthwise_convolution_where_all_cells_have_one_kernel() -> None:
    module = TVConv(4, 4, (6, 5))
    kernel = torch.randn(4, 9)
    module.weight_layers = nn.Sequential(nn.Identity())
    module.posi_map = nn.Parameter(kernel.flatten()[None, :, None, None].expand(1, 36, 6, 5))
    x = torch.randn(2, 4, 6, 5)
    expected = F.conv2d(x, kernel.view(4, 1, 3, 3), padding=1, groups=4)
    torch.testing.assert_close(module(x), expected)
    with pytest.raises(DataError, match=r"TVConv: takes no map of 7x5: it takes maps of the size .* give it 6x5"):
        module(torch.randn(1, 4, 7, 5))


def test_fdconv_starts_as_the_convolution_that_it_is_made_of() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 32, 3, padding=1, bias=False)
    torch.manual_seed(0)
    module = FDConv(24, 32).eval()
    x = torch.randn(2, 24, 16, 12)
    for conv in module.FBM.freq_weight_conv_list:  # gates of bands of one: the bands add up to the map
        nn.init.zeros_(conv.weight)
    torch.testing.assert_close(module.FBM(x), x, rtol=0, atol=1e-5)
    for name in ("channel_fc", "filter_fc", "spatial_fc", "kernel_fc"):  # all gates are 1
        nn.init.zeros_(getattr(module.KSM_Global, name).weight)
    nn.init.zeros_(module.KSM_Local.conv.weight)
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"kernel_num": 4}, {"kernel_num": None}, {"kernel_size": 1, "padding": 0}])
def test_fdconv_computes_the_same_with_gates_on_kernels_and_on_maps(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two forms are chosen by size."""
    module = made("fdconv", **{key: value for key, value in arguments.items() if key not in SMALL})
    if "kernel_size" in arguments:
        torch.manual_seed(0)
        module = FDConv(32, 32, kernel_size=1, padding=0).eval()
        assert not hasattr(module, "FBM")
        assert module.KSM_Global.spatial_fc is None
    x, found = torch.randn(2, 32, 6, 6), []
    for numbers in (0, 10**9):
        monkeypatch.setattr(FDConv, "weight_numel", numbers)
        found.append(module(x))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_fdconv_is_a_convolution_with_few_channels_or_a_large_kernel() -> None:
    for module in (FDConv(16, 64), FDConv(64, 64, 5, padding=2)):
        assert [name for name, _ in module.named_parameters()] == ["weight"]
        x = torch.randn(1, module.in_channels, 7, 6)
        torch.testing.assert_close(module(x), F.conv2d(x, module.weight, padding=module.padding))
    assert not FDConv(24, 32, bias=False).bias


def test_bands_and_groups_of_frequencies() -> None:
    order = frequencies(8, 8)
    assert order[0] == 0
    assert sorted(order.tolist()) == list(range(40))
    masks = BandModulation(4).masks
    # float32's rounding decides: the edge of the first band is out, those of the others are in
    assert masks[:, 0, 0].sum(1).tolist() == [16, 9, 5]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", HOSTS)
def test_any_module_trains_a_classifier_and_a_segmenter(host: str, name: str) -> None:
    torch.manual_seed(0)
    args = {**HOSTS[host], "module": name, "img_size": 64}
    if (host, name) == ("module_mobilenetv2", "fd_conv"):
        with pytest.raises(ConfigError, match=r"args\.module: FDConv: .* 48 groups - choose a host without depthwise"):
            timm.create_model(host, **args)
        return
    network = Classifier(TimmModel(host, contiguous(3), args=args), contiguous(3)).train()
    batch = {"image": torch.rand(2, 3, 64, 64), "size": torch.tensor([[64, 64]] * 2), "labels": torch.tensor([0, 2])}
    check_step(network, batch)
    segmenter = SemanticSegmenter(
        Backbone(host, strides=(4, 8, 16, 32), args=args), contiguous(5), Factory(FPNHead, embed_dim=8)
    ).train()
    dense = make_batch([1, 2], [(64, 64), (64, 64)])
    maps = [{"label_map": torch.zeros(64, 64, dtype=torch.uint8)} for _ in range(2)]
    check_step(segmenter, {**dense, "target": maps})


def check_step(network: Any, batch: dict[str, Any]) -> None:
    """One training step: finite losses, and finite gradients for every module."""
    losses = network.losses(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    found = [module for module in network.modules() if isinstance(module, ConvModule)]
    assert found
    gradients = [p.grad for module in found for p in module.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"module": "ecaa"}, r"args\.module: no module 'ecaa' - did you mean 'eca'"),
        ({"module": ["eca", "ela"]}, r"args\.module: 2 modules for 4 stages"),
        ({"module": {"k_size": 3}}, r"args\.module: `name` is missing"),
        ({"block": "botleneck"}, r"args\.block: no block 'botleneck' - did you mean 'bottleneck'"),
        ({"module": 3}, r"args\.module: 3 names no module"),
        ({"module": nn.ReLU}, r"args\.module: .* is no module - see `vistrain list modules`"),
        (
            {"module": "eca", "module_args": {"k": 3}},
            r"args\.module_args\.k: ECA has no such argument - there are: k_size",
        ),
        ({"module": "eca", "module_args": {"k_size": 4}}, r"args\.module_args\.k_size: ECA: 4 is not an odd number"),
        ({"module": "eca", "module_args": {"dim": 4}}, r"args\.module_args\.dim: is not set by hand"),
        (
            {"module": [None, {"name": "ela", "norm_groups": 7}, None, None]},
            r"args\.module\[1\]\.norm_groups: ELA: \d+ channels are not divisible by 7",
        ),
        ({"module": "ulsam", "module_args": {"num_splits": 5}}, r"ULSAM: \d+ channels are not divisible by 5"),
        ({"module": "fdconv", "module_args": {"kernel_num": 7}}, r"kernel_num: FDConv: \d+ frequencies are not div"),
        (
            {"module": "coordinate_excitation", "module_args": {"excitation_reduction": 999}},
            "leave none at a reduction",
        ),
    ],
)
def test_what_is_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        timm.create_model("module_resnet18", **{**RESNET, **args})
    with pytest.raises(ConfigError, match="32 channels cannot become 48 in it"):
        TVConv(32, 48)


def test_each_stage_may_have_a_module_of_its_own() -> None:
    modules = ["IBN", {"name": "eca", "k_size": 5}, None, ULSAM]
    model = timm.create_model("module_resnet18", **{**RESNET, "depths": (2, 1, 1, 1)}, module=modules)
    kinds = [[type(m) for m in stage.modules() if isinstance(m, ConvModule)] for stage in model.stages]
    assert kinds == [[IBN, IBN], [ECA], [], [ULSAM]]
    end = timm.create_model("module_resnet18", **{**RESNET, "depths": (2, 1, 1, 1)}, module="ibnb")
    assert [isinstance(block.end, ConvModule) for block in end.stages[0].blocks] == [False, True]


def test_sizes_are_those_of_the_authors() -> None:
    """Numbers of parameters of published networks."""

    def count(name: str, **arguments: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, **arguments).parameters())

    assert count("module_resnet50", module=["ibn", "ibn", "ibn", None]) == 25_557_032
    assert count("module_resnet50", module=["ibnb", "ibnb", None, None], stem_norm="instance") == 25_558_568
    assert count("module_resnet50", module=[{"name": "eca", "k_size": k} for k in (3, 5, 5, 7)]) == 25_557_112
    assert count("module_mobilenetv2", module="ela") == 3_916_904
    assert count("eurosat_12layer", num_classes=10) == 13_115_813


@pytest.mark.parametrize(
    ("ours", "theirs"), [("module_resnet18", "resnet18"), ("module_mobilenetv2", "mobilenetv2_035")]
)
def test_without_a_module_hosts_equal_timms_under_their_names(ours: str, theirs: str) -> None:
    torch.manual_seed(0)
    other = timm.create_model(theirs).eval()
    mobile = {"stem_dims": (16, 8), "plan": (((8, 2),), ((16, 3),), ((24, 4), (32, 3)), ((56, 3), (112, 1)))}
    model = timm.create_model(ours, **(mobile if "mobile" in ours else {})).eval()
    model.load_state_dict(checkpoint_filter_fn(other.state_dict(), model), strict=True)
    x = torch.randn(1, 3, 33, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=0, atol=1e-5)


def test_names_of_weights_with_modules() -> None:
    eca = timm.create_model("module_resnet18", **RESNET, module="eca")
    key = "stages.1.blocks.0.branch.conv.weight"
    named = {"layer1.0.conv1.weight": torch.zeros(1)}
    for theirs in ("layer2.0.eca.conv.weight", "layer2.0.se.conv.weight"):
        assert key in checkpoint_filter_fn({**named, theirs: torch.zeros(1, 1, 3)}, eca)
    assert key in dict(eca.named_parameters())
    assert "stages.0.blocks.1.end.IN.weight" in checkpoint_filter_fn(
        {**named, "layer1.1.IN.weight": torch.zeros(4)}, eca
    )
    assert {type(made(name)) for name in ("ela", "coordinate_excitation")} == {ELA, CoordinateExcitation}
