"""Average precision as COCO defines it, of boxes (`coco_box`), of masks (`coco_mask`) and of their contours, too
(`coco_boundary`).

Source: Lin et al., "Microsoft COCO: Common Objects in Context" (arXiv 1405.0312) and `pycocotools.cocoeval` (BSD); of
contours Cheng et al. (see `CocoBoundary`), whose program's licence is not stated here. The
protocol's arguments are the defaults: IoU 0.50:0.05:0.95, 101 recall points, areas split at 32^2 and 96^2 square
pixels, the best 1, 10 and 100 detections per image **and category**. Detections are never cut to 100 per image before
that rule: DETR-like models give 300, and practically all of them count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vistrain.errors import ConfigError, DataError
from vistrain.metrics.base import Metric, Record, Unit
from vistrain.metrics.coco_engine import (
    AREAS,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    CurveArrays,
    choose_backend,
    curve_arrays,
    mean_where_defined,
)
from vistrain.metrics.coco_files import (
    annotations_have_masks,
    check_ground_truth,
    check_results,
    have_masks,
    nothing_found,
    write_results,
)
from vistrain.metrics.coco_masks import encoded_masks
from vistrain.predictions import Detections, InstanceDetections, Segmentation
from vistrain.structures import LabelSpace, distinct_names, left_out

if TYPE_CHECKING:
    from rich.console import RenderableType

log = logging.getLogger(__name__)

# The frozen arguments of the protocols; any other value prints as custom(...)
FROZEN: Mapping[str, Any] = {"iou_thresholds": IOU_THRESHOLDS, "max_detections": MAX_DETECTIONS}


WEAK = 0.1  # least score of results that are all strong: detectors that are measured give weaker ones, too
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class CocoResult:
    """One evaluation.

    Attributes:
        numbers: COCO's twelve, 0..1 as its tools print them (papers print 100 times that), keyed `coco/AP`,
            `coco/AP50`, `coco/AP75`, `coco/APs`, `coco/APm`, `coco/APl`, `coco/AR1`, `coco/AR10`, `coco/AR100`,
            `coco/ARs`, `coco/ARm`, `coco/ARl` (of masks `coco_mask/AP` and so on); -1 where no object exists (as COCO's
            tools say it).
        per_class: one row per category, by ascending id: `id`, `name`, `objects` (crowds left out), `AP`, `AP50`, `AR`;
            NaN for a category without objects.
        protocol: `coco_box`, `coco_mask` or `coco_boundary`, or `custom(...)` naming what differs.
        images: how many images were evaluated.
        backend: the library that did it.
        iou_range: the IoU thresholds that AP and AR average over, as `0.50:0.95`.
    """

    numbers: dict[str, float]
    per_class: list[dict[str, Any]]
    protocol: str
    images: int
    backend: str
    iou_range: str

    def tables(self) -> list[RenderableType]:
        """The twelve numbers and the classes that have objects, for a Rich console."""
        from rich.markup import escape
        from rich.table import Table

        counted = f"{self.images} image{'s' * (self.images != 1)}"
        total = Table(title=f"{self.protocol}, {counted}, {self.backend}", title_justify="left")
        for heading in ("", "IoU", "area", "detections"):
            total.add_column(heading)
        total.add_column("value", justify="right")
        names = {key.rpartition("/")[2]: value for key, value in self.numbers.items()}
        most = max(int(name[2:]) for name in names if name[:2] == "AR" and name[2:].isdigit())
        for name, value in names.items():
            total.add_row(name, *self._describe(name, most), "-" if value < 0 else f"{value:.4f}")
        classes = Table(title="per class", title_justify="left")
        classes.add_column("class", overflow="fold")
        for heading in ("objects", "AP", "AP50", "AR"):
            classes.add_column(heading, justify="right")
        rows = [row for row in self.per_class if row["objects"]]
        for row in rows:
            values = ("-" if np.isnan(row[k]) else f"{row[k]:.4f}" for k in ("AP", "AP50", "AR"))
            classes.add_row(escape(row["name"]), str(row["objects"]), *values)
        return [total, *([classes] if rows else []), *left_out(len(self.per_class) - len(rows))]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from self.tables()

    def _describe(self, name: str, most: int) -> tuple[str, str, str]:
        """IoU, area and number of detections behind a number's name."""
        kind, rest = name[:2], name[2:]
        if kind == "AP" and rest.isdigit():
            return f"0.{rest}", "all", str(most)
        area = {area[0]: area for area in AREAS[1:]}.get(rest, "all")
        return self.iou_range, area, rest if rest.isdigit() else str(most)


