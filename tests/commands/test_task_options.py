"""Options that belong to tasks: what the help shows, whom they go to, and what is refused."""

from __future__ import annotations

import sys

import pytest

from vistrain.cli import main
from vistrain.commands import evaluate, task_options
from vistrain.config import index
from vistrain.errors import ConfigError
from vistrain.tasks.base.options import checked, keyword_hints

KNOWN = {
    "tasks.Count": {
        "path": "vistrain.tasks.counting.task.Count", "kind": "task", "parameters": {},
        "predict": {"threshold": {"hint": "float", "default": 0.3, "doc": "least score"}},
        "evaluate": {
            "annotations": {"hint": "Path | None", "default": None, "doc": "the truth"},
            "files": {"hint": "Sequence[str | Path]", "default": [], "doc": "more of it"},
        },
    },
    "tasks.CountTwice": {
        "path": "vistrain.tasks.counting.task.CountTwice", "kind": "task", "parameters": {},
        "predict": {"threshold": {"hint": "float", "default": 0.3, "doc": "least score"}},
        "evaluate": {"annotations": {"hint": "Path | None", "default": None, "doc": "the truth"}},
    },
    "tasks.Measure": {
        "path": "vistrain.tasks.measuring.task.Measure", "kind": "task", "parameters": {},
        "predict": {
            "threshold": {"hint": "float", "default": 0.5, "doc": "least share, 100 % of it at most"},
            "tile_side": {"hint": "int | None", "default": None, "doc": "side of tiles"},
        },
        "evaluate": {"truth": {"hint": "Path | None", "default": None, "doc": "true images"}},
    },
    "tasks.Guess": {"path": "vistrain.tasks.guessing.task.Guess", "kind": "task", "parameters": {}, "predict": {}},
    "data.Rulers": {"path": "vistrain.data.measuring.module.Rulers", "kind": "dataset", "parameters": {}},
}  # fmt: skip


@pytest.fixture
def known(monkeypatch):
    """An index of made-up tasks."""
    monkeypatch.setattr(index, "load", lambda section: KNOWN if section == "classes" else {})


def test_help_says_which_tasks_take_an_option(known, capsys):
    assert main(["predict", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "--threshold THRESHOLD counting: least score (default: 0.3); "
        "measuring: least share, 100 % of it at most (default: 0.5)" in said
    )
    assert "--tile-side TILE_SIDE measuring: side of tiles" in said
    assert main(["evaluate", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--files PATH [PATH ...] counting: more of it" in said
    assert "--truth PATH measuring: true images" in said


def test_the_shipped_tasks_options_are_shown(capsys):
    assert main(["predict", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--threshold" in said
    assert "--tile" in said
    assert main(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("annotations", "images", "analysis", "truth", "protocol", "scale", "color", "lpips"):
        assert f"--{option} " in said


def test_values_are_yaml_where_their_hint_is_no_text(known):
    from vistrain.cli import parse

    words = ["predict", "--ckpt", "a", "--input", "b", "--output", "c", "--threshold", "1e-1", "--tile-side", "null"]
    assert task_options.values(parse(words), "predict") == {"threshold": 0.1, "tile_side": None}
    words = ["evaluate", "p.json", "--annotations", "2017", "--files", "1", "2"]
    assert task_options.values(parse(words), "evaluate") == {
        "annotations": "2017", "files": ["1", "2"], "truth": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"annotations": "a"}, "tasks.Count"),
        ({"annotations": "a", "files": ["b"]}, "tasks.Count"),
        ({"truth": "a"}, "tasks.Measure"),
        ({}, "no truth to compare with - give the data's --config FILE, or options: counting takes --annotations, "),
        (
            {"annotations": "a", "truth": "b"},
            "--truth: is for measuring alone - leave out --annotations: counting",
        ),
        ({"depth": 1}, "--depth: is of no task known here - name it by --config FILE"),
    ],
)
def test_the_task_is_the_one_that_takes_all_options(known, given, expected):
    if expected.startswith("tasks."):
        assert evaluate._task_for(given) == expected
    else:
        with pytest.raises(ConfigError) as caught:
            evaluate._task_for(given)
        assert expected in str(caught.value)


def test_the_task_of_a_config_or_of_its_data(known):
    assert evaluate._task_of({"task": {"type": "mine.Task"}, "data": {"type": "data.Rulers"}}) == "mine.Task"
    assert evaluate._task_of({"data": {"type": "data.Rulers"}}) == "tasks.Measure"
    with pytest.raises(ConfigError, match=r"task\.type: is missing"):
        evaluate._task_of({"data": {"type": "mine.Data"}})


def test_foreign_options_are_taken_out_of_the_words():
    words = ["--depth", "3", "p.json", "--config", "a.yaml", "--near-plane=[1, 2]", "--allow", "mine"]
    rest, found = task_options.take_foreign(words, ["--config", "--allow"])
    assert rest == ["p.json", "--config", "a.yaml", "--allow", "mine"]
    assert found == {"depth": "3", "near_plane": "[1, 2]"}
    with pytest.raises(ConfigError, match="--depth: needs a value"):
        task_options.take_foreign(["p.json", "--depth"], [])


def test_options_are_checked_by_the_signature():
    def function(predictions, data, *, scale: int = 1, paths: tuple[str, ...] = ()):
        """Takes two options."""

    hints = keyword_hints(function)
    assert checked({"scale": 2, "paths": ["a"]}, hints) == {"scale": 2, "paths": ("a",)}
    with pytest.raises(ConfigError, match="--scale: 'x' is not a"):
        checked({"scale": "x"}, hints)
    with pytest.raises(ConfigError, match="--tile: means nothing for the task of this network - its options are --sc"):
        checked({"tile": 1}, hints)


FOREIGN = '''

from vistrain.data import GeneratedPatterns
from vistrain.tasks import Task


class Depth(Task):
    """A task of another package."""

    @classmethod
    def evaluate_file(cls, predictions, data, *, near: float = 0.0, names: tuple[str, ...] = ()):
        """Says what it was given."""
        return f"{predictions} {type(data).__name__} {near} {names}"
'''
CONFIG = "task: {type: foreign_task.Depth}\ndata: {type: data.GeneratedPatterns}\n"


def test_a_task_of_an_allowed_package_has_its_own_options(tmp_path, monkeypatch, capsys):
    (tmp_path / "foreign_task.py").write_text(FOREIGN)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # --allow adds the working directory

    def evaluated(*words: str) -> tuple[int, str, str]:
        code = main(["evaluate", *words, "-c", "mine.yaml"])
        return code, *capsys.readouterr()

    made = evaluated("--near", "0.5", "p.json", "--names=[a, b]", "--allow", "foreign_task")
    assert made == (0, "p.json GeneratedPatterns 0.5 ('a', 'b')\n", "")
    code, _, complaint = evaluated("p.json", "--far", "1", "--allow", "foreign_task")
    assert code == 2
    assert "--far: means nothing for the task of this network - its options are --near, --names" in complaint
    code, _, complaint = evaluated("p.json", "--near", "0.5")
    assert code == 2
    assert "--near: evaluate does not take it" in complaint
