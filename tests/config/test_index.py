"""The generated index: fresh, complete, and right where a config is checked against it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from vistrain.config import builder as building
from vistrain.config import index
from vistrain.config.explain import listing
from vistrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
COMMITTED = json.loads((ROOT / "vistrain" / "config" / "index.json").read_text())


@pytest.fixture(scope="module")
def made():
    """The index as the sources give it now; what takes building models is taken over."""
    spec = importlib.util.spec_from_file_location("make_index", ROOT / "tools" / "make_index.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.make(measure=False)


def _ours(classes: dict) -> dict:
    return {name: entry for name, entry in classes.items() if entry["path"].startswith("vistrain.")}


def test_the_committed_index_is_fresh(made):
    """`make index` mends this. What is said of other packages is compared where those versions are installed."""
    assert _ours(made["classes"]) == _ours(COMMITTED["classes"])
    for section in ("configs", "protocols"):
        assert made[section] == COMMITTED[section], section
    installed = {package: importlib.metadata.version(package) for package in COMMITTED["versions"]}
    if installed == COMMITTED["versions"]:
        assert made == COMMITTED


def test_making_it_twice_gives_the_same_and_it_is_small(made):
    assert (ROOT / "vistrain" / "config" / "index.json").stat().st_size < 400_000
    assert list(COMMITTED["classes"]) == sorted(COMMITTED["classes"])
    assert list(COMMITTED["configs"]) == sorted(COMMITTED["configs"])


def test_class_names_are_unique_and_aliases_lead_to_classes():
    bare = [name.rpartition(".")[2] for name in _ours(COMMITTED["classes"])]
    assert len(bare) == len(set(bare))
    assert set(index.ALIASES.values()) <= set(COMMITTED["classes"])
    assert not set(index.ALIASES) & set(COMMITTED["classes"])


@pytest.mark.parametrize("name", sorted(_ours(COMMITTED["classes"])))
def test_constructors_are_their_own_schema(name):
    """No `**kwargs`, no parameter called `type`, and a type hint that resolves for each parameter."""
    entry = COMMITTED["classes"][name]
    assert not entry.get("open")
    assert "type" not in entry["parameters"]
    assert entry["doc"]
    module, _, bare = entry["path"].rpartition(".")
    cls = getattr(importlib.import_module(module), bare)
    parameters, hints = building.signature(cls)
    assert set(parameters) <= set(hints)
    for key, parameter in parameters.items():
        assert parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        assert typing.Any is not hints[key], f"{name}.{key} accepts anything"


def test_what_the_index_knows_of_timm_torch_and_lightning():
    assert "tv_in1k" in COMMITTED["backbones"]["resnet50"]
    assert "lr" in COMMITTED["classes"]["torch.optim.AdamW"]["parameters"]
    assert "max_epochs" in COMMITTED["classes"][index.TRAINER]["parameters"]
    assert COMMITTED["classes"]["detection.DeformableDETR"]["paper"] == "2010.04159"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "model.backbone.name: no backbone 'resnet5O' - did you mean 'resnet50'"),
        ("resnet50.tv_in1kk", "model.backbone.name: no weights 'resnet50.tv_in1kk' - did you mean 'resnet50.tv_in1k'"),
    ],
)
def test_backbone_names_are_checked_before_torch_is_imported(monkeypatch, name, message):
    config = {"model": {"type": "detection.DeformableDETR", "backbone": {"name": name}}}
    monkeypatch.setattr(importlib.metadata, "version", lambda package: COMMITTED["versions"][package])
    with pytest.raises(ConfigError) as caught:
        index.check(config)
    assert message in str(caught.value)


def test_another_timm_may_know_more_backbones(monkeypatch):
    config = {"model": {"type": "detection.DeformableDETR", "backbone": {"name": "of_tomorrow"}}}
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "99.0")
    index.check(config)
    monkeypatch.undo()
    config["model"]["backbone"]["nam"] = 1
    with pytest.raises(ConfigError, match=r"model\.backbone\.nam"):
        index.check(config)


def test_completing_adds_defaults_and_nothing_that_may_not_be_written():
    config = {
        "model": {"type": "detection.DeformableDETR", "backbone": {"name": "resnet10t"}},
        "trainer": {"max_epochs": 2},
        "optimizer": {"type": "torch.optim.SGD", "groups": {"no_decay_bias": True}},
        "callbacks": {"ema": {"type": "callbacks.EMA"}, "none": None},
        "seed": 1,
    }
    full = index.complete(config)
    assert full["model"]["num_queries"] == 300
    assert full["model"]["backbone"]["strides"] == [8, 16, 32]
    assert full["optimizer"]["groups"]["no_decay_norms"] is True
    assert full["callbacks"]["ema"]["buffers"] == "copy"
    assert full["trainer"]["max_steps"] == -1
    for hidden in (full["model"], "labels"), (full["trainer"], "logger"), (full["model"]["backbone"], "image_channels"):
        assert hidden[1] not in hidden[0]
    index.check(full)
    assert index.complete(full) == full


def test_what_is_published_of_backbones_is_listed_from_the_index_alone():
    code = "import sys; from vistrain.config.explain import listing; print(listing('backbones'))"
    code += "; sys.exit('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 0
    rows = {line.split()[0]: re.sub(r" +", " ", line) for line in made.stdout.splitlines() if line}
    assert rows["cswin_tiny"] == "cswin_tiny 2107.00652 22.3 M 4.3 G at 224 top-1 82.8 strides 4 8 16 32 any size"
    assert re.match(
        r"swin_tiny_patch4_window7_224 2103.14030 28.3 M 4\.\d G at 224 top-1 81.38 strides 4 8 16 32 any size ms_in1k",
        rows["swin_tiny_patch4_window7_224"],
    )
    assert "one size" in rows["convit_tiny"]
    assert "strides 16 any size" in rows["deit_tiny_patch16_224"]
    assert rows["resnet18"].startswith("resnet18 a1_in1k")  # none of ours, and no config trains it


def test_the_default_weights_lead_where_several_configs_train_a_model():
    rows = listing("backbones", "ecaresnet50t").splitlines()
    default = COMMITTED["backbones"]["ecaresnet50t"][0]
    leaf = next(e for e in COMMITTED["configs"].values() if e.get("backbone") == f"ecaresnet50t.{default}")
    assert f"top-1 {leaf['reference']['value']}" in rows[0]


def test_neighbourhood_attention_is_indexed_as_published():
    """What the index counts for each leaf of NAT and DiNAT is what the papers print, to the digit that they print."""
    for name, entry in COMMITTED["configs"].items():
        published = COMMITTED["our_backbones"].get(entry.get("backbone", ""), {}).get("gmacs")
        if re.match(r"cls/(di)?nat_", name) and published:
            assert entry["gmacs"] == pytest.approx(published, rel=0.025), name


# Leaf -> millions of parameters as its authors print them.
PUBLISHED_PARAMETERS = {
    "swin_small": "50", "swin_base": "88", "swin_large_22k": "197", "maxvit_tiny": "31", "maxvit_small": "69",
    "maxvit_base": "119", "maxvit_large": "212", "volo_d1": "27", "volo_d2": "59", "volo_d3": "86", "volo_d4": "193",
    "volo_d5_512": "296", "davit_tiny": "28.3", "davit_small": "49.7", "davit_base": "87.9", "tnt_small": "23.8",
    "crossvit_9_dagger": "8.8", "crossvit_15_dagger": "28.2", "crossvit_18_dagger": "44.3", "efficientvit_m0": "2.3",
    "efficientvit_m1": "3.0", "efficientvit_m2": "4.2", "efficientvit_m3": "6.9", "efficientvit_m4": "8.8",
    "efficientvit_m5": "12.4", "shvit_s1": "6.3", "shvit_s2": "11.4", "shvit_s3": "14.2", "shvit_s4": "16.5",
    "cswin_large": "173", "biformer_base": "56.8", "deit_small": "22", "nasnet_large": "88.9", "inception_v4": "42.7",
}  # fmt: skip


@pytest.mark.parametrize("leaf", PUBLISHED_PARAMETERS)
def test_leaves_have_the_published_number_of_parameters(leaf):
    """To the digit that is printed: papers round, or cut. NASNet-A is printed 0.15 larger than timm has it."""
    printed = PUBLISHED_PARAMETERS[leaf]
    millions = COMMITTED["configs"][f"cls/{leaf}"]["parameters"] / 1e6
    slack = {"nasnet_large": 0.2}.get(leaf, 10 ** -len(printed.partition(".")[2]))
    assert millions == pytest.approx(float(printed), abs=slack)
