"""Self-supervised pre-training: images in, a backbone out; losses under fixed masks, pictures and probes on the way."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Subset

from vistrain.classification.probes import LinearProbe, vote
from vistrain.data.base.module import DataModule
from vistrain.data.classification.clips import ClipFolder
from vistrain.data.classification.module import ClassificationData
from vistrain.errors import ConfigError
from vistrain.metrics import Metric, ProbeAccuracy
from vistrain.network import Network
from vistrain.predictions import ClassScores, Reconstruction
from vistrain.pretraining import Pretrainer
from vistrain.structures import Factory
from vistrain.tasks.base.encoded import encoded
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.pretraining.pictures import cells
from vistrain.tasks.pretraining.predictor import ReconstructionPredictor

log = logging.getLogger(__name__)

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of the votes, as DINO has them


class PretrainingTask(Task):
    """Trains networks on images alone, and evaluates what they make of images under fixed masks.

    Args:
        probes: with data that has classes, what each evaluation trains on the frozen features of training images:
            `neighbours` (the 20 nearest vote) and `linear` (logistic regression). Their accuracies are curves.
        probe_images: training images that probes learn from, spread over the set; all, if there are fewer.
        model, optimizer, base: see `Task`.

    Raises:
        ConfigError: a number is not positive.
    """

    predictor = ReconstructionPredictor
    protocols = ("reconstruction", "probes")

    def __init__(
        self,
        model: Network,
        optimizer: Factory[Optimizer],
        *,
        probes: tuple[Literal["neighbours", "linear"], ...] = (),
        probe_images: int = 10000,
        **base: Any,
    ) -> None:
        super().__init__(model, optimizer, **base)
        if probe_images < 1:
            raise ConfigError("task.probe_images", f"{probe_images} is too small", "use 1 or more")
        self.probes, self.probe_images = probes, probe_images
        self._bank: tuple[Tensor, Tensor] | None = None
        self._linear: LinearProbe | None = None

    @property
    def network(self) -> Pretrainer:
        """The network."""
        return cast(Pretrainer, self.model)

    def setup(self, stage: str) -> None:
        """See `Task`."""
        super().setup(stage)
        # Lightning takes teachers, which never learn, for an oversight.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
        data = self.datamodule
        if stage == "fit" and isinstance(data, ClassificationData) and isinstance(self.model, Pretrainer):
            said = self.model.backbone.says_of(*data.train_size)
            if said and self.global_rank == 0:
                log.info("%s", said)

    def refuse_data(self, data: DataModule) -> None:
        """See `Task`: image sizes, masks and probes that cannot be."""
        if self.probes and (not isinstance(data, ClassificationData) or data.multi_label or not data.labels.names):
            problem = f"{type(data).__name__} has not one class for each image"
            raise ConfigError("task.probes", problem, "leave them out, or train on data.ImageFolder")
        if not isinstance(data, ClassificationData | ClipFolder):
            return
        for key, size in data.image_sizes().items():
            if len(size) != len(self.model.measured_size):
                takes = "clips" if len(self.model.measured_size) == 3 else "images"
                problem = f"{type(self.model).__name__} takes {takes}, which {type(data).__name__} does not give"
                raise ConfigError("data.type", problem, "take data.ClipFolder for clips, others for images")
            try:
                self.model.check_size(*size)
            except ConfigError as error:
                where = error.where.replace("data.image_size", f"data.{key}")
                raise ConfigError(where, error.problem, error.remedy) from error

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """Those of the config, which need no ground truth; and the probes'."""
        own = {name: metric for name, metric in super().build_metrics(split).items() if name != "probes"}
        return {**own, "probes": ProbeAccuracy()} if self.probes else own

    # ---------------------------------------------------------------- probes

    def on_validation_epoch_start(self) -> None:
        """Encode the training images, where there are probes."""
        super().on_validation_epoch_start()
        self._encode()

    def on_test_epoch_start(self) -> None:
        """Encode the training images, where there are probes."""
        super().on_test_epoch_start()
        self._encode()

    def teardown(self, stage: str) -> None:
        """Let go of the training images' features, too."""
        super().teardown(stage)
        self._bank, self._linear = None, None

    def _encode(self) -> None:
        if not self.probes or self.trainer.sanity_checking:
            return
        data = cast(ClassificationData, self.datamodule)
        samples = data.plain_train_dataset()
        count = min(len(samples), self.probe_images)
        chosen = Subset(samples, np.linspace(0, len(samples) - 1, count).round().astype(int).tolist())
        features, labels = encoded(data, chosen, self.device, self.network.features)
        self._bank = nn.functional.normalize(features.float(), dim=-1), labels
        if "linear" in self.probes:
            self._linear = LinearProbe(features, labels, data.labels.num_classes)

    def _probed(self, batch: Batch) -> list[dict[str, ClassScores]]:
        assert self._bank is not None
        features, found = self.network.features(batch).float(), dict[str, Tensor]()
        if "neighbours" in self.probes:
            own = nn.functional.normalize(features, dim=-1)
            found["neighbours"] = vote(own, *self._bank, self.datamodule.labels.num_classes, NEIGHBOURS, TEMPERATURE)
        if self._linear is not None:
            found["linear"] = self._linear(features)
        return [{name: ClassScores(rows[i]) for name, rows in found.items()} for i in range(len(features))]

    def _evaluate(self, batch: Batch, split: str) -> dict[str, Any]:
        predictions, records = self.predictions(batch, split), {}
        for name, metric in self.evaluators[split].items():
            given: Sequence[Any] = predictions
            if name == "probes":
                if self._bank is None:
                    continue
                given = self._probed(batch)
            records[name] = metric.update(batch["id"], given, batch["target"])
            self._collected[name].extend(records[name])
        return {"predictions": predictions, "records": records}

    # ---------------------------------------------------------------- pictures

    def draw_sample(
        self, batch: Batch, index: int, prediction: Reconstruction | None, side: int, threshold: float
    ) -> Cells:
        """Masked | reconstructed | original; without a prediction the image alone."""
        image = picture_of(batch, index)
        return [(str(batch["id"][index]), image)] if prediction is None else cells(image, prediction)
