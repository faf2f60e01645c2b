"""Of OmegaConf: the table of its resolvers, to switch all of them off at once, and how it reads YAML.

Its public functions clear one resolver by name, or all that are not built in and then register the built-in ones again;
and they read a file only into a whole config, in which every alias is a copy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with omegaconf
from omegaconf import basecontainer
from omegaconf.basecontainer import BaseContainer

get_yaml_loader: Any = vars(basecontainer)["get_yaml_loader"]  # used there; defined in another module since 2.4
MOST_DEEP = 200  # brackets in brackets; libyaml crashes over many thousands, and takes long over fewer
MOST_INDENTED = 400  # columns before what stands in a line, `- ` of lists in lists among them


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
    _refuse_deep(text)
    return yaml.load(text, Loader=_loader())  # a safe one


def _loader() -> Any:
    """Without the limit on nodes that 2.4 brought, which the names of twenty thousand classes are above."""
    is_limited = "max_yaml_expanded_nodes" in inspect.signature(get_yaml_loader).parameters
    return get_yaml_loader(max_yaml_expanded_nodes=None) if is_limited else get_yaml_loader()


def _refuse_deep(text: str) -> None:
    depth = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if mark in "[{" else max(depth - 1, 0)
        if depth > MOST_DEEP:
            raise ValueError(f"brackets are nested more than {MOST_DEEP} deep")
    if re.search(rf"^(?: |[-?]\s){{{MOST_INDENTED}}}", text, re.MULTILINE):
        raise ValueError(f"a line is indented by more than {MOST_INDENTED} columns")


def read_scalar(text: str) -> Any:
    """The value of a plain scalar, whatever stands in it: nothing is a comment, an alias or a mapping.

    Raises:
        ValueError: it looks like a number or a date, and is none.
    """
    loader = _loader()("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, text))
    finally:
        loader.dispose()
