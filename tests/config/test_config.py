"""Composition, and building by signature, with a small room of classes made for the test."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from vistrain import config
from vistrain.config import build, compose, index
from vistrain.config.builder import signature
from vistrain.errors import ConfigError
from vistrain.structures import Channels, Factory, LabelSpace

LABELS = LabelSpace(("a", "b", "c"), (1, 5, 9))

ROOM = """
from dataclasses import dataclass
from typing import Literal

from torch import nn
from vistrain.errors import ConfigError
from vistrain.structures import Channels, Factory, LabelSpace


@dataclass(frozen=True)
class Stem:
    name: str
    strides: tuple[int, ...] = (8, 16)
    scale: float = 1.0
    args: dict | None = None


class Neck(nn.Module):
    def __init__(self, channels: tuple[int, ...], width: int = 4, inner: nn.Module | None = None):
        super().__init__()
        self.channels, self.width, self.inner = channels, width, inner


class Detector(nn.Module):
    def __init__(self, backbone: Stem, labels: LabelSpace, image_channels: Channels = 3,
                 neck: Factory[nn.Module] | None = None, width: int = 8, dropout: float = 0.1,
                 mode: Literal["fast", "exact"] = "fast", extra: tuple[Stem, ...] = (), flag: bool = False,
                 named: dict[str, Stem] | None = None):
        super().__init__()
        if width == 13:
            raise ConfigError("width", "13 brings bad luck", "take 12")
        if width == 14:
            raise KeyError("boom")
        if width < 0:
            nn.Linear(width, 1)
        self.share = 1 / width
        self.__dict__.update(locals())
