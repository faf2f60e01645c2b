"""Counts, on a CPU, where a step would make the host wait for a GPU."""

from __future__ import annotations

import collections
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# What gives the host a number, or needs one to know its result's shape
READS = {"item", "tolist", "cpu", "numpy", "is_nonzero", "nonzero", "argwhere", "masked_select", "unique", "equal"}
READS |= {"unique_consecutive", "allclose", "bincount", "nms"}  # torchvision's `nms`: how many it leaves over
READS |= {"__bool__", "__float__", "__int__", "__index__", "__array__"}
INDEXES = {"__getitem__", "__setitem__", "index_put", "index_put_", "index"}
PACKAGE = Path(__file__).parents[1] / "vistrain"


class DeviceWaits(TorchFunctionMode):
    """Pretends that all tensors are on a GPU but those that the host made itself or has fetched.

    A tensor is the host's if it comes from numbers, arrays or random draws without a device, from `cpu()`, or from such
    tensors alone. Counted are reads of the device's tensors, copies of the host's to the device that are not
    `non_blocking`, and indexing by masks (whose result has any length) or by the host's tensors (which are copied).
    What runs below Python, as the backward pass, is not seen.

    Attributes:
        places: how often, by `file.py:line: operation` of the package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: collections.Counter[str] = collections.Counter()
        self._host = WeakTensorKeyDictionary()

    @property
    def count(self) -> int:
        """Waits in all."""
        return sum(self.places.values())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = bool(given) and all(x in self._host for x in given)
        placed = any(isinstance(x, torch.device) for x in tree_leaves((args, kwargs)))
        blocking = not kwargs.get("non_blocking", False)
        if given and not ours:
            masked = name in INDEXES and any(
                isinstance(x, Tensor) and (x.dtype in (torch.bool, torch.uint8) or (x in self._host and x.dim()))
                for x in self._indices(name, args)
            )
            counted = name == "repeat_interleave" and len(given) > 1
            if name in READS or masked or counted or name == "new_tensor" or (name == "where" and len(args) == 1):
                self._note(name)
        elif placed and blocking and (name in ("tensor", "as_tensor", "asarray") or (ours and name == "to")):
            self._note(name)
        result = func(*args, **kwargs)
        stays = name == "cpu" or (not placed and (ours or not given))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and stays:
                self._host[x] = True
            elif isinstance(x, Tensor) and x in self._host:  # `to` gives the same tensor
                del self._host[x]
        return result

    @staticmethod
    def _indices(name: str, args: tuple[Any, ...]) -> Iterator[Any]:
        return iter(tree_leaves(args[1]))

    def _note(self, operation: str) -> None:
        for frame in reversed(traceback.extract_stack()):
            if Path(frame.filename).is_relative_to(PACKAGE):
                place = Path(frame.filename).relative_to(PACKAGE).as_posix()
                self.places[f"{place}:{frame.lineno}: {operation}"] += 1
                return
        self.places[f"outside: {operation}"] += 1


def counted(run: Callable[[], object]) -> DeviceWaits:
    """The waits of a run."""
    with DeviceWaits() as waits:
        run()
    return waits
