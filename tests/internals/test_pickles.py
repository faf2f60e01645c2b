"""What is relied on of the standard library's pickle reader in Python: it is one, and its memory is what it reads."""

import io
import pickle
import tracemalloc

import pytest

from vistrain.internals.pickles import PlainUnpickler


def test_it_reads_what_pickle_writes_and_asks_for_every_name() -> None:
    class Refusing(PlainUnpickler):
        def find_class(self, module: str, name: str) -> None:
            raise pickle.UnpicklingError(f"{module}.{name}")

    content = {"a": [1, 2.5, "three", b"four", None, True, (1, 2)], "b": {}}
    for protocol in range(3, 6):  # earlier ones name a function for bytes
        assert Refusing(io.BytesIO(pickle.dumps(content, protocol))).load() == content
    with pytest.raises(pickle.UnpicklingError, match=r"io\.BytesIO"):
        Refusing(io.BytesIO(pickle.dumps(io.BytesIO))).load()


def test_a_far_place_in_its_memory_takes_none() -> None:
    tracemalloc.start()
    assert PlainUnpickler(io.BytesIO(b"\x80\x02}r\xff\xff\xff\x7f.")).load() == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
