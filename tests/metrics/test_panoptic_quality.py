"""Panoptic quality against a definition written segment by segment, and against torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from torchmetrics.functional.detection import panoptic_quality

from vistrain.errors import DataError
from vistrain.metrics import PanopticQuality, protocol, unit
from vistrain.metrics.panoptic_quality import compact
from vistrain.predictions import PanopticMap, Segment, Segmentation
from vistrain.structures import LabelSpace

LABELS = LabelSpace(("person", "car", "sky", "road"), (1, 7, 90, 200), things=(0, 1))


def blocks(rng: np.random.Generator, most: int, side: int = 24) -> np.ndarray:
    """A map of 0 to `most` rectangles upon each other; some may be hidden."""
    ids = np.zeros((side, side), np.int32)
    for value in range(1, most + 1):
        top, left = rng.integers(0, side - 4, 2)
        ids[top : top + rng.integers(3, side), left : left + rng.integers(3, side)] = value
    return ids


def pair(rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], Segmentation]:
    """A truth with void and crowds, and a prediction like it; all predicted segments have pixels."""
    truth = blocks(rng, int(rng.integers(0, 8)))
    labels, crowd = rng.integers(0, 4, truth.max()), rng.random(truth.max()) < 0.25
    found = np.where(rng.random(truth.shape) < 0.8, np.roll(truth, int(rng.integers(0, 4)), 1), 0)
    other = blocks(rng, int(rng.integers(0, 4)))
    found = np.where(other > 0, other + 20, found)
    names = np.concatenate([labels, rng.integers(0, 4, 30)])
    ids = [v for v in np.unique(found).tolist() if v]
    segments = tuple(Segment(1000 * v, int(names[v - 1]), bool(names[v - 1] < 2), 0.5) for v in ids)
    target = {
        "segment_map": torch.from_numpy(truth.astype(np.uint8)),
        "segment_labels": torch.from_numpy(labels),
        "segment_crowd": torch.from_numpy(crowd),
    }
    return target, Segmentation(panoptic=PanopticMap(torch.from_numpy(found * 1000), segments))


def by_definition(pairs: list[tuple[dict[str, torch.Tensor], Segmentation]]) -> dict[int, tuple[float, float, float]]:
    """PQ, SQ, RQ of each class, with masks and loops."""
    sums = {c: [0.0, 0, 0, 0] for c in range(4)}
    for target, prediction in pairs:
        truth, found = target["segment_map"].numpy(), prediction.panoptic.ids.numpy()
        labels, crowd = target["segment_labels"].tolist(), target["segment_crowd"].tolist()
        taken: set[int] = set()
        for i, label in enumerate(labels):
            mask, hit = truth == i + 1, False
            for segment in prediction.panoptic.segments if not crowd[i] else ():
                own = found == segment.id
                both = int((mask & own).sum())
                union = int(((mask | own) & ~(own & (truth == 0))).sum())
                if segment.label == label and both and both / union > 0.5:
                    sums[label][0] += both / union
                    sums[label][1] += 1
                    taken.add(segment.id)
                    hit = True
            sums[label][3] += not hit and not crowd[i]
        for segment in prediction.panoptic.segments:
            if segment.id in taken:
                continue
            own = found == segment.id
            allowed = truth == 0
            crowds = [i for i, label in enumerate(labels) if label == segment.label and crowd[i]]
            if crowds:
                allowed = allowed | (truth == crowds[-1] + 1)
            sums[segment.label][2] += (own & allowed).sum() / own.sum() <= 0.5
    found_numbers = {}
    for label, (iou, tp, fp, fn) in sums.items():
        if tp + fp + fn:
            weight = tp + fp / 2 + fn / 2
            found_numbers[label] = (iou / weight, iou / tp if tp else 0.0, tp / weight)
    return found_numbers


def measured(pairs: list[tuple[dict[str, torch.Tensor], Segmentation]]) -> tuple[PanopticQuality, dict[str, float]]:
    metric = protocol("panoptic", labels=LABELS)
    records = [r for i, (t, p) in enumerate(pairs) for r in metric.update([i], [p], [t])]
    return metric, metric.compute(records)


def test_equals_the_definition_with_void_and_crowds():
    rng = np.random.default_rng(3)
    pairs = [pair(rng) for _ in range(60)]
    metric, numbers = measured(pairs)
    wanted = by_definition(pairs)
    for row, label in zip(metric.result.per_class, range(4), strict=True):
        assert (row["PQ"], row["SQ"], row["RQ"]) == pytest.approx(wanted[label], abs=1e-12)
    assert {row["name"]: row["thing"] for row in metric.result.per_class}["sky"] is False
    for group, classes in (("", range(4)), ("_things", (0, 1)), ("_stuff", (2, 3))):
        means = np.mean([wanted[c] for c in classes], 0)
        got = [numbers[f"panoptic/{q}{group}"] for q in ("PQ", "SQ", "RQ")]
        np.testing.assert_allclose(got, means, atol=1e-12)
    assert sum(r["TP"] for r in metric.result.per_class) > 20
    assert all(r["FP"] and r["FN"] for r in metric.result.per_class)


def test_classes_that_occur_nowhere_are_not_printed():
    truth = np.ones((4, 4), np.int64)
    target = {
        "segment_map": torch.from_numpy(truth.astype(np.uint8)),
        "segment_labels": torch.tensor([0]),
        "segment_crowd": torch.tensor([False]),
    }
    found = Segmentation(panoptic=PanopticMap(torch.from_numpy(truth), (Segment(1, label=2, thing=False, score=0.9),)))
    metric, _ = measured([(target, found)])
    _, classes, line = metric.result.tables()
    assert list(classes.columns[0].cells) == ["person", "sky"]
    assert line == "2 classes without segments are left out"
    assert len(metric.result.per_class) == 4


def test_equals_torchmetrics_where_rules_are_one():
    rng = np.random.default_rng(0)
    pairs = [pair(rng) for _ in range(20)]
    for target, _ in pairs:
        seen = target["segment_map"].unique()
        target["segment_crowd"] = ~torch.isin(torch.arange(len(target["segment_labels"])) + 1, seen)  # hidden ones
        labels = target["segment_labels"]  # torchmetrics takes stuff of one class as one segment
        labels[:] = labels % 2
    pairs = [(t, Segmentation(panoptic=covering(p.panoptic))) for t, p in pairs]
    _, numbers = measured(pairs)
    void = 9

    def colour(ids: np.ndarray, label_of: dict[int, int]) -> np.ndarray:
        classes = np.vectorize(lambda v: label_of.get(v, void))(ids)
        return np.stack([classes, np.where(classes == void, 0, ids)], -1)

    truth = [
        colour(t["segment_map"].numpy().astype(int), {i + 1: c for i, c in enumerate(t["segment_labels"].tolist())})
        for t, _ in pairs
    ]
    found = [colour(p.panoptic.ids.numpy().astype(int), {s.id: s.label for s in p.panoptic.segments}) for _, p in pairs]
    # One tall image of all: the numbers of segments, which both know, stay apart.
    tall = [np.concatenate([np.add(x, (0, 50_000 * i)) for i, x in enumerate(maps)])[None] for maps in (found, truth)]
    theirs = panoptic_quality(*map(torch.from_numpy, tall), {0, 1}, {2}, return_sq_and_rq=True)
    assert [numbers[f"panoptic/{q}"] for q in ("PQ", "SQ", "RQ")] == pytest.approx(theirs.tolist(), abs=1e-6)


def covering(found: PanopticMap) -> PanopticMap:
    """Things alone, and one where there was nothing, which torchmetrics would leave out of unions as it does void."""
    ids, rest = found.ids, Segment(99, 1, True, 0.5)
    segments = tuple(Segment(s.id, s.label % 2, True, s.score) for s in found.segments)
    return PanopticMap(torch.where(ids == 0, rest.id, ids), (*segments, rest) if (ids == 0).any() else segments)


def test_more_segments_than_bytes_count():
    ids = torch.arange(400, dtype=torch.int32).reshape(20, 20)
    labels = torch.zeros(399, dtype=torch.int64)
    target = {"segment_map": ids.to(torch.int16), "segment_labels": labels, "segment_crowd": labels.bool()}
    found = PanopticMap(ids * 60_000, tuple(Segment(60_000 * i, 0, True, 1.0) for i in range(1, 400)))
    metric, numbers = measured([(target, Segmentation(panoptic=found))])
    assert numbers["panoptic/PQ"] == 1
    assert metric.result.per_class[0]["TP"] == 399
    assert "panoptic/PQ_stuff" not in numbers  # there is none
    console = Console(record=True, width=80)
    console.print(metric.result)
    assert "100.00" in console.export_text()
    assert unit("panoptic/PQ").percent


def test_a_map_and_its_segments_agree():
    target = {name: torch.zeros(0, dtype=torch.int64) for name in ("segment_labels", "segment_crowd")}
    target["segment_map"] = torch.zeros((2, 2), dtype=torch.uint8)
    ids = torch.tensor([[0, 5], [0, 0]], dtype=torch.int32)
    one, two = Segment(5, 0, True, 1.0), Segment(6, 0, True, 1.0)
    for found, problem in (
        (PanopticMap(ids, ()), "segment 5, which is not listed"),
        (PanopticMap(ids, (one, two)), "segment 6 of its prediction has no pixel"),
        (PanopticMap(ids[:1], (one,)), r"size \[1, 2\], its truth \[2, 2\]"),
    ):
        with pytest.raises(DataError, match=problem):
            measured([(target, Segmentation(panoptic=found))])
    metric = protocol("panoptic", labels=LABELS)
    (record,) = metric.update(["a"], [Segmentation(panoptic=PanopticMap(ids * 0, ()))], [target])
    with pytest.raises(DataError, match="neither truth nor predictions"):
        metric.compute([record])
    with pytest.raises(DataError, match="no image"):
        metric.compute([])
    assert compact(np.array([7, 3]), np.array([3, 7]), ValueError).tolist() == [1, 0]
