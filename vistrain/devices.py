"""The device that a name stands for, and numbers that go there."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vistrain.errors import ConfigError

# The first whose `tl.range` takes `loop_unroll_factor`; with 3.1 our kernels do not compile. torch 2.11 brings 3.6.
log = logging.getLogger(__name__)

OLDEST_TRITON = (3, 2)
DRIVER = Path("/proc/driver/nvidia/version")
_INIT = nn.init
_FILL: frozenset[Callable[..., Any]] = frozenset((
    _INIT.uniform_, _INIT.normal_, _INIT.trunc_normal_, _INIT.constant_, _INIT.kaiming_uniform_, _INIT.kaiming_normal_,
    *(getattr(Tensor, f"{name}_") for name in ("uniform", "normal", "zero", "fill", "erfinv", "mul", "add", "clamp")),
))  # fmt: skip


class _Unfilled(TorchFunctionMode):
    """Writing numbers into meta tensors, which hold none, does nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in _FILL:
            tensor = args[0] if args else named.get("tensor")  # `nn.init` hands it over by name
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **named)


@contextmanager
def on_meta() -> Iterator[None]:
    """Networks that are built in here have parameters without storage, and no time goes into initialising them.

    `torch.device("meta")` alone works out every step of an initialisation for tensors that hold nothing, which takes
    most of the time of a build.
    """
    with torch.device("meta"), _Unfilled():
        yield


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is an accelerator if there is one.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps` ...

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch has no common error for this; a CPU-only build raises AssertionError for cuda
        reason = str(error).partition("\n")[0]
        raise ConfigError("--device", f"{name!r} is not available ({reason})", "use 'auto' or 'cpu'") from error
    return device


def unusable_gpu() -> str:
    """What keeps torch from the GPU of NVIDIA's whose driver this machine runs; empty if there is none, or nothing
    does."""
    if torch.cuda.is_available() or not DRIVER.exists():
        return ""
    if torch.version.cuda is None:
        return "there is a GPU, but this torch was built without CUDA: install its build for CUDA"
    try:
        torch.cuda.init()
        reason = "no device is visible"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    problem = f"there is a GPU, but torch (built for CUDA {torch.version.cuda}) cannot use it ({reason})"
    return f"{problem}: update the driver, or install the torch that was built for it"


@functools.cache
def triton_lacks() -> str:
    """Why our Triton kernels cannot be compiled here; empty if they can, given a GPU."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of a distribution of another name
        version, least = importlib.metadata.version("triton"), ".".join(map(str, OLDEST_TRITON))
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TRITON:
            return f"Triton {version} is older than {least} (pip install -U triton)"
    try:
        importlib.import_module("triton.language")
    except Exception as error:  # whatever is broken in it
        reason = str(error).partition("\n")[0]
        return f"Triton cannot be imported: {reason} (pip install --force-reinstall triton)"
    return ""


@functools.cache
def say_without_triton(instead: str) -> None:
    """Say once that a kernel which was asked for cannot run on this machine; nothing if it can.

    Args:
        instead: what serves.
    """
    reason = triton_lacks()
    if not reason and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        reason = "Triton's kernels want a CUDA device, and there is none"
    if reason:
        log.warning("%s: %s", reason, instead)


def triton_serves(device: torch.device) -> bool:
    """Whether our Triton kernels run here: on CUDA, and on a CPU in Triton's interpreter; where results must repeat to
    the last bit, nowhere, as they add atomically."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and not torch.are_deterministic_algorithms_enabled() and not triton_lacks()


def reads_freely(tensor: Tensor) -> bool:
    """Whether the host can look into a tensor without waiting for a device: what is checked only where it costs nothing
    asks this."""
    return tensor.device.type == "cpu"


def upload(
    numbers: float | Sequence[Any] | np.ndarray, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor of numbers that the host knows, on a device, without waiting for it as `torch.tensor` would.

    Args:
        numbers: one, nested sequences, or an array.
        device, dtype: of the tensor; by default the type is that of the numbers.
    """
    host = torch.from_numpy(numbers) if isinstance(numbers, np.ndarray) else torch.tensor(numbers, dtype=dtype)
    if device.type == "cuda" and not torch.compiler.is_compiling():
        host = host.pin_memory()  # else the copy would wait
    return host.to(device, dtype, non_blocking=True)


def true_places(masks: Sequence[Tensor]) -> list[Tensor]:
    """What is true, waiting for the device once, for how many there are; `nonzero` waits in each.

    Args:
        masks: bool `[A]`, any number of them, A as it comes.

    Returns:
        of each the indices `[P]` int64, ascending.
    """
    if not masks:
        return []
    if torch.compiler.is_exporting():  # a program's sizes are whatever it finds
        return [mask.nonzero()[:, 0] for mask in masks]
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    if masks[0].device.type not in ("cpu", "cuda"):  # torch 2.15 has `nonzero_static` for no other
        return [mask.nonzero()[:, 0] for mask in masks]
    return [torch.nonzero_static(mask, size=count)[:, 0] for mask, count in zip(masks, counts, strict=True)]


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that an accelerator gave out to this process so far, else the most that was resident of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
