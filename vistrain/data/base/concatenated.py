"""Several sets of one task, trained on and evaluated together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.module import DataModule, SplitName
from vistrain.data.base.samplers import ResumableSampler
from vistrain.data.base.transform import EvalTransform
from vistrain.errors import ConfigError, VistrainError, nearest
from vistrain.structures import LabelSpace, Preprocessing

LEFT_OUT = -1  # channel of a class that is not trained
Channels = tuple[int, ...]


class Together(SampleSet):
    """The samples of several sets, one after another, with the classes of all.

    Args:
        parts: the sets.
        relabel: of each, what gives a sample the channels of all; None: they are its own.
    """

    def __init__(self, parts: Sequence[Dataset[Any]], relabel: Sequence[Callable[[Any], Any] | None]) -> None:
        self.parts, self.relabel = tuple(parts), tuple(relabel)
        self.ends = tuple(accumulate(len(part) for part in parts))  # type: ignore[arg-type]  # ours have a length

    def __len__(self) -> int:
        return self.ends[-1]

    def sample(self, index: int, seed: int | None = None, *more: int) -> Any:
        """See `SampleSet`; without a seed, as its set is called without one."""
        which, place = self.locate(index)
        found = self.parts[which][place if seed is None else (place, seed, *more)]
        if isinstance(found, VistrainError):
            raise found
        relabel = self.relabel[which]
        return found if relabel is None else relabel(found)

    def where(self, index: int) -> str:
        """The file of a sample."""
        which, place = self.locate(index)
        part = self.parts[which]
        return part.where(place) if isinstance(part, SampleSet) else super().where(index)

    def locate(self, index: int) -> tuple[int, int]:
        """Which part a sample is of, and its index there."""
        which = bisect_right(self.ends, index)
        return which, index - (self.ends[which - 1] if which else 0)


class Concatenated(DataModule):
    """Trains on several sets of one task together, and evaluates on the first, or on all.

    Classes are matched by name. Those of the first set come first, with its ids, so that its evaluation is what it
    would be alone; then those that the others add. Each set reads, augments and cuts (`train_on`) its own samples, by
    its own keys; batches, seed and workers are this one's. An epoch shows every sample of every set as often as `times`
    says, or is drawn with repetition, as long as ever, where `weights` are given.

    Args:
        sets: two or more, of one task.
        rename: class of another set -> what it is called here.
        others: what becomes of classes that the first set does not have: `add` trains them too, `drop` leaves out their
            targets, where the task's samples may have none.
        times: how often each set's samples come in an epoch; once if None.
        weights: share of each set in what is drawn; equal ones balance the sets. None draws nothing.
        evaluate: `first`, whose numbers are then what they would be alone, or `each`: the numbers of all samples
            together, and each set's own beside them, under the name of its folder.
        base: see `DataModule`; `root` is of a list in `train_on` alone, the sets have their own.

    Raises:
        ConfigError: fewer than two sets, sets of several kinds, or numbers that do not belong to them.
    """

    def __init__(
        self,
        sets: list[DataModule],
        rename: dict[str, str] | None = None,
        others: Literal["add", "drop"] = "add",
        times: tuple[int, ...] | None = None,
        weights: tuple[float, ...] | None = None,
        evaluate: Literal["first", "each"] = "first",
        **base: Any,
    ) -> None:
        if len(sets) < 2:
            raise ConfigError("sets", f"{len(sets)} are not several", "name that one as `data` itself")
        for name, numbers, least in (("times", times, 1), ("weights", weights, 0)):
            if numbers is not None and len(numbers) != len(sets):
                raise ConfigError(name, f"{len(numbers)} numbers for {len(sets)} sets", "give one for each")
            if numbers is not None and (min(numbers) < least or not any(numbers)):
                raise ConfigError(name, f"{list(numbers)} cannot be", f"use {least} or more")
        for part in sets[1:]:
            if type(part).collate is not type(sets[0]).collate:
                kinds = f"{type(sets[0]).__name__} and {type(part).__name__}"
                raise ConfigError("sets", f"{kinds} do not make the same batches", "take sets of one task")
        if times is not None and weights is not None:
            raise ConfigError("weights", "are given beside times", "keep one")
        self.sets = list(sets)  # before the base, which sets the preprocessing of all
        super().__init__(**base)
        for part in self.sets:
            part.seed = self.seed
        self.rename, self.others, self.times, self.weights = dict(rename or {}), others, times, weights
        self.evaluated = self.sets if evaluate == "each" else self.sets[:1]
        self.names = _names([str(part.root.name) for part in self.evaluated])
        self._labels: LabelSpace | None = None
        self._starts: dict[SplitName, list[int]] = {}  # of the ids of each set that is evaluated

    # ---------------------------------------------------------------- the classes of all

    @property
    def labels(self) -> LabelSpace:
        """Those of the first set, then what the others add, with new ids.

        Raises:
            ConfigError: a name to change is no class; sets number their channels otherwise.
        """
        if self._labels is None:
            first = self.sets[0].labels
            names = [name for part in self.sets[1:] for name in part.labels.names]
            for name in self.rename:
                if name not in names:
                    raise ConfigError("data.rename", f"no class {name!r} in the other sets", nearest(name, names))
            for part in self.sets:
                if part.labels.name != "contiguous" or part.labels.regions:
                    raise ConfigError("data.sets", "sets are put together with contiguous classes alone")
            new = [name for name in dict.fromkeys(map(self._called, names)) if name not in first.names]
            if new and self.others == "add":
                start = max(first.ids, default=0) + 1
                first = replace(
                    first, names=(*first.names, *new), ids=(*first.ids, *range(start, start + len(new))), palette=()
                )
            self._labels = first
        return self._labels

    def _called(self, name: str) -> str:
        return self.rename.get(name, name)

    def _channels(self, part: DataModule) -> Channels:
        here = {name: channel for channel, name in enumerate(self.labels.names)}
        is_first = part is self.sets[0]
        names = [name if is_first else self._called(name) for name in part.labels.names]
        return tuple(here.get(name, LEFT_OUT) for name in names)

    def _relabel(self, part: DataModule) -> Callable[[Any], Any] | None:
        """What gives the samples of a set the channels of all; it is pickled for the loaders' processes."""
        channels = self._channels(part)
        if channels == tuple(range(len(channels))):
            return None
        return part.relabelling(channels)

    # ---------------------------------------------------------------- training on all

    def dataset(self, split: SplitName) -> Dataset[Any]:
        """All sets for `train`, else those that are evaluated."""
        if split != "train":
            if len(self.evaluated) == 1:
                return self.sets[0].dataset(split)
            starts = self._starts_of(split)
            moved = [partial(_moved, self._relabel(p), by) for p, by in zip(self.evaluated, starts, strict=True)]
            return Together([part.dataset(split) for part in self.evaluated], moved)
        samples, times = [part.training_samples() for part in self.sets], self.times or (1,) * len(self.sets)
        relabel = [self._relabel(part) for part in self.sets]
        order = [i for i, count in enumerate(times) for _ in range(count)]
        return Together([samples[i] for i in order], [relabel[i] for i in order])

    def training_sampler(self, length: int) -> ResumableSampler:
        """See `DataModule`; with `weights` samples are drawn by their sets."""
        sampler = super().training_sampler(length)
        if self.weights is not None:
            sizes = [len(part.training_samples()) for part in self.sets]  # type: ignore[arg-type]  # see `Together`
            sampler.weights = [w / n for w, n in zip(self.weights, sizes, strict=True) for _ in range(n)]
        return sampler

    def largest(self, split: SplitName) -> tuple[int, ...]:
        """Of the largest set."""
        sides = [sorted(part.largest(split)) for part in self._sets(split)]
        return tuple(map(max, zip(*sides, strict=True))) if len(sides) > 1 else self.sets[0].largest(split)

    def _sets(self, split: SplitName) -> Sequence[DataModule]:
        return self.sets if split == "train" else self.evaluated

    def check(self, output: str | Path) -> Findings:
        """Refused: sets are checked one by one."""
        raise ConfigError("data.type", "several sets are not checked at once", "run `vistrain check` on each of them")

    @property
    def unwritten(self) -> bool:
        """Whether one of the sets would write files."""
        return any(part.unwritten for part in self.sets)

    def prepare_data(self) -> None:
        """Makes what the sets generate."""
        for part in self.sets:
            part.prepare_data()

    def find(self, split: SplitName) -> None:
        """Looks for the files of all sets that are trained on or evaluated, and that they are of one kind."""
        for part in self._sets(split):
            part.find(split)
        kinds = {part.channels for part in self.sets}
        if len(kinds) > 1:
            raise ConfigError("data.sets", f"images have {sorted(kinds)} channels", "take sets of one kind")
        if split == "train":
            self.dataset(split)  # refuses classes that cannot be matched

    # ---------------------------------------------------------------- evaluating on all

    def ground_truth(self, split: SplitName) -> Any:
        """Of the first set, or of all that are evaluated.

        Raises:
            ConfigError: see `DataModule.joined_truth`.
        """
        if len(self.evaluated) == 1:
            return self.sets[0].ground_truth(split)
        parts = [(part, self._channels(part)) for part in self.evaluated]
        truth, self._starts[split] = self.sets[0].joined_truth(split, parts, self.labels)
        return truth

    def _starts_of(self, split: SplitName) -> list[int]:
        if split not in self._starts:
            self.ground_truth(split)
        return self._starts[split]

    def set_of(self, split: SplitName, sample_id: Any) -> str:
        """See `DataModule`."""
        return "" if len(self.evaluated) == 1 else self.names[self._which(split, sample_id)]

    def _which(self, split: SplitName, sample_id: Any) -> int:
        return max(bisect_right(self._starts_of(split), sample_id) - 1, 0)

    def image_path(self, split: SplitName, image_id: Any) -> Path:
        """In the set that it is of."""
        if split == "train" or len(self.evaluated) == 1:
            return self.sets[0].image_path(split, image_id)
        which = self._which(split, image_id)
        return self.evaluated[which].image_path(split, image_id - self._starts_of(split)[which])

    # ---------------------------------------------------------------- what the first set says

    @property
    def channels(self) -> int:  # type: ignore[override]  # a class variable elsewhere
        """C of the images."""
        return self.sets[0].channels

    @property
    def itemsize(self) -> int:  # type: ignore[override]
        """Bytes of a value, see `DataModule`."""
        return self.sets[0].itemsize

    @property
    def preprocessing(self) -> Preprocessing:
        """What the model's weights want, of all sets."""
        return self.sets[0].preprocessing

    @preprocessing.setter
    def preprocessing(self, wanted: Preprocessing) -> None:
        """Tell all sets."""
        for part in self.sets:
            part.preprocessing = wanted

    @property
    def collate(self) -> Callable[[Sequence[Any]], Batch]:
        """That of the first set."""
        return self.sets[0].collate

    @property
    def eval_transform(self) -> EvalTransform | None:
        """That of the first set."""
        return self.sets[0].eval_transform

    def count_targets(self, target: Any) -> int | None:
        """As the first set counts."""
        return self.sets[0].count_targets(target)

    def place(self, split: SplitName) -> str:
        """Of all sets that are trained on or evaluated."""
        return ", ".join(part.place(split) for part in self._sets(split))

    def remedy(self, split: SplitName) -> str:
        """Of the first set."""
        return self.sets[0].remedy(split)

    def remedy_for_targets(self, missing: Sequence[str]) -> str:
        """Of the first set."""
        return self.sets[0].remedy_for_targets(missing)


def _names(folders: Sequence[str]) -> list[str]:
    """Names of sets, all different, that begin with those of their folders."""
    return [
        f"{name or 'set'}_{i + 1}" if folders.count(name) > 1 or not name else name for i, name in enumerate(folders)
    ]


def _moved(relabel: Callable[[Any], Any] | None, by: int, sample: Any) -> Any:
    """A sample with the class channels and among the ids of all sets."""
    return replace(sample if relabel is None else relabel(sample), id=sample.id + by)
