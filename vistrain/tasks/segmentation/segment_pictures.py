"""Segments and instances over images: colours of their classes, each thing in a shade of its own, with outlines."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vistrain.metrics.panoptic_quality import compact
from vistrain.pictures import class_colours, draw_boxes, fitted, legend, overlaid
from vistrain.predictions import InstanceDetections, PanopticMap, Segmentation
from vistrain.structures import LabelSpace
from vistrain.tasks.segmentation.pictures import picture

RGB = tuple[int, int, int]


def shade(colour: RGB, number: int) -> RGB:
    """A neighbour of a colour, another for each number."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    turn, change = (number * 0.618) % 1 - 0.5, (number * 0.382) % 1 - 0.5
    near = colorsys.hsv_to_rgb(
        (hue + 0.12 * turn) % 1, min(max(saturation + 0.3 * change, 0.35), 1), min(max(value - 0.4 * change, 0.45), 1)
    )
    return round(near[0] * 255), round(near[1] * 255), round(near[2] * 255)


def segment_picture(
    image: np.ndarray,
    segments: np.ndarray,
    classes: Sequence[int],
    labels: LabelSpace,
    others: Sequence[int] = (),
    opacity: float = 0.55,
) -> np.ndarray:
    """An image under its segments, with a legend of their classes below it.

    Args:
        image: uint8 `[H, W, 3]`.
        segments: `[h, w]`; i + 1 is the i-th segment, 0 none.
        classes: channel of each.
        labels: names and colours.
        others: further channels that the legend names, so that pictures side by side have one.
        opacity: of the colours, 0..1.

    Returns:
        uint8 `[H + legend, W, 3]`.
    """
    colours, names = class_colours(labels), labels.name_of
    things = set(names if labels.things is None else (labels.channel_of[labels.ids[i]] for i in labels.things))
    grey: RGB = (128, 128, 128)
    own = {
        i + 1: shade(colours.get(c, grey), i) if c in things else colours.get(c, grey) for i, c in enumerate(classes)
    }
    height, width = image.shape[:2]
    rows = (2 * np.arange(height) + 1) * segments.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * segments.shape[1] // (2 * width)
    shown = segments[rows[:, None], columns]
    drawn = overlaid(image, shown, own, opacity)
    edge = np.zeros(shown.shape, bool)
    edge[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edge[1:] |= shown[1:] != shown[:-1]
    drawn[edge] = (255, 255, 255)
    occurring = {*(classes[i - 1] for i in np.unique(shown).tolist() if i), *others}
    return np.concatenate([drawn, legend(names, colours, [c for c in names if c in occurring], width)])


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
        found: in the image's size or larger.
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
        drawn = segment_picture(image, *instance_segments(good.masks, good.labels, size), labels, opacity=opacity)
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
    shown, name = fitted(image, side)[0], str(batch["id"][index])
    target = batch["target"][index] if index < len(batch["target"]) else {}
    cells = []
    if "segment_map" in target:
        truth = target["segment_map"].cpu().numpy(), target["segment_labels"].tolist()
        cells.append((f"{name}: truth", segment_picture(shown, *truth, labels)))
    elif "masks" in target:
        truth = instance_segments(target["masks"], target["labels"], tuple(target["masks"].shape[1:]))
        cells.append((name, segment_picture(shown, *truth, labels)))
    if found is not None:
        cells.append(("prediction", segmentation_picture(shown, found, labels, threshold)))
    return cells or [(name, shown)]