class CocoBox(Metric):
    """COCO's twelve numbers for boxes.

    Args:
        ground_truth: COCO-format dict (`images`, `annotations`, `categories`), not modified. Images without objects
            count.
        labels: which category each class channel of the network stands for.
        backend: `auto` (faster-coco-eval where installed), `pycocotools` or `faster_coco_eval`; the numbers are equal
            to the last bit.
        iou_thresholds: ascending, in 0..1.
        max_detections: ascending; the best of each image and category that count.

    Raises:
        DataError: the ground truth is malformed.
        ConfigError: the label space and the ground truth have no category in common, or the backend is not there.
    """

    families = ("coco",)
    offers = tuple(f"coco/{name}" for name in NAMES)
    frozen: ClassVar[str] = "coco_box"
    iou_type: ClassVar[str] = "bbox"

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        labels: LabelSpace,
        backend: str = "auto",
        *,
        iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
        max_detections: Sequence[int] = MAX_DETECTIONS,
    ) -> None:
        self.labels = labels
        self.backend = choose_backend(backend)
        self.iou_thresholds, self.max_detections = tuple(iou_thresholds), tuple(max_detections)
        self.result: CocoResult | None = None
        self._truth = check_ground_truth(ground_truth, masks=self.iou_type != "bbox")
        self._image_ids = sorted(image["id"] for image in self._truth["images"])
        known = {c["id"] for c in self._truth["categories"]}
        if labels.ids and known and not known & set(labels.ids):
            raise ConfigError(
                "metrics",
                f"the model's category ids {_few(labels.ids)} are none of the ground truth's {_few(sorted(known))}",
                "evaluate on the data set, or with the label space, that the model was trained for",
            )
        # -1: a channel that no class uses. COCO's tools ignore results of categories that they do not know, so such
        # detections are left out of the records to the same effect.
        self._category_of = np.full(labels.num_classes, -1, dtype=np.int64)
        for channel, category in labels.category_of.items():
            self._category_of[channel] = category

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Shares, all of them; -1 where there is nothing to find."""
        return Unit(percent=True)

    @property
    def protocol(self) -> str:  # type: ignore[override]
        """What to print beside the numbers of the last `compute` (before one: of an evaluation of all images)."""
        return self.result.protocol if self.result else self._protocol(len(self._image_ids))

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """The class table of the last `compute` (see `CocoResult`); empty before one."""
        return self.result.per_class if self.result else []

    def update(
        self, ids: Sequence[int], predictions: Sequence[Detections], targets: Sequence[Any] | None = None
    ) -> list[dict[str, Any]]:
        """Records of some images: small, without tensors, ready to be sent to another process.

        Args:
            ids: image ids of the ground truth.
            predictions: one `Detections` per image, any number of detections, in original image coordinates.
            targets: not used; the ground truth has them.

        Returns:
            One `{"id", "boxes": [N, 4] float32 (x, y, width, height), "scores": [N] float32, "categories": [N] int64}`
            per image. Detections that are not finite are left out, with a warning: a NaN overlap would count as a
            match.

        Raises:
            ValueError: a label outside the label space, which is a bug of the network.
        """
        return [self._record(int(i), found) for i, found in zip(ids, predictions, strict=True)]

    def compute(self, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The twelve numbers over the images that have a record; the details are in `.result`.

        Args:
            records: of `update`, in any order; a second record of an image (a sample that two processes saw) is
                ignored. Fewer images than the ground truth has make the protocol `custom(...)`.

        Returns:
            See `CocoResult.numbers`.

        Raises:
            DataError: a record of an image that the ground truth does not list.
        """
        by_id: dict[int, Mapping[str, Any]] = {}
        for record in records:
            by_id.setdefault(int(record["id"]), record)
        strangers = by_id.keys() - set(self._image_ids)
        if strangers:
            raise DataError(
                "ground truth", f"does not list {len(strangers)} evaluated images (first: {min(strangers)})"
            )
        image_ids = sorted(by_id)
        detections = [result for i in image_ids for result in _results(by_id[i])]
        arrays = curve_arrays(
            self._truth,
            detections,
            image_ids,
            iou_type=self.iou_type,
            iou_thresholds=self.iou_thresholds,
            max_detections=self.max_detections,
            backend=self.backend,
        )
        numbers = _numbers(arrays, self.iou_thresholds, self.max_detections)
        self.result = CocoResult(
            numbers={f"{self.families[0]}/{name}": value for name, value in numbers.items()},
            per_class=self._class_rows(arrays),
            protocol=self._protocol(len(image_ids)),
            images=len(image_ids),
            backend=self.backend,
            iou_range=f"{self.iou_thresholds[0]:.2f}:{self.iou_thresholds[-1]:.2f}",
        )
        return self.result.numbers

    def _record(self, image_id: int, found: Detections) -> dict[str, Any]:
        boxes = found.boxes.detach().float().cpu().numpy().reshape(-1, 4)
        scores = found.scores.detach().float().cpu().numpy()
        labels = found.labels.detach().cpu().numpy()
        if labels.size and not (labels.min() >= 0 and labels.max() < self._category_of.size):
            raise ValueError(
                f"label {labels.min()}..{labels.max()} outside the {self._category_of.size} class channels"
            )
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
        if not finite.all():
            log.warning("image %s: %d detections are not finite and are left out", image_id, int((~finite).sum()))
        categories = self._category_of[labels]
        kept = finite & (categories >= 0)
        # In float32, as the official evaluators convert: subtracting in float64 could move a box across a threshold
        sizes = boxes[kept, 2:] - boxes[kept, :2]
        boxes = np.concatenate([boxes[kept, :2], sizes], axis=1)
        record = {"id": image_id, "boxes": boxes, "scores": scores[kept], "categories": categories[kept]}
        return record | self._more(found, kept)

    def _more(self, found: Detections, kept: np.ndarray) -> dict[str, Any]:
        """What a record holds beside boxes, of the detections that are kept, `[N]` bool."""
        return {}

    def _class_rows(self, arrays: CurveArrays) -> list[dict[str, Any]]:
        rows = []
        categories = sorted(self._truth["categories"], key=lambda c: c["id"])
        ids = [category["id"] for category in categories]
        names = distinct_names([str(category["name"]) for category in categories], ids, list(arrays.objects))
        for k, (category, name) in enumerate(zip(ids, names, strict=True)):
            precision, recall = arrays.precision[:, :, k, 0, -1], arrays.recall[:, k, 0, -1]
            values = {
                "AP": mean_where_defined(precision),
                "AP50": mean_where_defined(precision[_at(0.5, self.iou_thresholds)]),
                "AR": mean_where_defined(recall),
            }
            defined = {key: value if value >= 0 else float("nan") for key, value in values.items()}
            rows.append({"id": category, "name": name, "objects": int(arrays.objects[k]), **defined})
        return rows

    def _protocol(self, images: int) -> str:
        changed = [f"{k}={_few(getattr(self, k))}" for k, frozen in FROZEN.items() if getattr(self, k) != frozen]
        if images != len(self._image_ids):
            changed.append(f"images={images} of {len(self._image_ids)}")
        return f"custom({self.frozen}, {', '.join(changed)})" if changed else self.frozen


