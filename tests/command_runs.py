"""Runs from the command line that tests of tasks begin with, and the tables that they leave."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from vistrain.checkpoints import load_file
from vistrain.cli import main

FILE = "mine.yaml"


def trained_folder(factory: pytest.TempPathFactory, name: str, config: str) -> Path:
    """A new folder with a config, `mine.yaml`, and the run that it makes in it."""
    folder = factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / FILE).write_text(config)
        assert main(["fit", "-c", FILE]) == 0
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its headings."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_resumed_is_undisturbed(half: int, whole: int) -> None:
    """In a trained folder: a run of `half` epochs that goes on to `whole` ends with the bits of the run there."""
    assert main(["fit", "-c", FILE, f"trainer.max_epochs={half}", "run.folder=again"]) == 0
    assert main(["fit", "--resume", "again", f"trainer.max_epochs={whole}"]) == 0
    undisturbed, resumed = (load_file(Path(f) / "last.ckpt")["state_dict"] for f in ("run", "again"))
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())
