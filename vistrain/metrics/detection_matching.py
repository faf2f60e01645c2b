"""Detections and objects of a whole data set as flat arrays, matched and accumulated as COCO does, without a loop over
images.

Source of the rules: Lin et al., "Microsoft COCO: Common Objects in Context" (arXiv 1405.0312) and
`pycocotools.cocoeval`, whose precision this reproduces (the tests compare). `metrics.coco` computes the published
numbers; here every detection keeps its fate, which is what error analysis is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from vistrain.errors import DataError
from vistrain.metrics.coco_engine import RECALL_THRESHOLDS
from vistrain.metrics.coco_files import check_ground_truth
from vistrain.structures import distinct_names

CHUNK = 2_000_000  # pairs of boxes that are compared at once: some 100 MB


@dataclass(frozen=True)
class Boxes:
    """Boxes of all images, ordered by image.

    Attributes:
        image: `[N]` int64, position of the image among the evaluated ones, ascending.
        category: `[N]` int64, position of the category, by ascending id.
        xywh: `[N, 4]` float64 (x, y, width, height) in pixels of the original image.
        masks: of each the compressed run lengths, where overlaps are those of masks.
    """

    image: np.ndarray
    category: np.ndarray
    xywh: np.ndarray
    masks: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Pairs:
    """Detections with the objects of their image that they overlap.

    Attributes:
        detection, object: `[P]` int64, positions.
        iou: `[P]` float64.
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray

    def where(self, kept: np.ndarray) -> Pairs:
        """Those that `[P]` bool or positions choose."""
        return Pairs(self.detection[kept], self.object[kept], self.iou[kept])


@dataclass(frozen=True)
class FlatDetections:
    """A data set's detections beside its objects.

    Attributes:
        image_ids: `[I]` the evaluated images, ascending.
        category_ids, names: of the K categories, by ascending id; no two names are the same, see `distinct_names`.
        objects: crowds left out.
        found: detections, within an image by descending score (ties as they came), at most `max_detections` of each
            image and category.
        score: `[D]` float64 of the detections.
        covered: `[D]` float64, the greatest share of a detection that a crowd region of its category covers.
        pairs: detections with the objects of any category that they overlap by `least_iou` or more.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    names: tuple[str, ...]
    objects: Boxes
    found: Boxes
    score: np.ndarray
    covered: np.ndarray
    pairs: Pairs

    @property
    def own_class(self) -> np.ndarray:
        """`[P]` bool: the pair's detection and object are of one category."""
        return self.found.category[self.pairs.detection] == self.objects.category[self.pairs.object]


def flatten(
    truth: Mapping[str, Any],
    records: Iterable[Mapping[str, Any]],
    max_detections: int = 100,
    least_iou: float = 0.1,
    masks: bool = False,
) -> FlatDetections:
    """Bring ground truth and records into flat arrays.

    Args:
        truth: COCO ground truth; not modified.
        records: of `CocoBox.update`, in any order; the first one of an image counts. Images without a record are not
            evaluated.
        max_detections: the best of each image and category that count.
        least_iou: pairs that overlap less are left out.
        masks: whether overlaps are those of masks; records are then those of `CocoMask.update`.

    Raises:
        DataError: the ground truth is malformed, or does not list an image that has a record.
    """
    checked = check_ground_truth(truth, masks=masks)
    by_id: dict[int, Mapping[str, Any]] = {}
    for record in records:
        by_id.setdefault(int(record["id"]), record)
    strangers = by_id.keys() - {image["id"] for image in checked["images"]}
    if strangers:
        raise DataError("ground truth", f"does not list {len(strangers)} evaluated images (first: {min(strangers)})")
    image_ids = np.array(sorted(by_id), dtype=np.int64)
    categories = sorted(checked["categories"], key=lambda c: c["id"])
    category_ids = np.array([c["id"] for c in categories], dtype=np.int64)
    annotations = [a for a in checked["annotations"] if a["image_id"] in by_id]
    objects = _objects([a for a in annotations if not a["iscrowd"]], image_ids, category_ids)
    crowds = _objects([a for a in annotations if a["iscrowd"]], image_ids, category_ids)
    found, score = _found([by_id[int(i)] for i in image_ids], category_ids, max_detections, masks)
    covered = np.zeros(len(found))
    cover = _pairs(found, crowds, 0.0, of_detection=True)
    same = found.category[cover.detection] == crowds.category[cover.object]
    np.maximum.at(covered, cover.detection[same], cover.iou[same])
    pairs = _pairs(found, objects, least_iou)
    counts = np.bincount(objects.category, minlength=len(categories)).tolist()
    names = distinct_names([str(c["name"]) for c in categories], category_ids.tolist(), counts)
    return FlatDetections(image_ids, category_ids, names, objects, found, score, covered, pairs)


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """`[N]` positions of elements among those of their group `[N]` (any integers), in the order given, from 0."""
    order = np.argsort(group, kind="stable")
    is_first = np.append(True, np.diff(group[order]) != 0)[: len(group)]
    at = np.arange(len(group))
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = at - np.maximum.accumulate(np.where(is_first, at, 0))
    return rank


