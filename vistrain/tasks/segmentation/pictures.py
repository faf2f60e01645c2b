"""Truth beside prediction, as colours over the image with one legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vistrain.pictures import class_colours, fitted, legend, overlaid
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace
from vistrain.tasks.base.looks import title_of


def truth_and_prediction(
    image: np.ndarray,
    batch: Mapping[str, Any],
    index: int,
    found: Segmentation | None,
    labels: LabelSpace,
    side: int,
) -> list[tuple[str, np.ndarray]]:
    """A sample under the colours of its truth, and once more under those of what was found, if it was looked at; below
    each, what occurs in any of them.

    Args:
        image: of the sample without its padding, uint8 `[H, W, 3]`.
        batch: `id` and, where there is a truth, `target` with `label_map`, of any size.
        index: of the sample in it.
        found: with `semantic`, of any size, or None.
        labels: names and colours of the classes.
        side: longest side to show, pixels.

    Returns:
        Captions and pictures.
    """
    shown, name = fitted(image, side)[0], title_of(batch, index)
    maps: dict[str, np.ndarray] = {}
    target = batch["target"][index] if index < len(batch["target"]) else {}
    if "label_map" in target:
        maps[f"{name}: truth" if found is not None else name] = target["label_map"].cpu().numpy()
    if found is not None and found.semantic is not None:
        maps["prediction"] = found.semantic.cpu().numpy()
    if not maps:
        return [(name, shown)]
    return [(caption, picture(shown, classes, labels, maps.values())) for caption, classes in maps.items()]


def picture(
    image: np.ndarray, classes: np.ndarray, labels: LabelSpace, others: Any = (), opacity: float = 0.55
) -> np.ndarray:
    """An image under its classes, with a legend below it.

    Args:
        image: uint8 `[H, W, 3]`.
        classes: integers `[h, w]`, class channels.
        labels: names and colours.
        others: further maps whose classes the legend names as well, so that pictures side by side have one.
        opacity: of the colours, 0..1.

    Returns:
        uint8 `[H + legend, W, 3]`.
    """
    colours, names = class_colours(labels), labels.name_of
    occurring = set().union(*(np.unique(x).tolist() for x in (classes, *others)))
    line = legend(names, colours, [c for c in names if c in occurring], image.shape[1])
    return np.concatenate([overlaid(image, classes, colours, opacity), line])