"""


@pytest.fixture
def room(monkeypatch):
    """A module of ours that only this test knows, entered in the index."""
    module = types.ModuleType("vistrain.room")
    monkeypatch.setitem(sys.modules, "vistrain.room", module)
    monkeypatch.setattr(sys.modules["vistrain"], "room", module, raising=False)
    exec(ROOM, module.__dict__)
    known = dict(index.load("classes"))
    parameters = {
        "Detector": {"backbone": "Stem", "labels": "LabelSpace", "neck": "Factory[nn.Module]", "width": "int"}
        | dict.fromkeys(("dropout", "mode", "flag"), "") | {"extra": "tuple[Stem, ...]", "named": "dict[str, Stem]"},
        "Neck": {"channels": "", "width": "int", "inner": "nn.Module"},
        "Stem": dict.fromkeys(("name", "strides", "scale", "args"), ""),
    }  # fmt: skip
    ours = {
        f"room.{c}": {"path": f"vistrain.room.{c}", "kind": "x", "parameters": {k: {"hint": h} for k, h in p.items()}}
        for c, p in parameters.items()
    }
    monkeypatch.setitem(index.read("classes"), "classes", {**known, **ours})
    index._by_class_name.cache_clear()
    yield module
    index._by_class_name.cache_clear()


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def detector(**changes):
    node = {"type": "room.Detector", "backbone": {"name": "tiny"}, **changes}
    return build(node, nn.Module, {LabelSpace: LABELS, Channels: 4}, "model")


def refused(function, *arguments, **named) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- composing


def test_bases_files_and_overrides_merge_in_order_and_references_resolve_last(tmp_path):
    write(
        tmp_path,
        low="seed: 1\nrun: {name: low, folder: '${run.name}-${seed}'}",
        mid="base: low.yaml\ntrainer: {max_epochs: 3, devices: 2}",
        top="base: [mid.yaml]\ntrainer: {max_epochs: 5}",
        other="trainer: {max_steps: '${trainer.max_epochs}'}",
    )
    made = compose([tmp_path / "top.yaml", tmp_path / "other.yaml"], ["seed=7", "trainer.max_epochs=9"])
    assert made == {
        "seed": 7,
        "run": {"name": "low", "folder": "low-7"},
        "trainer": {"max_epochs": 9, "devices": 2, "max_steps": 9},
    }
    assert type(made["run"]) is dict


def test_overrides_are_yaml_as_omegaconf_reads_it():
    made = compose(
        [], ["optimizer.lr=1e-4", "optimizer.betas=[0.9, 0.99]", "callbacks.ema=null", "run.name='5'", "seed=5"]
    )
    assert made["optimizer"] == {"lr": 1e-4, "betas": [0.9, 0.99]}
    assert made["callbacks"] == {"ema": None}
    assert (made["run"]["name"], made["seed"]) == ("5", 5)


def test_a_changed_type_replaces_the_parents_node(tmp_path):
    write(
        tmp_path,
        a="schedule: {type: optim.MultiStep, milestones: [40], warmup_steps: 5}",
        b="base: a.yaml\nschedule: {type: optim.Cosine}",
        c="base: a.yaml\nschedule: {type: vistrain.optim.MultiStep, gamma: 0.5}",
    )
    assert compose([tmp_path / "b.yaml"])["schedule"] == {"type": "optim.Cosine"}
    assert compose([tmp_path / "c.yaml"])["schedule"]["warmup_steps"] == 5  # the same class under its long name
    made = compose([tmp_path / "a.yaml"], ["schedule.warmup_steps=7", "schedule.type=optim.Poly"])
    assert made["schedule"] == {"warmup_steps": 7, "type": "optim.Poly"}


def test_start_and_changes_frame_the_files(tmp_path):
    write(tmp_path, a="seed: 2")
    assert compose([tmp_path / "a.yaml"], start={"seed": 1, "run": {"name": "x"}}, changes={"run": {"name": "y"}}) == {
        "seed": 2,
        "run": {"name": "y"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {name: x\nseed: 2", r"a\.yaml:2: not YAML"),
        ("seed: 1\nseed: 2", r"a\.yaml:2: not YAML: found duplicate key seed"),
        ("run: {name: '${oc.env:HOME}'}", "run.name: Unsupported interpolation type oc.env"),
        ("run: {name: '${oc.decode:1}'}", "oc.decode"),
        ("run: {name: '${nowhere.at.all}'}", "run.name: refers to nowhere.at.all, which nothing sets - set"),
        ("run: {name: '${run.folder}', folder: '${run.name}'}", "Recursive interpolation"),
        ("run: {name: '???'}", r"run.name: must be given"),
        ("- 1\n- 2", "holds a list"),
        ('run: {folder: !!python/object/apply:os.system ["true"]}', r"a\.yaml:1: not YAML: could not determine"),
        ('run: {folder: !!python/object/apply:pathlib.Path ["x"]}', "run.folder: holds a PosixPath"),
        ("run: {folder: !!binary aGVsbG8=}", "run.folder: holds a bytes"),
        ("base: a.yaml", "closes a circle"),
        ("base: b.yaml", r"b\.yaml: no such file"),
        ("base: vistrain:det/nothing", "vistrain:det/nothing: no such config"),
        ("modle: {}", "modle: no such key - did you mean 'model'"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch: no such key - did you mean 'max_epochs'"),
        ("trainer: {accumulate_grad_batches: 2}", "data.batch_size"),
        ("optimizer: {type: torch.optim.AdamW, learning_rate: 1}", "optimizer.learning_rate: no such key"),
        ("optimizer: {groups: {rule: []}}", "optimizer.groups.rule: no such key - did you mean 'rules'"),
        (
            "schedule: {type: optim.MultiSteps}",
            "schedule.type: no class 'optim.MultiSteps' - did you mean 'optim.MultiStep'",
        ),
        ("schedule: {type: MultiStep}", "did you mean 'optim.MultiStep'"),
        ("run: {fodler: x}", "run.fodler: no such key - did you mean 'folder'"),
        ("stages: [{trainer: {max_epoch: 3}}]", r"stages\[0\].trainer.max_epoch: no such key"),
        ("callbacks: {stop: {type: lightning.pytorch.callbacks.EarlyStopping, monitr: x}}", "callbacks.stop.monitr"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(tmp_path, text, message):
    write(tmp_path, a=text)
    said = refused(compose, [tmp_path / "a.yaml"])
    assert re.search(message, said), said


def test_a_self_containing_alias_is_refused(tmp_path):
    write(tmp_path, a="seed: &x [*x]")
    assert "a.yaml" in refused(compose, [tmp_path / "a.yaml"])


def test_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00seed")
    assert "a.yaml" in refused(compose, [tmp_path / "a.yaml"])
    assert "no such file" in refused(compose, [tmp_path / "b.yaml"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "write dotted.key=value"),
        ("+seed=1", "write dotted.key=value"),
        ("run.name=[1", "run.name: value is not YAML"),
        ("trainer.max_epoch=1", "did you mean 'max_epochs'"),
        ("optimizer.betas.x=1", "give the whole list"),
        ("data.batchsize=1", "did you mean 'batch_size'"),
    ],
)
def test_wrong_overrides(tmp_path, override, message):
    write(tmp_path, a="optimizer: {type: torch.optim.AdamW, betas: [0.9, 0.99]}\ndata: {type: data.Coco2017}")
    assert message in refused(compose, [tmp_path / "a.yaml"], [override])


# The bases as they were addressed when all lay in one folder: configs of then, and checkpoints' notes, name them so.
BASES_OF_BEFORE = (
    "classification", "coco_detection", "color_denoising", "convnext_300_epochs", "convnext_30_epochs",
    "crossvit_300_epochs", "cswin_300_epochs", "davit_300_epochs", "deformable_detr_50_epochs",
    "deformable_detr_detrex", "deit_300_epochs", "detrex_90k", "dinat_large_30_epochs", "dino", "dino_detrex",
    "dlgsanet", "dncnn", "efficientvit_300_epochs", "focus_detr", "gopro_deblurring", "grey_denoising", "imagenet",
    "inception_rmsprop", "maxim", "maxvit_300_epochs", "maxvit_30_epochs", "nafnet", "nat_300_epochs", "rain13k",
    "resnet_a1_600_epochs", "restoration", "runtime", "sidd_denoising", "super_resolution", "super_resolution_250k",
    "super_resolution_500k", "swin", "swin_300_epochs", "swin_30_epochs", "tnt_300_epochs", "volo_300_epochs",
    "volo_30_epochs",
)  # fmt: skip


@pytest.mark.parametrize("base", BASES_OF_BEFORE)
def test_the_bases_addresses_of_before_still_lead_to_them(tmp_path, base):
    found = config.locate(f"vistrain:_base_/{base}")
    assert (found.parent.name, found.stem) == ("_base_", base)
    assert list(index.config_root().rglob(f"_base_/{base}.yaml")) == [found]  # no second one to mean
    more = "model: {network: {upscale: 2}}" if base.startswith(("super_resolution", "dlgsanet")) else ""
    write(tmp_path, mine=f"base: vistrain:_base_/{base}\n{more}")
    assert compose([tmp_path / "mine.yaml"]) == compose([found], ["model.network.upscale=2"] if more else [])


def test_resolvers_come_back_after_composing():
    from omegaconf import OmegaConf

    compose([], ["seed=1"])
    assert OmegaConf.has_resolver("oc.env")


def test_yaml_written_is_read_back(tmp_path):
    made = {
        "seed": 1,
        "run": {"name": "1e-4", "folder": "a: b"},
        "reference": {"note": ["x", "5"]},
        "optimizer": {"lr": 1e-5, "eps": 1e-8},
    }
    (tmp_path / "a.yaml").write_text(config.to_yaml(made))
    assert compose([tmp_path / "a.yaml"]) == made
    assert "note: [x, '5']" in config.to_yaml(made)


def test_a_config_with_an_old_class_name_still_composes_and_builds(monkeypatch, tmp_path):
    monkeypatch.setitem(index.ALIASES, "optim.Steps", "optim.MultiStep")
    write(tmp_path, a="schedule: {type: optim.Steps, milestones: [4]}")
    from vistrain.optim import MultiStep, Schedule

    made = compose([tmp_path / "a.yaml"], ["schedule.gamma=0.5"])
    assert build(made["schedule"], Schedule, {}, "schedule") == MultiStep(milestones=(4.0,), gamma=0.5)


def test_composing_imports_no_torch():
    code = "import sys; from vistrain import config; config.compose([], ['seed=1']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# -- building


def test_nodes_are_built_depth_first_with_facts_and_defaults(room):
    model = detector(extra=[{"name": "x", "strides": [4]}], named={"y": {"name": "y"}}, dropout=1)
    assert isinstance(model.backbone, room.Stem)
    assert (model.labels, model.image_channels, model.width) == (LABELS, 4, 8)
    assert model.extra == (room.Stem("x", (4,)),)
    assert model.named == {"y": room.Stem("y")}
    assert (model.dropout, type(model.dropout)) == (1.0, float)


def test_factories_are_checked_and_unbuilt_and_share_no_weights(room):
    inner = {"type": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    model = detector(neck={"type": "room.Neck", "width": 6, "inner": inner})
    assert isinstance(model.neck, Factory)
    assert model.neck.target is room.Neck
    assert model.neck.arguments["width"] == 6
    first, second = model.neck(channels=(1, 2)), model.neck(channels=(1,), width=7)
    assert (first.channels, first.width, second.width) == ((1, 2), 6, 7)
    assert first.inner is not second.inner
    assert "model.neck.widht: no such key - did you mean 'width'" in refused(
        detector, neck={"type": "room.Neck", "widht": 6}
    )
    assert "model.neck.type" in refused(detector, neck={"type": "torch.optim.SGD"})
    assert "model.neck: `type` is missing" in refused(detector, neck={"width": 1})


def test_an_optimizer_is_a_factory():
    made = build(
        {"type": "torch.optim.AdamW", "lr": 1, "betas": [0.9, 0.95]}, Factory[torch.optim.Optimizer], {}, "optimizer"
    )
    assert made.arguments == {"lr": 1.0, "betas": (0.9, 0.95)}
    assert made([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 1}, "model.widht: no such key - did you mean 'width'"),
        ({"num_classes": 7}, "model.num_classes: is not set by hand - it comes from the data set"),
        ({"labels": {"names": []}}, "model.labels: is not set by hand"),
        ({"image_channels": 1}, "model.image_channels: is not set by hand"),
        ({"width": "5"}, "model.width: '5' is not a whole number"),
        ({"width": True}, "model.width: true is not a whole number"),
        ({"width": 5.0}, "model.width"),
        ({"dropout": "0.1"}, "model.dropout"),
        ({"flag": 1}, "model.flag"),
        ({"mode": "slow"}, "model.mode: 'slow' is not one of 'fast', 'exact'"),
        ({"backbone": {"name": "x", "strides": [8, "16"]}}, r"model.backbone.strides[1]: '16' is not a whole number"),
        ({"backbone": {"nam": "x"}}, "model.backbone.nam: no such key - did you mean 'name'"),
        ({"backbone": {}}, "model.backbone.name: is missing"),
        ({"backbone": "x"}, "model.backbone: 'x' is not a"),
        ({"backbone": {"type": "torch.nn.Linear"}}, "model.backbone.type: torch.nn.Linear is not a Stem"),
        ({"extra": [{"name": "x"}, {"name": 5}]}, "model.extra[1].name: 5 is not a"),
        ({"named": {"y": {"name": "x", "z": 1}}}, "model.named.y.z: no such key"),
        ({"neck": 5}, "model.neck: 5 is not a"),
        ({"width": 13}, "model.width: 13 brings bad luck - take 12"),
        ({"width": {"a": 1}}, "model.width"),
        ({"type": 5}, "model.type: 5 is not a name"),
    ],
)
def test_wrong_nodes_are_refused_with_their_dotted_key(room, changes, message):
    assert message in refused(detector, **changes)


def test_facts_that_are_not_known_are_missed(room):
    node = {"type": "room.Detector", "backbone": {"name": "tiny"}}
    assert "model.labels: is missing" in refused(build, node, nn.Module, {}, "model")


def test_given_arguments_cannot_be_written(room):
    node = {"type": "room.Neck", "channels": [1]}
    assert "model.channels: is not set here" in refused(build, node, nn.Module, {}, "model", given={"channels": (1,)})
    assert build({"type": "room.Neck"}, nn.Module, {}, "model", given={"channels": (1,)}).channels == (1,)


def test_foreign_constructors_receive_no_facts_and_may_take_any_key():
    made = build(
        {"type": "torch.nn.Linear", "in_features": 3, "out_features": 2}, nn.Module, {LabelSpace: LABELS}, "model"
    )
    assert made.in_features == 3
    said = refused(build, {"type": "torch.nn.Linear", "in_feature": 3}, nn.Module, {}, "model")
    assert "model.in_feature: no such key - did you mean 'in_features'" in said


def test_a_real_failure_keeps_its_traceback_and_says_what_was_being_built(room):
    with pytest.raises(KeyError, match="boom") as caught:
        detector(width=14)
    assert caught.value.__notes__ == ["while building model (vistrain.room.Detector)"]


def test_what_torch_or_arithmetic_refuses_is_said_of_the_node(room):
    made = "model.width: Detector cannot be made with"  # without it, it can: that key is to blame
    assert f"{made} 0: a division by 0 - its default, " in refused(detector, width=0)
    assert "model.width: -1 is negative - give a whole number such as its default, 8" in refused(detector, width=-1)
    node = {"type": "torch.optim.AdamW", "lr": -1.0}
    factory = build(node, Factory[torch.optim.Optimizer], where="optimizer")
    assert "optimizer: AdamW cannot be made of these values: Invalid learning rate" in refused(
        factory, [nn.Parameter(torch.zeros(1))]
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.utils.cpp_extension.subprocess.Popen", "it is subprocess's"),
        ("lightning.fabric.strategies.launchers.subprocess_script.subprocess.Popen", "it is subprocess's"),
        ("torch.package.PackageImporter", "is not a Module"),
        ("torch.hub.load", "is not a class"),
        ("torch.os.system", "it is os's"),
        ("torch._C.ScriptModule", "is not the path of a public class"),
        ("torch.nn.Linear.__init__", "is not the path of a public class"),
        ("torch.nn.Linearr", "no class 'torch.nn.Linearr' - did you mean 'Linear'"),
        ("subprocess.Popen", "--allow subprocess if you trust it"),
        ("builtins.eval", "--allow builtins"),
        ("timm.models.resnet.resnet50", "is not a class"),
        ("vistrain.config.builder.json.JSONDecoder", "it is json's"),
        ("torch.nn", "is not a class"),
        ("", "no class ''"),
        ("../x", "model.type"),
    ],
)
def test_types_outside_the_allowed_packages_or_of_another_kind_are_refused(path, message):
    assert message in refused(build, {"type": path}, nn.Module, {}, "model")


def test_popen_is_refused_even_where_its_package_is_allowed():
    node = {"type": "subprocess.Popen", "args": "true"}
    assert "is not a Module" in refused(build, node, nn.Module, {}, "model", allow=["subprocess"])


def test_a_package_can_be_allowed(monkeypatch):
    module = types.ModuleType("mine")
    exec(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width: int, **more): super().__init__()",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "mine", module)
    node = {"type": "mine.Net", "width": 3, "depth": 4}
    assert compose([], changes={"model": node}) == {"model": node}
    assert "--allow mine" in refused(build, node, nn.Module, {}, "model")
    assert isinstance(build(node, nn.Module, {}, "model", allow=["mine"]), nn.Module)
    assert "model.width" in refused(build, {**node, "width": "3"}, nn.Module, {}, "model", allow=["mine"])


def test_a_section_names_its_class():
    from vistrain.optim import ParameterGroups, Schedule

    assert "schedule: `type` is missing" in refused(build, {"gamma": 1}, Schedule, {}, "schedule")
    assert "schedule: None is not a mapping" in refused(build, None, Schedule, {}, "schedule")
    assert isinstance(build({"no_decay_bias": True}, ParameterGroups, {}, "optimizer.groups"), ParameterGroups)


# -- constructors that take their base's parameters

INHERITING = """
from typing import Any

