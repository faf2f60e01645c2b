"""Classification: an image in, its class or classes out; also by its nearest neighbours among the training images."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vistrain.classification import Classifier
from vistrain.classification.probes import vote
from vistrain.data.base.module import DataModule
from vistrain.data.classification.module import ClassificationData
from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.pictures import confusion
from vistrain.predictions import ClassScores
from vistrain.structures import Factory, LabelSpace
from vistrain.tasks.base.encoded import encoded
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.classification.predictor import ClassificationPredictor
from vistrain.writing import whole_file

MOST_CLASSES = 40  # in the picture of confusions


class ClassificationTask(Task):
    """Trains and evaluates a classifier.

    Args: see `Task`.
    """

    predictor = ClassificationPredictor
    protocols = ("accuracy", "multi_label")

    def setup(self, stage: str) -> None:
        """See `Task`."""
        super().setup(stage)
        # Lightning takes what is frozen on purpose for an oversight.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")

    def refuse_data(self, data: DataModule) -> None:
        """See `Task`: an image size that the network cannot take."""
        if not isinstance(data, ClassificationData):
            return
        for key, size in data.image_sizes().items():
            try:
                self.model.check_size(*size)
            except ConfigError as error:
                raise ConfigError(f"data.{key}", error.problem, error.remedy) from error

    def draw_sample(
        self, batch: Batch, index: int, prediction: ClassScores | None, side: int, threshold: float
    ) -> Cells:
        """The image with its classes above it, or with what was found; of many labels those of at least 0.5."""
        names = self._labels.name_of
        truth = batch["target"][index]["labels"]
        caption = told = ", ".join(names[label] for label in truth) or "-"
        if prediction is not None and prediction.multi_label:
            found = (prediction.scores >= 0.5).nonzero()[:, 0].tolist()
            caption = f"{', '.join(names[k] for k in found) or '-'} (truth: {told})"
        elif prediction is not None:
            best = int(prediction.scores.argmax())
            score = f"{names[best]} {float(prediction.scores[best]):.2f}"
            caption = score if best in truth else f"{score}, truth: {told}"
        return [(caption, picture_of(batch, index))]

    def write_predictions(self, path: Path) -> None:
        """Write what the latest evaluation recorded of each image, and beside it `per_class.json` and `confusion.png`;
        on rank 0, which has the records."""
        names = self._labels.name_of
        for records in list(self.records.values())[:1]:
            rows = [json.dumps({**_plain(row), "name": _named(row["target"], names)}) for row in records]
            with whole_file(path) as partial:
                partial.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
        for metric in [m for metrics in self.evaluators.values() for m in metrics.values()][:1]:
            result: Any = metric.result
            if result is None:
                return
            content = {"protocol": result.protocol, "numbers": result.numbers, "classes": result.per_class}
            with whole_file(path.with_name("per_class.json")) as partial:
                partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if result.confusion.size:
                chosen = most_confused(result.confusion, MOST_CLASSES)
                of = (
                    f", the {len(chosen)} most confused of {len(result.names)}"
                    if len(chosen) < len(result.names)
                    else ""
                )
                title = f"{100 * result.numbers['cls/top1']:.1f} % right{of}"
                shown = [result.names[k] for k in chosen]
                confusion(result.confusion[np.ix_(chosen, chosen)], shown, path.with_name("confusion.png"), title)

    @property
    def _labels(self) -> LabelSpace:
        return cast(LabelSpace, self.model.labels)


class NeighbourTask(ClassificationTask):
    """Evaluates frozen features by the classes of their nearest training images; `vistrain test` is enough.

    The protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4), as DINO uses it: cosine similarities of the
    `neighbours` nearest training images vote, each with weight exp(similarity / temperature). Training images are
    seen under the evaluation crop; every process encodes all of them.

    Args:
        neighbours: how many vote.
        temperature: of the votes.
        model, optimizer, base: see `Task`.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        model: Network,
        optimizer: Factory[Optimizer],
        *,
        neighbours: int = 20,
        temperature: float = 0.07,
        **base: Any,
    ) -> None:
        super().__init__(model, optimizer, **base)
        for name, value in (("neighbours", neighbours), ("temperature", temperature)):
            if value <= 0:
                raise ConfigError(f"task.{name}", f"{value} is not positive")
        self.neighbours, self.temperature = neighbours, temperature
        self._bank: tuple[Tensor, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Refuse data whose images have several classes, beside what the base refuses."""
        if self._network.multi_label:
            raise ConfigError("model.multi_label", "neighbours vote for one class per image", "set it to false")
        super().setup(stage)

    def on_test_epoch_start(self) -> None:
        """Encode the training images."""
        super().on_test_epoch_start()
        self._bank = self._encode()

    def on_validation_epoch_start(self) -> None:
        """Encode the training images."""
        super().on_validation_epoch_start()
        self._bank = self._encode()

    def teardown(self, stage: str) -> None:
        """Let go of the training images' features, too."""
        super().teardown(stage)
        self._bank = None

    def predictions(self, batch: Batch, split: str) -> list[Any]:
        """What the neighbours of each image vote for, `ClassScores`."""
        assert self._bank is not None
        features, classes = self._features(batch), self._labels.num_classes
        return [ClassScores(row) for row in vote(features, *self._bank, classes, self.neighbours, self.temperature)]

    @torch.no_grad()
    def _encode(self) -> tuple[Tensor, Tensor]:
        data = cast(ClassificationData, self.datamodule)
        return encoded(data, data.plain_train_dataset(), self.device, self._features)

    def _features(self, batch: Batch) -> Tensor:
        return nn.functional.normalize(self._network.features(batch).float(), dim=-1)

    @property
    def _network(self) -> Classifier:
        return cast(Classifier, self.model)


def most_confused(counts: np.ndarray, most: int) -> list[int]:
    """The classes of a confusion matrix `[K, K]` that are mistaken for others, or others for them, most often."""
    if len(counts) <= most:
        return list(range(len(counts)))
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")
    return sorted(order[:most].tolist())


def _plain(row: Any) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for key, value in row.items()}


def _named(target: int | Sequence[int], names: dict[int, str]) -> str | list[str]:
    return names[target] if isinstance(target, int) else [names[t] for t in target]
