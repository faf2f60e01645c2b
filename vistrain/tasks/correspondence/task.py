"""Where the pixels of one image are in another: pairs in, disparity or optical flow out."""

from __future__ import annotations

from vistrain.data.base.module import DataModule
from vistrain.data.correspondence.module import MatchingFolders
from vistrain.metrics import DISPLACEMENTS
from vistrain.predictions import Displacement
from vistrain.tasks.base.looks import picture_of, title_of
from vistrain.tasks.base.task import Batch, Cells, Task
from vistrain.tasks.correspondence.pictures import cells
from vistrain.tasks.correspondence.predictor import MatchingPredictor


class CorrespondenceTask(Task):
    """Trains and evaluates networks that find the pixels of one image in another.

    Args:
        base: see `Task`.
    """

    predictor = MatchingPredictor
    protocols = DISPLACEMENTS

    def refuse_data(self, data: DataModule) -> None:
        """See `Task`: windows of sides that the network is not trained on."""
        if isinstance(data, MatchingFolders) and data.crop is not None:
            self.model.check_size(*data.crop)

    def draw_sample(
        self, batch: Batch, index: int, prediction: Displacement | None, side: int, threshold: float
    ) -> Cells:
        """Both images, what was found, the truth, and the distance."""
        second = {**batch, "image": batch["views"][0]}
        (truth,) = (
            batch["target"][index][name].cpu().numpy() for name in DISPLACEMENTS if name in batch["target"][index]
        )
        found = None if prediction is None else prediction.field.cpu().numpy()
        return cells(title_of(batch, index), picture_of(batch, index), picture_of(second, index), found, truth)
