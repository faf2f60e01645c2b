"""What networks predict of one image, a class for each kind; on the ground, as networks, metrics and tasks use them.

Runs without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: `[N, 4]` float32, (x1, y1, x2, y2) in pixels of the original image.
        scores: `[N]` float32 in 0..1.
        labels: `[N]` int64, class channels of the network's label space.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def kept(self, index: Tensor) -> Detections:
        """Some of them: `[N]` bool, or positions in their new order."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])


@dataclass(frozen=True)
class InstanceDetections(Detections):
    """Objects with their masks.

    Attributes:
        masks: `[N, H, W]` bool, in the original image; predictors pack them (`layers.packed_masks.PackedMasks`, of
            which `masks[i]` is one, and `unpacked()` all).
    """

    masks: Any

    def kept(self, index: Tensor) -> InstanceDetections:
        """See `Detections`."""
        return InstanceDetections(self.boxes[index], self.scores[index], self.labels[index], self.masks[index])


@dataclass(frozen=True)
class Segment:
    """A segment of a panoptic map.

    Attributes:
        id: its value in the map, from 1.
        label: class channel of the network's label space.
        thing: whether it is one object; stuff has one segment for each class.
        score: in 0..1.
    """

    id: int
    label: int
    thing: bool
    score: float


@dataclass(frozen=True)
class PanopticMap:
    """Every pixel in at most one segment.

    Attributes:
        ids: `[*S]` int32; 0 belongs to none.
        segments: their classes.
    """

    ids: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Segmentation:
    """What a segmenter says of one image; parts that it was not asked for are None.

    Attributes:
        semantic: `[*S]` int64, the class channel of each pixel (voxel) of the original image.
        panoptic: segments.
        instances: objects, best first.
        probabilities: `[K, *S]` float32 in 0..1, of each class, where a network gives them.
    """

    semantic: Tensor | None = None
    panoptic: PanopticMap | None = None
    instances: InstanceDetections | None = None
    probabilities: Tensor | None = None


@dataclass(frozen=True)
class LaneMaps:
    """Where the lanes of one image are.

    Attributes:
        probabilities: `[L + 1, H, W]` float32 of background and the lanes, at the size at which the network saw the
            image.
        exist: `[L]` float32, probability that a lane is there.
        lanes: L times `[N, 2]` float32, (x, y) in pixels of the original image; N is 0 where there is none.
    """

    probabilities: Tensor
    exist: Tensor
    lanes: tuple[Tensor, ...]


@dataclass(frozen=True)
class ClassScores:
    """What a classifier says of one image.

    Attributes:
        scores: `[K]` float32 in 0..1, by class channel: probabilities that sum to 1, or one by one with `multi_label`.
        multi_label: whether an image may have any number of classes.
    """

    scores: Tensor
    multi_label: bool = False


@dataclass(frozen=True)
class Restored:
    """A restored image.

    Attributes:
        image: `[C, H, W]` float32, the brightest pixel 1, as the network gives it: neither clipped nor rounded, which
            the protocol that it is measured with decides.
    """

    image: Tensor


@dataclass(frozen=True)
class Displacement:
    """Where each pixel of the first image of a pair is in the second one.

    Attributes:
        field: `[1, H, W]` float32, pixels to the left (disparity), or `[2, H, W]`, pixels to the right and down (flow).
    """

    field: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """What a network that was shown a part of an image makes of the rest.

    Attributes:
        loss: what its training minimises, of this image, by the names of its losses; low is good.
        hidden: `[h, w]` bool, the patches that it was not shown; None where it sees the whole image.
        image: `[C, H, W]` float32, brightest pixel 1, the image with the hidden part made up; None where no pixels are
            predicted.
        shown: `[C, H, W]`, what it was shown, where that is not the image without its hidden patches.
    """

    loss: dict[str, float]
    hidden: Tensor | None = None
    image: Tensor | None = None
    shown: Tensor | None = None
