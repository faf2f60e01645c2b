"""Metrics: a computation with explicit arguments is a class, a protocol is a name for one frozen set of them.

A metric has `update(ids, predictions, targets) -> records`, plain dicts with an `id`, one per sample;
`compute(records) -> numbers`, over all of them, on one process; and `protocol`, the name to print beside the numbers.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any

from vistrain.errors import ConfigError
from vistrain.metrics.classification import Accuracy, MultiLabel
from vistrain.metrics.coco import CocoBox
from vistrain.metrics.image_quality import QUALITY, ImageQuality
from vistrain.metrics.lpips import Lpips

# Each builds a metric from what it needs to know; the defaults are the protocol's frozen arguments.
PROTOCOLS: dict[str, Callable[..., Any]] = {
    "coco_box": CocoBox,
    "accuracy": Accuracy,
    "multi_label": MultiLabel,
    **{name: functools.partial(ImageQuality, name) for name in QUALITY},
    "lpips": Lpips,
}

__all__ = ["PROTOCOLS", "QUALITY", "Accuracy", "CocoBox", "ImageQuality", "Lpips", "MultiLabel", "protocol"]


def protocol(name: str, **facts: Any) -> Any:
    """The metric that a protocol names.

    Args:
        name: a protocol (`coco_box`).
        facts: what the metric needs to know (`ground_truth` and `labels`, or `scale`), and any argument to change; a
            changed one makes the metric's `protocol` print as `custom(...)`.

    Raises:
        ConfigError: no protocol has this name.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"the protocols are {', '.join(sorted(PROTOCOLS))}"
        raise ConfigError("metrics", f"unknown protocol {name!r}", remedy)
    return PROTOCOLS[name](**facts)
