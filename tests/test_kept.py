"""A checkpoint and a config that an older version wrote still load, and give the numbers that they gave then.

In `tests/kept`, for each task: `TASK.ckpt` and `TASK.yaml`, the last checkpoint and the composed config of a run; and
`numbers.json`, what the version that wrote them computed. Nobody writes them anew: if a test here fails, checkpoints
that users have fail as well. Another version's are kept beside them, under names of their own.

How they were made, with version 0.1.0 before its rooms were arranged by task: `vistrain fit` of the demos' configs with
the changes that the kept configs show, on one thread of a processor; of `last.ckpt` were kept `epoch`, `global_step`,
`pytorch-lightning_version`, `state_dict` (the average) and `vistrain`, which is all but what only a resumed run reads.
The configs write out some types whose defaults would do, among them classes that have other names since. The numbers
are what the functions below compare, from the same calls; `picture.png` is drawn, 64 x 48 pixels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vistrain
from vistrain import config, run
from vistrain.devices import on_meta

KEPT = Path(__file__).parent / "kept"
NUMBERS: dict[str, dict[str, Any]] = json.loads((KEPT / "numbers.json").read_text())
TASKS = sorted(NUMBERS)
STEP = slice(8, None, 24)  # of the kept pixels, in rows and columns


def near(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_kept_checkpoint_predicts_as_it_did(task: str) -> None:
    found = vistrain.load(KEPT / f"{task}.ckpt", device="cpu").predict(KEPT / "picture.png")
    expected = NUMBERS[task]["predicted"]
    if task == "restoration":
        assert list(found.shape) == expected["shape"]
        np.testing.assert_allclose(found[STEP, STEP].astype(int), expected["pixels"], atol=1)
    elif task == "classification":
        assert found.scores.tolist() == near(expected["scores"])
    else:
        count = len(expected["labels"])
        assert found.labels[:count].tolist() == expected["labels"]
        assert found.scores[:count].tolist() == near(expected["scores"])
        assert found.boxes[:count].numpy() == near(np.array(expected["boxes"]))


@pytest.mark.parametrize("task", TASKS)
def test_a_kept_checkpoint_evaluates_as_it_did(task: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(KEPT / f"{task}.ckpt", tmp_path))  # an evaluation writes beside the checkpoint
    found = run.test(checkpoint=path, overrides=[f"data.root={tmp_path / 'data'}", "data.train_images=1"])
    expected = NUMBERS[task]["numbers"]
    assert {name: found[name] for name in expected} == near(expected)


@pytest.mark.parametrize("task", TASKS)
def test_a_kept_config_builds_what_its_checkpoint_holds(task: str) -> None:
    composed = config.compose([KEPT / f"{task}.yaml"])
    with on_meta():
        built = run.build_parts(composed).model.state_dict()
    kept = run.load_checkpoint(KEPT / f"{task}.ckpt")["state_dict"]
    assert sum(tensor.numel() for tensor in built.values()) == sum(tensor.numel() for tensor in kept.values())
    assert len(built) == len(kept)
