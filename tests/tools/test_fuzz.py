"""Files changed at random end in errors of ours, if in any; other errors, hangs, crashes and memory are found."""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import fuzz

from vistrain.errors import DataError


@pytest.mark.slow
def test_a_thousand_changed_files_end_in_errors_of_ours() -> None:
    found, ends = fuzz.fuzz(fuzz.KINDS, 0, range(1000))
    assert found == {}
    assert sum(ends.values()) == 1000
    for kind in fuzz.KINDS:  # changes are neither without effect nor so great that all is refused at the door
        assert ends[f"{kind} read"] >= 10, ends
        assert ends[f"{kind} refused"] >= 100, ends


def test_a_case_is_always_the_same() -> None:
    seed = bytes(range(256)) * 4
    made = [fuzz.changed_bytes(seed, random.Random(f"0/{case}")) for case in range(50)]
    assert made == [fuzz.changed_bytes(seed, random.Random(f"0/{case}")) for case in range(50)]
    assert sum(data != seed for data in made) > 45
    tree = {"a": [1, {"b": [2, 3]}], "c": "d"}
    trees = [fuzz.changed_tree(tree, random.Random(case)) for case in range(50)]
    assert sum(changed != tree for changed in trees) > 40
    assert tree == {"a": [1, {"b": [2, 3]}], "c": "d"}


def faulty() -> fuzz.Subject:
    """A reader with every fault: which one, the file says."""

    def read(folder: Path) -> None:
        word = (folder / "a").read_text()
        if word == "refuses":
            raise DataError("a", "is refused")
        if word == "raises":
            raise KeyError("a")
        if word == "crashes":
            os._exit(9)
        if word == "hangs":
            time.sleep(60)
        if word == "allocates":
            bytearray(2**28)[:: 2**12] = b"x" * 2**16

    words = ("reads", "refuses", "raises", "crashes", "hangs", "allocates")
    warm = random.Random(0).getstate()  # a child begins with a case that must go well
    return fuzz.Subject(lambda draw: ("a", b"reads" if draw.getstate() == warm else draw.choice(words).encode()), read)


def test_every_fault_is_found() -> None:
    limits = fuzz.Limits(seconds=1.0, memory=2**27)
    found, ends = fuzz.fuzz({"faulty": faulty}, 4, range(9), limits=limits)  # each fault, and one hang
    kinds = Counter("hangs" if "seconds" in text else text.split()[1] for text in found.values())
    assert set(kinds) == {"Traceback", "ended", "took", "hangs"}, found
    assert ends["found"] == len(found)
    assert ends["faulty read"] + ends["faulty refused"] + len(found) == 9
