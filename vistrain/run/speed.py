"""How fast a network runs here, which parts take the time, and what memory it needs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.processes import resident_memory


@dataclass(frozen=True)
class Speed:
    """How fast a network runs, and what it needs beside its weights.

    Attributes:
        images_per_second: of the median pass.
        peak_bytes: of memory on top of what was there before; the process's on CPU, None where it cannot be known.
    """

    images_per_second: float
    peak_bytes: int | None


def measure(
    model: nn.Module, images: Tensor, cast: torch.dtype | None, repeats: int, parts: Sequence[str] = ()
) -> tuple[Speed, Speed, dict[str, float]]:
    """Speed of an evaluation, and of a forward and backward pass.

    Args:
        model: on the device of the images; its gradients are given up.
        images: `[B, C, *S]`.
        cast: what autocast computes in; None is the weights' own type.
        repeats: passes of each kind, of which the median counts.
        parts: paths of sub-modules.

    Returns:
        Both, and of each part the share of the evaluation's time, in 0..1. The backward pass starts from the mean
        square of every output, since losses need a truth.
    """
    device = images.device.type

    def infer() -> None:
        with torch.no_grad(), torch.autocast(device, cast, enabled=cast is not None):
            model(images)
        _wait(images.device)

    def step() -> None:
        with torch.autocast(device, cast, enabled=cast is not None):
            outputs = [x for x in tensors(model(images)) if x.requires_grad]
        torch.autograd.backward([x.float().square().mean() for x in outputs])
        model.zero_grad()
        _wait(images.device)

    model.eval()
    forward = _speed(infer, images, repeats)
    shares = _shares(model, infer, parts, repeats, images.device)
    model.train()
    return forward, _speed(step, images, repeats), shares


def _speed(run: Callable[[], None], images: Tensor, repeats: int) -> Speed:
    peak = peak_memory(run, images.device)  # also the warm-up
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Speed(len(images) / statistics.median(seconds), peak)


def _shares(
    model: nn.Module, run: Callable[[], None], parts: Sequence[str], repeats: int, device: torch.device
) -> dict[str, float]:
    """Of each part the share of a pass's time. A part may run several times."""
    spent: dict[str, float] = dict.fromkeys(parts, 0.0)
    started: dict[str, float] = {}

    def before(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            _wait(device)
            started[part] = time.perf_counter()

        return hook

    def after(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            _wait(device)
            spent[part] += time.perf_counter() - started[part]

        return hook

    modules = [(part, model.get_submodule(part)) for part in parts]
    hooks = [m.register_forward_pre_hook(before(p)) for p, m in modules]
    hooks += [m.register_forward_hook(after(p)) for p, m in modules]
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    total = time.perf_counter() - start
    for handle in hooks:
        handle.remove()
    return {part: seconds / total for part, seconds in spent.items()}


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a run needs on top of what was there before; freed memory is given back first.

    Args:
        run: what is measured.
        device: of its tensors; on a processor it is the memory of this process.

    Returns:
        The bytes, or None where this cannot be told: no CUDA and no `/proc`.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or resident_memory() is None:
        run()
        return None
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not serve the measured run
    start, peak, done = resident_memory() or 0, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_memory() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        peak = max(peak, resident_memory() or 0)
        done.set()
        watcher.join()
    return max(peak - start, 0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from tensors(item)
