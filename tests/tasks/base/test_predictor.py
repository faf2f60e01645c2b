"""A predictor of any input: what the base does for all, proven with volumes; and which options tasks have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vistrain import run
from vistrain.data.base.transform import EvalTransform
from vistrain.errors import ConfigError, DataError
from vistrain.network import Network
from vistrain.run.predict import predict_files
from vistrain.structures import LabelSpace, Preprocessing
from vistrain.tasks import ClassificationTask, DetectionTask, RestorationTask, Task
from vistrain.tasks.base.inputs import InputFile, find_files
from vistrain.tasks.base.predictor import Predictor


class Brightest(Network):
    """Where a volume is brightest."""

    preprocessing = Preprocessing(size_divisor=4)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {}

    def predict(self, batch: Mapping[str, Any]) -> list[Tensor]:
        self.seen = batch["image"].shape, batch["size"].tolist(), batch["original_size"].tolist()
        return [torch.stack(torch.unravel_index(image[0].argmax(), image.shape[1:])) for image in batch["image"]]


@dataclass(frozen=True)
class Upright(EvalTransform):
    """Turns the first side."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image[::-1])


class VolumePredictor(Predictor[Tensor]):
    """Volumes `[D, H, W, C]` in `.vol.npy` files.

    Args:
        model, device, base: see `Predictor`.
        least: value from which on it counts.
    """

    noun = "volume"

    def __init__(self, model: Network, device: str = "auto", *, least: float = 0.5, **base: Any) -> None:
        super().__init__(model, device, **base)
        self.least = least

    @classmethod
    def find(cls, inputs: Sequence[str | Path], output: Path) -> list[InputFile]:
        return find_files(inputs, (".vol.npy",), cls.noun, exclude=output / cls.pictures)

    def read(self, source: Any) -> np.ndarray:
        if not isinstance(source, str | Path):
            return source
        try:
            return np.load(source)
        except ValueError as error:
            raise DataError(str(source), "damaged volume") from error

    def run(self, inputs: Sequence[np.ndarray]) -> list[Tensor]:
        return self.model.predict(self.batch(inputs))

    def describe(self, image: np.ndarray, result: Tensor) -> dict[str, Any]:
        return {"sides": list(image.shape[:3]), "at": result.tolist()}

    def picture_paths(self, files: Sequence[InputFile], folder: Path) -> list[Path]:
        return [folder / f"{file.name}.txt" for file in files]

    def write_picture(self, file: InputFile, image: np.ndarray, result: Tensor, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(str(result.tolist()))

    def sentence(self, entries: Sequence[Mapping[str, Any]]) -> str:
        return "looked at"


def test_volumes_are_found_read_predicted_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, sides, at in (("a", (5, 6, 7), (0, 2, 3)), ("deep/b", (3, 9, 2), (2, 8, 1))):
        volume = np.zeros((*sides, 1), np.float32)
        volume[at] = 1
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "in" / f"{name}.vol.npy", volume)
    (tmp_path / "in" / "broken.vol.npy").write_bytes(b"nothing")
    (tmp_path / "in" / "other.npy").write_bytes(b"")
    model = Brightest()
    predictor = VolumePredictor(model, "cpu", transform=Upright())
    files = VolumePredictor.find([tmp_path / "in"], tmp_path / "out")
    summary = predict_files(predictor, files, tmp_path / "out", batch_size=3)
    assert model.seen == (torch.Size([2, 1, 8, 12, 8]), [[5, 6, 7], [3, 9, 2]], [[5, 6, 7], [3, 9, 2]])
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["images"] == [
        {"id": "a.vol.npy", "file": "a.vol.npy", "sides": [5, 6, 7], "at": [4, 2, 3]},
        {"id": "deep/b.vol.npy", "file": "deep/b.vol.npy", "sides": [3, 9, 2], "at": [0, 8, 1]},
    ]
    assert summary.failed == [("broken.vol.npy", "damaged volume")]
    assert (tmp_path / "out" / "pictures" / "deep" / "b.vol.npy.txt").read_text() == "[0, 8, 1]"
    assert predictor.predict(np.eye(4, dtype=np.uint8)[None, ..., None]).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="holds no volumes"):
        VolumePredictor.find([tmp_path / "out"], tmp_path / "else")


def test_options_are_what_a_predictor_adds_to_the_base() -> None:
    names = {task: list(task.predictor.options()) for task in (DetectionTask, ClassificationTask, RestorationTask)}
    assert names == {
        DetectionTask: ["threshold", "annotations", "tile", "overlap"],
        ClassificationTask: ["threshold"],
        RestorationTask: ["tile"],
    }
    facts = {"labels": None, "preprocessing": Preprocessing(size_divisor=2).to_dict(), "evaluation": None}
    made = VolumePredictor.from_facts(Brightest(), facts, "cpu", least=0.25, absent=None)
    assert (made.least, made.transform, made.preprocessing.size_divisor) == (0.25, None, 2)
    assert made.labels == LabelSpace((), ())
    with pytest.raises(ConfigError, match=r"--most-of: means nothing .* its options are --least"):
        VolumePredictor.from_facts(Brightest(), facts, "cpu", most_of=1)


def test_the_task_of_a_config_is_asked() -> None:
    assert run.task_class({"task": {"type": "tasks.DetectionTask"}}) is DetectionTask
    for section, message in (({}, "this section is missing"), ({"task": {}}, r"task\.type: is missing")):
        with pytest.raises(ConfigError, match=message):
            run.task_class(section)
    with pytest.raises(ConfigError, match="is not a Task"):
        run.task_class({"task": {"type": "detection.DINO"}})
    assert Task.predictor is Predictor  # which cannot be made: a task without one does not predict
