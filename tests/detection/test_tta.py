"""Test-time augmentation: views, what they are merged to, and that one view changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detector_tools import make_batch
from test_focus_detr import FORMS, make
from torch import Tensor
from training_tools import TinyData, TinyDetector, fit, make_trainer

from vistrain.config import build
from vistrain.detection import TestTimeAugmentation
from vistrain.detection.tta import fuse, suppress, view
from vistrain.errors import ConfigError
from vistrain.predictions import Detections
from vistrain.structures import Factory, Preprocessing
from vistrain.tasks import DetectionTask


def found(*rows: tuple[int, float, list[float]]) -> Detections:
    boxes = torch.tensor([b for _, _, b in rows]).reshape(-1, 4)
    return Detections(boxes, torch.tensor([s for _, s, _ in rows]), torch.tensor([c for c, _, _ in rows]).long())


class Spots:
    """Finds the bright rectangle of each image, exactly, at any size."""

    preprocessing = Preprocessing(size_divisor=32)

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Size, Tensor, torch.dtype]] = []

    def predict(self, batch: dict[str, Any]) -> list[Detections]:
        self.seen.append((batch["image"].shape, batch["size"], batch["image"].dtype))
        out = []
        for image, size, original in zip(batch["image"], batch["size"], batch["original_size"], strict=True):
            ys, xs = (image[0].float() > 0.5 * image.float().max()).nonzero(as_tuple=True)
            box = torch.stack((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)).float()
            ratio = (original.flip(0) / size.flip(0)).repeat(2)
            out.append(Detections((box * ratio)[None], torch.tensor([0.5]), torch.tensor([1])))
        return out


def spot_batch(dtype: torch.dtype = torch.uint8) -> dict[str, Any]:
    """Two images of 64x96 and 40x64 in a padded batch, each half the size of its original."""
    images = torch.zeros(2, 3, 64, 96)
    images[0, :, 16:32, 8:40] = images[1, :, 8:24, 32:56] = 200
    sizes = torch.tensor([[64, 96], [40, 64]])
    return {"image": images.to(dtype), "size": sizes, "original_size": 2 * sizes, "id": [1, 2]}


EXACT = [[16.0, 32.0, 80.0, 64.0], [64.0, 16.0, 112.0, 48.0]]


@pytest.mark.parametrize("merge", ["wbf", "nms"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_mirrored_and_scaled_views_agree_on_the_box(merge: Any, dtype: torch.dtype) -> None:
    model, tta = Spots(), TestTimeAugmentation((1.0, 0.5, 1.5), flip=True, merge=merge)
    images = tta(model, spot_batch(dtype))
    for image, expected in zip(images, EXACT, strict=True):
        assert image.boxes.tolist()[0] == pytest.approx(expected, abs=1e-4)
        assert image.scores.tolist() == pytest.approx([0.5])  # six times the same: nothing doubled, nothing weakened
        assert image.labels.tolist() == [1]
    assert [shape[-2:] for shape, _, _ in model.seen] == [(64, 96)] * 2 + [(32, 64)] * 2 + [(96, 160)] * 2
    assert all(kind == dtype for _, _, kind in model.seen)


def test_padding_stays_at_the_bottom_and_right() -> None:
    batch = spot_batch()
    batch["image"][1, :, 40:] = 255  # what lies in the padding is not carried along
    seen = view(batch, 1.0, flip=True)
    assert seen["size"].tolist() == batch["size"].tolist()
    assert torch.equal(seen["image"][0], batch["image"][0].flip(-1))
    assert torch.equal(seen["image"][1, :, :40, :64], batch["image"][1, :, :40, :64].flip(-1))
    assert not seen["image"][1, :, 40:].any()
    assert seen["id"] == [1, 2]
    assert view(batch, 0.001, flip=False)["size"].tolist() == [[1, 1], [1, 1]]
    assert view(batch | {"host_size": [(64, 96), (40, 64)]}, 0.001, flip=False)["host_size"] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("form", FORMS)
def test_a_single_view_is_the_models_own(form: str) -> None:
    model, batch = make(form).eval(), make_batch([0, 0], [(64, 96), (48, 40)])
    for ours, expected in zip(TestTimeAugmentation(flip=False)(model, batch), model.predict(batch), strict=True):
        assert torch.equal(ours.boxes, expected.boxes)
        assert torch.equal(ours.scores, expected.scores)


@pytest.mark.parametrize("merge", ["wbf", "nms"])
@pytest.mark.parametrize("form", FORMS)
def test_every_detector_takes_it(form: str, merge: Any) -> None:
    model, batch = make(form).eval(), make_batch([0, 0], [(64, 96), (48, 40)])
    most = max(len(d.scores) for d in model.predict(batch))
    for image in TestTimeAugmentation((0.5, 1.0), merge=merge)(model, batch):
        assert 0 < len(image.scores) <= most
        assert image.boxes.dtype == image.scores.dtype == torch.float32
        assert image.labels.dtype == torch.int64
        assert image.scores.diff().le(0).all()
        assert image.boxes.isfinite().all()


def test_fusion_by_hand() -> None:
    """Equations of section 3: the mean weighted by score, the mean score, and the share of views."""
    first = found((2, 0.8, [0.0, 0.0, 10.0, 10.0]), (1, 0.6, [0.0, 0.0, 10.0, 10.0]))
    second = found((2, 0.4, [0.0, 0.0, 10.0, 13.0]), (2, 0.3, [50.0, 50.0, 60.0, 60.0]))
    fused = fuse([first, second])
    assert fused.labels.tolist() == [2, 1]  # no more than the fullest view has: the weakest is left out
    assert fused.scores.tolist() == pytest.approx([0.6, 0.3])  # class 1 was seen by one view of two
    assert fused.boxes[0].tolist() == pytest.approx([0.0, 0.0, 10.0, (0.8 * 10 + 0.4 * 13) / 1.2])
    # More members than views: the mean is not raised
    many = fuse([found(*[(0, 0.5, [0.0, 0.0, 10.0, 10.0])] * 3), found()])
    assert many.scores.tolist() == pytest.approx([0.5])


def test_suppression_keeps_the_best_of_a_class_as_it_is() -> None:
    first = found((2, 0.8, [0.0, 0.0, 10.0, 10.0]), (1, 0.6, [0.0, 0.0, 10.0, 10.0]), (1, 0.1, [30.0, 0.0, 40.0, 10.0]))
    second = found((2, 0.4, [0.0, 0.0, 10.0, 13.0]), (2, 0.9, [0.0, 0.0, 10.0, 11.0]))
    kept = suppress([first, second])
    assert kept.labels.tolist() == [2, 1, 1]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6, 0.1])
    assert kept.boxes[0].tolist() == [0.0, 0.0, 10.0, 11.0]


@pytest.mark.parametrize("merge", [fuse, suppress])
def test_nothing_found_and_degenerate_boxes(merge: Any) -> None:
    assert len(merge([found(), found()]).scores) == 0
    point = found((0, 0.5, [5.0, 5.0, 5.0, 5.0]), (0, 0.0, [5.0, 5.0, 5.0, 5.0]))
    assert merge([point, point]).boxes.isfinite().all()
    assert len(merge([found(), found((0, 0.5, [1.0, 1.0, 2.0, 2.0]))]).scores) == 1


@pytest.mark.parametrize("merge", [fuse, suppress])
def test_the_order_of_views_does_not_matter(merge: Any) -> None:
    torch.manual_seed(0)
    views = []
    for _ in range(3):
        low = torch.rand(12, 2) * 60
        views.append(Detections(torch.cat((low, low + 40), 1), torch.rand(12), torch.randint(2, (12,))))
    one, two = merge(views), merge(views[::-1])
    torch.testing.assert_close(one.scores, two.scores)
    torch.testing.assert_close(one.boxes, two.boxes)


def test_weak_detections_can_be_left_out() -> None:
    tta = TestTimeAugmentation(least_score=0.6)
    assert [len(d.scores) for d in tta(Spots(), spot_batch())] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [1.0, 0.0]}, "scales"),
        ({"iou_threshold": 1.5}, "iou_threshold"),
        ({"least_score": -0.1}, "least_score"),
        ({"merge": "mean"}, "merge"),
        ({"flips": True}, "flips"),
    ],
)
def test_what_is_wrong_names_its_key(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(arguments, TestTimeAugmentation, where="task.tta")
    assert error.value.where.startswith(f"task.tta.{key}")


def test_it_is_used_in_a_test_and_not_while_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    class Counted(TestTimeAugmentation):
        def __call__(self, model: Any, batch: Any) -> list[Detections]:
            calls.append(len(batch["id"]))
            return super().__call__(model, batch)

    optimizer: Factory[Any] = Factory(torch.optim.SGD, lr=0.01)
    task = DetectionTask(TinyDetector(), optimizer, metrics=("coco_box",), tta=Counted((1.0, 2.0)))
    fit(tmp_path, task, TinyData(), max_epochs=1, logger=False)
    assert not calls
    with caplog.at_level("INFO", "vistrain"):
        make_trainer(tmp_path, logger=False).test(task, datamodule=TinyData(), verbose=False)
    assert sum(calls) == 6
    assert "scales [1.0, 2.0] and mirrored, wbf at 0.55" in caplog.text
    assert "test/coco/AP" in task.numbers