from torch import nn
from vistrain.structures import Channels


class Grandparent(nn.Module):
    def __init__(self, image_channels: Channels = 3, width: int = 4, depth: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.seen = {"image_channels": image_channels, "width": width, "depth": depth, "heads": heads}


class Parent(Grandparent):
    sets_itself = ("heads",)

    def __init__(self, depth: int = 6, ratio: float = 0.5, **base: Any) -> None:
        super().__init__(depth=depth, heads=1, **base)
        self.seen["ratio"] = ratio


class Child(Parent):
    def __init__(self, name: str = "x", **base: Any) -> None:
        super().__init__(**base)
        self.seen["name"] = name
"""


@pytest.fixture
def family(monkeypatch):
    module = types.ModuleType("vistrain.family")
    monkeypatch.setitem(sys.modules, "vistrain.family", module)
    monkeypatch.setattr(sys.modules["vistrain"], "family", module, raising=False)
    exec(INHERITING, module.__dict__)
    return module


def child(**changes):
    return build({"type": "vistrain.family.Child", **changes}, nn.Module, {Channels: 1}, "model")


def test_parameters_of_three_levels_are_one_schema(family):
    parameters, hints = signature(family.Child)
    assert list(parameters) == ["image_channels", "width", "depth", "ratio", "name"]
    assert {name: p.default for name, p in parameters.items()} == {
        "image_channels": 3, "width": 4, "depth": 6, "ratio": 0.5, "name": "x"
    }  # fmt: skip
    assert hints["width"] is int
    assert hints["ratio"] is float
    assert child().seen == {"image_channels": 1, "width": 4, "depth": 6, "heads": 1, "ratio": 0.5, "name": "x"}
    assert child(width=7, depth=1, ratio=1).seen["depth"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 1}, "model.widht: no such key - did you mean 'width'"),
        ({"heads": 2}, "model.heads: no such key"),
        ({"base": {}}, "model.base: no such key"),
        ({"width": "5"}, "model.width: '5' is not a whole number"),
        ({"depth": 1.5}, "model.depth"),
        ({"image_channels": 1}, "model.image_channels: is not set by hand"),
    ],
)
def test_inherited_parameters_are_checked_as_ones_own(family, changes, message):
    assert message in refused(child, **changes)
