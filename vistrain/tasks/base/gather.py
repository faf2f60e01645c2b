"""Bringing per-sample records together once per evaluation, and handing the numbers out again.

Metrics see every sample exactly once at any number of processes: records are keyed by sample id, duplicates dropped and
the rest sorted before anything is reduced. The objects travel over a gloo group of their own, because rank 0 may
evaluate for longer than the training group's time-out allows a collective to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed

from vistrain.errors import VistrainError

Record = Mapping[str, Any]
TIMEOUT = timedelta(hours=6)  # longer than any evaluation; a lost process is noticed by the launcher, not here


def merge(parts: Iterable[Iterable[Record]]) -> list[Record]:
    """One list of records, each sample id once (the first one seen), in ascending order of id."""
    by_id: dict[Any, Record] = {}
    for part in parts:
        for record in part:
            by_id.setdefault(record["id"], record)
    return [by_id[key] for key in sorted(by_id)]


class Gatherer:
    """Gathers on rank 0, computes there, and broadcasts; in a single process it only merges.

    Args:
        rank, world: this process and how many there are; with more than one, torch.distributed must be initialised and
            every process must construct this at the same point.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.group: Any = distributed.new_group(backend="gloo", timeout=TIMEOUT) if world > 1 else None

    def gather(self, records: list[Record]) -> list[Record] | None:
        """The merged records of all processes on rank 0; None elsewhere."""
        if self.world == 1:
            return merge([records])
        parts: list[Any] | None = [None] * self.world if self.rank == 0 else None
        distributed.gather_object(records, parts, dst=0, group=self.group)
        return merge(parts) if parts is not None else None

    @contextmanager
    def from_rank_zero(self) -> Iterator[dict[str, float]]:
        """A dict that rank 0 fills inside the block, and that every process holds after it.

        Raises:
            VistrainError: on the other ranks, if rank 0 left the block with an error (which it reports itself);
                nobody is left waiting.
        """
        numbers: dict[str, float] = {}
        box: list[Any] = [None]
        try:
            yield numbers
            box = [numbers]
        finally:
            if self.world > 1:
                distributed.broadcast_object_list(box, src=0, group=self.group)
        if box[0] is None:
            raise VistrainError("evaluation", "it failed on rank 0", "see the error of that process")
        numbers.update(box[0])
