"""Boundary IoU of class maps: only what lies near a contour counts (Cheng et al. 2021, arXiv 2103.16562, equation 2).

Official code: github.com/bowenc0221/boundary-iou-api; it was not looked at, and its licence is not stated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vistrain.errors import DataError
from vistrain.metrics.mean_iou import IoUResult, MeanIoU
from vistrain.structures import LabelSpace

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Segmentation


def near_contour(classes: np.ndarray, distance: int) -> np.ndarray:
    """Which pixels have one of another class, or the outside of the image, in the square of `distance` around them:
    those that `distance` erosions by 3 x 3 take away from their class's mask.

    Args:
        classes: uint8 or uint16 `[H, W]`.
        distance: pixels.

    Returns:
        bool `[H, W]`.
    """
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    low = cv2.erode(classes, square, borderType=cv2.BORDER_REPLICATE)
    high = cv2.dilate(classes, square, borderType=cv2.BORDER_REPLICATE)
    near = low != high
    for edge in (np.s_[:distance], np.s_[-distance:]):
        near[edge] = near[:, edge] = True
    return near


class BoundaryIoU(MeanIoU):
    """The IoU of the pixels of each class that are near the contours of its mask, in the truth and in the prediction;
    pixels of all images together, averaged over classes.

    What the truth ignores is taken out of the prediction, too, so that contours along it are in both.

    Args:
        labels: of the network.
        share: how near, in shares of the image's diagonal, rounded to at least one pixel.
        ground_truth: see `MeanIoU`.
    """

    families = ("boundary_iou",)

    def __init__(self, labels: LabelSpace, share: float = 0.02, ground_truth: Any = None) -> None:
        super().__init__("boundary_iou", labels)
        self.share = share
        self.protocol = "boundary_iou" if share == 0.02 else f"custom(boundary_iou, share={share:g})"

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Segmentation], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        """One record for each image: `id`, and `classes`: channel -> pixels near contours in both, in the truth, in the
        prediction.

        Raises:
            DataError: a prediction has another size than its truth.
        """
        records, count = [], self.labels.num_classes
        kind = np.uint8 if count < 255 else np.uint16
        for key, prediction, target in zip(ids, predictions, targets, strict=True):
            found, truth = prediction.semantic, target["label_map"].cpu().numpy()
            if found is None or tuple(found.shape) != truth.shape:
                sizes = f"{None if found is None else list(found.shape)}, its truth {list(truth.shape)}"
                raise DataError(str(key), f"the prediction has the size {sizes}")
            ignored = (truth < 0) | (truth >= count)
            maps = [np.where(ignored, count, x).astype(kind) for x in (truth, found.cpu().numpy())]
            distance = max(1, round(self.share * float(np.hypot(*truth.shape))))
            near = [near_contour(x, distance) & ~ignored for x in maps]
            both = near[0] & near[1] & (maps[0] == maps[1])
            pixels = ((maps[0], both), (maps[0], near[0]), (maps[1], near[1]))
            sums = np.stack([np.bincount(x[where], minlength=count)[:count] for x, where in pixels], 1)
            there = np.flatnonzero(sums.any(1))
            records.append({"id": key, "classes": {c: sums[c].tolist() for c in there.tolist()}})
        return records

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`boundary_iou/mIoU`, in 0..1: the mean over the classes that occur.

        Raises:
            DataError: there are no records, or no labelled pixels.
        """
        sums = np.zeros((self.labels.num_classes, 3))
        for record in records:
            for channel, pixels in record["classes"].items():
                sums[int(channel)] += pixels
        union = sums[:, 1] + sums[:, 2] - sums[:, 0]
        if not union.any():
            raise DataError("evaluation", "all pixels of the truth are ignored", "look at it with `vistrain check`")
        with np.errstate(invalid="ignore", divide="ignore"):
            iou, found = sums[:, 0] / union, sums[:, 0] / sums[:, 1]
        names = self.labels.name_of
        rows = [
            {"name": names[c], "IoU": float(iou[c]), "Acc": float(found[c]), "pixels": int(sums[c, 1])} for c in names
        ]
        numbers = {"boundary_iou/mIoU": float(np.nanmean(iou))}
        self.result = IoUResult(numbers, rows, self.protocol, len(records))
        return numbers
