"""What every data module does: the batch arithmetic, loaders that resume and evaluate exactly, and early refusals."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from vistrain.data.base.faults import Watched, dead_worker
from vistrain.data.base.samplers import BlockSampler, ResumableSampler
from vistrain.data.detection.collate import collate
from vistrain.errors import ConfigError, DataError, VistrainError
from vistrain.structures import LabelSpace, Preprocessing

SplitName = Literal["train", "val", "test"]
SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches per worker; eight were no faster
LAST_SECONDS = 600  # that a worker outlives a SIGTERM


def default_root() -> str:
    """Where data sets live unless `data.root` says otherwise: `VISTRAIN_DATA`, or `data/` in the working directory."""
    return os.environ.get("VISTRAIN_DATA", "data")


class DataModule(LightningDataModule, ABC):
    """Base of all data modules.

    Args:
        batch_size: global batch: images per optimizer step over all processes, the one that a paper's learning rate is
            for.
        per_device: images that fit on one device at once; all of the device's share if None.
        workers: loader processes per device; if None the device's share of the processor cores, at most 8.
        seed: of shuffling and augmentation.
        eval_batch_size: images per evaluation batch. Padding can change a prediction in the third digit: published DETR
            numbers are for 1.

    Attributes:
        preprocessing: what the model's weights want; set it before loaders are made.
        resume: `(epoch, consumed global samples)` to start training from, see `ResumableSampler`; set it before
            `train_dataloader`.
        channels: of the images.
        repeats: versions of each training image side by side, see `ResumableSampler`.
        max_unreadable: training images that may turn out unreadable, see `data.faults`; set it before
            `train_dataloader` (`callbacks.Unreadable` does).
        watched: split -> the data set behind its latest loader.

    Raises:
        ConfigError: a number is not positive.
    """

    channels = 3
    repeats = 1
    max_unreadable = 0

    def __init__(
        self,
        batch_size: int,
        per_device: int | None = None,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int = 1,
    ) -> None:
        super().__init__()
        least = {"batch_size": 1, "per_device": 1, "workers": 0, "seed": 0, "eval_batch_size": 1}
        given = (batch_size, per_device, workers, seed, eval_batch_size)
        for (name, bound), value in zip(least.items(), given, strict=True):
            if value is not None and value < bound:
                raise ConfigError(name, f"{value} is too small", f"use {bound} or more")
        self.batch_size, self.per_device, self.workers = batch_size, per_device, workers
        self.seed, self.eval_batch_size = seed, eval_batch_size
        self.preprocessing = Preprocessing()
        self.resume = (0, 0)
        self.watched: dict[SplitName, Watched] = {}

    @property
    def labels(self) -> LabelSpace:
        """The classes; may read an annotation file the first time. Data without classes has an empty label space."""
        return LabelSpace((), ())

    @abstractmethod
    def dataset(self, split: SplitName) -> Dataset[Any]:
        """The samples of a split: augmented and called with `(index, seed)` for `train`, else called with `index`."""

    @abstractmethod
    def largest(self, split: SplitName) -> tuple[int, int]:
        """Upper bounds of the short and long side of a split's images, in pixels."""

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
        per_device = self.per_device or share
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
        per_device = self.batch_size // self.world // accumulation
        return Loader(
            dataset, accumulation, batch_size=per_device, sampler=sampler, **self._common("train", per_device)
        )

    def training_sampler(self, length: int) -> ResumableSampler:
        """The training order of so many samples."""
        return ResumableSampler(length, self.batch_size, self.seed, self.rank, self.world, self.resume, self.repeats)

    def val_dataloader(self) -> Loader:
        """Every image of the validation split once, in fixed blocks."""
        return self._evaluation("val")

    def test_dataloader(self) -> Loader:
        """Every image of the test split once, in fixed blocks."""
        return self._evaluation("test")

    def collate_function(self) -> Any:
        """What makes a batch of samples; a batch of errors passes as its first error, for the main process to raise."""
        return functools.partial(_collate_or_error, size_divisor=self.preprocessing.size_divisor)

    def _evaluation(self, split: SplitName) -> Loader:
        dataset = self._watch(split, None)
        blocks = BlockSampler(len(dataset), self.eval_batch_size, self.rank, self.world)
        return Loader(dataset, 0, batch_sampler=blocks, **self._common(split, self.eval_batch_size))

    def explain(self, error: BaseException) -> DataError | None:
        """The error that names the sample, if `error` is torch's word that a data worker died."""
        return dead_worker(error, list(self.watched.values()))

    def _watch(self, split: SplitName, limit: int | None) -> Watched:
        self.watched[split] = Watched(self.dataset(split), self._workers(), limit)
        return self.watched[split]

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        local = self.trainer.num_devices if self.trainer is not None else 1
        return max(1, min(available_cores() // max(local, 1), 8))

    def _common(self, split: SplitName, batch: int) -> dict[str, Any]:
        workers = self._workers()
        local = self.trainer.num_devices if self.trainer is not None else 1
        short, long = self.largest(split)
        check_shared_memory(workers * max(local, 1) * PREFETCH * batch * short * long * self.channels, workers)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": workers,
            "collate_fn": self.collate_function(),
            "pin_memory": on_gpu,
            "persistent_workers": workers > 0,
            "prefetch_factor": PREFETCH if workers else None,
            "worker_init_fn": start_worker,
        }


class Loader(DataLoader[Any]):
    """A DataLoader that raises a worker's `VistrainError` as it is, and counts targets over accumulation groups.

    An error raised inside a worker would reach the user as forty lines of two processes' tracebacks, so workers return
    it.

    Args:
        dataset: of samples, or errors in their place.
        group: micro-batches per optimizer step; 0 in evaluation: batches then carry no `num_targets`.
        arguments: of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset[Any], group: int = 0, **arguments: Any) -> None:
        super().__init__(dataset, **arguments)
        self.group = group

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        if self.num_workers:
            atexit.register(_end_workers, weakref.ref(iterator))
        return iterator

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator does for an iterator
        batches = map(self._checked, super().__iter__())
        return batches if self.group == 0 else self._counted(batches)

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
            counts = [len(target["labels"]) for batch in group for target in batch["target"] if "labels" in target]
            facts = {"num_targets": sum(counts) / len(group), "micro_batches": len(group)} if counts else {}
            for batch in group:
                yield {**batch, **facts}
            size = self.group


def _collate_or_error(samples: list[Any], size_divisor: int) -> Any:
    for sample in samples:
        if isinstance(sample, VistrainError):
            return sample
    return collate(samples, size_divisor)


def _end_workers(reference: weakref.ref[Any]) -> None:
    """Ends the loader processes of an iterator that is still there when its process exits.

    Python would ask them by SIGTERM, which they outlive, and wait for them: an error in an evaluation would be held up
    by the training set's idle workers, and with it all other ranks.
    """
    iterator = reference()
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()


def start_worker(worker: int) -> None:
    """One thread per loader process: there is a process per core already.

    Signals that tell a run to stop often reach its whole process group. The worker stays, as the run still needs it to
    get to the end of the step; it ends with the run.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_SECONDS))


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_shared_memory(needed: int, workers: int) -> None:
    """Refuses to start loader processes whose batches would not fit into shared memory; later it would be a bus error.

    Args:
        needed: bytes that may be in flight at once.
        workers: loader processes per device; without any, nothing is shared.

    Raises:
        DataError: less is free; Docker gives 64 MB unless told otherwise.
    """
    if workers == 0 or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise DataError(
            str(SHARED_MEMORY),
            f"{free / 2**20:.0f} MB of shared memory are free, {workers} data workers may need {needed / 2**20:.0f} MB",
            f"start the container with --shm-size={-(-needed // 2**30) + 1}g or --ipc=host, or lower data.workers",
        )
