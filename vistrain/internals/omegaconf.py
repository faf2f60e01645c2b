"""Of OmegaConf: the table of its resolvers, to switch all of them off at once, and how it reads YAML.

Its public functions clear one resolver by name, or all that are not built in and then register the built-in ones again;
and they read a file only into a whole config, in which every alias is a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf.basecontainer import BaseContainer, get_yaml_loader  # which came from another module until 2.3


@contextmanager
def without_resolvers() -> Iterator[None]:
    """Within it, OmegaConf has no resolvers (`${oc.env:HOME}`); afterwards all are back, registered ones too."""
    saved = dict(BaseContainer._resolvers)
    BaseContainer._resolvers.clear()
    try:
        yield
    finally:
        BaseContainer._resolvers.update(saved)


def read_yaml(text: str) -> Any:
    """What OmegaConf reads from YAML, as plain containers; those that aliases repeat are one object.

    `1e-4` is a number, and a key that stands twice is an error.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, a number or date in it is none, or it is too deep.
    """
    return yaml.load(text, Loader=get_yaml_loader())  # a safe loader


def read_scalar(text: str) -> Any:
    """The value of a plain scalar, whatever stands in it: nothing is a comment, an alias or a mapping.

    Raises:
        ValueError: it looks like a number or a date, and is none.
    """
    loader = get_yaml_loader()("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, text))
    finally:
        loader.dispose()
