"""Generated sets: said before they are made, there whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from vistrain.data import GeneratedPanoptic
from vistrain.data.base.generated import whole_folder


def test_what_is_generated_is_said_first_and_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = GeneratedPanoptic(root=str(tmp_path), train_images=2, val_images=1, scale=0.5)
    with caplog.at_level(logging.INFO, logger="vistrain"):
        data.prepare_data()
        data.prepare_data()
    assert caplog.messages == [f"generating 3 images, once, in {data.root}"]
    assert len(list(data.root.glob("*/*.jpg"))) == 3


def test_it_is_said_before_the_first_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vistrain"), whole_folder(tmp_path / "set", 40, "cases") as draft:
        assert caplog.messages == [f"generating 40 cases, once, in {tmp_path / 'set'}"]
        (draft / "a").touch()
    assert (tmp_path / "set/a").is_file()
