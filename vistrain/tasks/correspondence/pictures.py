"""A pair of images, its displacements, and what was found."""

from __future__ import annotations

import numpy as np

from vistrain.pictures.displacements import coloured_displacements, displacement_range, endpoint_errors


def cells(
    title: str, first: np.ndarray, second: np.ndarray, found: np.ndarray | None, truth: np.ndarray | None
) -> list[tuple[str, np.ndarray]]:
    """First | second | found | truth | distance, as far as there are, with captions; colours are the same in both.

    Args:
        title: of the pair.
        first, second: uint8 `[H, W, 3]`.
        found, truth: float `[A, H, W]`, NaN where nothing is known.
    """
    most = displacement_range(*(field for field in (truth, found) if field is not None))
    shown = [(title, first), ("second", second)]
    if found is not None:
        shown.append((f"found, up to {most:.1f} px", coloured_displacements(found, most)))
    if truth is not None:
        shown.append(("truth", coloured_displacements(truth, most)))
    if found is not None and truth is not None:
        known = np.isfinite(truth).all(0)
        mean = float(np.linalg.norm((found - truth)[:, known], axis=0).mean()) if known.any() else float("nan")
        shown.append((f"off by {mean:.2f} px", endpoint_errors(found, truth)))
    return shown
