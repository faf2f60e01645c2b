"""What every data module says and does: the batch arithmetic, loaders that resume and evaluate exactly, refusals."""

from __future__ import annotations

import functools
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from vistrain.contract import Contract
from vistrain.data.base.check import Findings
from vistrain.data.base.collate import Batch, batch_or_error
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.faults import Watched, dead_worker
from vistrain.data.base.samplers import BlockSampler, ResumableSampler
from vistrain.data.base.subset import Part, part_of, refuse_no_share
from vistrain.data.base.transform import EvalTransform
from vistrain.data.base.workers import check_shared_memory, start_worker
from vistrain.errors import ConfigError, DataError, VistrainError, refuse_below
from vistrain.internals.torch import MortalLoader
from vistrain.processes import available_cores, is_stopped
from vistrain.structures import LabelSpace, Preprocessing

log = logging.getLogger(__name__)

SplitName = Literal["train", "val", "test"]
PREFETCH = 2  # batches per worker; eight were no faster
# What each of Lightning's stages needs.
STAGES: dict[str, tuple[SplitName, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


def data_root(root: str | None) -> Path:
    """Where data sets live: `root`, or where that is None `VISTRAIN_DATA`, or `data/` in the working directory."""
    return Path(os.environ.get("VISTRAIN_DATA", "data") if root is None else root)


class DataModule(Contract, LightningDataModule, ABC):
    """Base of all data modules: what a data set says of itself, and loaders that resume and evaluate exactly.

    The class of a task's sets lies between this and a set, and does all that is the task's: its transforms, its
    `collate`, `count_targets` and `check`. Nothing is read on construction.

    S below are the sides of an image: height and width, or depth, height and width.

    Args:
        root: folder that holds the set; `VISTRAIN_DATA` or `data/` if None.
        batch_size: global batch: images per optimizer step over all processes, the one that a paper's learning rate is
            for.
        per_device: images that fit on one device at once; all of the device's share if None; `auto` finds out, where
            the training begins, how many of that share fit on a GPU.
        workers: loader processes per device; if None the device's share of the processor cores, at most 8.
        seed: of shuffling and augmentation.
        eval_batch_size: images per evaluation batch. Padding can change a prediction in the third digit: published DETR
            numbers are for 1.
        train_on: of the training samples, those that are trained on: a share in 0..1, which the seed draws, or a text
            file that lists them, see `subset.part_of`; None: all.

    Attributes:
        channels: C of the images.
        itemsize: bytes of a value of an image in a batch: 1 where images stay uint8.
        preprocessing: what the model's weights want; set it before loaders are made.
        resume: `(epoch, consumed global samples)` to start training from, see `ResumableSampler`; set it before
            `train_dataloader`.
        folds: parts that a set is dealt to, of which `data.fold` is evaluated and the others are trained on; 1: the
            splits are what they are.
        repeats: versions of each training image side by side, see `ResumableSampler`.
        max_unreadable: training images that may turn out unreadable, see `data.base.faults`; set it before
            `train_dataloader` (`callbacks.Unreadable` does).
        watched: split -> the data set behind its latest loader.
        loaders: split -> that loader.

    Raises:
        ConfigError: a number is not positive.
    """

    channels: int = 3
    itemsize: int = 1
    repeats: int = 1
    folds: int = 1
    max_unreadable: int = 0
    preprocessing: Preprocessing
    resume: tuple[int, int]
    watched: dict[SplitName, Watched]
    loaders: dict[SplitName, Loader]

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 16,
        per_device: int | Literal["auto"] | None = None,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int = 1,
        train_on: float | str | None = None,
    ) -> None:
        super().__init__()
        refuse_no_share(train_on)
        refuse_below(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        if isinstance(per_device, int):
            refuse_below(1, per_device=per_device)
        refuse_below(0, workers=workers, seed=seed)
        self.root = data_root(root)
        self.batch_size, self.per_device, self.workers = batch_size, per_device, workers
        self.seed, self.eval_batch_size, self.train_on = seed, eval_batch_size, train_on
        self.preprocessing = Preprocessing()
        self.resume = (0, 0)
        self.watched, self.loaders = {}, {}

    # ---------------------------------------------------------------- what a set says of itself

    @property
    def labels(self) -> LabelSpace:
        """The classes; may read an annotation file the first time. Data without classes has an empty label space."""
        return LabelSpace((), ())

    @property
    def unwritten(self) -> bool:
        """Whether `prepare_data` would write files, which takes time: what a config cannot have is refused before."""
        return False

    @abstractmethod
    def dataset(self, split: SplitName) -> Dataset[Any]:
        """The samples of a split, a `SampleSet` (or another data set that returns a `DataError` for a sample that
        cannot be read): augmented and called with `(index, seed)` for `train`, else called with `index`."""

    @abstractmethod
    def largest(self, split: SplitName) -> tuple[int, ...]:
        """Upper bounds of the sides of a split's images in a batch, in pixels, in any order: what memory is for."""

    @property
    @abstractmethod
    def collate(self) -> Callable[[Sequence[Any]], Batch]:
        """The function that makes a batch of samples, none of them an error; see `Network` for what is in a batch, and
        `batch_of`, which makes most of it. It is pickled for the loaders' processes."""

    def count_targets(self, target: Any) -> int | None:
        """How many targets one of a batch's `target`s holds, for losses that divide by their number; None: these
        losses do not."""
        return None

    def relabelling(self, channels: tuple[int, ...]) -> Callable[[Any], Any]:
        """What gives a sample other class channels, where sets are put together (`Concatenated`); pickled for the
        loaders' processes.

        Args:
            channels: channel of this set's -> the one that it becomes; -1: its targets are left out.

        Raises:
            ConfigError: samples of this kind cannot be put together, or must not lose a target.
        """
        raise ConfigError("data.sets", f"{type(self).__name__} cannot be put together with others", "train on it alone")

    def joined_truth(
        self, split: SplitName, parts: Sequence[tuple[DataModule, tuple[int, ...]]], labels: LabelSpace
    ) -> tuple[Any, list[int]]:
        """The ground truth of several sets as one, where all are evaluated (`Concatenated`).

        Args:
            split: of all.
            parts: the sets, of this one's kind, each with the class channels that its own become; -1: left out.
            labels: of all.

        Returns:
            What `ground_truth` gives, and of each set what its samples' ids are moved by; 0 of the first.

        Raises:
            ConfigError: samples of this kind are not evaluated together.
        """
        problem = f"{type(self).__name__}'s sets are not evaluated together"
        raise ConfigError("data.evaluate", problem, "leave it at first, and test on the others one by one")

    def set_of(self, split: SplitName, sample_id: Any) -> str:
        """The set that a sample of an evaluation is of, whose own numbers are told beside those of all; empty: there is
        one set."""
        return ""

    @property
    def eval_transform(self) -> EvalTransform | None:
        """The evaluation transform of an image, which checkpoints carry to the predictor; needs no files. None where
        images reach the network as they are."""
        return None

    def ground_truth(self, split: SplitName) -> Any:
        """What the task's metrics compare the predictions of a split with, whole images in their original sizes; of
        what kind, the task's metrics say.

        Raises:
            ConfigError: this set keeps none.
        """
        raise ConfigError("data.type", f"{type(self).__name__} has no ground truth", "write its `ground_truth(split)`")

    def image_path(self, split: SplitName, image_id: Any) -> Path:
        """The file of an image, for pictures and tables.

        Raises:
            DataError: the split has no such image.
            ConfigError: this set has no files.
        """
        raise ConfigError("data.type", f"{type(self).__name__} has no image files", "write its `image_path(split, id)`")

    def place(self, split: SplitName) -> str:
        """What a split is read from, for a line: here the folder that holds its files, or empty where nothing says."""
        samples = self.dataset(split)
        if not isinstance(samples, SampleSet) or not len(samples):
            return ""
        files = [samples.where(index) for index in {0, len(samples) // 2, len(samples) - 1}]
        return os.path.commonpath(files) if all(map(os.path.exists, files)) else ""

    def check(self, output: str | Path) -> Findings:
        """Opens every file of the set and looks for what is wrong with it, before a GPU is spent on it: all that a run
        would refuse or silently lose, at once.

        Args:
            output: folder for `report.json` and pictures, made if absent.

        Raises:
            ConfigError: there is no check for this kind of data.
            DataError: the set cannot be listed, or the output cannot be written.
        """
        raise ConfigError("data.type", f"{type(self).__name__} cannot be checked", "it knows its files by itself")

    def repair(self, file: Path) -> list[str]:
        """Writes a copy of the set's annotations with what `check` refuses of it and a program can mend.

        Args:
            file: of the copy; where several splits need one, their names are put into it.

        Returns:
            A line for each copy: what was mended, and which key to set.

        Raises:
            ConfigError: this kind of data has no annotation file.
            DataError: the annotations cannot be read, or a copy not written.
        """
        problem = f"{type(self).__name__} has no annotation file to mend"
        raise ConfigError("--repair", problem, "mend the files that `vistrain check` names")

    def refusals(self, split: SplitName, samples: int) -> list[str]:
        """Why a run would not take a split of so many samples, whatever is in them; by what a run itself looks at."""
        try:
            if split == "train":
                self.training_sampler(samples)
                self.accumulation(1)
            elif samples == 0:
                raise DataError(f"data.{split}", "has no image to evaluate on", "add images, or name another split")
        except VistrainError as error:
            return [str(error)]
        return []

    def find(self, split: SplitName) -> None:
        """Look for the files of a split, so that what is missing is missed before a run; does nothing unless a set has
        files.

        Raises:
            DataError: something is missing.
        """

    def recognise(self, split: SplitName) -> None:
        """Look whether a split lies under the root in this set's layout, as `find` does, but prepare nothing.

        Raises:
            DataError: something is missing.
        """
        self.find(split)

    def remedy_for_targets(self, missing: Sequence[str]) -> str:
        """What to do where a network learns from keys of a target that this data does not give."""
        return "take a network for this data, or data for this network (`vistrain list data`, `vistrain list configs`)"

    def remedy(self, split: SplitName) -> str:
        """What to do where a split is missing."""
        return f"correct data.root (now {self.root}), or set VISTRAIN_DATA"

    # ---------------------------------------------------------------- what follows from it

    def setup(self, stage: str) -> None:
        """Finds what a stage (`fit`, `validate`, `test`) needs."""
        for split in STAGES.get(stage, ()):
            self.find(split)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the label space."""
        return self.labels.names

    @property
    def rank(self) -> int:
        """This process among all, from the trainer; 0 without one."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def world(self) -> int:
        """Number of processes, from the trainer; 1 without one."""
        return self.trainer.world_size if self.trainer is not None else 1

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per optimizer step: batch_size / (world_size * per_device).

        Raises:
            ConfigError: it does not come out whole; the valid values are named.
        """
        if self.batch_size % world_size:
            nearest = max(self.batch_size // world_size, 1) * world_size
            raise ConfigError(
                "data.batch_size",
                f"{self.batch_size} images cannot be dealt evenly to {world_size} devices",
                f"use a multiple of {world_size}, such as {nearest} or {nearest + world_size}",
            )
        share = self.batch_size // world_size
        per_device = self.per_device if isinstance(self.per_device, int) else share
        if share % per_device:
            valid = [str(n) for n in range(1, share + 1) if share % n == 0]
            raise ConfigError(
                "data.per_device",
                f"{self.batch_size} images on {world_size} device(s) are {share} each, not divisible by {per_device}",
                f"use one of {', '.join(valid)}",
            )
        return share // per_device

    def train_dataloader(self) -> Loader:
        """Shuffled, augmented batches with `num_targets`: this process's mean number of targets per micro-batch of the
        optimizer step (losses average it over processes), and `micro_batches`, how many those are.

        Raises:
            ConfigError, DataError: see `accumulation`, `ResumableSampler`, and too little shared memory.
        """
        accumulation = self.accumulation(self.world)
        dataset = self._watch("train", self.max_unreadable)
        sampler = self.training_sampler(len(dataset))
        if sampler.weights is not None and isinstance(dataset.dataset, Part) and self.train_on is not None:
            sampler.weights = [sampler.weights[index] for index in dataset.dataset.chosen]
        per_device = self.batch_size // self.world // accumulation
        more = {"batch_size": per_device, "sampler": sampler, **self._common("train", per_device)}
        self.loaders["train"] = Loader(dataset, accumulation, self.count_targets, **more)
        return self.loaders["train"]

    def training_samples(self) -> Dataset[Any]:
        """What is trained on: the training split, or the part of it that `train_on` means."""
        samples = self.dataset("train")
        return samples if self.train_on is None else part_of(samples, self.train_on, self.seed, self.root)

    def training_sampler(self, length: int) -> ResumableSampler:
        """The training order of so many samples."""
        return ResumableSampler(length, self.batch_size, self.seed, self.rank, self.world, self.resume, self.repeats)

    def val_dataloader(self) -> Loader:
        """Every image of the validation split once, in fixed blocks."""
        return self._evaluation("val")

    def test_dataloader(self) -> Loader:
        """Every image of the test split once, in fixed blocks."""
        return self._evaluation("test")

    def collate_function(self) -> Callable[[Sequence[Any]], Batch | VistrainError]:
        """What loaders make batches with: `collate`, and of a batch with errors the first one."""
        return functools.partial(batch_or_error, collate=self.collate)

    def _evaluation(self, split: SplitName) -> Loader:
        dataset = self._watch(split, None)
        blocks = BlockSampler(len(dataset), self.eval_batch_size, self.rank, self.world)
        self.loaders[split] = Loader(dataset, batch_sampler=blocks, **self._common(split, self.eval_batch_size))
        return self.loaders[split]

    def explain(self, error: BaseException) -> DataError | None:
        """The error that names the sample, if `error` is torch's word that a data worker died."""
        killed = [pid for loader in self.loaders.values() for pid in loader.killed()]
        return dead_worker(error, list(self.watched.values()), killed)

    def _watch(self, split: SplitName, limit: int | None) -> Watched:
        samples = self.training_samples() if split == "train" else self.dataset(split)
        self.watched[split] = Watched(samples, self._workers(), limit)
        return self.watched[split]

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        local = self.trainer.num_devices if self.trainer is not None else 1
        return max(1, min(available_cores() // max(local, 1), 8))

    def _common(self, split: SplitName, batch: int) -> dict[str, Any]:
        workers = self._workers()
        local = self.trainer.num_devices if self.trainer is not None else 1
        image = math.prod(self.largest(split)) * self.channels * self.itemsize
        check_shared_memory(workers * max(local, 1) * PREFETCH * batch * image, workers)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": workers,
            "collate_fn": self.collate_function(),
            "pin_memory": on_gpu,
            "persistent_workers": workers > 0,
            "prefetch_factor": PREFETCH if workers else None,
            "worker_init_fn": start_worker,
        }


class Loader(MortalLoader):
    """A DataLoader that raises a worker's `VistrainError` as it is, and counts targets over accumulation groups.

    An error raised inside a worker would reach the user as forty lines of two processes' tracebacks, so workers return
    it (see `SampleSet`, `batch_or_error`).

    Args:
        dataset: of samples, or errors in their place.
        group: micro-batches per optimizer step; 0 in evaluation: batches then carry no `num_targets`.
        count: how many targets one of a batch's `target`s holds, or None; without it, nothing is counted.
        arguments: of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        group: int = 0,
        count: Callable[[Any], int | None] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(dataset, **arguments)
        self.group, self.count = group, count or (lambda target: None)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator does for an iterator
        batches = map(self._checked, super().__iter__())
        return batches if self.group == 0 else self._counted(batches)

    def waiting(self, seconds: float) -> None:
        """Say where the workers are that keep a run waiting."""
        known = self.dataset if isinstance(self.dataset, Watched) else None
        places = [
            f"worker {pid}{' (stopped)' if is_stopped(pid) else ''} is at {known and known.last_read_by(pid)}"
            for pid in self.workers
        ]
        log.warning("no data for %.0f s: %s", seconds, "; ".join(places))

    def _checked(self, batch: Any) -> Any:
        if isinstance(self.dataset, Watched):
            self.dataset.refuse_too_many()
        if isinstance(batch, VistrainError):
            raise batch
        return batch

    def _counted(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        sampler: Any = self.sampler  # a ResumableSampler
        done = sampler.start // (sampler.world * self.batch_size)
        # A resumed epoch may start inside a group; its remaining micro-batches still belong together.
        size = self.group - done % self.group
        while group := list(islice(batches, size)):
            found = [self.count(target) for batch in group for target in batch["target"]]
            counts = [n for n in found if n is not None]
            facts = {"num_targets": sum(counts) / len(group), "micro_batches": len(group)} if counts else {}
            for batch in group:
                yield {**batch, **facts}
            size = self.group
