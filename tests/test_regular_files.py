"""What is opened for reading."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vistrain.checkpoints import save_durably
from vistrain.errors import DataError, WeightsError
from vistrain.regular_files import open_regular
from vistrain.writing import whole_file


@pytest.mark.parametrize("name", ["half_\ud800.png", "null\0.png", "none.png"])
def test_a_name_that_no_file_has_is_no_such_file(name: str) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        open_regular(name)
    assert refused.value.filename == name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(DataError, match=r"pipe: cannot be written \(it is a pipe, not a plain file"),
        whole_file(tmp_path / "pipe"),
    ):
        raise AssertionError("nothing is written")
    with pytest.raises(WeightsError, match=r"could not be saved \(it is a pipe, not a plain file"):
        save_durably({}, tmp_path / "pipe")
    with pytest.raises(WeightsError, match=r"could not be saved \(Is a directory"):
        save_durably({}, tmp_path / "folder")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with whole_file(tmp_path / "new") as partial:
        partial.write_text("a")
    assert (tmp_path / "new").read_text() == "a"
