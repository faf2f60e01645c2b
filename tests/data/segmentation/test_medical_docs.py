"""What docs/medical.md shows works as it stands."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from vistrain.cli import main
from vistrain.data.volumes.cases import listed_cases

PAGE = (Path(__file__).parents[3] / "docs" / "medical.md").read_text()


def test_metrics_from_python() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(snippet, {})


def test_ones_own_pictures_with_fields_of_view(tmp_path: Path) -> None:
    """The page's config trains, evaluates and predicts."""
    draw = np.random.default_rng(0)
    view = np.zeros((30, 40), np.uint8)
    view[3:27, 5:36] = 255
    for split in ("train", "val"):
        for folder, name in (("images", ""), ("masks", ""), ("views", "_fov")):
            (tmp_path / "set" / split / folder).mkdir(parents=True)
            for n in range(4):
                vessels = (draw.random((30, 40)) < 0.3).astype(np.uint8) * 255
                picture = {"images": draw.integers(0, 256, (30, 40, 3), np.uint8), "masks": vessels, "views": view}[
                    folder
                ]
                Image.fromarray(picture).save(tmp_path / "set" / split / folder / f"{n}{name}.png")
    (source,) = re.findall(r"```yaml\n# mine.yaml\n(.*?)```", PAGE, re.S)
    config, run = tmp_path / "mine.yaml", tmp_path / "run"
    config.write_text(source.replace("path/to/set", str(tmp_path / "set")))
    few = ["data.size=[32,32]", "data.workers=0", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    assert main(["fit", "-c", str(config), f"run.folder={run}", *few]) == 0
    assert main(["test", "--ckpt", str(run / "best.ckpt")]) == 0
    words = ["--input", str(tmp_path / "set" / "val" / "images"), "--output", str(tmp_path / "o")]
    assert main(["predict", "--ckpt", str(run / "best.ckpt"), *words]) == 0

    written = np.asarray(Image.open(tmp_path / "o" / "pictures" / "masks" / "0.png"))
    assert written.shape == (30, 40)
    assert set(np.unique(written)) <= {0, 255}


def test_ones_own_volumes(tmp_path: Path) -> None:
    """The page's config composes with a plan, and its list of cases is read."""
    (source,) = re.findall(r"```yaml\n# volumes.yaml\n(.*?)```", PAGE, re.S)
    (tmp_path / "volumes.yaml").write_text(source)
    assert main(["fit", "-c", str(tmp_path / "volumes.yaml"), "--print-config"]) == 0
    (lines,) = re.findall(r"\n((?:    [\w,/.]+\n)+)\n`case`", PAGE)
    (tmp_path / "cases.csv").write_text(textwrap.dedent(lines))
    found = listed_cases(tmp_path / "cases.csv", ("ct",)).cases
    facts = [(case.id, case.patient, case.fold) for case in found]
    assert facts == [("a1", "anna", 0), ("a2", "anna", 0), ("b1", "ben", 1)]
