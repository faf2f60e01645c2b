"""Any backbone, ours or timm's, trains a classifier by one word on the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vistrain.cli import main

SMALL = ("resnet18", "convnext_atto", "efficientvit_m0")
LARGE = (
    "cswin_tiny",
    "biformer_tiny",
    "nat_mini",
    "transnext_micro",
    "hornet_tiny_7x7",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
)
CONFIG = """\
base: vistrain:_base_/classification
data: {{type: data.GeneratedPatterns, root: {root}, train_images: 1, val_images: 1, batch_size: 2, workers: 0}}
model:
  backbone: {{name: test_resnet}}
optimizer: {{type: torch.optim.AdamW, lr: 1e-3}}
trainer: {{max_steps: 1, limit_val_batches: 1, accelerator: cpu, log_every_n_steps: 1}}
run: {{folder: {folder}}}
"""


def losses(folder: Path) -> list[float]:
    with open(folder / "metrics.csv", newline="") as file:
        return [float(row["train/loss_class"]) for row in csv.DictReader(file) if row.get("train/loss_class")]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_one_word_swaps_the_backbone(name, tmp_path):
    """Built, trained for a step, evaluated and saved."""
    (tmp_path / "mine.yaml").write_text(CONFIG.format(root=tmp_path / "data", folder=tmp_path / "run"))
    assert main(["fit", "-c", str(tmp_path / "mine.yaml"), f"model.backbone.name={name}"]) == 0
    (loss,) = losses(tmp_path / "run")
    assert 0 < loss < 20
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_a_model_of_one_size_names_it(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(CONFIG.format(root=tmp_path / "data", folder=tmp_path / "run"))
    words = ["fit", "-c", str(tmp_path / "mine.yaml"), "model.backbone.name=maxvit_pico_rw_256"]
    assert main(words) == 2
    assert "maxvit_pico_rw_256 cannot take images of 64x64; it takes 256x256" in capsys.readouterr().err
