"""Segments and instances over images: colours of their classes, each thing in a shade of its own, with outlines.

The image itself is grey: colours are those of the legend, and what has none is of no class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from vistrain.metrics.panoptic_quality import compact
from vistrain.pictures import class_colours, draw_boxes, fitted, legend, overlaid, shade
from vistrain.predictions import InstanceDetections, PanopticMap, Segmentation
from vistrain.structures import LabelSpace
from vistrain.tasks.base.looks import title_of
from vistrain.tasks.segmentation.pictures import picture

NO_TRUTH = "nothing annotated"


def segment_picture(
    image: np.ndarray,
    segments: np.ndarray,
    classes: Sequence[int],
    labels: LabelSpace,
    opacity: float = 0.55,
    nothing: str = "nothing found",
) -> np.ndarray:
    """An image in grey under its segments, with a legend of their classes below it.

    Args:
        image: uint8 `[H, W, 3]`.
        segments: `[h, w]`; i + 1 is the i-th segment, 0 none.
        classes: channel of each.
        labels: names and colours.
        opacity: of the colours, 0..1.
        nothing: what stands in the legend's place where there is no segment.

    Returns:
        uint8 `[H + legend, W, 3]`.
    """
    colours, names = class_colours(labels), labels.name_of
    things = set(names if labels.things is None else (labels.channel_of[labels.ids[i]] for i in labels.things))
    unknown, own, seen = (128, 128, 128), {}, dict.fromkeys(classes, 0)
    for i, c in enumerate(classes):
        own[i + 1] = shade(colours.get(c, unknown), seen[c]) if c in things else colours.get(c, unknown)
        seen[c] += 1
    height, width = image.shape[:2]
    rows = (2 * np.arange(height) + 1) * segments.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * segments.shape[1] // (2 * width)
    shown = segments[rows[:, None], columns]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    drawn = overlaid(grey, shown, own, opacity)
    edge = np.zeros(shown.shape, bool)
    edge[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edge[1:] |= shown[1:] != shown[:-1]
    drawn[edge] = (255, 255, 255)
    occurring = {classes[i - 1] for i in np.unique(shown).tolist() if i}
    return np.concatenate([drawn, legend(names, colours, [c for c in names if c in occurring], width, nothing)])


def panoptic_segments(found: PanopticMap) -> tuple[np.ndarray, list[int]]:
    """A panoptic map as `segment_picture` takes it."""
    listed = np.array([0, *(segment.id for segment in found.segments)], np.int64)
    return compact(found.ids.cpu().numpy(), listed, ValueError), [segment.label for segment in found.segments]


def instance_segments(masks: Any, labels: Any, size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Masks, the best first, as `segment_picture` takes them: where they overlap, the best is seen.

    Args:
        masks: `[N, H, W]` bool.
        labels: `[N]`.
        size: H, W.
    """
    shown = np.zeros(size, np.int32)
    for number in range(len(masks), 0, -1):
        shown[masks[number - 1].cpu().numpy()] = number
    return shown, labels.tolist()


def segmentation_picture(
    image: np.ndarray, found: Segmentation, labels: LabelSpace, threshold: float, opacity: float = 0.55
) -> np.ndarray:
    """An image under what was found in it: segments, else instances with their boxes, else classes.

    Args:
        image: uint8 `[H, W, 3]`.
        found: of any size.
        labels: names and colours.
        threshold: least score of an instance.
        opacity: of the colours, 0..1.
    """
    if found.panoptic is not None:
        segments, classes = panoptic_segments(found.panoptic)
        return segment_picture(image, segments, classes, labels, opacity=opacity)
    if found.instances is not None:
        good = confident(found.instances, threshold)
        size = (int(good.masks.shape[1]), int(good.masks.shape[2]))
        segments, classes = instance_segments(good.masks, good.labels, size)
        drawn = segment_picture(image, segments, classes, labels, opacity, f"nothing of score >= {threshold:g} found")
        ratio = image.shape[1] / size[1]
        names, colours = labels.name_of, class_colours(labels)
        boxes = good.boxes.cpu() * ratio
        height = image.shape[0]
        drawn[:height] = draw_boxes(drawn[:height], boxes, good.labels.cpu(), good.scores.cpu(), names, colours=colours)
        return drawn
    assert found.semantic is not None
    return picture(image, found.semantic.cpu().numpy(), labels, opacity=opacity)


def confident(found: InstanceDetections, threshold: float) -> InstanceDetections:
    """Instances of at least a score."""
    kept = found.scores >= threshold
    return InstanceDetections(found.boxes[kept], found.scores[kept], found.labels[kept], found.masks[kept])


def truth_and_segments(
    image: np.ndarray,
    batch: Mapping[str, Any],
    index: int,
    found: Segmentation | None,
    labels: LabelSpace,
    side: int,
    threshold: float,
) -> list[tuple[str, np.ndarray]]:
    """A sample under the segments of its truth, and once more under what was found, if it was looked at.

    Args:
        image: of the sample without its padding, uint8 `[H, W, 3]`.
        batch: `id` and, where there is a truth, `target` with `segment_map` and `segment_labels`, or `masks` and
            `labels`.
        index: of the sample in it.
        found: of any size, or None.
        labels: names and colours of the classes.
        side: longest side to show, pixels.
        threshold: least score of an instance.

    Returns:
        Captions and pictures.
    """
    shown, name = fitted(image, side)[0], title_of(batch, index)
    target = batch["target"][index] if index < len(batch["target"]) else {}
    cells = []
    if "segment_map" in target:
        truth = target["segment_map"].cpu().numpy(), target["segment_labels"].tolist()
        cells.append((f"{name}: truth", segment_picture(shown, *truth, labels, nothing=NO_TRUTH)))
    elif "masks" in target:
        truth = instance_segments(target["masks"], target["labels"], tuple(target["masks"].shape[1:]))
        cells.append((name, segment_picture(shown, *truth, labels, nothing=NO_TRUTH)))
    if found is not None:
        cells.append(("prediction", segmentation_picture(shown, found, labels, threshold)))
    return cells or [(name, shown)]
