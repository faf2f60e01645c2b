"""Boxes on samples, truth beside prediction; boxes in the colour of their fate, and precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistrain.layers.packed_masks import PackedMasks
from vistrain.pictures import class_colours, draw_boxes, draw_masks, fitted
from vistrain.pictures.charts import GROUND, PALETTE, new_figure, save_figure
from vistrain.pictures.text import readable
from vistrain.predictions import Detections, InstanceDetections
from vistrain.structures import LabelSpace
from vistrain.tasks.base.looks import title_of

MOST_CURVES = 10  # classes that are drawn in colour
# What became of a box -> its colour; anything else is grey
FATES = {
    "right": (60, 190, 90),
    "class": (255, 150, 30),
    "location": (60, 140, 255),
    "both": (180, 100, 255),
    "duplicate": (60, 210, 210),
    "background": (235, 60, 60),
    "missed": (235, 60, 60),
}


def truth_and_prediction(
    image: np.ndarray,
    batch: Mapping[str, Any],
    index: int,
    found: Detections | None,
    labels: LabelSpace | None,
    side: int,
    threshold: float,
) -> list[tuple[str, np.ndarray]]:
    """A sample with its boxes and masks, and once more with those that were found, if it was looked at.

    Args:
        image: of the sample without its padding, uint8 `[H, W, 3]`.
        batch: `size`, `original_size`, `id` and, where there is a truth, `target`.
        index: of the sample in it.
        found: boxes in pixels of the original image, or None.
        labels: names and colours of the classes.
        side: longest side to show, pixels.
        threshold: least score that is drawn.

    Returns:
        Captions and pictures.
    """
    style: dict[str, Any] = {} if labels is None else {"names": labels.name_of, "colours": class_colours(labels)}
    shown, scale = fitted(image, side)
    target = batch["target"][index] if index < len(batch["target"]) else {}
    boxes, classes = target.get("boxes", torch.zeros(0, 4)), target.get("labels", torch.zeros(0))
    truth = draw_boxes(
        _masked(shown, target.get("masks"), classes, style), _array(boxes) * scale, _array(classes), **style
    )
    name = title_of(batch, index)
    if found is None:
        return [(name, truth)]
    ratio = _array(batch["size"][index] / batch["original_size"][index])  # of height and width
    inside, scores = _array(found.boxes) * np.tile(ratio[::-1], 2) * scale, _array(found.scores)
    if isinstance(found, InstanceDetections):
        best = found.kept(found.scores >= threshold)
        shown = _masked(shown, best.masks, best.labels, style)
    drawn = draw_boxes(shown, inside, _array(found.labels), scores, threshold=threshold, **style)
    above = int((scores >= threshold).sum())
    return [(f"{name}: truth", truth), (f"prediction: {above} of {len(scores)} >= {threshold:g}", drawn)]


def precision_recall(
    precision: np.ndarray, thresholds: Sequence[float], names: Sequence[str], png: str | Path, iou: float = 0.5
) -> Path:
    """Draw precision over recall: left the mean over classes at each IoU, right each class at one IoU.

    Of more than ten classes the five best and the five worst are coloured, and the others thin.

    Args:
        precision: `[T, K, R]` in 0..1 at R recalls spread evenly over 0..1; NaN for classes without objects.
        thresholds: T IoUs.
        names: K class names.
        png: written whole or not at all.
        iou: of the right panel; the nearest of the thresholds is taken.

    Raises:
        DataError: the picture cannot be written.
    """
    precision, names = np.asarray(precision, dtype=np.float64), list(map(readable, names))
    recall = np.linspace(0, 1, precision.shape[-1])
    there = np.flatnonzero(~np.isnan(precision).any((0, 2)))
    figure, (left, right) = new_figure(11.2, 4.8, 1, 2)
    for i, threshold in enumerate(thresholds):
        if len(there):
            mean = precision[i, there].mean(0)
            shade = PALETTE[i % len(PALETTE)]
            left.plot(recall, mean, color=shade, linewidth=1.4, label=f"IoU {threshold:.2f}: AP {mean.mean():.3f}")
    at = int(np.argmin(np.abs(np.asarray(thresholds) - iou)))
    ap = precision[at].mean(-1)
    order = there[np.argsort(-ap[there], kind="stable")]
    half = MOST_CURVES // 2
    coloured = list(order) if len(order) <= MOST_CURVES else [*order[:half], *order[-half:]]
    for k in order:
        if k not in coloured:
            right.plot(recall, precision[at, k], color=GROUND, linewidth=0.4, alpha=0.5)
    for i, k in enumerate(coloured):
        shade = PALETTE[i % len(PALETTE)]
        right.plot(recall, precision[at, k], color=shade, linewidth=1.4, label=f"{names[k]}: AP {ap[k]:.3f}")
    right.set_title(f"classes at IoU {thresholds[at]:.2f}", fontsize=11, loc="left")
    left.set_title("mean over classes", fontsize=11, loc="left")
    for place in (left, right):
        place.set_xlabel("recall")
        place.set_ylabel("precision")
        place.set_xlim(0, 1)
        place.set_ylim(0, 1.02)
        if len(there):
            place.legend(fontsize=7, frameon=False, loc="lower left")
    return save_figure(figure, png, names)


def judged_boxes(
    image: np.ndarray,
    boxes: Any,
    classes: Sequence[str],
    fates: Sequence[str],
    scores: Any = None,
) -> np.ndarray:
    """A copy of the image with boxes in the colour of what became of them, which the labels say unless it is `right`.

    Args:
        image: uint8 `[H, W, 3]`.
        boxes: `[N, 4]` (x1, y1, x2, y2) in pixels of `image`.
        classes: N class names.
        fates: N of `right`, `class`, `location`, `both`, `duplicate`, `background`, `missed`, or anything else.
        scores: `[N]` in 0..1, or None.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: see `draw_boxes`.
    """
    texts = [name if fate == "right" else f"{name}: {fate}" for name, fate in zip(classes, fates, strict=True)]
    colours = {i: FATES.get(fate, (150, 150, 150)) for i, fate in enumerate(fates)}
    return draw_boxes(image, boxes, np.arange(len(texts)), scores, dict(enumerate(texts)), colours=colours)


def _masked(image: np.ndarray, masks: Any, labels: Tensor, style: Mapping[str, Any]) -> np.ndarray:
    """The image under masks `[N, H, W]` bool, or packed, of whatever size; as it is without any."""
    if masks is None:
        return image
    packed = masks if isinstance(masks, PackedMasks) else PackedMasks.of_tensor(masks)
    return draw_masks(image, packed, labels.tolist(), style.get("colours", {}))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