def match(pairs: Pairs, group: np.ndarray, threshold: float, num_objects: int, first: np.ndarray | None = None) -> Any:
    """One-to-one matching, greedy by score: each detection takes the free object that it overlaps most.

    The detections of one rank in all groups are matched at once, since groups share no object.

    Args:
        pairs: candidates; detections are numbered by descending score within their group.
        group: `[D]` group of each detection: those that compete for the same objects.
        threshold: least IoU; of equal ones the later object wins, as in pycocotools.
        num_objects: of the data set.
        first: `[P]` bool, pairs that go before all others of their detection.

    Returns:
        `[D]` int64, the object of each detection, or -1.
    """
    matched = np.full(len(group), -1, dtype=np.int64)
    taken = np.zeros(num_objects, dtype=bool)
    kept = pairs.iou >= min(threshold, 1 - 1e-10)
    first = np.zeros(len(kept), dtype=bool) if first is None else first
    pairs, first = pairs.where(kept), first[kept]
    rank = rank_in_group(group)[pairs.detection]
    order = np.lexsort((pairs.object, pairs.iou, first, pairs.detection, rank))
    detection, target = pairs.detection[order], pairs.object[order]
    ends = np.append(np.flatnonzero(np.diff(rank[order])) + 1, len(order))
    start = 0
    for end in ends:
        free = ~taken[target[start:end]]
        d, o = detection[start:end][free], target[start:end][free]
        best = np.flatnonzero(np.append(d[1:] != d[:-1], True)[: len(d)])
        matched[d[best]] = o[best]
        taken[o[best]] = True
        start = end
    return matched


def match_own_class(flat: FlatDetections, threshold: float) -> np.ndarray:
    """COCO's matching at an IoU: `[D]` object of each detection, -1 if false, -2 if a crowd region excuses it."""
    group = flat.found.image * max(len(flat.names), 1) + flat.found.category
    matched = match(flat.pairs.where(flat.own_class), group, threshold, len(flat.objects))
    matched[(matched < 0) & (flat.covered >= min(threshold, 1 - 1e-10))] = -2
    return matched


