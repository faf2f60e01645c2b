"""Checkpoints: read without executing, loaded strictly, saved durably."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import sys
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.fixtures import main_work_tree
from safetensors.torch import save_file
from torch import Tensor, nn

from vistrain.checkpoints import KeyMap, find_state_dict, load_file, load_weights, save_durably
from vistrain.errors import WeightsError

SAMPLES = main_work_tree(Path(__file__).resolve().parents[2]).parent / "shared" / "samples" / "checkpoints"


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.randn(3, generator=generator)}


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".anything"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_known_by_content(
    tmp_path: Path, weights: dict[str, Tensor], suffix: str, zipped: bool
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    assert same(load_file(path), weights)


def test_safetensors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    assert same(load_file(tmp_path / "w.safetensors"), weights)
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-7])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        load_file(tmp_path / "w.safetensors")


def test_npz_without_pickle(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    np.savez(tmp_path / "w.npz", **{key: value.numpy() for key, value in weights.items()})
    assert same(load_file(tmp_path / "w.npz"), weights)
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(WeightsError, match="allow_pickle"):
        load_file(tmp_path / "objects.npz")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickles_of_arrays(tmp_path: Path, weights: dict[str, Tensor], protocol: int) -> None:
    arrays = OrderedDict((key, value.numpy()) for key, value in weights.items())
    arrays["big_endian"] = np.arange(3, dtype=">f4")
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True, "lr": np.float64(0.1)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = load_file(tmp_path / "w.pkl")
    assert loaded["__author__"] == "torchvision"
    assert loaded["model"].pop("big_endian").tolist() == [0.0, 1.0, 2.0]
    assert same(loaded["model"], weights)


def stranger(module: str, name: str, base: type = object) -> type:
    """A class of a package that is not installed where the checkpoint is read."""
    return type(name, (base,), {"__module__": module, "__qualname__": name})


def test_what_honest_checkpoints_carry_is_let_in_inert(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, history = (
        stranger("yacs.config", "CfgNode", dict),
        stranger("mmengine.logging.history_buffer", "HistoryBuffer"),
    )
    with monkeypatch.context() as patched:
        for cls in (node, history):
            packages = cls.__module__.split(".")
            for depth in range(1, len(packages) + 1):
                name = ".".join(packages[:depth])
                patched.setitem(sys.modules, name, types.ModuleType(name))
            setattr(sys.modules[cls.__module__], cls.__name__, cls)
        buffer = history()
        buffer.log = np.arange(4.0)
        content = {
            "model": weights,
            "args": Namespace(lr=1e-4, output_dir=Path("runs") / "x"),
            "cfg": node(MODEL=node(NAME="swin", DEPTHS=[2, 2])),
            "history": buffer,
            "best": np.float64(0.5),
            "counts": defaultdict(int, a=1),
        }
        torch.save(content, tmp_path / "w.pth")
    loaded = load_file(tmp_path / "w.pth")
    assert same(loaded["model"], weights)
    assert loaded["args"].lr == 1e-4
    assert loaded["cfg"]["MODEL"] == {"NAME": "swin", "DEPTHS": [2, 2]}
    assert type(loaded["history"]).__module__ == "vistrain.checkpoints.reading"
    assert "yacs.config" not in sys.modules


class Payload:
    """Pickles into a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (str(self.path), "executed")  # resolved by name when unpickled


class SystemPayload(Payload):
    def __reduce__(self) -> tuple[object, tuple[str]]:  # type: ignore[override]
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("payload", [Payload, SystemPayload])
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "npz"])
def test_hostile_files_are_refused_and_nothing_is_executed(tmp_path: Path, payload: type[Payload], form: str) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "executed"
    content = {"model": {"w": torch.ones(2)}, "evil": payload(trace)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "evil": payload(trace)}))
    elif form == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            buffer = io.BytesIO()
            np.save(buffer, np.array([payload(trace)], dtype=object), allow_pickle=True)
            archive.writestr("w.npy", buffer.getvalue())
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(WeightsError) as refusal:
        load_file(path)
    assert not trace.exists()
    assert str(path) in str(refusal.value)
    assert form == "npz" or "needs code execution" in str(refusal.value)


def test_codecs_other_than_latin1_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.")
    with pytest.raises(WeightsError, match=r"names `_codecs\.encode to zip`"):
        load_file(tmp_path / "w.pkl")


