"""What cannot be of a config is refused before its data are generated or prepared, whatever the task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from vistrain.config import compose
from vistrain.errors import ConfigError
from vistrain.run import fit
from vistrain.run.parts import build_parts, data_of

# Of each demo something that is refused when its parts are built, last of all by the task.
DEMOS = {
    "classification": "metrics=[coco_box]",
    "detection": "metrics=[accuracy]",
    "instances": "metrics=[accuracy]",
    "lanes": "metrics=[accuracy]",
    "panoptic": "metrics=[accuracy]",
    "phantom": "metrics=[accuracy]",
    "pretraining": "metrics=[accuracy]",
    "restoration": "optimizer.groups.layer_decay=2.0",
    "segmentation": "metrics=[accuracy]",
}


@pytest.mark.parametrize("demo", DEMOS)
def test_nothing_is_written_for_a_config_that_is_refused(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    config = compose([f"vistrain:demo/{demo}"], [DEMOS[demo], f"data.root={tmp_path}"])
    assert data_of(config).unwritten
    with pytest.raises(ConfigError, match=DEMOS[demo].partition("=")[0].rpartition(".")[0] or "metrics"):
        build_parts(config, stage="fit")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_a_later_stage_is_refused(tmp_path: Path) -> None:
    changes = [f"data.root={tmp_path / 'data'}", f"run.folder={tmp_path / 'run'}", "stages=[{}, {metrics: [coco_box]}]"]
    with pytest.raises(ConfigError, match=r"^stages\[1\]: metrics: 'coco_box' does not measure"):
        fit(compose(["vistrain:demo/classification"], changes))
    assert not (tmp_path / "data").exists()


def test_a_network_starts_alike_whether_its_data_were_there(tmp_path: Path) -> None:
    changes = [f"data.root={tmp_path}", "data.train_images=1", "data.val_images=1"]
    config, found = compose(["vistrain:demo/classification"], changes), []
    for there in (False, True):
        assert data_of(config).unwritten is not there
        seed_everything(0, verbose=False)
        found.append(build_parts(config, stage="fit").model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
