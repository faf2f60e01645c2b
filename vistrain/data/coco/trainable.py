"""Whether a training split has objects to train on, with masks where these are trained."""

from __future__ import annotations

from pathlib import Path

from vistrain.data.coco.reader import NO_MASK, Annotations, Problems
from vistrain.errors import DataError


def refuse_untrainable(path: Path, problems: Problems, found: Annotations) -> None:
    """Refuse a training split without an object to train on.

    Args:
        path: of the annotations, for messages.
        problems: what `targets` added to those of the split.
        found: what it collected.

    Raises:
        DataError: it has none, or none with a mask where masks are trained.
    """
    if len(found.boxes):
        return
    if lacking := problems.counts.get(NO_MASK, 0):
        problem = f"none of its {lacking} objects has a mask, and masks are trained"
        raise DataError(
            str(path), problem, "annotate them, or train boxes alone, with a network and data without masks"
        )
    raise DataError(str(path), "has no object to train on", "is it the file of a set that was never annotated?")


def share_without_masks(problems: Problems, found: Annotations) -> str:
    """A line where most objects of a training split lack the mask that would be trained; else empty."""
    lacking = problems.counts.get(NO_MASK, 0)
    total = lacking + len(found.boxes)
    if lacking <= total / 2:
        return ""
    return f"{lacking} of {total} objects ({100 * lacking / total:.0f} %) have no mask and are not trained"
