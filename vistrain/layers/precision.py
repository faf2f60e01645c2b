"""How exactly to compute where half precision will not do."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half types (and integers) as float32; float32 and float64 as they are.

    Losses, matching and box arithmetic use it instead of `.float()`, so that a network in double precision is one to
    its last digit: equality of gradients at any number of processes is tested to 1e-12.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
