"""`data.per_device: auto`: how many samples fit on a device at once, found by two steps before the training begins."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vistrain.errors import ConfigError, VistrainError
from vistrain.internals.lightning import in_precision

if TYPE_CHECKING:
    from vistrain.tasks.base.task import Task

log = logging.getLogger(__name__)

SHARE = 0.9  # of the memory that is free: the rest is lost between blocks
STATES = 2  # tensors that an optimizer keeps of each parameter, as Adam does
FEW, MORE = 2, 4  # samples of the two steps


def settle_per_device(task: Task) -> None:
    """Replace `auto` by what fits on every process's device; the global batch stays, and is accumulated.

    Does nothing where the config names a number. Where memory cannot be measured, the device's whole share is taken.

    Raises:
        ConfigError: weights are sharded.
    """
    data, trainer = task.datamodule, task.trainer
    if data.per_device != "auto" or trainer.state.fn != TrainerFn.FITTING:
        return
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError("data.per_device", "auto cannot be measured where weights are sharded", "write a number")
    share, device = data.batch_size // trainer.world_size, strategy.root_device
    if device.type != "cuda":
        log.info("data.per_device=auto: all %d samples at once; what fits is measured on CUDA alone", share)
        chosen = share
    else:
        torch.cuda.empty_cache()
        found = fitting(task, share, lambda run: _peak(run, device), int(SHARE * torch.cuda.mem_get_info(device)[0]))
        chosen = int(strategy.reduce(torch.tensor(found, device=device), reduce_op="min"))
        torch.cuda.empty_cache()
        log.info("data.per_device=auto: %d of %d samples at once, batches of %d", chosen, share, data.batch_size)
    data.per_device = chosen
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)


def fitting(task: Task, share: int, peak: Callable[[Callable[[], object]], int], budget: int) -> int:
    """The largest divisor of a device's share that fits, by steps of a few samples, which change nothing.

    What a step takes is a part that is always there and one that grows with the pixels; the largest images decide.

    Args:
        task: in its trainer.
        share: samples of the global batch that fall to a device.
        peak: bytes of the device at most during a run.
        budget: bytes that there are.
    """
    data = task.datamodule
    if share == 1:
        return 1
    batches = [_batch(task, count) for count in sorted({min(FEW, share), min(MORE, share)})]
    pixels = [batch["image"][:, 0].numel() for batch in batches]
    bytes_of = [peak(lambda batch=batch: _step(task, batch)) for batch in batches]  # type: ignore[misc]
    if len(batches) == 1 or pixels[1] <= pixels[0]:
        each, fixed = bytes_of[-1] / pixels[-1], 0.0
    else:
        each = max(bytes_of[1] - bytes_of[0], 0) / (pixels[1] - pixels[0])
        fixed = max(bytes_of[0] - each * pixels[0], 0.0)
    fixed += STATES * sum(p.numel() * p.element_size() for p in task.model.parameters() if p.requires_grad)
    largest = math.prod(data.largest("train"))
    for count in range(share, 0, -1):
        if share % count == 0 and fixed + each * count * largest <= budget:
            return count
    log.warning("data.per_device=auto: a single sample of %d pixels may not fit", largest)
    return 1


def _batch(task: Task, count: int) -> dict[str, Any]:
    """So many training samples, on the device."""
    samples: Any = task.datamodule.training_samples()
    found: list[Any] = []
    for index in itertools.islice(itertools.cycle(range(len(samples))), 4 * count + len(samples)):
        sample = samples[index, task.seed + index]
        if not isinstance(sample, VistrainError):
            found.append(sample)
        if len(found) == count:
            break
    batch = task.datamodule.collate_function()(found)
    if isinstance(batch, VistrainError):
        raise batch
    moved: dict[str, Any] = task.trainer.strategy.batch_to_device(batch, task.trainer.strategy.root_device)
    return moved


def _step(task: Task, batch: dict[str, Any]) -> Sequence[Tensor | None]:
    """Losses and gradients, without a trace: of buffers, of random numbers, of gradients, of the mode."""
    device, mode = task.trainer.strategy.root_device, task.training
    model = task.model.to(device)
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            task.train()
            with in_precision(task.trainer):
                losses = model.losses(batch)
                total = torch.stack([value.reshape(()) for value in losses.values()]).sum()
            return torch.autograd.grad(total, wanted, allow_unused=True)
    finally:
        task.train(mode)
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _peak(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)
