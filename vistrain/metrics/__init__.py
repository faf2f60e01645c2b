"""Metrics: a computation with explicit arguments is a class, a protocol is a name for one frozen set of them.

A metric has `update(ids, predictions, targets) -> records`, plain dicts with an `id`, one per sample;
`compute(records) -> numbers`, over all of them, on one process; and `protocol`, the name to print beside the numbers.
"""

from __future__ import annotations

import difflib
from typing import Any

from vistrain.errors import ConfigError
from vistrain.metrics.coco import CocoBox

PROTOCOLS = {"coco_box": CocoBox}  # the classes' defaults are the protocols' frozen arguments

__all__ = ["PROTOCOLS", "CocoBox", "protocol"]


def protocol(name: str, **facts: Any) -> CocoBox:
    """The metric that a protocol names.

    Args:
        name: a protocol (`coco_box`).
        facts: what the metric needs to know (`ground_truth`, `labels`), and any argument to change; a changed one makes
            the metric's `protocol` print as `custom(...)`.

    Raises:
        ConfigError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"the protocols are {', '.join(sorted(PROTOCOLS))}"
        raise ConfigError("metrics", f"unknown protocol {name!r}", remedy)
    return PROTOCOLS[name](**facts)
