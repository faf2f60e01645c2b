"""Errors of disparity and optical flow as KITTI's benchmark counts them (`disparity`, `flow`).

Menze and Geiger, Object Scene Flow for Autonomous Vehicles (CVPR 2015), section 5, and the devkit of cvlibs.net: a
pixel is an outlier if it is more than 3 pixels, and more than 5 % of the true displacement, from the truth. D1-all and
Fl-all are of truths that have the occluded pixels, too (`disp_occ_0`, `flow_occ`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vistrain.errors import DataError
from vistrain.metrics.base import Metric, Unit, refuse_nothing

if TYPE_CHECKING:
    from torch import Tensor

    from vistrain.predictions import Displacement

ABSOLUTE, RELATIVE = 3.0, 0.05  # an outlier is beyond both: pixels, and of the true displacement
BOUNDS = (1.0, 2.0, 3.0)  # pixels, of the plain shares
OUTLIERS = {"disparity": "D1-all", "flow": "Fl-all"}
DISPLACEMENTS = tuple(OUTLIERS)


class DisplacementError(Metric):
    """The mean distance of displacements from the truth, and shares of pixels that are far from it.

    All pixels of all pairs count alike, as in KITTI's devkit: those whose truth is known.

    Args:
        name: `disparity` or `flow`: what is measured, and the protocol.
        ground_truth, labels: nothing is taken from them.
    """

    families: ClassVar[tuple[str, ...]] = DISPLACEMENTS
    offers: ClassVar[tuple[str, ...]] = tuple(
        f"{name}/{number}"
        for name, outliers in OUTLIERS.items()
        for number in (outliers, "EPE", "bad1", "bad2", "bad3")
    )

    def __init__(self, name: str, ground_truth: Any = None, labels: Any = None) -> None:
        self.protocol = self.name = name
        self.result: str | None = None

    @classmethod
    def unit(cls, name: str) -> Unit:
        """Pixels, and shares of pixels; few are good."""
        plain = name.endswith("/EPE")
        return Unit(percent=not plain, lower_is_better=True, digits=3 if plain else 2)

    def update(
        self, ids: Sequence[Any], predictions: Sequence[Displacement], targets: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """A record for each pair: `id`, `pixels` whose truth is known, `distance`, the sum of theirs, and how many are
        outliers (`outliers`) or beyond each bound (`bad`).

        Raises:
            DataError: a prediction has not the size, or not the axes, of the truth.
        """
        records = []
        for i, found, target in zip(ids, predictions, targets, strict=True):
            truth = target[self.name].cpu().double()
            field = found.field.cpu().double()
            if field.shape != truth.shape:
                problem = f"predicted {list(field.shape)}, the truth of {self.name} is {list(truth.shape)}"
                raise DataError(str(i), problem, "evaluate a network for the same kind of data")
            records.append({"id": i, **counted(field, truth)})
        return records

    def compute(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`disparity/D1-all` (or `flow/Fl-all`), `EPE`, `bad1`, `bad2`, `bad3`; NaN where no truth is known.

        Raises:
            DataError: there are no records.
        """
        refuse_nothing(records, "pair")
        pixels = sum(record["pixels"] for record in records)

        def share(total: float) -> float:
            return total / pixels if pixels else math.nan

        numbers = {
            OUTLIERS[self.name]: share(sum(record["outliers"] for record in records)),
            "EPE": share(math.fsum(record["distance"] for record in records)),
            **{f"bad{i}": share(sum(r["bad"][i - 1] for r in records)) for i in range(1, len(BOUNDS) + 1)},
        }
        told = ", ".join(f"{k} {v:.3f} px" if k == "EPE" else f"{k} {100 * v:.2f} %" for k, v in numbers.items())
        self.result = f"{self.protocol}: {told} on {len(records)} pair{'s' * (len(records) != 1)}"
        return {f"{self.name}/{key}": value for key, value in numbers.items()}


def counted(found: Tensor, truth: Tensor) -> dict[str, Any]:
    """What a record holds of one pair.

    Args:
        found, truth: float64 `[A, H, W]`, pixels; the truth not finite where it is not known.

    Raises:
        DataError: a prediction is no number where the truth is known.
    """
    known = truth.isfinite().all(0)
    right = truth[:, known]
    errors, lengths = (found[:, known] - right).norm(dim=0), right.norm(dim=0)
    if not bool(errors.isfinite().all()):
        raise DataError("evaluation", "a predicted displacement is no finite number", "the run has diverged")
    outliers = (errors > ABSOLUTE) & (errors > RELATIVE * lengths)
    bad = [int((errors > bound).sum()) for bound in BOUNDS]
    return {"pixels": int(known.sum()), "distance": float(errors.sum()), "outliers": int(outliers.sum()), "bad": bad}
