"""Which shipped config a file of weights looks like, by the shapes of its tensors alone: names differ between codes.

Of each config the index has a sketch of a few characters (`vistrain/config/names/weights.json`), read when a file does
not fit. Two sketches share about as large a part of their entries as the networks share of their weights' shapes
(minwise hashing: the smallest hashes of a set are a fair sample of it).
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

SIZE = 16  # hashes of a sketch, of 8 hexadecimal digits each
ALIKE = 0.5  # least share that is worth a word
_SAID = 3  # configs named


def sketch(tensors: Mapping[str, Tensor]) -> str:
    """A short text that says what shapes the weights of a network have, and how many of each; empty: there are none.

    Biases and norms do not count, nor do the order of axes and axes of length 1, which differ from code to code.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    for name, tensor in tensors.items():
        sides = tuple(sorted(side for side in tensor.shape if side > 1))
        if len(sides) > 1 and tensor.is_floating_point() and "attn_mask" not in name:
            shapes[sides] += 1
    hashes = {zlib.crc32(f"{sides} {i}".encode()) for sides, count in shapes.items() for i in range(count)}
    return "".join(f"{value:08x}" for value in heapq.nsmallest(SIZE, hashes))


def alike(one: str, other: str) -> float:
    """The share of weights that two networks have in common, 0 to 1, as their sketches tell it."""
    a, b = (frozenset(text[i : i + 8] for i in range(0, len(text), 8)) for text in (one, other))
    smallest = heapq.nsmallest(SIZE, a | b)
    return len(a & b & set(smallest)) / len(smallest) if smallest else 0.0


def looks_like(tensors: Mapping[str, Tensor]) -> str:
    """`it looks like vistrain:det/focus_detr`, for the end of a message; empty: it looks like none that is shipped."""
    # Here, as networks import this room and need torch alone: the index comes with what reads YAML
    from vistrain.config import index

    own = sketch(tensors)
    if not own:
        return ""
    shares = {name: alike(own, theirs) for name, theirs in index.load("weights").items()}
    best = max(shares.values(), default=0.0)
    if best < ALIKE:
        return ""
    names = [name for name, share in shares.items() if share == best]
    more = f" and {len(names) - _SAID} more" if len(names) > _SAID else ""
    degree = "looks like" if best == 1 else "looks most like"
    return f"it {degree} {', '.join(f'vistrain:{name}' for name in names[:_SAID])}{more}"
