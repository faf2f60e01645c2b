"""What vistrain relies on in torch without its promise."""

from __future__ import annotations

import gc
import signal
import types
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from vistrain.internals.torch import (
    BatchNorm,
    MortalLoader,
    _kill_workers,
    copy_all,
    graphs_compiled,
    leave_unscaling,
    move_towards,
    of_compiler,
    tree_flatten,
    tree_leaves,
    tree_unflatten,
    without_content,
)


def test_many_tensors_move_at_once() -> None:
    ours, theirs = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.full((3,), 5.0)]
    move_towards(ours, theirs, 0.25)
    assert [t.tolist() for t in ours] == [[0.25] * 2, [2.0] * 3]
    copy_all(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    copy_all([], [])


def test_what_compiling_raises_is_known() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    def increased(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    with pytest.raises(Exception, match="no compiler") as caught:
        torch.compile(increased, backend=broken)(torch.ones(1))
    assert of_compiler(caught.value)
    assert not of_compiler(RuntimeError("no compiler"))


def test_fused_optimizers_leave_the_scale_to_others() -> None:
    fused = torch.optim.AdamW([nn.Parameter(torch.ones(1))], fused=True)
    assert fused._step_supports_amp_scaling  # type: ignore[attr-defined]
    leave_unscaling(fused)
    assert not fused._step_supports_amp_scaling  # type: ignore[attr-defined]


def test_all_batch_norms_have_one_base() -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    assert all(issubclass(kind, BatchNorm) for kind in kinds)
    assert not issubclass(nn.GroupNorm, BatchNorm)
    assert BatchNorm(3).running_mean is not None


def test_an_iterator_that_nobody_holds_ends_its_processes_at_once() -> None:
    iterator: Any = iter(MortalLoader(range(4), num_workers=1))  # type: ignore[arg-type]
    next(iterator)
    workers = list(iterator._workers)
    gc.disable()  # the collector may close the pipes to the workers first, which then never hear that they should end
    try:
        del iterator
        for worker in workers:
            worker.join(60)
            assert worker.exitcode is not None
    finally:
        gc.enable()


def test_loader_processes_end_when_they_are_told_to() -> None:
    loader = MortalLoader(range(100), num_workers=2, persistent_workers=True)  # type: ignore[arg-type]
    iterator: Any = iter(loader)
    assert next(iterator) == 0
    assert loader._iterator is iterator  # made by `_get_iterator`, which torch asks
    workers = list(iterator._workers)
    assert all(worker.is_alive() for worker in workers)
    _kill_workers(weakref.ref(iterator))
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_the_last_reference(persistent: bool) -> None:
    loader = MortalLoader(range(4), num_workers=1, persistent_workers=persistent)  # type: ignore[arg-type]
    gc.disable()
    try:
        iterator: Any = iter(loader)
        assert next(iterator) == 0
        (worker,), reference = iterator._workers, weakref.ref(iterator)
        del iterator, loader
        assert reference() is None
    finally:
        gc.enable()
    assert not worker.is_alive()
    assert worker.exitcode == 0


def deaf(worker: int) -> None:
    """As the workers of runs are."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def test_workers_end_with_a_cycle_that_the_garbage_collector_finds() -> None:
    loader: Any = MortalLoader(range(4), num_workers=1, persistent_workers=True, worker_init_fn=deaf)  # type: ignore[arg-type]
    loader.itself = loader
    iterator: Any = iter(loader)
    assert next(iterator) == 0
    (worker,) = iterator._workers
    del iterator, loader
    gc.collect()
    assert not worker.is_alive()
    assert worker.exitcode == 0


def test_containers_are_taken_apart_and_put_together() -> None:
    made = {"a": [torch.zeros(1), torch.ones(1)], "b": torch.full((1,), 2.0)}
    leaves, form = tree_flatten(made)
    assert [leaf.item() for leaf in leaves] == [leaf.item() for leaf in tree_leaves(made)] == [0, 1, 2]
    assert tree_unflatten([4, 5, 6], form) == {"a": [4, 5], "b": 6}


class Doubled(nn.Module):
    """Torch 2.11 compiles none of its own layers alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_compiled_graphs_are_counted() -> None:
    torch.compiler.reset()
    layer, before = Doubled(), graphs_compiled()
    layer.compile(backend="eager")
    for _ in range(2):
        layer(torch.rand(3))
    assert graphs_compiled() == before + 1


def test_tensors_without_content() -> None:
    layer = nn.Linear(3, 5).requires_grad_(False)
    with without_content():
        made = layer.to_empty(device="cpu")(torch.zeros(1 << 40, 3))
    assert made.shape == (1 << 40, 5)


def test_a_loader_tells_once_that_it_waits_and_which_workers_were_killed(monkeypatch):
    told = []

    class Telling(MortalLoader):
        PATIENCE = 10.0

        def waiting(self, seconds):
            told.append(seconds)

    loader, clock = Telling(list(range(4)), batch_size=2), [0.0]
    monkeypatch.setattr("vistrain.internals.torch.time.monotonic", lambda: clock[0])

    def ask(*timeout, success=False):
        clock[0] += 4.0
        return success, None

    for _ in range(5):
        loader._ask(ask)
    assert told == [12.0]
    loader._ask(lambda: ask(success=True))
    for _ in range(3):
        loader._ask(ask)
    assert told == [12.0, 12.0]
    codes = ((1, None), (2, 0), (3, -9), (4, -15), (5, -2), (6, 1), (7, -11))
    loader._processes = [types.SimpleNamespace(pid=pid, exitcode=code) for pid, code in codes]
    assert (loader.workers, loader.killed()) == ([1, 2, 3, 4, 5, 6, 7], [3, 7])


def test_torch_asks_its_workers_where_the_loader_listens():
    loader = MortalLoader(list(range(4)), batch_size=2, num_workers=1)
    asked = []
    ask = loader._ask
    loader._ask = lambda *arguments: (asked.append(1), ask(*arguments))[1]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert asked
    assert len(loader.workers) == 1
