"""Features of a whole data set, for what compares samples with one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vistrain.data.base.collate import Batch
from vistrain.data.base.module import DataModule
from vistrain.errors import VistrainError


@torch.no_grad()
def encoded(
    data: DataModule, samples: Dataset[Any], device: torch.device, features: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor]:
    """Features and labels of all samples.

    Args:
        data: whose batches they come in.
        samples: each with one class.
        device: of the network.
        features: of a batch, `[B, F]`.

    Returns:
        `[N, F]`, and `[N]` int64.

    Raises:
        VistrainError: a sample cannot be read.
    """
    workers = data.workers if data.workers is not None else 0
    loader = DataLoader(samples, data.eval_batch_size, collate_fn=data.collate_function(), num_workers=workers)
    found, labels = [], []
    for batch in loader:
        if isinstance(batch, VistrainError):
            raise batch
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        found.append(features(moved))
        labels.append(moved["labels"])
    return torch.cat(found), torch.cat(labels)
