"""Of OmegaConf: the table of its resolvers, to switch all of them off at once.

Its public functions clear one resolver by name, or all that are not built in and then register the built-in ones again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf.basecontainer import BaseContainer


@contextmanager
def without_resolvers() -> Iterator[None]:
    """Within it, OmegaConf has no resolvers (`${oc.env:HOME}`); afterwards all are back, registered ones too."""
    saved = dict(BaseContainer._resolvers)
    BaseContainer._resolvers.clear()
    try:
        yield
    finally:
        BaseContainer._resolvers.update(saved)
