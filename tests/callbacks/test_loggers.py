"""The section `logger`: built as callbacks are, with a run folder where none is given, and told the composed config."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from vistrain import config, run
from vistrain.callbacks import loggers as loggers_module
from vistrain.callbacks.loggers import make_loggers
from vistrain.config import index
from vistrain.devices import on_meta
from vistrain.errors import ConfigError


class FakeRun:
    """A run of W&B that keeps what it is told."""

    id, name = "abc", "fake"

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.config = arguments, types.SimpleNamespace(update=self.update)
        self.told: dict[str, Any] = {}

    def update(self, params: dict[str, Any], allow_val_change: bool) -> None:
        self.told.update(params)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A W&B that keeps what it is asked; `refusals` are the modes that fail."""
    made: Any = types.ModuleType("wandb")
    made.runs, made.refusals, made.run = [], (), None
    made.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    made.Settings = lambda **settings: types.SimpleNamespace(**settings)
    made.login = lambda verify, prompt: True

    def init(mode: str, **arguments: Any) -> FakeRun:
        if mode in made.refusals:
            raise made.errors.Error("no\nnetwork")
        made.runs.append(FakeRun(mode=mode, **arguments))
        return made.runs[-1]

    made.init = init
    parts: dict[str, dict[str, Any]] = {
        "wandb.sdk": {}, "wandb.sdk.lib": {"RunDisabled": FakeRun}, "wandb.wandb_run": {"Run": FakeRun}
    }  # fmt: skip
    for name, names in parts.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "wandb", made)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return made


def refused(section: Any, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        make_loggers(section, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_tells_wandb_its_composed_config(tmp_path: Path, wandb: Any) -> None:
    words = ["logger.wandb.project=mine", "logger.wandb.tags=[a, b]", "trainer.accelerator=cpu"]
    composed = config.compose(["vistrain:demo/detection"], words)
    with on_meta():
        parts = run.build_parts(config.without_pretrained(composed))
    trainer = run.build_trainer(composed, parts, tmp_path / "my_run")
    (made,) = wandb.runs
    assert made.told == composed
    asked = {key: made.arguments[key] for key in ("mode", "project", "name", "dir", "tags")}
    assert asked == {
        "mode": "offline", "project": "mine", "name": "my_run", "dir": str(tmp_path / "my_run"), "tags": ("a", "b")
    }  # fmt: skip
    assert not {"entity", "group", "notes"} & set(made.arguments)
    run.build_trainer(composed, parts, tmp_path / "my_run")
    run.build_trainer(composed, parts, tmp_path / "other_run")
    ids = [found.arguments["id"] for found in wandb.runs]
    assert ids[0] == ids[1] != ids[2]  # a run that goes on is the same one there
    assert [type(logger).__name__ for logger in trainer.loggers] == ["CSVMetrics", "WandB"]


@pytest.mark.parametrize(
    ("mode", "refusals", "begun"),
    [
        (None, (), "offline"),
        ("online", (), "online"),
        ("online", ("online",), "offline"),
        ("online", ("online", "offline"), "disabled"),
        ("disabled", (), "disabled"),
    ],
)
def test_wandb_begins_a_run_in_the_first_mode_that_works(
    tmp_path: Path, wandb: Any, mode: str | None, refusals: tuple[str, ...], begun: str
) -> None:
    wandb.refusals = refusals
    make_loggers({"wandb": {"mode": mode}}, tmp_path)
    assert [made.arguments["mode"] for made in wandb.runs] == [begun]


def test_only_the_first_process_begins_a_run(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers_module.rank_zero_only, "rank", 1)
    make_loggers("wandb", tmp_path, {"seed": 1})
    assert wandb.runs == []


@pytest.mark.usefixtures("wandb")
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"wandb": {"mode": "sometimes"}}, "logger.wandb.mode: 'sometimes' is not one of"),
        ({"wandb": {"tags": "a"}}, "logger.wandb.tags: 'a' is not a list"),
        ({"tensorboard": {"flush_secs": "1"}}, "logger.tensorboard.flush_secs: '1' is not a whole number"),
        (
            {"mine": {"type": "lightning.pytorch.loggers.CSVLogger", "prefix": 5}},
            "logger.mine.prefix: 5 is not a text",
        ),
        ({"mine": {"type": "torch.nn.Linear"}}, "logger.mine.type: torch.nn.Linear is not a Logger"),
        ({"mine": {"type": "subprocess.Popen"}}, "--allow subprocess if you trust it"),
        ("csv", "metrics.csv is always written"),
        (["wandbb"], "logger.wandbb: no such logger - did you mean 'wandb'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, section: Any, message: str) -> None:
    assert message in refused(section, tmp_path)


def test_a_foreign_logger_writes_into_the_run_folder_unless_told_otherwise(tmp_path: Path) -> None:
    node = {"type": "lightning.pytorch.loggers.CSVLogger"}
    section = {"mine": node, "other": {**node, "save_dir": str(tmp_path / "else"), "name": "x"}}
    _, mine, other = make_loggers(section, tmp_path / "run", {"seed": 1})
    assert mine.save_dir == str(tmp_path / "run")
    assert (other.save_dir, other.name) == (str(tmp_path / "else"), "x")


def test_a_missing_package_is_said_in_one_line(tmp_path: Path) -> None:
    section = {"mlf": {"type": "lightning.pytorch.loggers.MLFlowLogger", "experiment_name": "x"}}
    assert "logger.mlf: MLFlowLogger wants a package that is missing" in refused(section, tmp_path)


def test_names_that_need_no_type_are_those_of_the_index() -> None:
    assert {name: cls.__name__ for name, cls in loggers_module.BY_NAME.items()} == index.LOGGERS
