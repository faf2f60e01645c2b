"""Test-time augmentation: an image is seen several times, flipped and at other sizes, and what is found is merged.

Merging: weighted boxes fusion (Solovyev, Wang, Gabruseva 2019, arXiv 1910.13302, section 3; authors' code:
github.com/ZFTurbo/Weighted-Boxes-Fusion, MIT) or non-maximum suppression for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms  # type: ignore[import-untyped]

from vistrain.errors import ConfigError
from vistrain.network import Network
from vistrain.predictions import Detections, InstanceDetections


class TestTimeAugmentation:
    """Runs any detector on several views of a batch and merges what it finds.

    Views are made on the device from the images as the evaluation resized them. Enlarging those adds no detail: where
    that matters, raise `data.eval_short_side` and `eval_long_side`, and use scales up to 1.

    Args:
        scales: of the views; 1 is the evaluation's own size.
        flip: each also mirrored left to right.
        merge: `wbf`: boxes of a class that overlap become their mean, weighted by score, and keep their mean score
            times the share of views that found them; `nms`: of such boxes the best stays as it is, with its mask if
            there is one.
        iou_threshold: overlap from which on boxes are the same object: above it for both ways. The authors' of weighted
            boxes fusion is 0.55.
        least_score: weaker detections are left out before merging.

    Raises:
        ConfigError: no scale, or one that is not above 0, or a threshold outside 0..1.
    """

    __test__ = False  # pytest: not a test

    def __init__(
        self,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = True,
        merge: Literal["wbf", "nms"] = "wbf",
        iou_threshold: float = 0.55,
        least_score: float = 0.0,
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ConfigError("scales", f"{list(scales)} are no scales", "numbers above 0, at least one")
        for name, value in (("iou_threshold", iou_threshold), ("least_score", least_score)):
            if not 0 <= value <= 1:
                raise ConfigError(name, f"{value} is not in 0..1")
        if merge not in ("wbf", "nms"):
            raise ConfigError("merge", f"no way {merge!r}", "wbf or nms")
        self.scales, self.flip, self.merge = tuple(scales), flip, merge
        self.iou_threshold, self.least_score = iou_threshold, least_score

    def __repr__(self) -> str:
        flipped = " and mirrored" if self.flip else ""
        return f"test-time augmentation: scales {list(self.scales)}{flipped}, {self.merge} at {self.iou_threshold:g}"

    def __call__(self, model: Network, batch: Mapping[str, Any]) -> list[Detections]:
        """Detections of each image, as `model.predict` gives them.

        A single view is returned as the model gave it; of several, no more are kept than the fullest view has.

        Args:
            model: a detector.
            batch: `image`, `size`, `original_size` as in evaluation; further keys are passed on.
        """
        divisor = model.preprocessing.size_divisor
        views: list[list[Detections]] = []
        for scale in self.scales:
            for flip in (False, True)[: 1 + self.flip]:
                found = model.predict(view(batch, scale, flip, divisor))
                if flip:
                    widths = batch["original_size"][:, 1].tolist()
                    found = [_mirrored(d, width) for d, width in zip(found, widths, strict=True)]
                views.append(found)
        if len(views) == 1:
            return views[0]
        if self.merge == "wbf" and any(isinstance(d, InstanceDetections) for d in views[0]):
            raise ConfigError("task.tta.merge", "fused boxes have no masks", "nms keeps those of the best")
        combine: Callable[..., Detections] = fuse if self.merge == "wbf" else suppress
        return [
            combine([_above(d, self.least_score) for d in of_image], self.iou_threshold)
            for of_image in zip(*views, strict=True)
        ]


def view(batch: Mapping[str, Any], scale: float, flip: bool, size_divisor: int = 1) -> dict[str, Any]:
    """A batch whose images are resized and mirrored, without their padding, and padded again (bottom and right).

    Args:
        batch: `image` `[B, C, H, W]`, `size` `[B, 2]`, and more, which is passed on.
        scale: of both sides, rounded to whole pixels, at least one.
        flip: left to right.
        size_divisor: height and width of the new batch are multiples of it.
    """
    if scale == 1 and not flip:
        return dict(batch)
    images = []
    for image, (height, width) in zip(batch["image"], batch["size"].tolist(), strict=True):
        image = image[:, :height, :width].float()  # uint16 can neither be padded nor mirrored
        size = max(round(height * scale), 1), max(round(width * scale), 1)
        images.append(_resized(image.flip(-1) if flip else image, size))
    sizes = [image.shape[-2:] for image in images]
    height, width = (-(-max(side) // size_divisor) * size_divisor for side in zip(*sizes, strict=True))
    padded = [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
    stacked = torch.stack(padded)
    if not batch["image"].is_floating_point():
        stacked = stacked.round()  # an antialiased bilinear filter does not leave the range
    return {
        **batch,
        "image": stacked.to(batch["image"].dtype),
        "size": batch["size"].new_tensor([list(size) for size in sizes]),
        "host_size": [tuple(size) for size in sizes],
    }


def fuse(views: Sequence[Detections], iou_threshold: float = 0.55) -> Detections:
    """Weighted boxes fusion of what several views found in one image.

    Best first, each box joins the fused box of its class that it overlaps most, if by more than `iou_threshold`, or
    starts one. A fused box is the mean of its members weighted by score; its score is their mean score, times
    `min(members, views) / views`.

    Returns:
        at most as many as the fullest view has, best first, on the views' device.
    """
    device, number = views[0].boxes.device, len(views)
    boxes = torch.cat([d.boxes for d in views]).double().cpu().numpy()
    scores = torch.cat([d.scores for d in views]).double().cpu().numpy()
    labels = torch.cat([d.labels for d in views]).cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    parts = [_fuse_class(boxes[mine], scores[mine], number, iou_threshold) for mine in _by_class(order, labels)]
    label = np.repeat([labels[mine[0]] for mine in _by_class(order, labels)], [len(p[1]) for p in parts])
    box = np.concatenate([np.zeros((0, 4)), *(p[0] for p in parts)])
    score = np.concatenate([np.zeros(0), *(p[1] for p in parts)])
    best = np.argsort(-score, kind="stable")[: max(len(d.scores) for d in views)]
    return Detections(
        torch.from_numpy(box[best]).to(device, torch.float32),
        torch.from_numpy(score[best]).to(device, torch.float32),
        torch.from_numpy(label[best].astype(np.int64)).to(device),
    )


def suppress(views: Sequence[Detections], iou_threshold: float = 0.55) -> Detections:
    """Non-maximum suppression, for each class, of what several views found in one image.

    Returns:
        at most as many as the fullest view has, best first.
    """
    boxes, scores = torch.cat([d.boxes for d in views]), torch.cat([d.scores for d in views])
    labels = torch.cat([d.labels for d in views])
    kept = batched_nms(boxes.float(), scores.float(), labels, iou_threshold)
    kept = kept[: max(len(d.scores) for d in views)]
    if isinstance(views[0], InstanceDetections):
        masks = torch.cat([d.masks for d in views])[kept]  # type: ignore[attr-defined]
        return InstanceDetections(boxes[kept], scores[kept], labels[kept], masks)
    return Detections(boxes[kept], scores[kept], labels[kept])


def _by_class(order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """`order` split by label, ascending; each part keeps its order."""
    grouped = order[np.argsort(labels[order], kind="stable")]
    return [part for part in np.split(grouped, np.flatnonzero(np.diff(labels[grouped])) + 1) if len(part)]


def _fuse_class(
    boxes: np.ndarray, scores: np.ndarray, views: int, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fused boxes `[M, 4]` and scores `[M]` of one class, whose `[N, 4]` and `[N]` come best first."""
    fused, total = np.empty_like(boxes), np.zeros((len(boxes), 4))
    weight, members = np.zeros(len(boxes)), np.zeros(len(boxes))
    count = 0
    for box, score in zip(boxes, scores, strict=True):
        overlaps = _iou(fused[:count], box)
        at = int(overlaps.argmax()) if count else -1
        if at < 0 or overlaps[at] <= iou_threshold:
            at = count
            count += 1
        total[at] += score * box
        weight[at] += score
        members[at] += 1
        fused[at] = total[at] / weight[at] if weight[at] > 0 else box
    of_views = np.minimum(members[:count], views) / views
    return fused[:count], weight[:count] / members[:count] * of_views


def _iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    size = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = size.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(areas - shared, 1e-12)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`[C, H, W]` float -> `[C, *size]`, bilinear and antialiased."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def _mirrored(found: Detections, width: float) -> Detections:
    left, top, right, bottom = found.boxes.unbind(-1)
    boxes = torch.stack((width - right, top, width - left, bottom), -1)
    if isinstance(found, InstanceDetections):
        return InstanceDetections(boxes, found.scores, found.labels, found.masks.flip(2))
    return Detections(boxes, found.scores, found.labels)


def _above(found: Detections, score: float) -> Detections:
    return found.kept(found.scores >= score)
