"""Generated sets: there as a whole or not at all, and nothing is left of those that were killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vistrain.data.base.generated import whole_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from vistrain.data.base.generated import whole_folder
with whole_folder(Path(sys.argv[1]), 1) as draft:
    (draft / "half.png").write_bytes(b"")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_draft_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".set-")
    assert [path.name for path in left.iterdir()] == ["half.png"]
    with whole_folder(folder, 1) as draft:
        assert not left.exists()
        with whole_folder(tmp_path / "other", 1):
            pass
        assert draft.is_dir()  # another set, and a process that lives
        (draft / "whole.png").write_bytes(b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]
    assert os.listdir(folder) == ["whole.png"]


def test_what_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "set", 1):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