def test_a_dtype_that_lies_about_objects_is_never_believed(tmp_path: Path) -> None:
    # With NumPy's own unpickling, these eight bytes would become a pointer to an object.
    array = np.array([1.0])
    lie = pickle.dumps({"model": {"w": array}}, protocol=2).replace(b"f8", b"O8")
    (tmp_path / "w.pkl").write_bytes(lie)
    assert load_file(tmp_path / "w.pkl") == {"model": {"w": None}}


def test_authors_pickled_module_is_refused() -> None:
    path = SAMPLES / "dncnn_sigma25_official.pth"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with pytest.raises(WeightsError, match=r"needs code execution .*DnCNN.* refused - nothing was executed"):
        load_file(path)


def test_authors_plain_state_dict_loads() -> None:
    path = SAMPLES / "dncnn_25_kair.pth"
    if not path.exists():
        pytest.skip(f"needs {path}")
    assert load_file(path)["model.0.weight"].shape == (64, 1, 3, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"GGUF" + bytes(64), "not a checkpoint in any known format"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file, which h5py reads|is damaged"),
        (b"\x1f\x8b\x08" + bytes(64), "is a packed archive, not a checkpoint - unpack it"),
        (b"\x80\x04garbage", "damaged or cut short"),
        (pickle.dumps([1, 2]), "holds one list"),
    ],
)
def test_what_is_no_checkpoint_says_so(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        load_file(path)
    assert error.value.where == str(path)


def test_missing_files_folders_and_torchscript(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_file(tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        load_file(tmp_path)
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(WeightsError, match="TorchScript"):
        load_file(tmp_path / "script.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, weights: dict[str, Tensor], zipped: bool, share: float) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights | {"large": torch.ones(5000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"damaged or cut short .* - download it again"):
        load_file(path)


# --- key maps --------------------------------------------------------------------------------------------------------

MAP = KeyMap(
    name="theirs",
    marker=r"^net\.first\.",
    rules=((r"^net\.", ""), (r"^first\.", "a."), (r"^second\.", "a.")),
    drop=(r"\.counter$",),
    aliases=((r"^copy\.", "a."),),
    exports=((r"^a\.", ("first.", "copy.")), (r"^", ("net.",))),
)


def test_key_map_renames_drops_and_checks_aliases(weights: dict[str, Tensor]) -> None:
    foreign = {
        "net.first.weight": weights["a.weight"],
        "net.first.bias": weights["a.bias"],
        "net.copy.bias": weights["a.bias"].clone(),
        "net.first.counter": torch.tensor(3),
    }
    assert MAP.matches(foreign)
    assert not MAP.matches(weights)
    assert same(MAP.apply(foreign), weights)
    with pytest.raises(WeightsError, match=r"'net\.copy\.bias' should equal 'net\.first\.bias'"):
        MAP.apply(foreign | {"net.copy.bias": weights["a.bias"] + 1})
    with pytest.raises(WeightsError, match=r"both become 'a\.bias'"):
        MAP.apply(foreign | {"net.second.bias": weights["a.bias"]})


def test_a_file_with_the_second_spelling_alone_is_complete(weights: dict[str, Tensor]) -> None:
    foreign = {"net.copy.weight": weights["a.weight"], "net.first.bias": weights["a.bias"]}
    assert same(MAP.apply(foreign), weights)


def test_export_writes_every_foreign_name(weights: dict[str, Tensor]) -> None:
    foreign = MAP.export(weights)
    assert sorted(foreign) == ["net.copy.bias", "net.copy.weight", "net.first.bias", "net.first.weight"]
    assert same(MAP.apply(foreign), weights)


# --- loading ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A trunk with a batch norm, and a class layer."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.class_embed = nn.Linear(4, classes)


@pytest.mark.parametrize(
    ("wrap", "picked"),
    [
        (lambda w: w, ""),
        (lambda w: {"model": w, "optimizer": {"state": {}}, "epoch": 3}, "model"),
        (lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}}, "state_dict"),
        (lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()}, "epoch": 1}, "state_dict"),
        (lambda w: {"model": zeros(w), "model_ema": w}, "model_ema"),
        (lambda w: {"params": zeros(w), "params_ema": w}, "params_ema"),
        (lambda w: {"model": zeros(w), "ema": {"module": w, "updates": 7}}, "ema.module"),
        (lambda w: {"model": w, "ema": {"shadow": {}, "decay": 0.9}, "loss": torch.tensor(1.0)}, "model"),
        (lambda w: {"model": {f"module._orig_mod.{k}": v for k, v in w.items()}}, "model"),
        (lambda w: {"model": {f"module.{k}": v for k, v in w.items()} | {"n_averaged": torch.tensor(2)}}, "model"),
    ],
)
def test_the_state_dict_is_found_in_usual_wrappers(wrap: object, picked: str) -> None:
    theirs, ours = Net(), Net()
    report = load_weights(ours, wrap(theirs.state_dict()))  # type: ignore[operator]
    assert (report.picked, report.key_map, report.left_out) == (picked, None, ())
    assert same(ours.state_dict(), theirs.state_dict())


