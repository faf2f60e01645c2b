"""From maps of lanes to points, against the authors' rule written out."""

from __future__ import annotations

import math

import pytest
import torch

from vistrain.devices import on_meta
from vistrain.errors import ConfigError, DataError
from vistrain.segmentation import SCNN, LaneDecoder


def by_definition(maps: torch.Tensor, exist: torch.Tensor, size: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Row i of 18 is row round(h - (i - 1) * 20 / H * h) of the map, both counted from 1."""
    lanes, (h, w) = [], maps.shape[1:]
    for there, lane in zip(exist.tolist(), maps[1:], strict=True):
        points = []
        for i in range(1, 19):
            row = math.floor(h - (i - 1) * 20 / size[0] * h + 0.5)
            value, column = lane[row - 1].max(0)
            if value > 0.3:
                points.append((math.floor((int(column) + 1) * size[1] / w + 0.5) - 1, size[0] - (i - 1) * 20 - 1))
        lanes.append(points if len(points) > 1 and there > 0.5 else [])
    return lanes


def test_decoding_is_the_authors():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 288, 800, generator=generator) ** 4
    maps[1] *= 0.2  # nowhere above the threshold
    maps[2, 100:] = 0
    exist = torch.tensor([0.9, 0.9, 0.2, 0.6])
    found = LaneDecoder()(maps, exist, (590, 1640))
    assert [[tuple(p) for p in lane.int().tolist()] for lane in found] == by_definition(maps, exist, (590, 1640))
    assert [len(lane) for lane in found] == [0, 0, 0, 18]
    single = torch.zeros(2, 288, 800)
    single[1, 287, 5] = 1  # one point is no lane
    assert [len(x) for x in LaneDecoder()(single, torch.ones(1), (590, 1640))] == [0]
    single[1, 277, 5] = 1
    (lane,) = LaneDecoder()(single, torch.ones(1), (590, 1640))
    assert lane.tolist() == [[11, 589], [11, 569]]


def test_rows():
    assert sorted(LaneDecoder(offset=10, step=10, rows=56).heights(720)) == list(range(160, 720, 10))
    assert LaneDecoder().heights(590)[::17] == [589, 249]
    assert LaneDecoder().heights(50) == [49, 29, 9]
    with pytest.raises(ConfigError, match=r"decoder\.step"):
        LaneDecoder(step=0)


def test_a_network_refuses_other_lanes_and_sizes():
    with on_meta():
        model = SCNN(num_lanes=2, input_size=(32, 64))
    batch = {"id": ["a.jpg"], "target": [{"exist": torch.zeros(4)}]}
    with pytest.raises(DataError, match=r"a\.jpg: 4 lanes, the network has 2"):
        model.losses(batch)
    with pytest.raises(ConfigError, match="32x64"):
        model.check_size(32, 80)
