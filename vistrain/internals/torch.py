"""Of torch: updates of many tensors at once, the base of batch norms, the compiler's count, tensors without content,
loader processes, containers of tensors."""

from __future__ import annotations

import atexit
import functools
import signal
import sys
import time
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.optim import Optimizer
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.data import DataLoader

__all__ = [
    "BatchNorm", "MortalLoader", "TreeSpec", "copy_all", "graphs_compiled", "leave_unscaling", "move_towards",
    "of_compiler", "tree_flatten", "tree_leaves", "tree_unflatten", "without_content",
]  # fmt: skip


def graphs_compiled() -> int:
    """How many graphs this process has compiled so far: the first of each function, and one for every recompilation."""
    from torch._dynamo.utils import counters  # a second, which few commands need

    return int(counters["stats"]["unique_graphs"])


def of_compiler(error: BaseException) -> bool:
    """Whether an error came of compiling a graph, by torch or by the compiler that it calls."""
    exceptions = sys.modules.get("torch._dynamo.exc")  # not loaded: nothing was compiled
    return exceptions is not None and isinstance(error, exceptions.TorchDynamoException)


def move_towards(tensors: list[Tensor], others: list[Tensor], share: float) -> None:
    """In place, each tensor becomes (1 - share) of itself and a share of its partner, in a few kernels for all."""
    torch._foreach_lerp_(tensors, others, share)


def copy_all(tensors: list[Tensor], others: list[Tensor]) -> None:
    """In place, each tensor becomes its partner, in a few kernels for all; nothing for none."""
    if tensors:
        torch._foreach_copy_(tensors, others)


def leave_unscaling(optimizer: Optimizer) -> None:
    """Have whoever scales a loss take the scale off its gradients again before they are clipped.

    torch's fused optimizers say by `_step_supports_amp_scaling` that they do so themselves, in their step; Lightning
    then refuses to clip gradients under any mixed precision, also under bfloat16, where nothing is scaled.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


class MortalLoader(DataLoader[Any]):
    """A DataLoader whose processes end with the one that uses them.

    Python would ask them by SIGTERM, which they may outlive, and wait for them: an error in an evaluation would be held
    up by the training set's idle workers, and with it all other ranks.

    Attributes:
        workers: their process numbers.
    """

    PATIENCE = 60.0  # seconds without data after which `waiting` is called, once for each wait

    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self._processes: list[Any] = []
        self._waited = 0.0

    @property
    def workers(self) -> list[int]:
        """Of the latest iterator."""
        return [worker.pid for worker in self._processes]

    def killed(self) -> list[int]:
        """The workers that a signal has ended which nobody sends to ask them to: out of memory, or a crash in C."""
        asked = (signal.SIGTERM, signal.SIGINT)
        codes = ((worker.pid, worker.exitcode) for worker in self._processes)
        return [pid for pid, code in codes if code is not None and code < 0 and -code not in asked]

    def waiting(self, seconds: float) -> None:
        """Called where no batch has come for so long; here it does nothing."""

    def _ask(self, ask: Any, *timeout: float) -> tuple[bool, Any]:
        """What asks the workers for a batch, for some seconds at a time, in a loop that would never tell of it."""
        began = time.monotonic()
        success, data = ask(*timeout)
        waited, self._waited = self._waited, 0.0 if success else self._waited + time.monotonic() - began
        if waited < self.PATIENCE <= self._waited:
            self.waiting(self._waited)
        return success, data

    def _get_iterator(self) -> Any:
        """What makes the iterator of an epoch, or, with persistent workers, of all."""
        iterator: Any = super()._get_iterator()
        if self.num_workers:
            atexit.register(_kill_workers, weakref.ref(iterator))
            self._processes = list(iterator._workers)
            iterator._try_get_data = functools.partial(_ask, weakref.ref(self), weakref.ref(iterator))
            # Of a cycle (a trainer's, say) the garbage collector would close the queues first, then have the iterator
            # tell its workers through them to end, and wait in vain. What is kept is closed afterwards.
            kept = (iterator._workers, iterator._index_queues, iterator._worker_result_queue)
            weakref.finalize(iterator, len, kept).atexit = False
        return iterator


def _ask(loader: weakref.ref[Any], iterator: weakref.ref[Any], *timeout: float) -> tuple[bool, Any]:
    """In place of the iterator's own method, and without a cycle: the workers end with the last reference to it."""
    asked, own = loader(), iterator()
    cls: Any = type(own)
    ask = functools.partial(cls._try_get_data, own)
    return ask(*timeout) if asked is None else asked._ask(ask, *timeout)


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
