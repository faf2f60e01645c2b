"""docs/adding.md, followed to the letter: its files are written, its commands are run, one page after the other."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attention_contract import CHECKS, Case
from PIL import Image

import vistrain
from vistrain import config
from vistrain.attention import paths_of
from vistrain.backbones import TimmModel
from vistrain.cli import main
from vistrain.structures import LabelSpace

PAGE = (Path(__file__).parents[1] / "docs" / "adding.md").read_text()
PAGES = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the page, with all of its files: pages refer to each other's."""
    folder = tmp_path_factory.mktemp("adding")
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").touch()
    for name, source in re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE, re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    write_depths(folder / "depths")
    write_boxes(folder / "boxes")
    return folder


@pytest.fixture(autouse=True)
def working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))  # commands with --allow add the working directory


def write_depths(folder: Path) -> None:
    """Slopes that are darker the farther they are."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            near, far = sorted(draw.uniform(1, 9, 2))
            depth = np.linspace(far, near, 48, dtype=np.float32)[:, None].repeat(64, 1)
            picture = (255 - 25 * depth[..., None] + draw.normal(0, 8, (48, 64, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / split / f"{i}.png")
            np.save(folder / split / f"{i}.npy", depth)


def write_boxes(folder: Path) -> None:
    """Light and dark squares on noise."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 8), ("val", 4)):
        lines = ["file,x1,y1,x2,y2,class"]
        for number in range(count):
            pixels, name = draw.integers(60, 190, (64, 96, 3)).astype(np.uint8), f"{split}_{number}.png"
            for kind, left in (("light", 4), ("dark", 52)):
                x, y = left + int(draw.integers(0, 20)), int(draw.integers(0, 44))
                pixels[y : y + 20, x : x + 20] = 255 if kind == "light" else 0
                lines.append(f"{name},{x},{y},{x + 20},{y + 20},{kind}")
            Image.fromarray(pixels).save(folder / name)
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def follow(page: str) -> None:
    """Run the commands of a page; each must succeed."""
    commands = re.findall(r"^    vistrain (.*)$", PAGES[page], re.M)
    assert commands
    for command in commands:
        assert main(shlex.split(command)) == 0, command


def test_a_detector(capsys: pytest.CaptureFixture[str]) -> None:
    follow("A detector")
    assert {"test/coco/AP", "test/coco/AP50"} <= set(json.loads(Path("runs/grid/test.json").read_text())["numbers"])
    assert Path("runs/grid/eval/test.png").is_file()
    assert "multiply-adds" in capsys.readouterr().out


def test_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("runs/grid").exists():
        follow("A detector")
    follow("A metric")
    assert "test/count/error" in json.loads(Path("runs/grid/test.json").read_text())["numbers"]
    assert "count_error: off by" in capsys.readouterr().out


def test_a_task() -> None:
    """A made-up task fits, tests, predicts, is checked and draws, and no room of the house knows of it."""
    follow("A task")
    run, out = Path("runs/depth"), Path("out")
    rows = (run / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/depth/mae")
    errors = [float(cell) for row in rows[1:] if (cell := row.split(",")[column])]
    assert errors[-1] < errors[0]  # it learns, and the best checkpoint is the one of the least error
    numbers = json.loads((run / "test.json").read_text())["numbers"]
    assert numbers["test/depth/mae"] == pytest.approx(min(errors), rel=1e-5)
    for picture in ("first_batch.png", "curves.png", "eval/epoch_001.png", "eval/test.png"):
        assert Image.open(run / picture).width > 64, picture
    images = json.loads((out / "predictions.json").read_text())["images"]
    assert [image["file"] for image in images] == ["0.png", "1.png", "2.png", "3.png"]
    assert 0 < images[0]["mean_depth"] < 20
    assert Image.open(out / "pictures" / "0.png").size == (32, 24)
    assert json.loads(Path("check/depth/report.json").read_text())["ok"]


def test_a_task_is_checked_for_bad_files(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Path("depths/train/7.png")
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    try:
        assert main(["check", "-c", "depth.yaml", "--allow", "mine"]) == 2
    finally:
        broken.write_bytes(whole)
    assert "7.png" in capsys.readouterr().out


def test_a_data_set() -> None:
    if not Path("runs/grid").exists():
        follow("A detector")
    follow("A data set in one's own format")
    assert json.loads(Path("check/boxes/report.json").read_text())["splits"]["train"]["objects"] == 16
    found = json.loads(Path("found/predictions.json").read_text())
    assert [category["name"] for category in found["categories"]] == ["light", "dark"]
    assert Path("found/pictures/val_1.png").is_file()
    lines = re.search(r"```python\n# mine/tables.py\n(.*?)```", PAGE, re.S).group(1).splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 40


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_an_attention_operator(check, place: Path) -> None:
    sys.path.append(str(place))
    from mine import row_attention

    line = re.search(r"^CASES = \((Case\(.*\)),\)$", PAGE, re.M).group(1)
    check(eval(line, {"Case": Case, **vars(row_attention)}))


def test_an_attention_operator_in_a_host(place: Path) -> None:
    sys.path.append(str(place))
    importlib.import_module("mine.try_row")
    model = config.compose(["row.yaml"])["model"]["backbone"]
    facts = {LabelSpace: LabelSpace(("a", "b"), (0, 1))}
    host = config.build(model, TimmModel, facts, "model.backbone", allow=["mine"])
    assert paths_of(host, torch.device("cpu")) == ["RowAttention x 4: torch"]


@pytest.mark.slow
def test_an_attention_operator_costs_one_file(place: Path, tmp_path: Path) -> None:
    house = tmp_path / "vistrain"
    shutil.copytree(Path(vistrain.__file__).parent, house, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(place / "mine" / "row_attention.py", house / "attention" / "row.py")
    code = """
import timm, vistrain.backbones
from vistrain.attention.choice import names
assert names()["row"] is names()["RowAttention"]
timm.create_model("attention_pyramid_micro", attention=["row", "window", "RowAttention", "softmax"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})


def test_every_page_is_followed() -> None:
    followed = Path(__file__).read_text()
    assert all(f'follow("{page}")' in followed or page == "An attention operator" for page in PAGES)
