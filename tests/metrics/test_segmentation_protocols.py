"""Boundary IoU by erosions, mask by mask; Cityscapes' numbers pixel by pixel from their definitions."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from vistrain.data.segmentation.known_sets import CITYSCAPES_CATEGORIES, CITYSCAPES_CLASSES
from vistrain.errors import ConfigError, DataError
from vistrain.metrics import protocol
from vistrain.metrics.cityscapes_iou import AVERAGE_SIZES
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

NAMES = tuple(name for name, *_ in CITYSCAPES_CLASSES)
STREETS = LabelSpace(NAMES, tuple(i for _, i, _ in CITYSCAPES_CLASSES), ignore_index=255, regions=CITYSCAPES_CATEGORIES)
FIVE = LabelSpace(tuple("abcde"), tuple(range(5)), ignore_index=255)


def blobs(draw: np.random.Generator, classes: int, size: tuple[int, int]) -> np.ndarray:
    coarse = draw.integers(0, classes, (size[0] // 8 + 1, size[1] // 8 + 1)).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)


def measured(name: str, labels: LabelSpace, cases: list[dict[str, np.ndarray]]) -> tuple[Any, dict[str, float]]:
    metric = protocol(name, labels=labels)
    found = [Segmentation(semantic=torch.from_numpy(c["found"].astype(np.int64))) for c in cases]
    targets = [{k: torch.from_numpy(v) for k, v in c.items() if k != "found"} for c in cases]
    records = metric.update([str(i) for i in range(len(cases))], found, targets)
    return metric, metric.compute(records)


def test_boundary_iou_of_eroded_masks() -> None:
    draw = np.random.default_rng(0)
    cases, sums = [], np.zeros((5, 2))
    for size in ((60, 80), (45, 33)):
        truth, found = blobs(draw, 4, size), blobs(draw, 5, size)
        found[: size[0] // 2] = truth[: size[0] // 2]
        truth[10:16, 5:30] = 255
        cases.append({"label_map": truth, "found": found})
        distance = max(1, round(0.02 * math.hypot(*size)))
        hidden = np.where(truth == 255, 255, found)
        for channel in range(5):
            near = []
            for classes in (truth, hidden):
                mask = np.pad((classes == channel).astype(np.uint8), 1)
                inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)
                near.append((mask - inner)[1:-1, 1:-1].astype(bool))
            sums[channel] += (near[0] & near[1]).sum(), (near[0] | near[1]).sum()
    metric, numbers = measured("boundary_iou", FIVE, cases)
    assert numbers["boundary_iou/mIoU"] == pytest.approx((sums[:, 0] / sums[:, 1]).mean())
    assert [row["IoU"] for row in metric.result.per_class] == pytest.approx((sums[:, 0] / sums[:, 1]).tolist())
    assert metric.protocol == "boundary_iou"
    assert protocol("boundary_iou", labels=FIVE, share=0.01).protocol == "custom(boundary_iou, share=0.01)"
    with pytest.raises(DataError, match="ignored"):
        measured("boundary_iou", FIVE, [{"label_map": np.full((9, 9), 255, np.uint8), "found": found[:9, :9]}])


def test_a_thin_wrong_border_costs_more_than_it_does_in_miou() -> None:
    truth = np.zeros((200, 200), np.uint8)
    truth[50:150, 50:150] = 1
    found = np.zeros_like(truth)
    found[53:147, 53:147] = 1
    numbers = [
        measured(n, FIVE, [{"label_map": truth, "found": found}])[1][f"{n}/mIoU"] for n in ("miou", "boundary_iou")
    ]
    assert numbers[0] > 0.9
    assert numbers[1] < 0.75


def instances_of(truth: np.ndarray) -> np.ndarray:
    """Of every class with instances, the left half of the image is one, the right half another."""
    found = np.zeros(truth.shape, np.int32)
    for channel, name in enumerate(NAMES):
        if name in AVERAGE_SIZES:
            for number, half in enumerate((np.s_[:, : truth.shape[1] // 2], np.s_[:, truth.shape[1] // 2 :])):
                found[half] = np.where(truth[half] == channel, (channel + 1) * 1000 + number, found[half])
    return found


def test_cityscapes_numbers() -> None:
    draw = np.random.default_rng(1)
    cases = []
    for size in ((40, 64), (48, 56)):
        truth, found = blobs(draw, 17, size), blobs(draw, 19, size)  # two classes never occur
        found[: size[0] // 2] = truth[: size[0] // 2]
        truth[20:24] = 255
        cases.append({"label_map": truth, "found": found, "instance_map": instances_of(truth)})
    _, numbers = measured("cityscapes", STREETS, cases)
    truth, found, instances = (
        np.concatenate([c[k].ravel() for c in cases]) for k in ("label_map", "found", "instance_map")
    )
    image = np.concatenate([np.full(c["found"].size, i) for i, c in enumerate(cases)])
    labelled = truth != 255
    truth, found, instances, image = truth[labelled], found[labelled], instances[labelled], image[labelled]
    groups = [[c] for c in range(19)], [list(members) for _, members in CITYSCAPES_CATEGORIES]
    expected = []
    for members in groups:
        plain, weighted = [], []
        for group in members:
            there, said = np.isin(truth, group), np.isin(found, group)
            if (there | said).any():
                plain.append((there & said).sum() / (there | said).sum())
            right = missed = 0.0
            objects = {(i, v) for i, v in zip(image.tolist(), instances.tolist(), strict=True) if v >= 1000}
            for i, value in objects:
                channel = value // 1000 - 1
                if channel in group:
                    mask = (image == i) & (instances == value)
                    weight = AVERAGE_SIZES[NAMES[channel]] / mask.sum()
                    right += weight * (mask & said).sum()
                    missed += weight * (mask & ~said).sum()
            extra = (~there & said).sum()
            if any(NAMES[c] in AVERAGE_SIZES for c in group) and right + missed + extra:
                weighted.append(right / (right + missed + extra))
        expected += [np.mean(plain), np.mean(weighted)]
    keys = ("mIoU", "miIoU", "category_mIoU", "category_miIoU")
    assert [numbers[f"cityscapes/{key}"] for key in keys] == pytest.approx(expected)
    for case in cases:
        case.pop("instance_map")
    _, plain_numbers = measured("cityscapes", STREETS, cases)
    assert "cityscapes/miIoU" not in plain_numbers
    assert plain_numbers["cityscapes/mIoU"] == pytest.approx(expected[0])
    with pytest.raises(ConfigError, match="categories"):
        protocol("cityscapes", labels=FIVE)
