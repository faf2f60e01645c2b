"""What is relied on in Linux: mapped memory is given back and read again, other memory is left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from vistrain.internals.pages import FileMemory


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no memory is known to be a file's")
def test_a_mapped_file_is_given_back_and_read_again(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"a": torch.arange(2**16)}, file)
    mapped = torch.load(file, mmap=True)["a"]
    own = torch.arange(2**16)
    memory = FileMemory(file, [mapped.data_ptr()])
    assert memory.give_back() >= mapped.nbytes
    assert torch.equal(mapped, own)
    assert FileMemory(file, [own.data_ptr()]).give_back() == 0
    assert FileMemory(None, [mapped.data_ptr()]).give_back() == 0
