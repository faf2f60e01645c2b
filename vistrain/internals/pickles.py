"""Of the standard library: the pickle reader that is written in Python."""

from __future__ import annotations

import pickle

__all__ = ["PlainUnpickler"]

# The one in C keeps what a pickle remembers in a list, which a pickle of ten bytes can make 16 GB long; this one keeps
# it in a dictionary.
PlainUnpickler = pickle._Unpickler
