"""How a task's network is spread over processes: replicated (DDP), or sharded (FSDP2) where it outgrows one device.

Sharded runs write and read the same single-file checkpoints as all others, so a run may continue either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from vistrain.errors import ConfigError
from vistrain.layers.norms import synchronize_batch_norms

SHARDED = "fsdp2"
ENTRANCES = ("losses", "predict", "features")  # what a task calls on a network, besides `forward`


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
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on rank 0; nothing on the others, which help to gather them."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `Optimizer.state_dict`, with whole tensors, on rank 0."""
        state = cast(Optimizer, getattr(optimizer, "_optimizer", optimizer)).state_dict()
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


def trainer_arguments(arguments: Mapping[str, Any], task: Any, callbacks: Iterable[Callback] = ()) -> dict[str, Any]:
    """A config's `trainer` section for Lightning: its own `strategy: fsdp2`, and `sync_batchnorm` done our way.

    Args:
        arguments: of the Trainer.
        task: a `Task`; it learns whether to synchronise batch norms.
        callbacks: of the run.

    Raises:
        ConfigError: parts that do not go together.
    """
    found = dict(arguments)
    task.sync_batchnorm = bool(found.pop("sync_batchnorm", False))
    if found.get("strategy") != SHARDED:
        return found
    if any(isinstance(callback, WeightAveraging) for callback in callbacks):
        problem = f"weights cannot be averaged under trainer.strategy={SHARDED}"
        raise ConfigError("callbacks.ema", problem, "set callbacks.ema=null, or trainer.strategy=ddp")
    if found.get("precision") == "64-true":
        raise ConfigError("trainer.precision", f"64-true does not go with trainer.strategy={SHARDED}", "use 32-true")
    return {**found, "strategy": ShardedStrategy()}


def spread(task: LightningModule) -> None:
    """Prepare a task's network for its trainer's strategy; called when processes have met, before optimizers are made.

    Raises:
        ConfigError: batch norms are to be synchronised on processors, where torch cannot.
    """
    strategy, network = task.trainer.strategy, cast(nn.Module, task.model)
    fitting = task.trainer.state.fn == TrainerFn.FITTING
    if fitting and task.trainer.world_size > 1 and getattr(task, "sync_batchnorm", False):
        if strategy.root_device.type == "cpu":
            problem = "torch synchronises batch norms on accelerators only"
            raise ConfigError("trainer.sync_batchnorm", problem, "set it to false, or train on GPUs")
        synchronize_batch_norms(network)
    if isinstance(strategy, ShardedStrategy):
        shard(network, strategy.device_mesh["data_parallel"])
    elif isinstance(strategy, DDPStrategy):
        # Gradients live in the buckets that are sent: a copy of all of them less. Nothing here detaches gradients.
        strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network in place: each repeated block by itself, the rest as one piece.

    Args:
        network: the same on every process; rank 0's values count.
        mesh: of all processes, one dimension.
    """
    if isinstance(network, FSDPModule):
        return
    for tensor in [*network.parameters(), *network.buffers()]:
        distributed.broadcast(tensor.detach(), 0)
    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for name in ENTRANCES:
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is sharded by itself: the innermost modules of which a `ModuleList` or `Sequential` holds several of a kind.

    Only inside the parts that the network names in `sharded_parts`, or else in `compiled_parts` (encoder, decoder,
    backbone): small heads gain nothing. Single layers and what appears in several places stay with the rest.
    """
    names = getattr(network, "sharded_parts", getattr(network, "compiled_parts", ()))
    parts = [network.get_submodule(name) for name in names] or [network]
    found: dict[int, nn.Module] = {}
    seen: dict[int, int] = {}
    for part in parts:
        for holder in part.modules():
            if not isinstance(holder, nn.ModuleList | nn.Sequential):
                continue
            children = list(holder)
            kinds = [type(child) for child in children]
            for child in children:
                is_block = kinds.count(type(child)) > 1 and any(True for _ in child.children())
                if is_block and any(True for _ in child.parameters()):
                    found[id(child)] = child
                    seen[id(child)] = seen.get(id(child), 0) + 1
    once = {key: block for key, block in found.items() if seen[key] == 1}
    outer = {key for key, block in once.items() if any(id(m) in once for m in block.modules() if m is not block)}
    return [block for key, block in once.items() if key not in outer]


def same_statistics(network: nn.Module) -> None:
    """Give every process rank 0's running statistics of batch norms, which are also what checkpoints hold.

    While training, each process has counted its own batches; evaluating with them, numbers would depend on which
    process saw which sample, and would not be those of the saved file.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            for buffer in module.buffers(recurse=False):
                distributed.broadcast(buffer, 0)


def _part(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, laid out as `like`; anything else as it is."""
    if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