def zeros(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in weights.items()}


def test_no_state_dict_lists_what_is_there(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "history": [1, 2]}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"no state dict in it; it holds 'epoch', 'history'"):
        load_weights(Net(), tmp_path / "w.pth")
    assert find_state_dict({"x": torch.ones(1), "epoch": 2}) == ({"x": torch.ones(1)}, "")


def test_batch_counters_may_be_absent_or_superfluous() -> None:
    theirs, ours = Net().state_dict(), Net()
    theirs.pop("trunk.1.num_batches_tracked")
    theirs["class_embed.num_batches_tracked"] = torch.tensor(1)
    assert load_weights(ours, theirs).loaded == len(ours.state_dict())


def test_another_label_space_keeps_all_but_the_class_layers() -> None:
    theirs, ours = Net(91), Net(80)
    initial = ours.class_embed.weight.clone()
    report = load_weights(ours, theirs.state_dict(), class_layers=(r"^class_embed\.",))
    assert [(item.name, item.file_shape, item.model_shape) for item in report.left_out] == [
        ("class_embed.weight", (91, 4), (80, 4)),
        ("class_embed.bias", (91,), (80,)),
    ]
    assert "left out class_embed.weight: [91, 4] in the file, [80, 4] here" in str(report)
    assert torch.equal(ours.class_embed.weight, initial)
    assert torch.equal(ours.trunk[0].weight, theirs.trunk[0].weight)
    with pytest.raises(WeightsError, match=r"2 of another shape: class_embed\.weight \[91, 4\] for \[80, 4\]"):
        load_weights(ours, theirs.state_dict())


def test_disagreements_are_listed_counted_and_change_nothing() -> None:
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    foreign = {f"x{i}": torch.ones(1) for i in range(7)} | {"trunk.0.weight": torch.ones(2)}
    with pytest.raises(WeightsError) as error:
        load_weights(model, foreign, key_maps=(MAP,), where="some.pth")
    text = str(error.value)
    assert text.startswith("some.pth: does not fit Net, read with names of vistrain (not the names of theirs)")
    assert "7 missing: trunk.0.bias, trunk.1.weight, trunk.1.bias, trunk.1.running_mean and 3 more" in text
    assert "7 unexpected: x0, x1, x2, x3 and 3 more" in text
    assert "1 of another shape: trunk.0.weight [2] for [4, 3, 1, 1]" in text
    assert same(model.state_dict(), before)


def test_the_key_map_that_matches_is_used_unless_names_are_ours() -> None:
    key_map = KeyMap("authors", marker=r"^stem\.", rules=((r"^stem\.", "trunk."), (r"^head\.", "class_embed.")))
    other = KeyMap("others", marker=r"^nowhere\.")
    theirs, ours = Net(), Net()
    foreign = {k.replace("trunk.", "stem.").replace("class_embed.", "head."): v for k, v in theirs.state_dict().items()}
    assert load_weights(ours, foreign, key_maps=(other, key_map)).key_map == "authors"
    assert same(ours.state_dict(), theirs.state_dict())
    assert load_weights(ours, theirs.state_dict(), key_maps=(KeyMap("eager", marker=""),)).key_map is None


# --- saving ----------------------------------------------------------------------------------------------------------


def test_saving_replaces_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    for value in (1.0, 2.0):
        save_durably({"w": torch.full((2,), value)}, path)
        assert load_file(path)["w"].tolist() == [value, value]
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "last.ckpt"
    save_durably({"w": torch.ones(2)}, path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(WeightsError, match=r"last\.ckpt: could not be saved \(No space left on device\); \d+ MiB free"):
        save_durably({"w": torch.zeros(2)}, path)
    assert load_file(path)["w"].tolist() == [1.0, 1.0]
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_write_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_durably({"w": torch.ones(2)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the kernel itself refuses further bytes
    try:
        with pytest.raises(WeightsError, match="could not be saved"):
            save_durably({"w": torch.ones(200_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_file(path)["w"].tolist() == [1.0, 1.0]
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_what_cannot_be_pickled_is_a_bug_and_leaves_no_rest(tmp_path: Path) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_durably({"f": lambda: None}, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []
