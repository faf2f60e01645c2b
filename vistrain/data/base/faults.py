"""Bad files and dying data workers: what is skipped, what is counted, and which sample was to blame."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from vistrain.data.base.dataset import Key, SampleSet
from vistrain.errors import DataError

ATTEMPTS = 20  # other samples tried in an unreadable one's place
NAMED = 5  # files that an error lists
DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", re.DOTALL)


class Watched(Dataset[Any]):
    """A data set under observation: it knows which sample each worker is reading, and replaces unreadable ones.

    What is known lies in memory that the main process and its data workers share, a row for each worker, so that
    nobody needs a lock; it costs a few microseconds per sample.

    In training, an unreadable sample's place is taken by another one, which depends on the sample's own seed (so on the
    run's seed, the epoch and the index) alone: not on workers, ranks, or what happened before. A resumed run thus draws
    the same again. Evaluation has no replacement: a metric is of all images.

    Args:
        dataset: returns a `DataError` for a sample that cannot be read, as every `SampleSet` does.
        workers: of the loader.
        limit: unreadable samples, each counted once, that are tolerated; None: none are replaced.
    """

    def __init__(self, dataset: Dataset[Any], workers: int, limit: int | None = None) -> None:
        self.dataset, self.limit = dataset, limit
        # For each worker: its process, the index + 1 that it is at, and those + 1 that it found unreadable.
        self._board = torch.zeros(max(workers, 1), 2 + (limit or 0) + 1, dtype=torch.int64)
        if workers:
            self._board.share_memory_()
        self._told: set[int] = set()

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset promises no length, ours have one

    def __getitem__(self, key: Key) -> Any:
        """The sample, or in training a readable one in its place; an error where there is none."""
        self._note(key)
        sample = self.dataset[key]
        if self.limit is None:
            return sample
        for attempt in range(ATTEMPTS):
            if not isinstance(sample, DataError):
                break
            self._remember(_index(key))
            key = replacement(key, attempt, len(self))
            self._note(key)
            sample = self.dataset[key]
        return sample

    def _note(self, key: Key) -> None:
        worker = get_worker_info()
        if worker is not None:
            row = self._board[worker.id]
            row[0], row[1] = os.getpid(), _index(key) + 1

    def _remember(self, index: int) -> None:
        worker = get_worker_info()
        row = self._board[0 if worker is None else worker.id]
        for place, known in enumerate(row[2:].tolist()):
            if known in (0, index + 1):
                row[2 + place] = index + 1
                return

    # ---------------------------------------------------------------- asked by the main process

    @property
    def unreadable(self) -> list[int]:
        """The unreadable samples that turned up so far, each once, in ascending order; at least one more than the limit
        where there are more than that."""
        return sorted(n - 1 for n in set(self._board[:, 2:].flatten().tolist()) - {0})

    def news(self) -> list[DataError]:
        """What is wrong with the unreadable samples that turned up since the last call; reads them again."""
        new = [index for index in self.unreadable if index not in self._told]
        self._told |= set(new)
        return [self._problem(index) for index in new]

    def refuse_too_many(self) -> None:
        """Stops a run that has seen more unreadable samples than it should tolerate.

        Raises:
            DataError: naming the first ones.
        """
        # The first slots are looked at first: there is something in them only if there is something at all.
        if self.limit is None or not self._board[:, 2].any() or len(self.unreadable) <= self.limit:
            return
        first = [self._problem(index) for index in self.unreadable[:NAMED]]
        raise DataError(
            first[0].where,
            f"{first[0].problem}; more than {self.limit} training images cannot be read"
            + (f" ({', '.join(e.where for e in first[1:])}, ...)" if first[1:] else ""),
            "mend or remove them (`vistrain check` lists all), or raise callbacks.unreadable.limit",
        )

    def _problem(self, index: int) -> DataError:
        sample = self.dataset[(index, 0)]
        return sample if isinstance(sample, DataError) else DataError(self.name(index), "could not be read for a while")

    def name(self, index: int) -> str:
        """The file of a sample, without opening it; its number where the data set does not say."""
        return self.dataset.where(index) if isinstance(self.dataset, SampleSet) else f"sample {index}"

    def last_read_by(self, process: int) -> str | None:
        """The sample that a data worker was reading, or had read last; None if it is not one of this loader's."""
        for pid, number, *_ in self._board.tolist():
            if pid == process:
                return self.name(number - 1)
        return None


def replacement(key: Key, attempt: int, length: int) -> Key:
    """Another index and seed in place of a training sample's, drawn from its seed; the rest of the key stays."""
    index, seed, *rest = key if isinstance(key, tuple) else (key, 0)
    drawn = np.random.SeedSequence((index, seed, attempt)).generate_state(2, np.uint64)
    return (int(drawn[0]) % length, int(drawn[1] >> np.uint64(1)), *rest)


def dead_worker(error: BaseException, watched: list[Watched], killed: Sequence[int] = ()) -> DataError | None:
    """What torch's message about a dead data worker means, if `error` is one.

    Args:
        error: torch raises it wherever the main process is when the worker dies; where that is in the middle of
            fetching a tensor from the worker, another error may come of it.
        watched: the data sets of all loaders.
        killed: processes of workers that a signal has ended. Whatever was raised then came of that.

    Returns:
        An error that names the sample which the worker was reading.
    """
    message = next((m for e in _chain(error) if isinstance(e, RuntimeError) and (m := DEAD.search(str(e)))), None)
    if message is None and not killed:
        return None
    pids = [*killed, *(int(n) for n in re.findall(r"\d+", message[1] if message else ""))]
    known = ((pid, data.last_read_by(pid)) for pid in pids for data in watched)
    pid, where = next(((pid, name) for pid, name in known if name is not None), (pids[0], "data"))
    how = (message[2].strip().partition(". ")[0].rstrip(".") if message else "was killed") or "exited unexpectedly"
    return DataError(
        where,
        f"data worker {pid} {how} while it was at this sample",
        "continue with --resume, and if the system was out of memory (`dmesg` tells) with fewer data.workers",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came of, and what it came while dealing with."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [found.__cause__, found.__context__]


def _index(key: Key) -> int:
    return key[0] if isinstance(key, tuple) else key
