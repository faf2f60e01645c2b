"""What an exported file is worth: the task's own evaluation, by the network and with the file in its place."""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vistrain.config import compose
from vistrain.errors import ConfigError
from vistrain.metrics import Unit, unit_of
from vistrain.network import Network
from vistrain.run.engine import test
from vistrain.run.exported_runtime import Replaced, Run, runtime_of

log = logging.getLogger(__name__)

# One image at a time, as nothing but its own padding reaches a file then; one process on a CPU, for both sides alike.
ALIKE = {
    "data": {"eval_batch_size": 1},
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "limit_test_batches": 1.0},
}


Pairs = dict[str, tuple[float, float]]  # number -> that of the network, and that of its file


def measure(
    file: Path,
    *,
    checkpoint: Path | None = None,
    config: dict[str, Any] | None = None,
    weights: str | None = None,
    limit: int | None = None,
    overrides: Collection[str] = (),
    allow: Collection[str] = (),
) -> tuple[Pairs, Pairs]:
    """The numbers of a network and of its exported file on the test split.

    Args:
        file: what `export_network` made of it.
        checkpoint, config, weights, allow: the network, see `engine.test`.
        limit: images that are enough, the first ones; None: all.
        overrides: `dotted.key=value` changes to the config (other data, another batch size).

    Returns:
        The numbers as `engine.test` names them; and `ms per image`, the median of what the network's own computation
        took, if more than one batch was looked at.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    changes = compose([], overrides, start=ALIKE)
    if limit is not None:
        if limit < 1:
            raise ConfigError("--limit", f"{limit} images", "1 or more")
        size = (changes.get("data") or {}).get("eval_batch_size", 1)
        changes = compose([], start=changes, changes={"trainer": {"limit_test_batches": -(-limit // size)}})
    whole = changes if config is None else compose([], start=config, changes=changes)
    places: list[Replaced] = []
    numbers = []
    for run, what in ((None, "the network"), (runtime_of(file, trusted=True), file.name)):
        log.info("%s:", what)

        def prepare(model: Network, run: Run | None = run) -> None:
            places.append(Replaced(model, run))

        with tempfile.TemporaryDirectory() as folder:
            facts: dict[str, Any] = {"checkpoint": checkpoint, "weights": weights, "allow": allow}
            numbers.append(test(whole, **facts, folder=Path(folder), prepare=prepare))
    if not numbers[0]:
        raise ConfigError("metrics", "the config names none: there is nothing to compare", "name one")
    times = [1000 * statistics.median(place.seconds) for place in places if place.seconds]
    pairs = {name: (value, numbers[1][name]) for name, value in numbers[0].items()}
    return pairs, {"ms per image": (times[0], times[1])} if len(times) == 2 else {}


def table_of(numbers: Pairs, times: Pairs, file: Path) -> Group:
    """Numbers, differences, and time, as a Rich console prints them; shares in points, a hundredth each."""
    table = Table("", "network", file.name, "difference")
    for name, pair in numbers.items():
        unit = unit_of(name.partition("/")[2]) or Unit()
        scale, digits = (100, 2) if unit.percent else (1, unit.digits)
        if unit.percent and max(pair) < 0:  # COCO's, of what there is none of
            table.add_row(name, "-", "-", "-")
            continue
        row = [f"{scale * value:.{digits}f}" for value in pair]
        table.add_row(name, *row, f"{scale * (pair[1] - pair[0]):+.{digits + 1}f}")
    for name, pair in times.items():
        table.add_row(name, *(f"{value:.1f}" for value in pair), f"{pair[1] - pair[0]:+.1f}")
    said = "shares in points; times are the network's alone, on this machine, as busy as it was"
    return Group(table, Text(said))
