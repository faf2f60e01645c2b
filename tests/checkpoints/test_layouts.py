"""One file of each layout that programs save weights in, read into the same small network."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vistrain.checkpoints import load_weights
from vistrain.checkpoints.flax import FLAX
from vistrain.errors import WeightsError


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(value.shape, generator=generator) for name, value in Net().state_dict().items()}


def strangers(*paths: str, base: type = object) -> dict[str, types.ModuleType]:
    """Modules of packages that are not installed, with a class each, for `sys.modules`."""
    found: dict[str, types.ModuleType] = {}
    for path in paths:
        module, _, name = path.rpartition(".")
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
        body = {"__module__": module, "__qualname__": name, "least": lambda self: 0.0}
        setattr(found[module], name, type(name, (base,), body))
        vars(found[module])[name].least.__qualname__ = f"{name}.least"
        vars(found[module])[name].least.__module__ = module
    return found


def saved_mm(path: Path, weights: dict[str, Tensor]) -> None:
    modules = strangers("mmengine.logging.history_buffer.HistoryBuffer")
    with pytest.MonkeyPatch.context() as patched:
        for name, module in modules.items():
            patched.setitem(sys.modules, name, module)
        history = modules["mmengine.logging.history_buffer"].HistoryBuffer
        buffer = history()
        buffer.log, buffer.methods = np.arange(3.0), {"least": history.least}  # pickled as getattr(HistoryBuffer, ...)
        hub = {"log_scalars": {"train/loss": buffer}, "resumed_keys": {}}
        torch.save({"meta": {"epoch": 12}, "message_hub": hub, "state_dict": weights, "param_schedulers": []}, path)


def saved_swin(path: Path, weights: dict[str, Tensor]) -> None:
    modules = strangers("yacs.config.CfgNode", base=dict)
    with pytest.MonkeyPatch.context() as patched:
        for name, module in modules.items():
            patched.setitem(sys.modules, name, module)
        node = modules["yacs.config"].CfgNode
        config = node(MODEL=node(NAME="swin", DEPTHS=[2, 2]))
        torch.save({"model": weights, "config": config, "max_accuracy": 81.2, "amp": {"scale": 1.0}}, path)


def saved_keras(path: Path, weights: dict[str, Tensor]) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, value in weights.items():
            file[f"model_weights/{name}"] = value.numpy()
        file["optimizer_weights/iterations"] = np.int64(7)
        file["model_weights/elsewhere"] = h5py.ExternalLink("other.h5", "x")


def saved_tar(path: Path, weights: dict[str, Tensor]) -> None:
    """Torch's first format, by hand: nobody writes it any more."""

    def kind(name: str) -> Any:
        return type(name, (), {"__module__": "torch", "__qualname__": name})

    def pickled(*objects: Any) -> bytes:
        return b"".join(pickle.dumps(item, protocol=2) for item in objects)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return item.key if isinstance(item, Namespace) else None

    storages, tensors = pickled(len(weights)), pickled(len(weights))
    for key, value in enumerate(weights.values()):
        storages += b"\x80\x02(K" + bytes([key]) + b"X\x03\x00\x00\x00cpuctorch\nFloatStorage\nt."
        storages += struct.pack("<q", value.numel()) + value.numpy().tobytes()
        tensors += b"\x80\x02(K" + bytes([key]) + b"K" + bytes([key]) + b"ctorch\nFloatTensor\nt."
        tensors += struct.pack("<i4x", value.ndim) + struct.pack(f"<{value.ndim}q", *value.shape)
        tensors += struct.pack(f"<{value.ndim}q", *value.stride()) + struct.pack("<q", 0)
    storages += pickled([])
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(OrderedDict((name, Namespace(key=key)) for key, name in enumerate(weights)))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (
            ("sys_info", b""),
            ("pickle", buffer.getvalue()),
            ("tensors", tensors),
            ("storages", storages),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def saved_npz(path: Path, weights: dict[str, Tensor]) -> None:
    named = {
        "conv/kernel": weights["conv.weight"].permute(2, 3, 1, 0), "conv/bias": weights["conv.bias"],
        "head/kernel": weights["head.weight"].t(), "head/bias": weights["head.bias"],
    }  # fmt: skip
    arrays = {f"opt/target/{name}": value.numpy() for name, value in named.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays, **{"opt/state/step": np.int32(7)})


def saved_pkl(path: Path, weights: dict[str, Tensor]) -> None:
    arrays = {name: value.numpy() for name, value in weights.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "them", "matching_heuristics": True}, protocol=2))


