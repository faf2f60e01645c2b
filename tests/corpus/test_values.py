"""Wrong values, sections, combinations and requests to go on: each is refused in one line that names its key."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vistrain import run
from vistrain.checkpoints import load_file
from vistrain.checkpoints.schema import check_run
from vistrain.cli import main
from vistrain.config import build, compose, merge, without_pretrained
from vistrain.errors import ConfigError, VistrainError, WeightsError
from vistrain.optim import Schedule
from vistrain.run.lock import held
from vistrain.structures import LabelSpace

BASE = "vistrain:demo/restoration"
TINY = [
    "data.workers=0", "data.train_images=8", "data.val_images=2", "data.repeat=2", "data.batch_size=4", "data.patch=8",
    "model.network.num_feat=8", "model.network.num_block=1", "schedule.warmup_steps=1", "trainer.accelerator=cpu",
    "trainer.check_val_every_n_epoch=1", "trainer.log_every_n_steps=1",
]  # fmt: skip


def refused(kind: type[VistrainError], where: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments, **named)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    assert caught.value.where.endswith(where), said
    return said


@pytest.fixture(autouse=True)
def _loggers_are_as_they_were() -> Iterator[None]:
    logger = logging.getLogger("vistrain")
    before = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.level, logger.handlers[:], logger.propagate = before[0], before[1], before[2]


# ---------------------------------------------------------------- values on the command line

VALUES = {
    "seed": ("-1", "99999999999", "1.5", "true", "null", "[1]", "x", "1e3"),
    "trainer.max_epochs": ("2.5", "0", "-2", "'3'", "true", "[1]", "many", "99999999999999999999"),
    "trainer.min_epochs": ("-1", "1.5"),
    "trainer.max_steps": ("0", "-5", "1.5", "null"),
    "trainer.min_steps": ("-1", "0.5"),
    "trainer.max_time": ("1:30:00", "60", "soon", "{years: 1}", "{hours: -1}", "[1]"),
    "trainer.devices": ("0", "-2", "1.5", "[]", "[0, 0]", "[-1]", "{a: 1}", "none", "true"),
    "trainer.num_nodes": ("0", "-1", "1.5", "null"),
    "trainer.precision": ("foo", "17", "fp16", "[16]", "true"),
    "trainer.accelerator": ("5", "null", "[cpu]"),
    "trainer.strategy": ("5", "null", "{type: lightning.pytorch.strategies.DDPStrategy}"),
    "trainer.limit_train_batches": ("0", "0.0", "-1", "1.5", "all"),
    "trainer.limit_val_batches": ("-1", "-0.5", "1.5", "true"),
    "trainer.limit_test_batches": ("-1", "x"),
    "trainer.overfit_batches": ("1", "0.5", "-1", "x"),
    "trainer.val_check_interval": ("0", "-1", "1.5", "0.0", "true", "often"),
    "trainer.check_val_every_n_epoch": ("0", "-1", "1.5"),
    "trainer.num_sanity_val_steps": ("-2", "0.5"),
    "trainer.log_every_n_steps": ("-1", "0.5", "x"),
    "trainer.gradient_clip_val": ("-0.1", ".nan", ".inf", "true", "'1'"),
    "trainer.gradient_clip_algorithm": ("foo", "5"),
    "trainer.deterministic": ("1", "maybe"),
    "trainer.benchmark": ("1",),
    "trainer.inference_mode": ("null",),
    "trainer.detect_anomaly": ("1",),
    "trainer.barebones": ("true",),
    "trainer.fast_dev_run": ("-1", "0.5"),
    "trainer.profiler": ("foo", "{type: x}"),
    "trainer.plugins": ("[x]", "x"),
    "trainer.reload_dataloaders_every_n_epochs": ("1",),
    "trainer.sync_batchnorm": ("1", "x"),
    "optimizer.lr": ("-1", "-1e-4", ".nan", ".inf", "true", "fast", "'1e-4'", "[1e-4]"),
    "optimizer.weight_decay": ("-1", ".nan", "x"),
    "optimizer.betas": ("[0.9]", "[0.9, 1.0]", "[-0.1, 0.9]", "0.9", "[a, b]", "[0.9, 0.9, 0.9]"),
    "optimizer.eps": ("-1", "x"),
    "optimizer.base_batch_size": ("0", "-1", "1.5"),
    "schedule.warmup_steps": ("-1", "1.5", ".inf"),
    "schedule.warmup_epochs": ("-1", ".nan"),
    "schedule.warmup_factor": ("-0.1", "2"),
    "schedule.final_factor": ("-1", "2", ".nan"),
    "schedule.cooldown_epochs": ("-1", ".inf"),
    "data.workers": ("-1", "1.5", "100000", "all"),
    "run.name": ("5", "''", "[x]"),
    "run.folder": ("5", "''"),
    "run.weights": ("5", "[x]"),
    "data.batch_size": ("9999999999999999999999", ".nan"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_value_without_a_meaning_is_refused_by_its_key(key: str, value: str) -> None:
    refused(ConfigError, key, compose, [BASE], [f"{key}={value}"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["trainer.min_epochs=9", "trainer.max_epochs=3"], "trainer.min_epochs"),
        (["trainer.min_steps=9", "trainer.max_steps=3"], "trainer.min_steps"),
        (["trainer.check_val_every_n_epoch=null"], "trainer.check_val_every_n_epoch"),
        (["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=0.5"], "trainer.check_val_every_n_epoch"),
        (["trainer.gradient_clip_algorithm=norm", "trainer.gradient_clip_val=null"], "trainer.gradient_clip_algorithm"),
        (["schedule.warmup_steps=3", "schedule.warmup_epochs=1"], "schedule.warmup_epochs"),
        (["optimizer.type=torch.optim.SGD", "optimizer.lr=1", "optimizer.nesterov=true"], "optimizer.nesterov"),
        (
            ["optimizer.type=torch.optim.SGD", "optimizer.nesterov=true", "optimizer.momentum=0.9",
             "optimizer.dampening=0.1"],
            "optimizer.dampening",
        ),
        (["optimizer.fused=true", "optimizer.foreach=true"], "optimizer.foreach"),
        (["stages=[{trainer: {max_epochs: 0}}]"], "stages[0].trainer.max_epochs"),
        (["stages=[{seed: -1}]"], "stages[0].seed"),
        (["stages=[5]"], "stages[0]"),
        (["stages=[{run: []}]"], "stages[0].run"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(changes: list[str], key: str) -> None:
    refused(ConfigError, key, compose, [BASE], changes)


# ---------------------------------------------------------------- sections of another shape

SHAPES: dict[str, tuple[Any, ...]] = {
    "task": (None, [], "x", 5, True),
    "model": (None, [], "x", 5),
    "data": (None, [], "x", 5),
    "optimizer": (None, [], "x", 5),
    "trainer": (None, [], "x", 5),
    "run": (None, [], "x", 5),
    "schedule": ([], "x", 5),
    "callbacks": ([], "x", 5),
    "reference": ([], "x", 5),
    "logger": (5, 1.5),
    "metrics": (5, {}, True),
    "stages": (5, {}, "x"),
    "seed": ([], {}, "x"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SHAPES.items() for value in values])
def test_a_section_of_another_shape_is_refused(name: str, value: Any) -> None:
    refused(ConfigError, name, compose, ["vistrain:demo/classification"], changes={name: value})


def test_one_protocol_needs_no_list() -> None:
    assert compose([BASE], ["metrics=lpips"])["metrics"] == ["lpips"]
    refused(ConfigError, "metrics[0]", compose, [BASE], changes={"metrics": [5]})
    refused(ConfigError, "metrics", compose, [BASE], ["metrics=lpisp"])


# ---------------------------------------------------------------- files of strangers

FILES = {
    "a number for base": "base: 5",
    "a mapping for base": "base: {a: b}",
    "a list of numbers for base": "base: [1, 2]",
    "a text": "hello",
    "a number": "5",
    "a list": "- a",
    "an alias bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)),
    "a circle of aliases": "run: &x {name: *x}",
    "deep lists": "run: " + "[" * 200 + "]" * 200,
    "very deep lists": "run: " + "[" * 1_000_000,
    "very deep mappings": "run: " + "{a: " * 300_000,
    "lists in lists on one line": "- " * 100_000,
    "lists in lists on many lines": "".join(f"{' ' * i}-\n" for i in range(2_000)),
    "a number of 5000 digits": "seed: " + "9" * 5000,
    "a set": "run: !!set {a, b}",
    "an empty key": "run: {'': 1}",
    "null for a key": "run: {null: 1}",
    "a truth value for a key": "run: {true: 1}",
    "NaN": "trainer: {gradient_clip_val: .nan}",
    "a key twice": "run: {name: a, name: b}",
    "a tab": "run:\n\tname: x",
    "a reference in a reference": "run: {name: '${run.${seed}}', folder: x}\nseed: 1",
}  # fmt: skip


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    refused(ConfigError, "", compose, [tmp_path / "a.yaml"])


def test_references_that_stand_for_gigabytes_are_refused(tmp_path: Path) -> None:
    lines = [
        "  n0: abcdefghij",
        *(f"  n{i}: '${{reference.note.n{i - 1}}}${{reference.note.n{i - 1}}}'" for i in range(1, 40)),
    ]
    (tmp_path / "a.yaml").write_text("reference:\n note:\n" + "\n".join(lines))
    assert "more than memory holds" in refused(ConfigError, "", compose, [tmp_path / "a.yaml"])
    relative = ["  n0: abcdefghij", *(f"  n{i}: ['${{..n{i - 1}}}', '${{..n{i - 1}}}']" for i in range(1, 40))]
    (tmp_path / "b.yaml").write_text("reference:\n note:\n" + "\n".join(relative))
    assert "more than memory holds" in refused(ConfigError, "", compose, [tmp_path / "b.yaml"])


def test_bases_that_double_are_read_once_and_endless_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b0.yaml").write_text("seed: 3")
    for i in range(1, 41):
        (tmp_path / f"b{i}.yaml").write_text(f"base: [b{i - 1}.yaml, b{i - 1}.yaml]")
    assert compose([tmp_path / "b40.yaml"]) == {"seed": 3}
    for i in range(41, 60):
        (tmp_path / f"b{i}.yaml").write_text(f"base: b{i - 1}.yaml")
    assert "its bases stand on" in refused(ConfigError, "b59.yaml", compose, [tmp_path / "b59.yaml"])


def test_a_file_that_is_far_too_long_or_no_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(50 * 2**20)
    assert "50 MB" in refused(ConfigError, "a.yaml", compose, [tmp_path / "a.yaml"])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.yaml")
        assert "no such file" in refused(ConfigError, "pipe.yaml", compose, [tmp_path / "pipe.yaml"])


# ---------------------------------------------------------------- texts on the command line


@pytest.mark.parametrize(
    "text",
    [
        "my set #2",
        "a: b",
        "*star",
        "&anchor",
        "!tag",
        "%x",
        "@x",
        "`x`",
        "| x",
        "> x",
        "- x",
        "? x",
        "x, y",
        "a ]",
        "a #",
    ],
)
def test_marks_of_yaml_in_a_text_are_kept(text: str) -> None:
    assert compose([], [f"data.root={text}"], start={"data": {"type": "data.Coco2017"}})["data"]["root"] == text


def test_values_are_still_yaml() -> None:
    words = ["reference.note=[1, 'a # b', {c: null}]", "reference.value=1e-3", "reference.paper='5'", "seed=0x10"]
    made = compose([], words)
    assert made["reference"] == {"note": [1, "a # b", {"c": None}], "value": 1e-3, "paper": "5"}
    assert made["seed"] == 16
    refused(ConfigError, "data.root", compose, [], ["data.root=[1"])
    refused(ConfigError, "data.root", compose, [], ["data.root=~"])
    refused(ConfigError, "reference.note", compose, [], ["reference.note=" + "[" * 5000])


def test_home_is_written_out_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("run: {folder: ~/runs, weights: '~/w.pth'}\nreference: {note: [~/x, a~/y]}")
    made = compose(["~/a.yaml"], ["run.name=~/z"])
    assert made["run"] == {"folder": f"{tmp_path}/runs", "weights": f"{tmp_path}/w.pth", "name": f"{tmp_path}/z"}
    assert made["reference"]["note"] == [f"{tmp_path}/x", "a~/y"]
    (tmp_path / "b.yaml").write_text("base: ~/a.yaml")
    assert compose([tmp_path / "b.yaml"])["run"]["folder"] == f"{tmp_path}/runs"


def test_another_type_says_which_keys_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    words = ["schedule.type=optim.Poly", "schedule.power=2"]
    made = compose([], words, start={"schedule": {"type": "optim.Cosine", "warmup_steps": 3, "final_factor": 0.1}})
    assert made["schedule"] == {"type": "optim.Poly", "power": 2}
    assert "drops schedule.warmup_steps, schedule.final_factor of optim.Cosine" in caplog.text


STEM = {"model": {"backbone": {"name": "resnet10t.c3_in1k", "strides": [16], "args": {"channels": [8], "depth": 1}}}}


@pytest.mark.parametrize(
    ("words", "args", "said"),
    [
        (["model.backbone.name=resnet18"], None, "model.backbone.name=resnet18 drops model.backbone.args.channels, "),
        (["model.backbone={name: resnet18, args: {depth: 2}}"], {"depth": 2}, "args.channels of resnet10t.c3_in1k"),
        (["model.backbone.args.depth=2", "model.backbone.name=resnet18"], {"depth": 2}, "args.channels of resnet10t"),
        (["model.backbone.name=resnet10t", "model.backbone.args.depth=2"], {"channels": [8], "depth": 2}, ""),
        (["model.backbone.strides=[8]"], {"channels": [8], "depth": 1}, ""),
    ],
)
def test_another_backbone_drops_the_arguments_of_the_one_before(
    words: list[str], args: dict[str, object] | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = compose([], words, start=STEM)["model"]["backbone"]
    assert made.get("args") == args
    assert "strides" in made
    assert said in caplog.text
    assert bool(said) == ("drops" in caplog.text)


def test_a_file_drops_the_arguments_of_its_bases_backbone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "base.yaml").write_text("model: {backbone: {name: resnet10t, args: {channels: [8]}}}")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nmodel: {backbone: {name: resnet18}}")
    assert compose([tmp_path / "mine.yaml"])["model"] == {"backbone": {"name": "resnet18"}}
    assert caplog.text.count("drops model.backbone.args.channels of resnet10t") == 1


def test_another_operator_drops_what_stands_beside_its_name(caplog: pytest.LogCaptureFixture) -> None:
    part = {"name": "shifted_window", "window_size": 4, "num_heads": 2}
    start = {"model": {"backbone": {"name": "operator_vit_tiny", "args": {"attention": part, "depth": 1}}}}
    for words, wanted in (
        ({"name": "neighborhood", "num_heads": 4}, {"name": "neighborhood", "num_heads": 4}),
        ({"window_size": 8}, {**part, "window_size": 8}),
    ):
        asked = {"model": {"backbone": {"args": {"attention": words}}}}
        assert merge(start, asked)["model"]["backbone"]["args"] == {"attention": wanted, "depth": 1}
    lines: list[str] = []
    merge(part, {"name": "neighborhood", "num_heads": 4}, "args.attention", lines)
    assert lines == ["args.attention.name=neighborhood drops args.attention.window_size of shifted_window"]


def test_a_name_that_does_not_exist_says_nothing_of_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    for word in ("model.backbone.name=resnt18", "model.type=detection.FocusDETRR"):
        with pytest.raises(ConfigError, match="did you mean"):
            compose([], [word], start={"model": {"type": "detection.FocusDETR", **STEM["model"]}})
    assert not caplog.text


# ---------------------------------------------------------------- what is built


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"type": "optim.MultiStep", "milestones": [float("nan")]}, "schedule.milestones"),
        ({"type": "optim.MultiStep", "milestones": [-1.0]}, "schedule.milestones"),
        ({"type": "optim.MultiStep", "milestones": [3, 2]}, "schedule.milestones"),
        ({"type": "optim.MultiStep", "milestones": [3, 3]}, "schedule.milestones"),
        ({"type": "optim.MultiStep", "milestones": ["a"]}, "schedule.milestones[0]"),
        ({"type": "optim.MultiStep", "milestones": [3], "gamma": -0.1}, "schedule.gamma"),
        ({"type": "optim.MultiStep"}, "schedule.milestones"),
        ({"type": "optim.Cosine", "final_factor": -1.0}, "schedule.final_factor"),
        ({"type": "optim.Cosine", "warmup_epochs": float("inf")}, "schedule.warmup_epochs"),
        ({"type": "optim.Cosine", "cooldown_epochs": -1.0}, "schedule.cooldown_epochs"),
        ({"type": "optim.Poly", "power": 0.0}, "schedule.power"),
        ({"type": "optim.Poly", "unit": "hour"}, "schedule.unit"),
    ],
)
def test_a_schedule_of_meaningless_numbers_is_refused(node: dict[str, Any], key: str) -> None:
    refused(ConfigError, key, build, node, Schedule, None, "schedule")


@pytest.mark.parametrize(
    ("node", "total", "key"),
    [
        ({"type": "optim.Constant", "warmup_steps": 101}, 100, "schedule.warmup_steps"),
        ({"type": "optim.Cosine", "warmup_epochs": 11.0}, 100, "schedule.warmup_epochs"),
        ({"type": "optim.MultiStep", "milestones": [3, 10]}, 100, "schedule.milestones"),
        ({"type": "optim.MultiStep", "milestones": [300], "unit": "step"}, 100, "schedule.milestones"),
        ({"type": "optim.Cosine", "warmup_epochs": 5.0, "cooldown_epochs": 5.0}, 100, "schedule.cooldown_epochs"),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(node: dict[str, Any], total: int, key: str) -> None:
    schedule = build(node, Schedule, where="schedule")
    refused(ConfigError, key, schedule.refuse_longer, total, 10)
    schedule.refuse_longer(10_000, 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_feat": -1}, {"num_block": "x"}, {"num_feat": 10**9}, {"num_feat": 1.5}, {"upscale": 0},
        {"upscale": -2},
    ],
)  # fmt: skip
def test_a_network_of_impossible_sizes_is_refused(changes: dict[str, Any]) -> None:
    config = compose([BASE], TINY)
    config["model"]["network"].update(changes)
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        run.build_model(without_pretrained(config), LabelSpace((), ()))
    assert caught.value.where.startswith("model.network")


@pytest.fixture(scope="module")
def parts() -> Any:
    return run.build_parts(compose([BASE], TINY))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"accelerator": "gpu"}, "trainer.accelerator"),
        ({"accelerator": "cuda"}, "trainer.accelerator"),
        ({"accelerator": "foo"}, "trainer.accelerator"),
        ({"accelerator": "tpu"}, "trainer: Lightning refuses it: Requirement"),
        ({"devices": -1}, "trainer.devices"),
        ({"devices": [0]}, "trainer.devices"),
        ({"strategy": "foo"}, "trainer.strategy"),
        ({"strategy": "dp"}, "trainer.strategy"),
        ({"precision": "transformer-engine"}, "trainer: Lightning refuses it: Requirement"),
        ({"max_steps": -1, "max_time": "00:00:99:00"}, "trainer.max_time"),
        ({"strategy": "fsdp"}, "trainer.strategy"),
    ],
)
def test_what_the_trainer_refuses_is_said_of_its_key(
    tmp_path: Path, parts: Any, changes: dict[str, Any], key: str
) -> None:
    config = compose([BASE], TINY)
    config["trainer"] |= changes

    def make() -> None:
        compose([], start=config)
        run.build_trainer(config, parts, tmp_path)

    said = refused(ConfigError, "", make)
    assert said.startswith("trainer"), said
    assert key in said, said


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"type": "callbacks.RunFolder", "images": -1}, "images"),
        ({"type": "callbacks.RunFolder", "side": 0}, "side"),
        ({"type": "callbacks.Progress", "every_n_steps": 0}, "every_n_steps"),
        ({"type": "callbacks.Checkpoints", "keep_best": -1}, "keep_best"),
        ({"type": "callbacks.Checkpoints", "mode": "best"}, "mode"),
        ({"type": "callbacks.EMA", "decay": 1.5}, "decay"),
        ({"type": "callbacks.EMA", "decay": -0.1}, "decay"),
        ({"type": "callbacks.Unreadable", "limit": -1}, "limit"),
        ({"type": "lightning.pytorch.callbacks.LearningRateMonitor", "logging_interval": "hour"}, ""),
        ({"type": "lightning.pytorch.callbacks.GradientAccumulationScheduler", "scheduling": {}}, ""),
        ({"type": "lightning.pytorch.callbacks.StochasticWeightAveraging", "swa_lrs": -1.0}, ""),
        ({"type": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "x", "mode": "most"}, ""),
    ],
)
def test_callbacks_of_meaningless_numbers_are_refused(
    tmp_path: Path, parts: Any, node: dict[str, Any], key: str
) -> None:
    config = compose([BASE], TINY)
    config["callbacks"] = {"mine": node}
    said = refused(ConfigError, key, run.build_trainer, config, parts, tmp_path)
    assert said.startswith("callbacks.")


def test_a_monitor_that_nothing_gives_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, f"data.root={tmp_path / 'data'}", f"run.folder={tmp_path / 'run'}", "trainer.max_epochs=1"]
    words += ["callbacks.checkpoints.type=callbacks.Checkpoints", "callbacks.checkpoints.monitor=val/coco/AP"]
    assert main(["fit", "-c", BASE, *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vistrain: callbacks.checkpoints.monitor: nothing gives 'val/coco/AP'")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_metrics_of_another_task_are_refused() -> None:
    config = compose([BASE], [*TINY, "metrics=[coco_box]"])
    assert "there are: " in refused(ConfigError, "metrics", run.build_parts, config)


def test_a_callback_of_lightnings_is_told_the_direction(tmp_path: Path, parts: Any) -> None:
    def stopping(**more: Any) -> Any:
        config = compose([BASE], TINY)
        config["callbacks"] = {"stop": {"type": "lightning.pytorch.callbacks.EarlyStopping", **more}}
        trainer = run.build_trainer(config, parts, tmp_path)
        return next(c for c in trainer.callbacks if type(c).__name__ == "EarlyStopping")

    assert stopping(monitor="val/coco/AP").mode == "max"
    assert stopping(monitor="val/cls/nll").mode == "min"
    assert stopping(monitor="val/lpips/lpips").mode == "min"
    assert stopping(monitor="train/loss").mode == "min"
    assert stopping(monitor="val/mine", mode="max").mode == "max"
    refused(ConfigError, "callbacks.stop.mode", stopping, monitor="val/mine")


# ---------------------------------------------------------------- going on with a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("values") / "run"
    words = [*TINY, f"data.root={folder.parent / 'data'}", f"run.folder={folder}", "trainer.max_epochs=2"]
    assert main(["fit", "--config", BASE, *words]) == 0
    return folder


@pytest.fixture(scope="module")
def content(finished: Path) -> dict[str, Any]:
    return load_file(finished / "last.ckpt")


REQUESTS = {
    "seed=5": "seed",
    "data.batch_size=2": "data.batch_size",
    "trainer.max_epochs=1": "trainer.max_epochs",
    "trainer.max_steps=1": "trainer.max_steps",
    "model.network.num_feat=4": "model.network.num_feat",
    "model.network.num_block=2": "model.network.num_block",
    "optimizer.type=torch.optim.SGD optimizer.lr=0.1": "optimizer.type",
    "optimizer.amsgrad=true": "optimizer.amsgrad",
    "task.type=tasks.DetectionTask": "task.type",
    "run.weights=x.pth": "run.weights",
    "run.folder=elsewhere": "run.folder",
    "schedule.warmup_steps=5000 trainer.max_epochs=3": "schedule.warmup_steps",
    "optimizer.lr=-1": "optimizer.lr",
    "trainer.num_nodes=2 trainer.max_epochs=3": "trainer.num_nodes",
}  # fmt: skip


@pytest.mark.parametrize(("words", "key"), REQUESTS.items())
def test_what_cannot_change_in_a_run_that_goes_on_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, key: str
) -> None:
    for name in ("MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    before = (finished / "last.ckpt").stat().st_mtime_ns, (finished / "config.yaml").read_text()
    assert main(["fit", "--resume", str(finished), *words.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"vistrain: {key}: "), said
    assert before == ((finished / "last.ckpt").stat().st_mtime_ns, (finished / "config.yaml").read_text())
    assert not (finished / ".lock").exists()


def test_a_run_that_is_under_way_is_neither_begun_nor_gone_on_with_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(finished):
        for words in (["--resume", str(finished)], ["-c", BASE, *TINY, f"run.folder={finished}"]):
            assert main(["fit", *words]) == 2
            said = capsys.readouterr().err.splitlines()[-1]
            assert said.startswith(f"vistrain: run.folder: process {os.getpid()} on "), said


def test_a_run_outlives_its_output(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [*TINY, f"data.root={finished.parent / 'data'}", f"run.folder={tmp_path}", "trainer.max_epochs=2"]
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", pipe)
        assert main(["fit", "-c", BASE, *words]) == 0
        monkeypatch.undo()
    one, other = (load_file(folder / "last.ckpt")["state_dict"] for folder in (tmp_path, finished))
    assert all(torch.equal(one[name], other[name]) for name in other)


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def having(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


BATCHES = ("loops", "fit_loop", "epoch_loop.batch_progress")
DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"no {key}": without(key) for key in ("state_dict", "loops", "optimizer_states", "lr_schedulers", "callbacks")},
    **{f"no {key}": without(key) for key in ("epoch", "global_step", "pytorch-lightning_version")},
    **{f"no {key} of ours": without("vistrain", key) for key in ("config", "preprocessing", "version", "progress")},
    "text for a step": having("x", "global_step"),
    "negative step": having(-1, "global_step"),
    "list of weights": having([], "state_dict"),
    "no weights": having({}, "state_dict"),
    "a text among weights": having("x", "state_dict", "model.x"),
    "weights of another name": having({"x": torch.zeros(1)}, "state_dict"),
    "numbers for class names": having({"names": [1], "ids": [1], "name": "contiguous"}, "vistrain", "labels"),
    "names without ids": having({"names": ["a"], "ids": [], "name": "contiguous"}, "vistrain", "labels"),
    "text for labels": having("x", "vistrain", "labels"),
    "no mean": without("vistrain", "preprocessing", "mean"),
    "text for a mean": having("x", "vistrain", "preprocessing", "mean"),
    "NaN for a mean": having((float("nan"),) * 3, "vistrain", "preprocessing", "mean"),
    "zero for a deviation": having((0.0, 1.0, 1.0), "vistrain", "preprocessing", "std"),
    "a crop above 1": having(2.0, "vistrain", "preprocessing", "crop_pct"),
    "an unknown preprocessing": having(1, "vistrain", "preprocessing", "foo"),
    "a list for the config": having([], "vistrain", "config"),
    "no channels": having(0, "vistrain", "channels"),
    "negative epoch": having(-1, "vistrain", "progress", "epoch"),
    "no place in the data": without("vistrain", "progress", "consumed"),
    "no loop": having({}, "loops"),
    "no progress": without(*BATCHES),
    "text for progress": having("x", *BATCHES, "total", "ready"),
    "negative progress": having(-5, *BATCHES, "current", "ready"),
    "no optimizer": having([], "optimizer_states"),
    "a text for an optimizer": having(["x"], "optimizer_states"),
    "two optimizers": having([{}, {}], "optimizer_states"),
    "no groups": having([], "optimizer_states", 0, "param_groups"),
    "numbers that repeat": having([0, 0, 1], "optimizer_states", 0, "param_groups", 0, "params"),
    "memory of nothing": having({10**6: {}}, "optimizer_states", 0, "state"),
    "no schedule": having([], "lr_schedulers"),
    "a schedule of text": having([{"last_epoch": "x"}], "lr_schedulers"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(content: dict[str, Any], damage: Callable[[Any], None]) -> None:
    damaged = copy.deepcopy(content)
    damage(damaged)
    refused(WeightsError, "last.ckpt", check_run, damaged, Path("last.ckpt"))
