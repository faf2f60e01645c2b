"""The device that a name stands for, and numbers that go there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vistrain.errors import ConfigError


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


def upload(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of numbers that the host knows, on a device, without waiting for it as `torch.tensor` would.

    Args:
        numbers: nested sequences of numbers.
        device, dtype: of the tensor.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return torch.tensor(numbers, device=device, dtype=dtype)
    return torch.tensor(numbers, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
