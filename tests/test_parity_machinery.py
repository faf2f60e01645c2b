"""The parity count: where fixtures are looked for, and what makes a whole run fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from parity import fixtures

HERE = Path(__file__).parent
TESTS = """
from parity import fixtures

def test_one():
    assert fixtures.load("one.pt") == {}

def test_two():
    assert fixtures.load("two.pt") == {}
"""
EXPECTED = "tests/parity/test_some.py::test_one\ntests/parity/test_some.py::test_two\n"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A small suite beside `shared/parity`, with our conftest; its fixtures are empty dictionaries."""
    parity = tmp_path / "repo" / "tests" / "parity"
    parity.mkdir(parents=True)
    for name in ("conftest.py", "parity/__init__.py", "parity/fixtures.py"):
        shutil.copy(HERE / name, parity.parent / name)
    (parity / "fixtures.py").write_text(
        (parity / "fixtures.py")
        .read_text()
        .replace("torch.load(place / name, weights_only=True)", "{}")
        .replace("import torch", "pass")
    )
    (parity / "test_some.py").write_text(TESTS)
    (parity / "expected.txt").write_text(f"# the list\n{EXPECTED}")
    (tmp_path / "repo" / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = --strict-markers\n")
    return tmp_path


def run(suite: Path, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Exit status and the last lines of pytest."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "VISTRAIN"))} | variables
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=suite / "repo", env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines() + done.stderr.splitlines()


def store(suite: Path, *names: str) -> Path:
    folder = suite / "shared" / "parity"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_all_run(suite: Path) -> None:
    store(suite, "one.pt", "two.pt")
    status, lines = run(suite)
    assert status == 0
    assert lines[-2] == "parity: 2 run, 0 skipped"
    assert "2 passed" in lines[-1]


@pytest.mark.parametrize("chosen", [(), ("-k", "one")])
def test_worker_processes_count_together(suite: Path, chosen: tuple[str, ...]) -> None:
    pytest.importorskip("xdist")
    folder = store(suite, "one.pt", "two.pt")
    status, lines = run(suite, "-n", "2", *chosen)
    assert status == 0
    assert f"parity: {2 - len(chosen) // 2} run, 0 skipped" in lines[-2]
    if not chosen:
        (folder / "two.pt").unlink()
        status, lines = run(suite, "-n", "2", VISTRAIN_PARITY=str(folder))
        assert status == 1
        assert "parity: did not run tests/parity/test_some.py::test_two" in lines


def test_without_fixtures_all_skip_with_their_reason(suite: Path) -> None:
    status, lines = run(suite, "-rs")
    assert status == 0
    assert lines[-2] == "parity: 0 run, 2 skipped"
    assert any("no parity fixtures: set VISTRAIN_PARITY" in line for line in lines)


def test_a_lost_fixture_fails_the_whole_run_but_not_a_chosen_part(suite: Path) -> None:
    folder = store(suite, "one.pt")
    status, lines = run(suite, VISTRAIN_PARITY=str(folder))
    assert status == 1
    assert lines[-3:-1] == [
        "parity: did not run tests/parity/test_some.py::test_two",
        "parity: 1 run, 1 skipped",
    ]
    assert run(suite, "-k", "one")[0] == 0
    assert run(suite, "tests/parity/test_some.py")[0] == 0


def test_a_variable_that_points_nowhere_is_an_error(suite: Path) -> None:
    status, lines = run(suite, VISTRAIN_PARITY=str(suite / "nowhere"))
    assert status == 4
    assert any("is not a folder" in line for line in lines)


def test_a_linked_work_tree_finds_the_main_one(tmp_path: Path) -> None:
    main, linked = tmp_path / "main", tmp_path / "elsewhere" / "linked"
    git_dir = main / ".git" / "worktrees" / "linked"
    git_dir.mkdir(parents=True)
    (git_dir / "commondir").write_text("../..\n")
    linked.mkdir(parents=True)
    (linked / ".git").write_text(f"gitdir: {git_dir}\n")
    assert fixtures.main_work_tree(linked) == main
    assert fixtures.main_work_tree(main) == main
