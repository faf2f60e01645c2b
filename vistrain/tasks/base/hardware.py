"""What a task makes of the device that it trains on: order in memory, precision, what is compiled or computed again."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer

from vistrain.internals.torch import graphs_compiled, leave_unscaling
from vistrain.layers.recompute import keep, recompute
from vistrain.network import Network
from vistrain.structures import Factory

log = logging.getLogger(__name__)

HANDFUL = 8  # of recompilations in an epoch; of one function torch compiles no more, and runs it as it is


def order_weights(network: nn.Module) -> None:
    """Keep the weights of convolutions as `[out, height, width, in]` in memory.

    Weights alone: a convolution takes its input's and gives its output in the order of its weights. `Module.to` fails
    at tables of five axes, which have no such order.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)


def allow_tf32(allowed: bool | None) -> None:
    """Whether float32 products and convolutions may round their factors to TF32's 10 bits; None: as torch does."""
    if allowed is not None:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def optimizer_of(optimizer: Factory[Optimizer], parameters: Any, trainer: Trainer) -> Optimizer:
    """The optimizer of parameters, or groups of them. On CUDA it steps in one kernel for all of them, where it can and
    the config leaves it open.

    Under `16-mixed` not: a kernel that takes the scale off the gradients as well would do so after they are clipped.
    """
    on_cuda = trainer.strategy.root_device.type == "cuda" and trainer.precision != "16-mixed"
    is_open = not {"fused", "foreach", "differentiable"} & set(optimizer.arguments)
    can = "fused" in inspect.signature(optimizer.target).parameters
    made = optimizer(parameters, fused=True) if is_open and can and on_cuda else optimizer(parameters)
    leave_unscaling(made)
    return made


def blocks(network: Network) -> list[nn.Module]:
    """What is sharded, or computed again, by itself: innermost modules of which a `ModuleList` or `Sequential` holds
    several of a kind.

    Only inside the parts that the network names in `sharded_parts`, or else in `compiled_parts` (encoder, decoder,
    backbone): small heads gain nothing. Single layers and what appears in several places stay with the rest.
    """
    names = network.compiled_parts if network.sharded_parts is None else network.sharded_parts
    return repeated_blocks([network.get_submodule(name) for name in names] or [network])


def repeated_blocks(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """See `blocks`; those of some modules."""
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


class Prepared:
    """A network whose parts are compiled in place, or computed again in the backward pass, from `begin` to `undo`.

    Its parameters keep their names, and so do checkpoints.

    Args:
        network: names its parts.
        compiled: compile its `compiled_parts`.
        recomputed: compute its `blocks` again.
    """

    def __init__(self, network: Network, compiled: bool, recomputed: bool) -> None:
        self.network, self.compiled, self.again = network, compiled, recomputed
        self.parts: tuple[str, ...] = ()
        self.recomputed: list[nn.Module] = []
        self.graphs = self.epochs = 0

    def begin(self) -> None:
        """Compile, and have activations computed again."""
        network = self.network
        self.parts = network.compiled_parts if self.compiled else ()
        self.recomputed = blocks(network) if self.again else []
        for block in self.recomputed:
            recompute(block)
        self.graphs, self.epochs = graphs_compiled() if self.parts else 0, 0
        if self.parts:
            log.info("task.compile: %s compiled in the first steps, which may take minutes", ", ".join(self.parts))
        for name in self.parts:  # a size that changes becomes a symbol with its second value
            network.get_submodule(name).compile()

    def report(self) -> int:
        """Say, at the end of an epoch, how many graphs were compiled in it; warn of too many after the first.

        Returns:
            how many.
        """
        if not self.parts:
            return 0
        before, self.graphs = self.graphs, graphs_compiled()
        made, self.epochs = self.graphs - before, self.epochs + 1
        if made:
            log.info("epoch %d: %d graphs of %s were compiled", self.epochs, made, ", ".join(self.parts))
        if made > HANDFUL and self.epochs > 1:
            log.warning("shapes keep changing: %d graphs were compiled in one epoch - set task.compile=false", made)
        return made

    def undo(self) -> None:
        """Keep activations again; what is compiled stays so."""
        while self.recomputed:
            keep(self.recomputed.pop())