class CocoMask(CocoBox):
    """COCO's twelve numbers for masks, keyed `coco_mask/AP` and so on: overlaps of run lengths; areas are the
    annotations' own, and the masks' where these have none.

    Args:
        ground_truth: as for `CocoBox`, each annotation with a segmentation, each image with its height and width.
        labels, backend, base: see `CocoBox`.

    Raises:
        DataError: the ground truth is malformed, or an annotation has no mask.
        ConfigError: see `CocoBox`.
    """

    families = ("coco_mask",)
    offers = tuple(f"coco_mask/{name}" for name in NAMES)
    frozen = "coco_mask"
    iou_type = "segm"

    def __init__(self, ground_truth: Mapping[str, Any], labels: LabelSpace, backend: str = "auto", **base: Any) -> None:
        super().__init__(ground_truth, labels, backend, **base)

    def update(
        self, ids: Sequence[int], predictions: Sequence[Any], targets: Sequence[Any] | None = None
    ) -> list[dict[str, Any]]:
        """See `CocoBox`; of a `Segmentation` the instances."""
        found: list[Any] = [p.instances if isinstance(p, Segmentation) else p for p in predictions]
        return super().update(ids, found, targets)

    def _more(self, found: Detections, kept: np.ndarray) -> dict[str, Any]:
        """`masks`: run lengths, in the original image."""
        if not isinstance(found, InstanceDetections):
            raise ConfigError("metrics", "the network finds boxes without masks", f"leave out {self.frozen!r}")
        return {"masks": [run for run, good in zip(encoded_masks(found.masks), kept, strict=True) if good]}


