"""Which parts of a network are sharded and synchronised, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from distributed_cases import model
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from vistrain.callbacks import EMA
from vistrain.errors import ConfigError
from vistrain.layers.norms import freeze_batch_norms, synchronize_batch_norms
from vistrain.tasks.base.parallel import ShardedStrategy, blocks, shard, spread, trainer_arguments


def task(network: nn.Module, strategy: Any, **more: Any) -> Any:
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer = SimpleNamespace(strategy=strategy, world_size=2, state=state)
    return SimpleNamespace(model=network, trainer=trainer, **{"sync_batchnorm": False, **more})


def test_synchronised_norms_keep_their_activations_and_their_numbers() -> None:
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)  # its norms hold their activations
    names = list(network.state_dict())
    images = torch.rand(2, 3, 64, 64)
    network.eval()
    before = network(images)
    assert any(isinstance(m, BatchNormAct2d) for m in network.modules())
    synchronize_batch_norms(network)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert list(network.state_dict()) == names
    assert torch.equal(network(images), before)
    network.train()
    network(images).sum().backward()  # one process alone: as ever


def test_frozen_norms_stay_frozen() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm1d(4))
    network[1].requires_grad_(False)
    network[2] = freeze_batch_norms(network[2])
    network[3] = nn.BatchNorm1d(4, affine=False)  # statistics of the batch, though nothing in it learns
    kinds = [type(m).__name__ for m in network.modules()]
    synchronize_batch_norms(network)
    expected = [k.replace("BatchNorm1d", "SyncBatchNorm") for k in kinds]
    assert [type(m).__name__ for m in network.modules()] == expected
    assert isinstance(synchronize_batch_norms(nn.BatchNorm2d(3)), nn.SyncBatchNorm)


def test_norms_are_not_synchronised_on_processors() -> None:
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2)
    strategy.cluster_environment = SimpleNamespace(local_rank=lambda: 0)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"sync_batchnorm: torch synchronises batch norms on accelerators only"):
        spread(task(nn.BatchNorm2d(3), strategy, sync_batchnorm=True))


def test_replicas_search_for_no_unused_parameters_and_keep_gradients_in_buckets() -> None:
    strategy = DDPStrategy()
    spread(task(nn.Linear(1, 1), strategy))
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True}


def test_arguments_of_the_trainer() -> None:
    holder = SimpleNamespace(channels_last=False)
    assert trainer_arguments({"devices": 2, "sync_batchnorm": True}, holder) == {"devices": 2}
    assert holder.sync_batchnorm is True
    found = trainer_arguments({"strategy": "fsdp2"}, holder)
    assert isinstance(found["strategy"], ShardedStrategy)
    assert holder.sync_batchnorm is False
    with pytest.raises(ConfigError, match=r"callbacks\.ema: weights cannot be averaged under trainer\.strategy=fsdp2"):
        trainer_arguments({"strategy": "fsdp2"}, holder, [EMA()])
    with pytest.raises(ConfigError, match=r"trainer\.precision: 64-true does not go with"):
        trainer_arguments({"strategy": "fsdp2", "precision": "64-true"}, holder)
    trainer_arguments({"strategy": "ddp"}, holder, [EMA()])


def test_weights_that_torch_cannot_shard_are_refused() -> None:
    network: Any = model("convolutions").to(memory_format=torch.channels_last)
    with pytest.raises(ConfigError, match=r"task\.channels_last: weights in this order in memory cannot be sharded"):
        shard(network, None)  # type: ignore[arg-type]


def names_of(network: nn.Module) -> set[str]:
    found = {id(block) for block in blocks(network)}
    return {name for name, module in network.named_modules() if id(module) in found}


def test_repeated_blocks_are_sharded_one_by_one() -> None:
    """Layers of encoder and decoder, blocks of backbones; neither heads nor single convolutions."""
    layers = {f"{part}.layers.{i}" for part in ("encoder", "decoder") for i in (0, 1)}
    assert names_of(model("dino")) == layers | {f"neck.convs.{i}" for i in range(3)}
    assert names_of(model("classifier")) == {"backbone.body.blocks.0", "backbone.body.blocks.1"}
    twice = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    shared = nn.ModuleDict(
        {"a": nn.ModuleList([twice, nn.Sequential(nn.Linear(2, 2), nn.ReLU())]), "b": nn.ModuleList([twice, twice])}
    )
    shared.sharded_parts = ()
    assert names_of(shared) == {"a.1"}  # what stands in several places stays with the rest
