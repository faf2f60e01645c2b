"""What proposed plans say of a set whose slices lie far apart."""

from __future__ import annotations

from vistrain.data.volumes.plan import Fingerprint, plans


def test_plans_move_voxels_within_slices_where_these_lie_far_apart() -> None:
    sides = [20, 64, 64]
    for coarse in (5.0, 1.0):
        spacing = [coarse, 1.0, 1.0]
        made = plans(Fingerprint(4, spacing, sides, sides, sides), [spacing] * 4)
        assert {"3d", "2d"} <= set(made)
        for plan in made.values():
            assert plan["data"].get("augment") == ({"in_plane": True} if coarse == 5.0 else None)
