"""Networks that are built without storage, and without the time that goes into numbers nobody will see."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vistrain.backbones  # registers the room's variants
from vistrain.devices import on_meta

assert vistrain.backbones


class Called(TorchDispatchMode):
    """Names of the operators that torch comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def described(model: nn.Module) -> dict[str, Any]:
    """Everything of a network's tensors but their values."""
    state = model.state_dict(keep_vars=True)
    return {name: (x.shape, x.dtype, x.device, x.requires_grad, x.stride()) for name, x in state.items()}


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "mit_b0", "tiny_moat0"])
def test_the_network_is_that_of_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        usual = timm.create_model(name)
    with Called() as called, on_meta():
        ours = timm.create_model(name)
    assert described(ours) == described(usual)
    assert all(p.is_meta for p in ours.parameters())
    assert not {"uniform_", "normal_", "erfinv_"} & called.names


def test_numbers_elsewhere_are_written() -> None:
    with on_meta():
        here = torch.empty(3, device="cpu")
        nn.init.constant_(here, 2.0).mul_(3)
        nn.init.uniform_(tensor=torch.empty(2, 2))
    assert here.tolist() == [6.0] * 3
