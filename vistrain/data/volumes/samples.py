"""Samples of volumes: patches that are drawn for training, and whole cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vistrain.data.base.collate import Batch, batch_of
from vistrain.data.base.dataset import SampleSet
from vistrain.data.volumes.prepared import PreparedCase, part_file
from vistrain.data.volumes.transforms import VolumeAugment


@dataclass
class VolumeSample:
    """A patch or a case on its way to a batch.

    Attributes:
        image: float16 `[C, d, h, w]`.
        label_map: uint8 class channels, 255 where there is no annotation: `[d, h, w]` of a patch; `[D, H, W]` of a
            case, in its own voxels.
        id: of the case.
        sides: of the case's own voxels, or of the patch.
        box: the part of it that the image shows.
        spacing: mm of the label map's voxels, along z, y, x.
    """

    image: np.ndarray
    label_map: np.ndarray
    id: str
    sides: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    spacing: tuple[float, ...]


class WholeCases(SampleSet):
    """Prepared cases as a whole, and their truth in their own voxels.

    Args:
        cases: in the cache.
    """

    def __init__(self, cases: Sequence[PreparedCase]) -> None:
        self.cases = list(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def sample(self, index: int, seed: int = 0) -> VolumeSample:
        """See `VolumeSample`.

        Raises:
            DataError: see `PreparedCase.part`.
        """
        case = self.cases[index]
        image, truth = np.array(case.part("image")), np.array(case.part("truth"))
        box = tuple((low, high) for low, high in case.facts["box"])
        return VolumeSample(image, truth, case.id, truth.shape, box, tuple(case.facts["spacing"]))

    def where(self, index: int) -> str:
        """The prepared file."""
        return str(part_file(self.cases[index].folder, self.cases[index].id, "image"))


class Patches(SampleSet):
    """Patches drawn from prepared cases.

    Args:
        cases: in the cache.
        patch: sides along z, y, x, voxels.
        foreground: probability that a patch is drawn around a voxel of a class, each class of the case being as likely.
        augment: what is done to it; None: nothing.
        ignored: label outside of a case.
        repeats: patches of each case in an epoch.
        previous: how many of the last channels are classes of a first stage.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        patch: tuple[int, int, int],
        foreground: float,
        augment: VolumeAugment | None,
        ignored: int,
        repeats: int = 1,
        previous: int = 0,
    ) -> None:
        self.cases, self.patch, self.foreground = list(cases), tuple(patch), foreground
        self.augment, self.ignored, self.repeats, self.previous = augment, ignored, repeats, previous

    def __len__(self) -> int:
        return len(self.cases) * self.repeats

    def sample(self, index: int, seed: int = 0) -> VolumeSample:
        """See `VolumeSample`; all that is random about it is of the seed.

        Raises:
            DataError: see `PreparedCase.part`.
        """
        case, draw = self.cases[index % len(self.cases)], np.random.default_rng((seed, index))
        images, labels = case.part("image"), case.part("label")
        corner = self._corner(case, labels.shape, draw)
        motion = None if self.augment is None else self.augment.motion(self.patch, draw)
        if motion is None:
            image, label = self._cut(images, labels, corner, self.patch)
        else:
            extent = motion.extent(self.patch)
            # The middles of both fall together: extents differ from the patch by whole and half voxels.
            low = [c + (p - e) // 2 for c, p, e in zip(corner, self.patch, extent, strict=True)]
            image, label = motion.applied(*self._cut(images, labels, low, extent), self.patch, self.ignored)
        if self.augment is not None:
            image, label = self.augment.values(image, label, draw, self.previous)
        arrays = np.ascontiguousarray(image.half().numpy()), np.ascontiguousarray(label.numpy())
        box = tuple((0, side) for side in self.patch)
        return VolumeSample(*arrays, case.id, self.patch, box, tuple(case.facts["spacing"]))

    def _corner(self, case: PreparedCase, sides: Sequence[int], draw: np.random.Generator) -> list[int]:
        """Where a patch begins; one that is larger than the case has it in its middle."""
        places = case.part("places") if draw.random() < self.foreground else np.zeros((0, 4), np.int32)
        free = [side - length for side, length in zip(sides, self.patch, strict=True)]
        if not len(places):
            return [int(draw.integers(room + 1)) if room >= 0 else room // 2 for room in free]
        classes = np.unique(places[:, 0])
        own = places[places[:, 0] == draw.choice(classes)]
        middle = own[draw.integers(len(own))][1:].tolist()
        # Anywhere in the patch but for its outer quarters, so that a class is not always in the middle.
        found = []
        for at, length, room in zip(middle, self.patch, free, strict=True):
            shift = int(draw.integers(-(length // 4), length // 4 + 1))
            wanted = at - length // 2 + shift
            found.append(room // 2 if room < 0 else min(max(wanted, 0), room))
        return found

    def _cut(
        self, images: np.ndarray, labels: np.ndarray, low: Sequence[int], sides: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A part of a case, 0 and ignored where it reaches beyond."""
        image = torch.zeros((len(images), *sides))
        label = torch.full(tuple(sides), self.ignored, dtype=torch.uint8)
        inside = [
            (max(start, 0), min(start + length, side))
            for start, length, side in zip(low, sides, labels.shape, strict=True)
        ]
        if all(begin < end for begin, end in inside):
            source = tuple(slice(begin, end) for begin, end in inside)
            target = tuple(slice(b - start, e - start) for (b, e), start in zip(inside, low, strict=True))
            image[(slice(None), *target)] = torch.from_numpy(images[(slice(None), *source)].astype(np.float32))
            label[target] = torch.from_numpy(labels[source].copy())
        return image, label


def collate_volumes(samples: Sequence[VolumeSample]) -> Batch:
    """Pads images at the end of each side with zeros to common sides and stacks them.

    Returns:
        `image` float16 `[B, C, D, H, W]`, `size` and `original_size` int64 `[B, 3]`, `box` int64 `[B, 3, 2]`, `id`, and
        `target`, dicts with `label_map` and `spacing` float32 `[3]`, see `VolumeSample`.
    """
    targets = [
        {"label_map": torch.from_numpy(sample.label_map), "spacing": torch.tensor(sample.spacing)} for sample in samples
    ]
    images = [np.moveaxis(sample.image, 0, -1) for sample in samples]
    batch = batch_of(images, [sample.sides for sample in samples], [sample.id for sample in samples], targets)
    batch["box"] = torch.tensor([sample.box for sample in samples], dtype=torch.int64)
    return batch
