"""Large images tile by tile: segments across seams are those of the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from vistrain.layers.tiling import tiles_of
from vistrain.network import Network
from vistrain.predictions import InstanceDetections, PanopticMap, Segment, Segmentation
from vistrain.segmentation.mask_classifier import boxes_of
from vistrain.segmentation.panoptic_tiles import PanopticSeams, owned_parts
from vistrain.structures import LabelSpace, Preprocessing
from vistrain.tasks.segmentation.panoptic_predictor import PanopticPredictor

LABELS = LabelSpace(("cell", "tool", "sky", "sea"), (1, 2, 3, 4), things=(0, 1))


class Colours(Network):
    """Things are what of a colour hangs together, stuff the colours 2 and 3; what it sees of an image decides nothing
    else. Scores grow with the area that it sees."""

    labels = LABELS
    preprocessing = Preprocessing()

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {}

    def predict(self, batch: Mapping[str, Any]) -> list[Segmentation]:
        (image,) = batch["image"][:, 0].numpy()
        height, width = batch["size"][0].tolist()
        self.seen.append((height, width))
        image = image[:height, :width]
        ids, segments, masks = np.zeros(image.shape, np.int32), [], []
        for label in range(4):
            parts, count = ndimage.label(image == label + 1)
            if label >= 2:
                parts, count = (image == label + 1).astype(np.int32), int((image == label + 1).any())
            for number in range(1, count + 1):
                mask = parts == number
                segments.append(Segment(len(segments) + 1, label, label < 2, float(mask.sum()) / 10_000))
                ids[mask] = len(segments)
                if label < 2:
                    masks.append(torch.from_numpy(mask))
        found = torch.stack(masks) if masks else torch.zeros((0, *image.shape), dtype=torch.bool)
        things = [s for s in segments if s.thing]
        scores, labels = torch.tensor([s.score for s in things]), torch.tensor([s.label for s in things])
        instances = InstanceDetections(boxes_of(found), scores, labels.long(), found)
        semantic = torch.from_numpy(np.maximum(image.astype(np.int64) - 1, 0))
        return [Segmentation(semantic, PanopticMap(torch.from_numpy(ids), tuple(segments)), instances)]


def scene(height: int = 150, width: int = 190) -> np.ndarray:
    """Sky over sea, void between; discs that seams cut, two tools that touch a disc, one that crosses all columns."""
    y, x = np.mgrid[:height, :width]
    image = np.where(y < 40, 3, np.where(y > 100, 4, 0))
    for cy, cx, radius in ((30, 30, 12), (64, 63, 16), (70, 120, 14), (120, 128, 13), (100, 30, 11)):
        image[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 1
    image[88:93, 5:185] = 2
    image[10:140, 165:170] = 2
    return np.repeat(image.astype(np.uint8)[..., None], 3, 2)


@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (64, 16), (100, 60), (400, 100)])
def test_tiles_give_the_segments_of_the_whole(tile: int, overlap: int) -> None:
    image = scene()
    network = Colours()
    whole = PanopticPredictor(network, "cpu").predict(image)
    found = PanopticPredictor(network, "cpu", tile=tile, overlap=overlap).predict(image)
    assert max(max(size) for size in network.seen[1:]) <= tile
    assert whole.panoptic is not None
    assert found.panoptic is not None
    pairs = np.unique(np.stack([x.panoptic.ids.numpy().reshape(-1) for x in (whole, found)]), axis=1).T.tolist()
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # one to one
    labels = [{s.id: s for s in x.panoptic.segments} for x in (whole, found)]
    for a, b in pairs:
        assert (a == 0) == (b == 0)
        if a:
            assert (labels[0][a].label, labels[0][a].thing) == (labels[1][b].label, labels[1][b].thing)
    assert torch.equal(found.semantic, whole.semantic)
    masks = [{m.tobytes() for m in x.instances.masks.unpacked().numpy()} if i else
             {m.tobytes() for m in x.instances.masks.numpy()} for i, x in enumerate((whole, found))]  # fmt: skip
    assert masks[0] == masks[1]


def test_things_that_disagree_stay_apart() -> None:
    """Of two tiles that share four columns: one pair agrees by a half, the other one by less, or is of two classes."""
    tiles = tiles_of(8, 20, 12, 4)
    assert owned_parts(tiles) == [(0, 0, 8, 10), (0, 10, 8, 20)]
    left, right = torch.zeros(2, 8, 12, dtype=torch.int32)
    left[0:2, 8:12], right[0:2, 0:2] = 1, 1  # 4 of 8 pixels
    left[3, 8:12], right[3, 3:4] = 2, 2  # 1 of 4
    left[5:7, 8:12], right[5:7, 0:4] = 3, 3  # all, but another class
    things = [tuple(Segment(i + 1, label, True, score) for i, label in enumerate(classes))
              for classes, score in (((0, 0, 0), 0.5), ((0, 0, 1), 0.75))]  # fmt: skip
    seams = PanopticSeams((8, 20))
    for ids, segments, place, owned in zip((left, right), things, tiles, owned_parts(tiles), strict=True):
        seams.add(PanopticMap(ids, segments), place, owned)
    found = seams.joined()
    said = [(s.label, s.score) for s in found.segments]  # by the first pixel that each has
    assert said == [(0, 0.75), (0, 0.5), (0, 0.75), (0, 0.5), (1, 0.75)]
    assert int((found.ids == 1).sum()) == 4
