"""Pickles that run something when they are read: each does under pickle itself, none does here."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from vistrain.checkpoints import load_file
from vistrain.errors import WeightsError

CONVERTER = Path(__file__).resolve().parents[2] / "tools" / "convert_pickle.py"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return b"c" + f"{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def corpus(trace: str) -> dict[str, bytes]:
    """What makes the file `trace` when it is unpickled, without its beginning and end."""
    write = f"open({trace!r}, 'w').close()"
    touch = f"touch '{trace}'"
    pathed = call(name("pathlib", "Path"), text(trace))
    system = name("os", "system")
    state = system + b"(" + text(touch) + b"t}N"  # of a partial: function, arguments, keywords, attributes
    inner = b"\x80\x02" + call(name("os", "system"), text(touch)) + b"."
    latin1 = call(name("_codecs", "encode"), text(inner.decode("latin1")), text("latin1"))
    return {
        "a shell": call(name("os", "system"), text(touch)),
        "a shell by its platform's name": call(name("posix", "system"), text(touch)),
        "a name on the stack": text("os") + text("system") + b"\x93(" + text(touch) + b"tR",
        "an instance": b"(" + text(touch) + b"ios\nsystem\n",
        "an object": b"(" + name("os", "system") + text(touch) + b"o",
        "eval": call(name("builtins", "eval"), text(write)),
        "exec by an older name": call(name("__builtin__", "exec"), text(write)),
        "getattr": call(call(name("builtins", "getattr"), pathed, text("touch"))),
        "a method found by operator": call(call(name("operator", "methodcaller"), text("touch")), pathed),
        "a module's own runner": call(name("runpy", "_run_code"), text(write), b"}"),
        "a timer": call(name("timeit", "timeit"), text(write), text("pass"), name("time", "perf_counter"), b"K\x01"),
        "a pickle in a pickle": call(name("pickle", "loads"), latin1),
        "state that is set": call(name("functools", "partial"), system) + b"(" + state + b"tb)R",
    }  # fmt: skip


NAMES = list(corpus(""))


def pickled(trace: Path, which: str) -> bytes:
    return b"\x80\x02" + b"}" + text("model") + corpus(str(trace))[which] + b"s."


def as_torch(data: bytes, path: Path) -> None:
    torch.save({"model": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, data if member.endswith("data.pkl") else content)


def as_tar(data: bytes, path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def as_legacy(data: bytes, path: Path) -> None:
    torch.save({"model": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    head = io.BytesIO(whole)
    for _ in range(3):  # magic number, version, facts of the machine
        pickle.load(head)
    path.write_bytes(whole[: head.tell()] + data)


@pytest.mark.parametrize("which", NAMES)
def test_the_corpus_is_malicious(tmp_path: Path, which: str) -> None:
    pickle.loads(pickled(tmp_path / "trace", which))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy", "tar"])
@pytest.mark.parametrize("which", NAMES)
def test_none_executes(tmp_path: Path, which: str, form: str) -> None:
    path, data = tmp_path / "w.pth", pickled(tmp_path / "trace", which)
    forms = {"torch": as_torch, "legacy": as_legacy, "tar": as_tar}
    path.write_bytes(data) if form == "pickle" else forms[form](data, path)
    with pytest.raises(WeightsError) as refusal:
        load_file(path)
    assert not (tmp_path / "trace").exists()
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(str(path))


def test_the_converter_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickled(tmp_path / "trace", "a shell"))
    with pytest.raises(WeightsError, match=r"names `os\.system`.* nothing was executed; .*tools/convert_pickle\.py"):
        load_file(tmp_path / "w.pkl")
    assert CONVERTER.is_file()


class Authors(torch.nn.Module):
    """A network of which the whole object is pickled, as some authors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))


def test_the_converter_takes_tensors_out_of_a_pickled_network(tmp_path: Path) -> None:
    network = Authors()
    torch.save({"net": network, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="needs code execution"):
        load_file(tmp_path / "w.pth")
    command = [sys.executable, str(CONVERTER), str(tmp_path / "w.pth"), "-o", str(tmp_path / "out.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = load_file(tmp_path / "out.pth")
    assert found.keys() == network.state_dict().keys(), done.stdout
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in found.items())


def test_the_converter_executes_nothing_either(tmp_path: Path) -> None:
    sys.path.insert(0, str(CONVERTER.parent))
    import convert_pickle

    for i, which in enumerate(NAMES):
        as_torch(pickled(tmp_path / "trace", which), tmp_path / f"{i}.pth")
        with pytest.raises(SystemExit):
            convert_pickle.convert(tmp_path / f"{i}.pth", tmp_path / "out.pth")
        assert not (tmp_path / "trace").exists(), which
