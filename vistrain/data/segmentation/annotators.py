"""Pictures that several people have drawn in: which files, and what of them is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vistrain.data.segmentation.label_files import SUFFIXES, LabelRule
from vistrain.data.segmentation.mask_pairs import named_files
from vistrain.errors import ConfigError, DataError

TrainedOn = Literal["first", "union", "intersection", "vote", "random"]


@dataclass(frozen=True)
class Annotator:
    """Where the masks of a further person are; they are called as the pictures, but for the suffix.

    Args:
        masks: folder, relative to the root.
        mask_suffix: what their names end in before the dot.
    """

    masks: str
    mask_suffix: str = ""


def masks_of(root: Path, annotators: Sequence[Annotator], names: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """The masks of each picture by name, in the order of the annotators.

    Raises:
        DataError: one has no mask of a picture.
    """
    found = [named_files(root / one.masks, SUFFIXES, one.mask_suffix, "masks") for one in annotators]
    masks: dict[str, tuple[Path, ...]] = {}
    for name in names:
        for one, files in zip(annotators, found, strict=True):
            if name not in files:
                remedy = "each annotator has drawn in all pictures of a split: add it, or correct mask_suffix"
                raise DataError(str(root / one.masks), f"has no mask of {name}", remedy)
        masks[name] = tuple(files[name] for files in found)
    return masks


def combined(maps: np.ndarray, rule: TrainedOn, ignored: int, seed: int) -> np.ndarray:
    """One class map of several.

    Args:
        maps: class channels `[A, H, W]`.
        rule: `first` annotator; `union` or `intersection` of the second class; `vote`, the class that most chose, of
            equal ones the lowest; `random`, one annotator, by the seed.
        ignored: who ignores a pixel has no say about it; where all do it stays ignored.
        seed: of the sample, which differs in each epoch.

    Returns:
        `[H, W]` of the maps' type.
    """
    if rule == "first" or len(maps) == 1:
        return np.asarray(maps[0])
    if rule == "random":
        return np.asarray(maps[np.random.default_rng((seed, 3)).integers(len(maps))])
    judged = maps != ignored
    if rule == "vote":
        classes = np.unique(maps[judged])
        votes = np.stack([(maps == one).sum(0) for one in classes]) if len(classes) else np.zeros((1, *maps.shape[1:]))
        found = classes[votes.argmax(0)] if len(classes) else maps[0]
    elif rule == "union":
        found = np.where(judged, maps, 0).max(0)
    else:
        found = np.where(judged, maps, np.iinfo(maps.dtype).max).min(0)
    return np.where(judged.any(0), found, ignored).astype(maps.dtype)


def refuse_rule(rule: TrainedOn, labels: LabelRule) -> None:
    """Refuse a union or an intersection of more classes than two.

    Raises:
        ConfigError: saying what to use instead.
    """
    if rule in ("union", "intersection") and len(labels.labels.names) != 2:
        problem = f"{rule} of {len(labels.labels.names)} classes"
        raise ConfigError("data.trained_on", problem, "it is of the second of two classes: use vote, random or first")
