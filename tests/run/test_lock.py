"""One run in one folder: who holds it is named, and who has ended holds nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vistrain.errors import ConfigError
from vistrain.run import lock
from vistrain.run.lock import Owner, held


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WATCH", 0.4)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, owner: Owner) -> Path:
    path = folder / lock.NAME
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_a_folder_is_held_by_one_process_and_then_by_none(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    with held(folder):
        assert Owner.read(folder / lock.NAME).process == os.getpid()  # type: ignore[union-attr]
        with (
            pytest.raises(ConfigError, match=rf"run\.folder: process {os.getpid()} on .* writes to .*mine since"),
            held(folder),
        ):
            pass
        assert (folder / lock.NAME).exists()
    assert not (tmp_path / "runs").exists()  # a run that was refused leaves nothing
    folder.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), held(folder):
        _ = 1 / 0
    assert list(folder.iterdir()) == []
    with held(tmp_path / "other" / "mine"):
        (tmp_path / "other" / "note.txt").write_text("somebody else's")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["note.txt"]


def test_the_lock_of_a_process_that_has_ended_is_taken_over(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for owner in (replace(Owner.here(), process=ended.pid), replace(Owner.here(), started=1)):  # a number given again
        path = write(tmp_path, owner)
        with held(tmp_path):
            assert Owner.read(path).started == Owner.here().started  # type: ignore[union-attr]
    for text in ("", "{", "[]", '{"host": 1}'):
        (tmp_path / lock.NAME).write_text(text)
        with held(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"space": 1}])
def test_another_machines_lock_is_watched_for_a_sign_of_life(
    tmp_path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, replace(Owner.here(), **change))  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(lock, "WATCH", 60.0)
        patch.setattr(lock.time, "sleep", lambda seconds: os.utime(path))  # the owner lives while it is watched
        with pytest.raises(ConfigError, match="writes to"), held(tmp_path):
            pass
    with held(tmp_path):
        assert Owner.read(path) is not None


def test_a_lock_shows_that_its_owner_lives(tmp_path: Path) -> None:
    with held(tmp_path):
        before = lock._time_of(tmp_path / lock.NAME)
        until = time.monotonic() + 60
        while lock._time_of(tmp_path / lock.NAME) == before:
            assert time.monotonic() < until


def test_other_processes_of_the_run_do_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with held(tmp_path):
            pass


def test_where_no_lock_can_be_written_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "_take", fails)
    with held(tmp_path):
        assert "nothing keeps another run from this folder" in caplog.text
