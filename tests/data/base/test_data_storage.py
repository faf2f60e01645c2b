"""Folders are walked behind links, and each once, whatever circle links make."""

from __future__ import annotations

from pathlib import Path

import pytest

from vistrain.data.base.storage import files_below, walk
from vistrain.data.importing.files import walk as exported
from vistrain.tasks.base.inputs import find_files


@pytest.fixture
def looped(tmp_path: Path) -> Path:
    """`top` with a folder, two links to a folder elsewhere, one to itself and one to what is above it."""
    for name in ("top/b/2.png", "top/1.png", "away/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for link, target in (("self", "../top"), ("a", "b"), ("c", "../away"), ("d", "../away"), ("b/up", "..")):
        (tmp_path / "top" / link).symlink_to(target)
    return tmp_path / "top"


def test_each_folder_is_walked_once_under_its_own_path(looped: Path) -> None:
    assert files_below(looped) == ["1.png", "b/2.png", "c/3.png"]
    assert [path.relative_to(looped).as_posix() for path in exported(looped)] == ["1.png", "b/2.png", "c/3.png"]


def test_predict_finds_each_file_once(looped: Path) -> None:
    wanted = ["1.png", "b/2.png", "c/3.png"]
    assert [file.name for file in find_files([looped], (".png",))] == wanted
    assert [file.name for file in find_files([f"{looped}/**/*.png"], (".png",))] == ["1.png", "b/2.png"]


def test_a_folder_that_cannot_be_read_is_left_out_or_raised(tmp_path: Path) -> None:
    assert list(walk(tmp_path / "none")) == []
    with pytest.raises(FileNotFoundError):
        list(walk(tmp_path / "none", strict=True))
