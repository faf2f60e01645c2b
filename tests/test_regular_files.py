"""What is opened for reading."""

from __future__ import annotations

import pytest

from vistrain.regular_files import open_regular


@pytest.mark.parametrize("name", ["half_\ud800.png", "null\0.png", "none.png"])
def test_a_name_that_no_file_has_is_no_such_file(name: str) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        open_regular(name)
    assert refused.value.filename == name