def precision_recall(
    score: np.ndarray, is_right: np.ndarray, category: np.ndarray, num_objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's precision at 101 recalls, for each category.

    Args:
        score: `[D]` of the detections that count, ordered by image.
        is_right: `[D]` bool.
        category: `[D]` int64 in 0..K - 1.
        num_objects: `[K]` objects.

    Returns:
        precision `[K, 101]` in 0..1, and the score `[K, 101]` at which each recall is reached (0 beyond the greatest
        recall); NaN for categories without objects.
    """
    recalls = np.asarray(RECALL_THRESHOLDS)
    precision = np.full((len(num_objects), len(recalls)), np.nan)
    at_score = precision.copy()
    order = np.lexsort((-score, category))
    bounds = np.searchsorted(category[order], np.arange(len(num_objects) + 1))
    for k in np.flatnonzero(num_objects > 0):
        mine = order[bounds[k] : bounds[k + 1]]
        right = np.cumsum(is_right[mine])
        raw = right / (np.arange(1, len(mine) + 1) + np.spacing(1))
        envelope = np.maximum.accumulate(raw[::-1])[::-1]
        place = np.searchsorted(right / num_objects[k], recalls, side="left")
        reached = place < len(mine)
        precision[k], at_score[k] = 0.0, 0.0
        precision[k, reached], at_score[k, reached] = envelope[place[reached]], score[mine][place[reached]]
    return precision, at_score


def _objects(annotations: list[dict[str, Any]], image_ids: np.ndarray, category_ids: np.ndarray) -> Boxes:
    """Annotations of categories that exist, by image; within one in their order."""
    image = np.array([a["image_id"] for a in annotations], dtype=np.int64)
    category = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    known = np.isin(category, category_ids)
    image, category, xywh = image[known], category[known], xywh[known]
    order = np.argsort(image, kind="stable")
    runs = [a["segmentation"] for a, kept in zip(annotations, known, strict=True) if kept and "segmentation" in a]
    masks = tuple(runs[i] for i in order) if len(runs) == len(order) else None
    places = np.searchsorted(image_ids, image[order]), np.searchsorted(category_ids, category[order])
    return Boxes(*places, xywh[order], masks)


def _found(
    records: list[Mapping[str, Any]], category_ids: np.ndarray, max_detections: int, masks: bool
) -> tuple[Boxes, np.ndarray]:
    image = np.repeat(np.arange(len(records)), [len(r["scores"]) for r in records])
    score = np.concatenate([np.zeros(0), *(np.asarray(r["scores"], dtype=np.float64) for r in records)])
    category = np.concatenate([np.zeros(0, np.int64), *(np.asarray(r["categories"], np.int64) for r in records)])
    xywh = np.concatenate([np.zeros((0, 4)), *(np.asarray(r["boxes"], np.float64).reshape(-1, 4) for r in records)])
    order = np.lexsort((-score, image))
    order = order[np.isin(category[order], category_ids)]  # as COCO's tools, which ignore categories unknown to them
    image, score, xywh = image[order], score[order], xywh[order]
    category = np.searchsorted(category_ids, category[order])
    kept = rank_in_group(image * max(len(category_ids), 1) + category) < max_detections
    runs = [run for r in records for run in r["masks"]] if masks else None
    chosen = None if runs is None else tuple(runs[i] for i in order[kept])
    return Boxes(image[kept], category[kept], xywh[kept], chosen), score[kept]


def _pairs(found: Boxes, objects: Boxes, least: float, of_detection: bool = False) -> Pairs:
    """Pairs of one image that overlap by at least `least`, and more than nothing; of the detection's area if asked."""
    first = np.searchsorted(objects.image, found.image, side="left")
    count = np.searchsorted(objects.image, found.image, side="right") - first
    total = np.append(0, np.cumsum(count))
    parts: list[Pairs] = []
    start = 0
    while start < len(found):
        end = max(int(np.searchsorted(total, total[start] + CHUNK, side="right")) - 1, start + 1)
        mine = count[start:end]
        detection = np.repeat(np.arange(start, end), mine)
        other = np.arange(len(detection)) + np.repeat(first[start:end] - (total[start:end] - total[start]), mine)
        if found.masks is None:
            overlap = _overlap(found.xywh[detection], objects.xywh[other], of_detection)
        else:
            overlap = _mask_overlap(found.masks, objects.masks or (), detection, other, of_detection)
        pairs = Pairs(detection, other, overlap)
        parts.append(pairs.where((pairs.iou >= least) & (pairs.iou > 0)))
        start = end
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    columns = ([vars(p)[name] for p in parts] for name in ("detection", "object", "iou"))
    return Pairs(*(np.concatenate(column) for column in columns))


def _mask_overlap(
    found: Sequence[Any], objects: Sequence[Any], detection: np.ndarray, other: np.ndarray, of_detection: bool
) -> np.ndarray:
    """As `_overlap`, of the masks of pairs; detections come in order, each with all objects of its image."""
    shares = np.zeros(len(detection))
    ends = np.append(np.flatnonzero(np.diff(detection)) + 1, len(detection))
    start = 0
    for end in ends[ends > 0]:
        truth = [objects[i] for i in other[start:end]]
        shares[start:end] = mask_tools.iou([found[detection[start]]], truth, [int(of_detection)] * len(truth))[0]
        start = end
    return shares


def _overlap(a: np.ndarray, b: np.ndarray, of_a: bool) -> np.ndarray:
    """Intersection of xywh boxes `[P, 4]` over their union, or over the area of `a`; 0 where they do not meet."""
    width = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    area = a[:, 2] * a[:, 3]
    whole = area if of_a else area + b[:, 2] * b[:, 3] - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)
