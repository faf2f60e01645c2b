"""A part of a data set: a share that the seed draws, or what a file lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vistrain.data.base.dataset import SampleSet
from vistrain.errors import ConfigError, DataError, VistrainError, nearest

WHERE = "data.train_on"
SHOWN = 3  # lines that match nothing, in a message


class Part(SampleSet):
    """Some samples of a data set, which stay what they are.

    Args:
        whole: the set.
        chosen: indices in it.
    """

    def __init__(self, whole: Dataset[Any], chosen: Sequence[int]) -> None:
        self.whole, self.chosen = whole, tuple(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def sample(self, index: int, seed: int | None = None, *more: int) -> Any:
        """See `SampleSet`; without a seed, as the whole set is called without one."""
        place = self.chosen[index]
        found = self.whole[place if seed is None else (place, seed, *more)]
        if isinstance(found, VistrainError):
            raise found
        return found

    def where(self, index: int) -> str:
        """The file of a sample."""
        place = self.chosen[index]
        return self.whole.where(place) if isinstance(self.whole, SampleSet) else super().where(place)


def refuse_no_share(subset: float | str | None) -> None:
    """Refuse a share that is none.

    Raises:
        ConfigError: it is not above 0 and at most 1.
    """
    if isinstance(subset, float | int) and not 0 < subset <= 1:
        raise ConfigError("train_on", f"{subset} is no share", "give a number above 0, at most 1, or a file")


def part_of(samples: Dataset[Any], subset: float | str, seed: int, root: Path) -> Part:
    """The part of a set that `data.train_on` means, in the order of the set.

    A larger share with the same seed holds the smaller one.

    Args:
        samples: the set.
        subset: a share in 0..1, of which at least one sample is taken; or a text file with a sample in each line, as
            its path, its path below `root`, its file's name, or that without the ending. Empty lines are passed over.
        seed: draws the share.
        root: where the file of a relative path lies if it is not in the working directory.

    Raises:
        DataError: the file cannot be read, or a line is no sample, or stands for several.
    """
    count = len(samples)  # type: ignore[arg-type]  # Dataset promises no length, ours have one
    if isinstance(subset, str):
        return Part(samples, _listed(samples, count, subset, root))
    order = np.random.default_rng(seed).permutation(count)
    return Part(samples, sorted(order[: max(round(subset * count), min(count, 1))].tolist()))


def _listed(samples: Dataset[Any], count: int, subset: str, root: Path) -> list[int]:
    file = next((path for path in (Path(subset), root / subset) if path.is_file()), None)
    if file is None:
        raise DataError(subset, f"no such file here or in {root}", f"correct {WHERE}")
    if not isinstance(samples, SampleSet):
        raise ConfigError(WHERE, "these samples have no names", "give a share in 0..1")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(file), f"cannot be read ({error})", "it is a text file, a sample in each line") from error
    places: dict[str, set[int]] = {}
    for index in range(count):
        for name in _names(samples.where(index), root):
            places.setdefault(name, set()).add(index)
    wanted = list(filter(None, lines))
    missing = [line for line in wanted if line not in places]
    if missing:
        what = f"{len(missing)} lines are no training samples: {', '.join(missing[:SHOWN])}"
        raise DataError(str(file), what, nearest(missing[0], places))
    several = next((line for line in wanted if len(places[line]) > 1), None)
    if several is not None:
        raise DataError(
            str(file), f"{several!r} stands for {len(places[several])} samples", "write more of their paths"
        )
    if not wanted:
        raise DataError(str(file), "lists no sample", "write one in each line")
    return sorted(set().union(*(places[line] for line in wanted)))


def _names(where: str, root: Path) -> set[str]:
    path = Path(where)
    below = {path.relative_to(root).as_posix()} if path.is_relative_to(root) else set()
    return {where, path.name, path.stem, *below}
