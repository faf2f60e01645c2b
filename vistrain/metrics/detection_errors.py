"""Where a detector loses its AP: precision-recall curves, a confusion matrix, and errors by kind with what each costs.

The kinds and their cost are those of TIDE (Bolya et al. 2020, arXiv 2008.08115, section 2; authors' code:
github.com/dbolya/tide, MIT), in the order in which its code tests for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vistrain.errors import ConfigError
from vistrain.metrics.coco_engine import IOU_THRESHOLDS
from vistrain.metrics.detection_matching import (
    FlatDetections,
    Pairs,
    flatten,
    match,
    match_own_class,
    precision_recall,
)

if TYPE_CHECKING:
    from rich.table import Table

# What is wrong with a detection, as numbers in arrays: 0 nothing, then these. An object may be `missed`.
KINDS = ("class", "location", "both", "duplicate", "background", "missed")
RIGHT, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS) + 1)
IGNORED = -1  # a detection that a crowd region excuses


@dataclass(frozen=True)
class Curves:
    """Precision over recall, by COCO's rules.

    Attributes:
        iou_thresholds: T of them.
        precision: `[T, K, 101]` in 0..1 at recalls 0, 0.01 ... 1; NaN for categories without objects.
        score: `[T, K, 101]`, the score at which the recall is reached; 0 beyond the greatest recall.
        recall: `[T, K]`, the greatest recall; NaN for categories without objects.
    """

    iou_thresholds: tuple[float, ...]
    precision: np.ndarray
    score: np.ndarray
    recall: np.ndarray

    @property
    def ap(self) -> np.ndarray:
        """`[T, K]` average precision."""
        return self.precision.mean(-1)


@dataclass(frozen=True)
class ErrorSplit:
    """Errors by kind at one IoU.

    Attributes:
        ap: average precision at this IoU, mean over the categories that have objects; NaN where none has.
        cost: AP that is gained if the errors of one kind alone are mended, by kind (`KINDS`), and for all
            `false_positives` and all `false_negatives`.
        counts: how many there are, by kind.
        kind: `[D]` int8 of the detections: 0 right, -1 excused by a crowd, else 1 + position in `KINDS`.
        target: `[D]` int64, the object that is found, or that a class or location error means; -1 without one.
        missed: `[G]` bool, objects that no detection found, nor would with another class or box.
    """

    ap: float
    cost: dict[str, float]
    counts: dict[str, int]
    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray

    def gains(self) -> dict[str, float]:
        """AP, in points of 100, that mending one kind of error alone adds, under its name with the count."""
        named = {k: f"{k} ({n})" for k, n in self.counts.items()}
        return {named.get(k, k.replace("_", " ")): round(100 * gain, 2) for k, gain in self.cost.items()}


@dataclass(frozen=True)
class ImageErrors:
    """What went wrong in one image at a score; boxes are (x, y, width, height) in pixels of the original image.

    Attributes:
        image_id: of the ground truth.
        badness: scores of the false detections plus the number of objects that were not found.
        boxes, categories, scores, kinds: `[N]` detections of at least the score, best first; kinds as in `ErrorSplit`.
        object_boxes, object_categories: `[M]` objects, crowds left out; categories are positions.
        found: `[M]` bool.
    """

    image_id: int
    badness: float
    boxes: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    object_boxes: np.ndarray
    object_categories: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class DetectionAnalysis:
    """What `analyse` finds.

    Attributes:
        flat: detections and objects.
        curves: precision over recall.
        errors: by kind, at `iou_threshold`.
        confusion: `[K + 1, K + 1]` int64 counts, rows what is there, columns what is said; the last of each is
            background: its column counts objects that were not found, its row detections of nothing.
        iou_threshold, background_iou, score_threshold, max_detections: see `analyse`.
    """

    flat: FlatDetections
    curves: Curves
    errors: ErrorSplit
    confusion: np.ndarray
    iou_threshold: float
    background_iou: float
    score_threshold: float
    max_detections: int

    def badness(self) -> np.ndarray:
        """`[I]` of each image: scores of its false detections plus its objects that were not found."""
        flat, (shown, found) = self.flat, self._at_score()
        false = shown & (self.errors.kind > RIGHT)
        of_detections = np.bincount(flat.found.image[false], flat.score[false], minlength=len(flat.image_ids))
        return of_detections + np.bincount(flat.objects.image[~found], minlength=len(flat.image_ids))

    def worst(self, count: int) -> list[ImageErrors]:
        """The images with the greatest `badness` above 0, worst first."""
        badness = self.badness()
        order = np.argsort(-badness, kind="stable")[:count]
        return [self.image(int(i)) for i in order if badness[i] > 0]

    def image(self, position: int) -> ImageErrors:
        """One image, by its position in `flat.image_ids`."""
        flat, (shown, found) = self.flat, self._at_score()
        mine = shown & (flat.found.image == position)
        objects = flat.objects.image == position
        kinds, scores = self.errors.kind[mine], flat.score[mine]
        return ImageErrors(
            int(flat.image_ids[position]),
            float(scores[kinds > RIGHT].sum() + (~found[objects]).sum()),
            flat.found.xywh[mine],
            flat.found.category[mine],
            scores,
            kinds,
            flat.objects.xywh[objects],
            flat.objects.category[objects],
            found[objects],
        )

    def to_dict(self, worst: int = 0) -> dict[str, Any]:
        """Plain containers, as `analysis.json` holds them; NaN becomes None."""
        curves, names = self.curves, self.flat.names
        cost = {name: _plain(value) for name, value in self.errors.cost.items()}
        share = np.divide(self.confusion, np.maximum(self.confusion.sum(1, keepdims=True), 1))
        return {
            "settings": {
                "iou_threshold": self.iou_threshold,
                "background_iou": self.background_iou,
                "score_threshold": self.score_threshold,
                "max_detections": self.max_detections,
                "images": len(self.flat.image_ids),
            },
            "errors": {"AP": _plain(self.errors.ap), "cost": cost, "counts": self.errors.counts},
            "confusion": {
                "classes": [*names, "background"],
                "counts": self.confusion.tolist(),
                "share_of_row": np.round(share, 4).tolist(),
            },
            "precision_recall": {
                "iou_thresholds": [round(t, 4) for t in curves.iou_thresholds],
                "AP": {n: _plain(curves.ap[:, k]) for k, n in enumerate(names)},
                "recall": {n: _plain(curves.recall[:, k]) for k, n in enumerate(names)},
                "precision": {n: _plain(np.round(curves.precision[:, k], 5)) for k, n in enumerate(names)},
                "score": {n: _plain(np.round(curves.score[:, k], 5)) for k, n in enumerate(names)},
            },
            "worst": [{"image_id": e.image_id, "badness": round(e.badness, 4)} for e in self.worst(worst)],
        }

    def table(self) -> Table:
        """Errors by kind, for a Rich console."""
        from rich.table import Table

        errors = self.errors
        title = f"errors at IoU {self.iou_threshold:g}: AP {errors.ap:.4f}, {len(self.flat.image_ids)} images"
        table = Table(title=title, title_justify="left")
        table.add_column("kind")
        table.add_column("errors", justify="right")
        table.add_column("AP without them", justify="right")
        for name, gain in errors.cost.items():
            number = str(errors.counts[name]) if name in errors.counts else ""
            table.add_row(name.replace("_", " "), number, f"{errors.ap + gain:.4f} (+{gain:.4f})")
        return table

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield self.table()

    def _at_score(self) -> tuple[np.ndarray, np.ndarray]:
        """`[D]` bool, detections of at least the score; `[G]` bool, objects that one of them found."""
        shown = self.flat.score >= self.score_threshold
        found = np.zeros(len(self.flat.objects), dtype=bool)
        found[self.errors.target[shown & (self.errors.kind == RIGHT)]] = True
        return shown, found


def analyse(
    truth: Mapping[str, Any],
    records: Iterable[Mapping[str, Any]],
    *,
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    score_threshold: float = 0.3,
    max_detections: int = 100,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    masks: bool = False,
) -> DetectionAnalysis:
    """Curves, confusion matrix and errors of detections.

    Args:
        truth: COCO ground truth; not modified.
        records: of `CocoBox.update`; images without one are not looked at.
        iou_threshold: from which on a box is in the right place (errors and confusion).
        background_iou: up to which a box has nothing to do with an object.
        score_threshold: least score of detections in the confusion matrix and the images; errors and curves count all.
        max_detections: the best of each image and category that count.
        iou_thresholds: of the curves.
        masks: whether all overlaps are those of masks, see `flatten`.

    Raises:
        DataError: see `flatten`.
        ConfigError: a threshold is out of range.
    """
    if not 0 <= background_iou < iou_threshold <= 1:
        raise ConfigError("background_iou", f"{background_iou} is not below iou_threshold {iou_threshold}, in 0..1")
    flat = flatten(truth, records, max_detections, min(background_iou, *iou_thresholds), masks)
    return DetectionAnalysis(
        flat,
        precision_recall_curves(flat, iou_thresholds),
        split_errors(flat, iou_threshold, background_iou),
        confusion_matrix(flat, iou_threshold, score_threshold),
        iou_threshold,
        background_iou,
        score_threshold,
        max_detections,
    )


def precision_recall_curves(flat: FlatDetections, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> Curves:
    """Precision over recall at several IoUs, for each category."""
    objects = _count(flat)
    precision, score, recall = [], [], []
    for threshold in iou_thresholds:
        matched = match_own_class(flat, threshold)
        counts = matched > -2
        one = precision_recall(flat.score[counts], matched[counts] >= 0, flat.found.category[counts], objects)
        precision.append(one[0])
        score.append(one[1])
        right = np.bincount(flat.found.category[matched >= 0], minlength=len(objects))
        recall.append(np.divide(right, objects, out=np.full(len(objects), np.nan), where=objects > 0))
    return Curves(tuple(iou_thresholds), np.stack(precision), np.stack(score), np.stack(recall))


def confusion_matrix(flat: FlatDetections, iou_threshold: float = 0.5, score_threshold: float = 0.3) -> np.ndarray:
    """What is there against what is said, object by object.

    Detections of at least the score take, best first, the free object that they overlap most, and by `iou_threshold` or
    more: one of their own category if there is one, else any. Detections that a crowd region of their category excuses
    are left out.

    Returns:
        `[K + 1, K + 1]` int64, see `DetectionAnalysis`.
    """
    classes, shown = len(flat.names), flat.score >= score_threshold
    candidates = shown[flat.pairs.detection]
    pairs, own = flat.pairs.where(candidates), flat.own_class[candidates]
    # Detections are numbered by descending score within an image, so those below the score hold no better rank.
    matched = match(pairs, flat.found.image, iou_threshold, len(flat.objects), first=own)
    is_missed = np.ones(len(flat.objects), dtype=bool)
    is_missed[matched[matched >= 0]] = False
    alone = shown & (matched < 0) & (flat.covered < iou_threshold)
    there = np.concatenate(
        [
            flat.objects.category[matched[matched >= 0]],
            flat.objects.category[is_missed],
            np.full(alone.sum(), classes),
        ]
    )
    said = np.concatenate(
        [flat.found.category[matched >= 0], np.full(is_missed.sum(), classes), flat.found.category[alone]]
    )
    counts = np.bincount(there * (classes + 1) + said, minlength=(classes + 1) ** 2)
    return counts.reshape(classes + 1, classes + 1)


def split_errors(flat: FlatDetections, iou_threshold: float = 0.5, background_iou: float = 0.1) -> ErrorSplit:
    """Sort false detections and unfound objects by kind, and say what AP each kind costs.

    A detection that COCO's matching leaves without an object is, tested in this order, a

    - location error: it overlaps an object of its class, by `background_iou` or more, but by less than
      `iou_threshold`;
    - class error: it overlaps one of another class by `iou_threshold` or more;
    - duplicate: it overlaps one of its class by that much, which a better detection took;
    - both: it overlaps one of another class by more than `background_iou`;
    - background: it overlaps nothing by more than that.

    An object that was not found, and that no class or location error means, is missed. Mending a class or location
    error makes it right, if its object is unfound and no other such error of a higher score means it, and removes it
    otherwise; mending any other kind removes the detection, or the missed object. Each cost is measured alone, so costs
    do not add up to what is lost.
    """
    matched = match_own_class(flat, iou_threshold)
    kind, target = _kinds(flat, matched, iou_threshold, background_iou)
    unfound = np.ones(len(flat.objects), dtype=bool)
    unfound[target[kind == RIGHT]] = False
    meant = np.flatnonzero(np.isin(kind, (CLASS, LOCATION)))
    meant = meant[unfound[target[meant]]]
    # Within an image detections are ordered by score: the first that means an object is the best.
    _, first = np.unique(target[meant], return_index=True)
    mended = np.zeros(len(kind), dtype=bool)
    mended[meant[first]] = True
    missed = unfound.copy()
    missed[target[meant]] = False

    objects, category = _count(flat), flat.found.category

    def mean_ap(kept: np.ndarray, right: np.ndarray, of: np.ndarray, number: np.ndarray) -> float:
        kept = kept & (kind != IGNORED)
        precision, _ = precision_recall(flat.score[kept], right[kept], of[kept], number)
        ap = precision.mean(-1)
        # A class whose objects are all taken away is perfect, unless it has false detections.
        gone = (objects > 0) & (number == 0)
        ap[gone] = np.bincount(of[kept], minlength=len(number))[gone] == 0
        return float(ap[objects > 0].mean()) if (objects > 0).any() else float("nan")

    def without(gone: np.ndarray) -> np.ndarray:
        return objects - np.bincount(flat.objects.category[gone], minlength=len(objects))

    everything, right = np.ones(len(kind), dtype=bool), kind == RIGHT
    base = mean_ap(everything, right, category, objects)
    corrected = category.copy()
    wrong_class = kind == CLASS
    corrected[wrong_class] = flat.objects.category[target[wrong_class]]
    fixed = {
        "class": mean_ap(~wrong_class | mended, right | (wrong_class & mended), corrected, objects),
        "location": mean_ap((kind != LOCATION) | mended, right | ((kind == LOCATION) & mended), category, objects),
        "both": mean_ap(kind != BOTH, right, category, objects),
        "duplicate": mean_ap(kind != DUPLICATE, right, category, objects),
        "background": mean_ap(kind != BACKGROUND, right, category, objects),
        "missed": mean_ap(everything, right, category, without(missed)),
        "false_positives": mean_ap(right, right, category, objects),
        "false_negatives": mean_ap(everything, right, category, without(unfound)),
    }
    counts = {name: int((kind == i + 1).sum()) for i, name in enumerate(KINDS)} | {"missed": int(missed.sum())}
    return ErrorSplit(base, {name: ap - base for name, ap in fixed.items()}, counts, kind, target, missed)


def _kinds(
    flat: FlatDetections, matched: np.ndarray, iou_threshold: float, background_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kind `[D]` int8 and meant object `[D]` int64 of each detection."""
    own = flat.own_class
    own_object, own_iou = _best(flat.pairs.where(own), len(matched))
    other_object, other_iou = _best(flat.pairs.where(~own), len(matched))
    conditions = [
        matched >= 0,
        matched == -2,
        (own_iou >= background_iou) & (own_iou > 0) & (own_iou < iou_threshold),
        other_iou >= iou_threshold,
        own_iou >= iou_threshold,
        other_iou > background_iou,
    ]
    kinds = [RIGHT, IGNORED, LOCATION, CLASS, DUPLICATE, BOTH]
    kind = np.select(conditions, kinds, BACKGROUND).astype(np.int8)
    target = np.select([kind == RIGHT, kind == LOCATION, kind == CLASS], [matched, own_object, other_object], -1)
    return kind, target


def _best(pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `count` detections the object that it overlaps most, the first of equals, and by how much; -1, 0."""
    order = np.lexsort((-pairs.object, pairs.iou, pairs.detection))
    target, iou = np.full(count, -1, dtype=np.int64), np.zeros(count)
    detection = pairs.detection[order]
    last = order[np.append(detection[1:] != detection[:-1], True)[: len(order)]]
    target[pairs.detection[last]], iou[pairs.detection[last]] = pairs.object[last], pairs.iou[last]
    return target, iou


def _count(flat: FlatDetections) -> np.ndarray:
    """`[K]` objects of each category."""
    return np.bincount(flat.objects.category, minlength=len(flat.names))


def _plain(values: Any) -> Any:
    """Nested lists of floats with None for NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        return None if np.isnan(array) else float(array)
    return [_plain(v) for v in array]