class CocoBoundary(CocoMask):
    """Boundary AP, keyed `coco_boundary/AP` and so on: mask AP in which two masks overlap as much as the lesser of
    their IoU and that of their pixels within 2 % of the image's diagonal of a contour; with a crowd as masks do.

    Source: Cheng et al., "Boundary IoU" (arXiv 2103.16562), and its program's `COCOeval`.

    Args:
        ground_truth, labels, backend, base: see `CocoMask`.

    Raises:
        DataError, ConfigError: see `CocoMask`.
    """

    families = ("coco_boundary",)
    offers = tuple(f"coco_boundary/{name}" for name in NAMES)
    frozen = "coco_boundary"
    iou_type = "boundary"


def write_predictions(records: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Write records as a COCO results file, ordered by image id; it appears whole or not at all.

    Numbers are written in full, so that evaluating the file gives the very numbers that `compute` gives.

    Args:
        records: of `CocoBox.update`.
        path: the JSON file; its folder is made.

    Returns:
        The path written.

    Raises:
        DataError: the file cannot be written.
    """
    ordered = sorted(records, key=lambda record: record["id"])
    return write_results((result for record in ordered for result in _results(record)), path)


def evaluate_records(
    truth: Mapping[str, Any], records: Sequence[Record], backend: str = "auto", metric: type[CocoBox] = CocoBox
) -> CocoResult:
    """Evaluate records of any categories of a ground truth.

    Args:
        truth, records: of `records_of`.
        backend: see `CocoBox`.
        metric: `CocoBox`, or `CocoMask` where both have masks.

    Raises:
        DataError: a record is of an image that the ground truth does not list.
    """
    categories = truth["categories"]
    labels = LabelSpace(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))
    evaluation = metric(truth, labels, backend)
    evaluation.compute(records)
    assert evaluation.result is not None
    return evaluation.result


def records_of(results: Any, truth: Any, where: str, truth_name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and the records of all its images, from the content of files.

    Args:
        results: the predictions, see `check_results`.
        truth: COCO ground truth.
        where, truth_name: their files, for messages.

    Returns:
        Checked ground truth, and one record for each of its images, as `CocoBox.update` makes them, or `CocoMask`'s
        where results have masks and the truth has them, too; where nothing was found at all, the truth says it alone.
        Results of categories that the truth does not know are
        ignored, as COCO's tools do, and counted in a warning; so are images without any result.

    Raises:
        DataError: one is malformed, or results are for images that the truth does not list.
    """
    with_masks = have_masks(results)
    if nothing_found(results):  # no result tells whether masks were looked for
        with_masks = annotations_have_masks(truth, every=True)
    elif with_masks and not annotations_have_masks(truth):
        log.warning("%s: has no masks, so those of %s are not looked at", truth_name, where)
        with_masks = False
    truth = check_ground_truth(truth, truth_name, masks=with_masks)
    image_ids = [image["id"] for image in truth["images"]]
    results = check_results(results, truth, where, masks=with_masks)
    known = {c["id"] for c in truth["categories"]}
    unknown = {r["category_id"] for r in results} - known
    if unknown:
        count = sum(r["category_id"] in unknown for r in results)
        log.warning("%s: %d results of unknown categories %s are ignored", where, count, _few(sorted(unknown)))
    by_image: dict[int, list[dict[str, Any]]] = {i: [] for i in image_ids}
    for result in results:
        by_image[result["image_id"]].append(result)
    weakest = min((r["score"] for r in results), default=0.0)
    if weakest >= WEAK:
        text = "%s: no result scores below %.2g: if weaker ones were cut off, AP is too low - %s"
        log.warning(text, where, weakest, "`vistrain predict --threshold 0` keeps all")
    without = sum(not found for found in by_image.values())
    if without:
        text = "%s: %d of the %d images have no result; they count as images in which nothing was found"
        log.warning(text, where, without, len(by_image))
    return truth, [_file_record(i, found, with_masks) for i, found in by_image.items()]


def _file_record(image_id: int, results: Sequence[Mapping[str, Any]], masks: bool) -> dict[str, Any]:
    """A record of results read from a file; float64, so that nothing is lost."""
    more = {"masks": [r["segmentation"] for r in results]} if masks else {}
    return {
        "id": image_id,
        "boxes": np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4),
        "scores": np.array([r["score"] for r in results], dtype=np.float64),
        "categories": np.array([r["category_id"] for r in results], dtype=np.int64),
        **more,
    }


