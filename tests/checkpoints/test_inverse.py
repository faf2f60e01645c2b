"""Key maps both ways: rules read backwards, layouts, parts, stacked tensors, and the maps of all networks."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vistrain import config
from vistrain.checkpoints import KeyMap
from vistrain.checkpoints.inverse import NoInverse, original
from vistrain.checkpoints.keymap import LAYOUTS
from vistrain.config import index
from vistrain.errors import WeightsError

RULES = (
    (r"^downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"^(levels|layers)\.0\.downsample\.", "stages.1.downsample."),
    (r"^(levels|layers)\.", "stages."),
    (r"\.c\.(?=weight$)", ".conv."),
    (r"\.norm_([12])\.", r".norm\1."),
    (r"^net\.", ""),
)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("downsample_layers.0.3.weight", "stem.3.weight"),
        ("levels.0.downsample.bias", "stages.1.downsample.bias"),
        ("levels.2.blocks.0.norm_1.bias", "stages.2.blocks.0.norm1.bias"),
        ("levels.2.c.weight", "stages.2.conv.weight"),
        ("levels.2.conv.bias", "stages.2.conv.bias"),
        ("net.head.weight", "head.weight"),
    ],
)
def test_rules_read_backwards(theirs: str, ours: str) -> None:
    name = theirs
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    assert name == ours
    assert original(ours, RULES) in (theirs, f"net.{theirs}")


def test_what_is_forgotten_is_said() -> None:
    with pytest.raises(NoInverse, match=r"what '\[23\]' stands for is forgotten"):
        original("mlp.fc.weight", ((r"mlp\.[23]\.", "mlp.fc."),))
    with pytest.raises(NoInverse, match=r"nothing becomes 'mlp\.2\.weight'"):
        original("mlp.2.weight", ((r"mlp\.2\.", "mlp.fc."),))
    forgetful = KeyMap("theirs", "x", rules=((r"block\d+\.", "block."),))
    with pytest.raises(WeightsError, match=r"cannot write the foreign names: .* give it `exports`"):
        forgetful.export({"block.weight": torch.ones(1)})


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_go_both_ways(name: str) -> None:
    shapes = {
        "flax_kernel": (3, 3, 4, 5), "flax_conv_transpose": (2, 2, 4, 5), "tf_depthwise": (3, 3, 4, 1),
        "tf_heads_in": (7, 2, 32), "tf_heads_out": (2, 32, 7), "tf_flat": (2, 32), "pointwise": (4, 5, 1, 1),
    }  # fmt: skip
    theirs = torch.randn(shapes[name])
    again = LAYOUTS[name].theirs(LAYOUTS[name].ours(theirs))
    assert again.shape == theirs.shape
    assert torch.equal(again, theirs)


def test_parts_and_stacked_tensors_go_both_ways() -> None:
    inner = KeyMap("inner", r"^a\.", ((r"^a\.", "b."),), layouts=((r"kernel$", "flax_kernel"),))
    outer = KeyMap(
        "outer", r"", ((r"^x\.", "y."),), parts=(("in.", "inside.", inner),),
        stacked=((r"\.key\.", r"\.value\."), ".kv."),
    )  # fmt: skip
    theirs = {
        "in.a.kernel": torch.randn(2, 3), "x.key.weight": torch.randn(2, 4), "x.value.weight": torch.randn(2, 4),
        "x.bias": torch.randn(2),
    }  # fmt: skip
    ours = outer.apply(theirs)
    assert ours.keys() == {"inside.b.kernel", "y.kv.weight", "y.bias"}
    assert ours["inside.b.kernel"].shape == (3, 2)
    again = outer.export(ours)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in again.items())


def test_a_name_that_would_be_read_otherwise_is_refused() -> None:
    wrong = replace(KeyMap("theirs", "", ((r"^a\.", "b."),)), exports=((r"^b\.", ("c.",)),))
    with pytest.raises(WeightsError, match=r"'b\.x' would be written as 'c\.x', which is read as 'c\.x'"):
        wrong.export({"b.x": torch.ones(1)})


def leaf_of_each_network() -> dict[str, str]:
    """The first shipped config of each network and backbone."""
    found: dict[str, str] = {}
    for name, entry in index.load("configs").items():
        classes = [c for c in entry.get("classes", ()) if index.load("classes").get(c, {}).get("kind") == "model"]
        backbone = str(entry.get("backbone", "")).partition(".")[0].partition("_")[0]
        if classes and "parameters" in entry:
            found.setdefault(f"{classes[0]} {backbone}", name)
    return found


# Their files hold what the network does not say of itself, and nothing can be written that they would take.
ONE_WAY = {"cls/spartan_s"}


@pytest.mark.slow
@pytest.mark.parametrize("leaf", sorted(leaf_of_each_network().values()))
def test_every_naming_of_every_network_goes_both_ways(leaf: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    import leaves

    model = leaves.build(config.compose([f"vistrain:{leaf}"]))
    own: dict[str, Tensor] = {name: torch.zeros(()).expand(x.shape) for name, x in model.state_dict().items()}
    namings = [] if leaf in ONE_WAY else list(model.key_maps)
    assert len({naming.name for naming in namings}) == len(namings)
    for naming in namings:
        foreign = naming.export(own)
        again = naming.apply(foreign)
        lost = [name for name in own if name not in again and not name.endswith("num_batches_tracked")]
        assert again.keys() <= own.keys(), naming.name
        known = next((each for each in namings if each.matches(foreign)), None)  # None: they are our names
        read = foreign if known is None else known.apply(foreign)
        assert read.keys() == again.keys(), naming.name
        assert not lost, naming.name
        assert all(value.shape == own[name].shape for name, value in again.items()), naming.name
