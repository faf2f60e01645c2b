"""Pickles of NumPy arrays, as in detectron2's model zoo, read without pickle's and without NumPy's own unpickling.

NumPy's is not safe either: the pickled state of a dtype may claim that bytes are object references. So arrays are read
by stand-ins that take shape, plain number type and bytes, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from vistrain.internals.pickles import PlainUnpickler

_NUMBER = re.compile(r"[<>=|]?[fiub][1248]")


class ForbiddenName(pickle.UnpicklingError):
    """A pickle asks for something that is no array; `args[0]` is its dotted name."""


class _Dtype:
    """Stands in for `numpy.dtype`: a code such as `f4`, and the byte order from its state."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = {">": ">", "<": "<"}.get(state[1], "=")

    def plain(self) -> np.dtype | None:
        """The true type, or None if it is no plain number."""
        return np.dtype(self.order + self.code[-2:]) if _NUMBER.fullmatch(self.code) else None


class _Array:
    """Stands in for `numpy.ndarray`."""

    def __init__(self, shape: Any = (), dtype: Any = None, data: Any = b"", fortran: bool = False) -> None:
        self.shape, self.dtype, self.data, self.fortran = shape, dtype, data, fortran

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def array(self) -> np.ndarray | None:
        """The array; None if it does not hold plain numbers."""
        dtype = self.dtype.plain() if isinstance(self.dtype, _Dtype) else None
        if dtype is None:
            return None
        # Python 2 pickled the bytes as a string.
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        return np.frombuffer(data, dtype).reshape(self.shape, order="F" if self.fortran else "C")


class _Unpickler(PlainUnpickler):
    """A pickle reader to which arrays, numbers, strings and plain containers are the whole world."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the few names that pickles of arrays use; refuses every other without importing it."""
        # Functions are made anew at each look-up: a pickle may set attributes on what it is given.
        known: dict[str, Callable[..., Any]] = {
            "numpy.ndarray": _Array,
            "numpy.dtype": _Dtype,
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
            "numpy.core.multiarray.scalar": lambda dtype, data=b"": _Array((), dtype, data),
            "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: _Array(
                shape, dtype, data, order == "F"
            ),
            "_codecs.encode": lambda text, encoding="latin1": _latin1(text, encoding),
            "collections.OrderedDict": OrderedDict,
        }
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if path not in known:
            raise ForbiddenName(f"{module}.{name}")
        return known[path]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # the only one that pickles of arrays use; others run registered codecs
        raise ForbiddenName(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def loads(data: bytes) -> Any:
    """Reads a pickle of nested dictionaries and arrays.

    Returns:
        The same with NumPy arrays (scalars as numbers); what is no plain number has become None.

    Raises:
        ForbiddenName: it asks for anything else.
        Exception: of many kinds, for damaged data.
    """
    return _arrays(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})


def _arrays(content: Any, done: dict[int, Any]) -> Any:
    """Arrays in the place of their stand-ins; each dictionary is gone through once, however often it is named."""
    if isinstance(content, dict):
        if id(content) not in done:
            done[id(content)] = found = {}
            found.update({key: _arrays(value, done) for key, value in content.items()})
        return done[id(content)]
    if isinstance(content, _Array):
        array = content.array()
        return array.item() if array is not None and array.ndim == 0 else array
    return content