def _results(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record's detections as COCO results."""
    image_id = int(record["id"])
    columns = (record["boxes"].tolist(), record["scores"].tolist(), record["categories"].tolist())
    masks = record.get("masks", [None] * len(columns[0]))
    for bbox, score, category, mask in zip(*columns, masks, strict=True):
        result = {"image_id": image_id, "category_id": category, "bbox": bbox, "score": score}
        yield result if mask is None else {**result, "segmentation": mask}


def _numbers(arrays: CurveArrays, iou_thresholds: Sequence[float], max_detections: Sequence[int]) -> dict[str, float]:
    """COCO's summary; AP and the areas' AR at the largest number of detections."""
    precision, recall = arrays.precision[..., -1], arrays.recall[..., -1]
    at_half, at_three_quarters = _at(0.5, iou_thresholds), _at(0.75, iou_thresholds)
    numbers = {
        "AP": precision[:, :, :, 0],
        "AP50": precision[at_half, :, :, 0],
        "AP75": precision[at_three_quarters, :, :, 0],
        **{f"AP{area[0]}": precision[:, :, :, a] for a, area in enumerate(AREAS) if a},
        **{f"AR{limit}": arrays.recall[:, :, 0, m] for m, limit in enumerate(max_detections)},
        **{f"AR{area[0]}": recall[:, :, a] for a, area in enumerate(AREAS) if a},
    }
    return {name: mean_where_defined(values) for name, values in numbers.items()}


def _at(threshold: float, thresholds: Sequence[float]) -> np.ndarray:
    return np.flatnonzero(np.asarray(thresholds) == threshold)


def _few(values: Sequence[Any]) -> str:
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values[:10])
    return f"({shown}{', ...' if len(values) > 10 else ''})"
