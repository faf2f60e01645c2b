"""The generated index: fresh, complete, and right where a config is checked against it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import json
import typing
from pathlib import Path

import pytest

from vistrain import building, index
from vistrain.errors import ConfigError

ROOT = Path(__file__).parents[1]
COMMITTED = json.loads((ROOT / "vistrain" / "index.json").read_text())


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
    assert (ROOT / "vistrain" / "index.json").stat().st_size < 400_000
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
