"""Several processes at one task: its network replicated (DDP) or sharded (FSDP2), its records brought together.

Sharded runs write and read the same single-file checkpoints as all others, so a run may continue either way.

Metrics see every sample exactly once at any number of processes: records are keyed by sample id, duplicates dropped and
the rest sorted before anything is reduced. The objects travel over a gloo group of their own, because rank 0 may
evaluate for longer than the training group's time-out allows a collective to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vistrain.errors import ConfigError, VistrainError
from vistrain.internals.lightning import ddp_arguments, plain_optimizer, shard_over
from vistrain.internals.torch import BatchNorm
from vistrain.layers.norms import synchronize_batch_norms
from vistrain.metrics import Record
from vistrain.network import Network
from vistrain.tasks.base.hardware import blocks, order_weights

if TYPE_CHECKING:
    from vistrain.tasks.base.task import Task

SHARDED = "fsdp2"
TIMEOUT = timedelta(hours=6)  # longer than any evaluation; a lost process is noticed by the launcher, not here


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes: each holds a part of every weight, gradient and optimizer state.

    Lightning's own strategy reads a single-file checkpoint only after the loaders are made, with its own unpickling,
    and takes the numbers of a plain optimizer's states for those of `model.parameters()`, whatever its groups; so
    reading and writing are done here. Rank 0 gathers one tensor after the other, and every rank keeps its part of what
    it reads.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: the data module hears where to continue before it makes a loader."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: through `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """One dimension of processes: all of them."""
        shard_over(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on rank 0; nothing on the others, which help to gather them."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `Optimizer.state_dict`, with whole tensors, on rank 0."""
        state = plain_optimizer(optimizer).state_dict()
        return {**state, "state": {key: self._gathered(value) for key, value in state["state"].items()}}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The file's content, as the other strategies read it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Keep this process's part of every weight."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {key: _part(value, own.get(key)) for key, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep this process's part of every state; states belong to parameters by their place in the groups."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [n for group in saved["param_groups"] for n in group["params"]]
            state = {
                number: {key: _part(value, parameter) for key, value in saved["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _gathered(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in tensors.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value  # every rank takes part
            if self.is_global_zero:
                found[key] = whole.cpu() if isinstance(whole, Tensor) else whole
        return found


def trainer_arguments(arguments: Mapping[str, Any], task: Task, callbacks: Iterable[Callback] = ()) -> dict[str, Any]:
    """A config's `trainer` section for Lightning: its own `strategy: fsdp2`, and `sync_batchnorm` done our way.

    Args:
        arguments: of the Trainer.
        task: it learns whether to synchronise batch norms.
        callbacks: of the run.

    Raises:
        ConfigError: parts that do not go together.
    """
    found = dict(arguments)
    task.sync_batchnorm = bool(found.pop("sync_batchnorm", False))
    on_cuda = found.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if task.channels_last is None and on_cuda and found.get("strategy") != SHARDED:
        order_weights(task.model)
    if found.get("strategy") != SHARDED:
        return found
    if any(isinstance(callback, WeightAveraging) for callback in callbacks):
        problem = f"weights cannot be averaged under trainer.strategy={SHARDED}"
        raise ConfigError("callbacks.ema", problem, "set callbacks.ema=null, or trainer.strategy=ddp")
    if found.get("precision") == "64-true":
        raise ConfigError("trainer.precision", f"64-true does not go with trainer.strategy={SHARDED}", "use 32-true")
    return {**found, "strategy": ShardedStrategy()}


def spread(task: Task) -> None:
    """Prepare a task's network for its trainer's strategy; called when processes have met, before optimizers are made.

    Raises:
        ConfigError: batch norms are to be synchronised on processors, where torch cannot.
    """
    strategy, network = task.trainer.strategy, task.model
    fitting = task.trainer.state.fn == TrainerFn.FITTING
    if fitting and task.trainer.world_size > 1 and task.sync_batchnorm:
        refuse_to_spread(task)
        synchronize_batch_norms(network)
    if isinstance(strategy, ShardedStrategy):
        refuse_to_spread(task)
        shard(network, strategy.device_mesh["data_parallel"])
    elif isinstance(strategy, DDPStrategy):
        # Gradients live in the buckets that are sent: a copy of all of them less. Nothing here detaches gradients.
        ddp_arguments(strategy).setdefault("gradient_as_bucket_view", True)


def refuse_to_spread(task: Task) -> None:
    """Refuse to train on several devices what cannot be.

    Raises:
        ConfigError: batch norms are to be synchronised on processors; weights lie in memory in an order that torch
            cannot shard, or learn through low-rank products.
    """
    strategy = task.trainer.strategy
    if task.trainer.world_size > 1 and task.sync_batchnorm and strategy.root_device.type == "cpu":
        problem = "torch synchronises batch norms on accelerators only"
        raise ConfigError("trainer.sync_batchnorm", problem, "set it to false, or train on GPUs")
    if isinstance(strategy, ShardedStrategy):
        _refuse_order(task.model)
        if task.groups.lora is not None:
            problem = f"weights of low rank are not sharded by trainer.strategy={SHARDED}"
            raise ConfigError("optimizer.groups.lora", problem, "leave it out, or set trainer.strategy=ddp")


def _refuse_order(network: Network) -> None:
    if not all(parameter.is_contiguous() for parameter in network.parameters()):
        problem = f"weights in this order in memory cannot be sharded by trainer.strategy={SHARDED}"
        raise ConfigError("task.channels_last", problem, "set it to false, or trainer.strategy=ddp")


def shard(network: Network, mesh: DeviceMesh) -> None:
    """Shard a network in place: each repeated block by itself, the rest as one piece.

    Args:
        network: the same on every process; rank 0's values count.
        mesh: of all processes, one dimension.

    Raises:
        ConfigError: weights lie in memory in an order that torch cannot shard.
    """
    if isinstance(network, FSDPModule):
        return
    _refuse_order(network)
    for tensor in [*network.parameters(), *network.buffers()]:
        distributed.broadcast(tensor.detach(), 0)
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for name in network.entrances:
        register_fsdp_forward_method(network, name)


def same_statistics(network: nn.Module) -> None:
    """Give every process rank 0's running statistics of batch norms, which are also what checkpoints hold.

    While training, each process has counted its own batches; evaluating with them, numbers would depend on which
    process saw which sample, and would not be those of the saved file.
    """
    for module in network.modules():
        if isinstance(module, BatchNorm) and module.running_mean is not None:
            for buffer in module.buffers(recurse=False):
                distributed.broadcast(buffer, 0)


def _part(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, laid out as `like`; anything else as it is."""
    if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


# ---------------------------------------------------------------- records


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
