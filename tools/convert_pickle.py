"""Takes the tensors out of a checkpoint that vistrain refuses, since reading it as Python does would execute it.

    python tools/convert_pickle.py their.pth -o weights.pth

Some authors save whole networks, or objects of their own beside the weights. Here every name that such a file asks for,
but torch's own of tensors, becomes an empty object that keeps what it is given; of networks, parameters and buffers are
collected under the names that they have there. Nothing of the authors' code is imported or called. It is done in a
process of its own, with limits on time, memory and what it may write.

Do this for files whose source you trust: fewer names are refused than by vistrain.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

SECONDS, BYTES = 600, 2**34  # of processor time, and of a written file
TENSORS = {
    ("torch._utils", name)
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
}
DEEP = 64


class Thing:
    """Stands for an object of any class: keeps the state that it is given, does nothing."""

    arguments: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *arguments: Any, **_: Any) -> Thing:
        made = object.__new__(cls)
        made.arguments, made.state, made.items = arguments, {}, {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, _: Any) -> None:
        """Of lists."""

    def extend(self, _: Any) -> None:
        """Of lists."""

    def __call__(self, *_: Any, **__: Any) -> Thing:
        return Thing()

    def __hash__(self) -> int:
        return id(self)


class Unpickler(pickle._Unpickler):
    """To which torch's tensors and plain containers are the whole world."""

    def find_class(self, module: str, name: str) -> Any:
        """A name's meaning, or a stand-in."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in TENSORS:
            return getattr(torch._utils, name)
        if module == "torch" and isinstance(vars(torch).get(name), type | torch.dtype):
            found = vars(torch)[name]
            is_plain = name.endswith("Storage") or name in ("Size", "device") or isinstance(found, torch.dtype)
            return found if is_plain else type(name, (Thing,), {})
        return type(name, (Thing,), {})


def collected(value: Any, name: str, depth: int = 0) -> dict[str, torch.Tensor]:
    """The tensors in something, by dotted name."""
    if depth > DEEP:
        return {}
    if isinstance(value, torch.Tensor):
        return {name: value.detach()}
    if isinstance(value, Thing) and type(value).__name__ in ("Parameter", "Variable"):  # of torch before 0.4
        inside = (*value.arguments, *(value.state if isinstance(value.state, tuple) else ()))
        return next(({name: item.detach()} for item in inside if isinstance(item, torch.Tensor)), {})
    if isinstance(value, Thing):
        state = value.state if isinstance(value.state, dict) else {}
        parts = [state.get(key) for key in ("_parameters", "_buffers", "_modules")]
        if any(isinstance(part, dict) for part in parts):
            inner = {key: item for part in parts if isinstance(part, dict) for key, item in part.items()}
        else:
            inner = {**state, **value.items}
    else:
        inner = value if isinstance(value, dict) else {}
    return {
        key: tensor
        for part, item in inner.items()
        for key, tensor in collected(item, f"{name}.{part}".lstrip("."), depth + 1).items()
    }


def convert(source: Path, output: Path) -> None:
    """Read, collect, write.

    Raises:
        SystemExit: there are no tensors to be had.
    """
    reader = ModuleType("reader")  # as torch wants it
    vars(reader).update(Unpickler=Unpickler, load=lambda file, **keys: Unpickler(file, **keys).load())
    try:
        content = torch.load(source, map_location="cpu", weights_only=False, pickle_module=reader)
        found = {key: value.contiguous() for key, value in collected(content, "").items()}
    except Exception as error:  # of any kind: the file may hold anything
        raise SystemExit(f"{source}: cannot be read ({type(error).__name__}: {error})") from error
    top = {key.partition(".")[0] for key in found}
    if isinstance(content, dict) and len(top) == 1 and all("." in key for key in found):
        found = {key.partition(".")[2]: value for key, value in found.items()}  # `net.` before everything
    if not found:
        raise SystemExit(f"{source}: no tensors in it")
    torch.save(found, output)
    print(f"{output}: {len(found)} tensors, the first {next(iter(found))}")


def limited() -> None:
    """In the new process: an end to time and to what is written."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        convert(arguments.source, arguments.output)
        return 0
    words = [sys.executable, "-I", __file__, str(arguments.source), "-o", str(arguments.output), "--inside"]
    return subprocess.run(words, env={}, preexec_fn=limited if sys.platform != "win32" else None).returncode


if __name__ == "__main__":
    sys.exit(main())
