"""Weights of a whole detector for windows of another size: tables of positions are resized, and it is said."""

from __future__ import annotations

import pytest
import torch
from parity.models import contiguous
from torch import Tensor

from vistrain.backbones import Backbone
from vistrain.checkpoints import load_weights
from vistrain.checkpoints.loading import with_window
from vistrain.detection import RetinaNet
from vistrain.errors import WeightsError
from vistrain.run.networks import load_named, load_whole


@pytest.fixture(scope="module")
def both() -> list[RetinaNet]:
    """Detectors on a small Swin whose maps hold whole windows, of 3 and of 4."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4}
    args = [{**sizes, "window_size": window, "img_size": 32 * window} for window in (3, 4)]
    names = {"name": "swin_tiny_patch4_window7_224", "strides": (8, 16, 32)}
    return [RetinaNet(Backbone(args=each, **names), contiguous(3)) for each in args]


def test_a_detector_starts_from_weights_of_other_windows(both: list[RetinaNet]) -> None:
    three, four = both
    report = load_named(four, dict(three.state_dict()))
    tables = [name for name in four.state_dict() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    assert [str(change) for change in report.adapted] == [
        f"{name}: windows of 3 in the file resized to 4" for name in tables
    ]
    assert "adapted backbone.body.layers.0.blocks.0.attn.relative_position_bias_table: windows of 3" in str(report)
    for name, value in four.state_dict().items():
        before = three.state_dict()[name]
        assert torch.equal(value, with_window(before, 4) if name in tables else before), name
    with torch.no_grad():
        assert all(x.isfinite().all() for x in four.eval()(torch.randn(1, 3, 128, 96))[0])


def test_nothing_is_resized_unasked_or_where_nothing_will_be_trained(both: list[RetinaNet]) -> None:
    three, four = both
    with pytest.raises(WeightsError, match=r"is for other image channels or windows: .* windows of 3 in the file"):
        load_whole(four, dict(three.state_dict()))
    with pytest.raises(
        WeightsError, match=r"4 of another shape: .*relative_position_bias_table \[25, 1\] for \[49, 1\]"
    ):
        load_weights(four, dict(three.state_dict()))
    odd = dict(three.state_dict())
    name = next(name for name in odd if name.endswith("relative_position_bias_table"))
    for table in (torch.zeros(26, 1), torch.zeros(16, 1), torch.zeros(25, 2), torch.zeros(25)):
        with pytest.raises(WeightsError, match="1 of another shape"):
            load_named(four, {**odd, name: table})


def test_a_resized_table_is_the_same_function_of_offsets() -> None:
    def maps(table: Tensor) -> Tensor:
        side = round(len(table) ** 0.5)
        return table.t().reshape(-1, side, side)

    table = torch.randn(13 * 13, 3)
    for side in (12, 4, 8):
        resized = maps(with_window(table, side))
        assert resized.shape == (3, 2 * side - 1, 2 * side - 1)
        centre = side - 1
        torch.testing.assert_close(resized[:, centre, centre], maps(table)[:, 6, 6])  # no offset is no offset
        flipped = with_window(maps(table).flip(1, 2).flatten(1).t(), side)
        torch.testing.assert_close(maps(flipped).flip(1, 2), resized)
    assert torch.equal(with_window(table, 7), table)
    level = with_window(torch.full((169, 2), 0.7, dtype=torch.float16), 12)
    assert level.dtype == torch.float16
    torch.testing.assert_close(level, torch.full((529, 2), 0.7, dtype=torch.float16))
    ramp = torch.arange(13.0).repeat(13, 1).flatten()[:, None] / 12  # along the width, 0 to 1
    wide = maps(with_window(ramp, 12))[0]
    assert (wide.diff(dim=1)[:, 2:-2] > 0).all()
    torch.testing.assert_close(wide[:, 11], torch.full((23,), 0.5))
