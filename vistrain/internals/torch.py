"""Of torch: updates of many tensors at once, the base of batch norms, tensors without content, loader processes."""

from __future__ import annotations

import atexit
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils.data import DataLoader

__all__ = ["BatchNorm", "MortalLoader", "copy_all", "move_towards", "without_content"]


def move_towards(tensors: list[Tensor], others: list[Tensor], share: float) -> None:
    """In place, each tensor becomes (1 - share) of itself and a share of its partner, in a few kernels for all."""
    torch._foreach_lerp_(tensors, others, share)


def copy_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """In place, each tensor becomes its partner, in a few kernels for all; nothing for none."""
    if tensors:
        torch._foreach_copy_(tensors, others)


class MortalLoader(DataLoader[Any]):
    """A DataLoader whose processes end with the one that uses them.

    Python would ask them by SIGTERM, which they may outlive, and wait for them: an error in an evaluation would be held
    up by the training set's idle workers, and with it all other ranks.
    """

    def _get_iterator(self) -> Any:
        """What makes the iterator of an epoch, or, with persistent workers, of all."""
        iterator = super()._get_iterator()
        if self.num_workers:
            atexit.register(_kill_workers, weakref.ref(iterator))
        return iterator


def _kill_workers(reference: weakref.ref[Any]) -> None:
    """End the processes of an iterator that is still there: those that do not obey at once are killed."""
    iterator = reference()
    if iterator is not None:
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()


def without_content() -> AbstractContextManager[Any]:
    """Within it, tensors have shapes and types, and nothing is computed; ordinary tensors may take part."""
    from torch._subclasses import FakeTensorMode  # half a second, which few commands need

    return FakeTensorMode(allow_non_fake_inputs=True)