Saver = Callable[[Path, dict[str, Tensor]], None]
OTHER = {name: torch.zeros(1) for name in ("conv.weight", "conv.bias")}


def torch_form(wrap: Callable[[dict[str, Tensor]], Any], zipped: bool = True) -> Saver:
    return lambda path, weights: torch.save(wrap(weights), path, _use_new_zipfile_serialization=zipped)


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: {"state_dict": {prefix + name: value for name, value in weights.items()}}


def adam(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {"state": {i: {"exp_avg": x * 0, "step": torch.tensor(3.0)} for i, x in enumerate(weights.values())}}


LAYOUTS: dict[str, Saver] = {
    "fb, with argparse's namespace": torch_form(
        lambda w: {"model": w, "optimizer": adam(w), "args": Namespace(lr=1e-4, output_dir=Path("x")), "epoch": 3}
    ),
    "detectron2's pickle": saved_pkl,
    "mmengine's, with histories": saved_mm,
    "mmdetection 2's averages under names of buffers": torch_form(
        lambda w: {"state_dict": {**w, **{f"ema_{name.replace('.', '_')}": x * 0 for name, x in w.items()}}}
    ),
    "Swin's, with yacs nodes": saved_swin,
    "BasicSR's averages": torch_form(lambda w: {"params": {k: v * 0 for k, v in w.items()}, "params_ema": w}),
    "JAX's and TensorFlow's npz": saved_npz,
    "Keras's h5": saved_keras,
    "safetensors": lambda path, weights: save_file(weights, path),
    "torch's zip": torch_form(lambda w: w),
    "torch's old pickle": torch_form(lambda w: w, zipped=False),
    "torch's first tar": saved_tar,
    "nested one level deeper": torch_form(lambda w: {"checkpoint": {"model": w}, "optimizer": adam(w)}),
    "under a name that nobody knows": torch_form(lambda w: {"weights of it": w, "scheduler": {"x": torch.ones(1)}}),
    "module.": torch_form(prefixed("module.")),
    "model.": torch_form(prefixed("model.")),
    "ema.": torch_form(prefixed("ema.")),
    "weights and their average in one": torch_form(
        lambda w: {
            **{f"model.{k}": v * 0 for k, v in w.items()}, **{f"model_ema.{k}": v for k, v in w.items()},
            "model_ema.decay": torch.tensor(0.99),
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(tmp_path: Path, layout: str) -> None:
    weights, path, net = state(), tmp_path / "weights.any", Net()
    LAYOUTS[layout](path, weights)
    load_weights(net, path, key_maps=[FLAX])
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not {"mmengine", "yacs"} & sys.modules.keys()


def test_half_precision_becomes_the_networks_own(tmp_path: Path) -> None:
    halves, net = {name: value.half() for name, value in state().items()}, Net()
    torch.save({"model": halves}, tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert all(value.dtype == torch.float32 for value in net.state_dict().values())
    assert all(torch.equal(value, halves[name].float()) for name, value in net.state_dict().items())


def test_several_state_dicts_are_named(tmp_path: Path) -> None:
    torch.save({"generator": state(), "discriminator": state()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"several state dicts in it: 'generator', 'discriminator' - save the one"):
        load_weights(Net(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["../../escaped.pth", "/escaped.pth", "weights/model.pth"])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archives_are_not_unpacked(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / "inner" / "w.zip"
    path.parent.mkdir()
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(WeightsError, match=r"archive.* - unpack it, and name the checkpoint file in it"):
        load_weights(Net(), path)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "w.zip"]


def test_a_packed_torch_file_is_not_mapped(tmp_path: Path) -> None:
    """Torch would take the packed bytes for numbers."""
    weights, net = state(), Net()
    torch.save(weights, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "w.pth", "w") as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member), zipfile.ZIP_DEFLATED)
    load_weights(net, tmp_path / "w.pth")
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_a_torch_file_under_another_name_is_read(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "last.safetensors")
    net = Net()
    load_weights(net, tmp_path / "last.safetensors")
    assert all(torch.equal(value, state()[name]) for name, value in net.state_dict().items())
