"""What an exported file is worth: the task's own evaluation, by the network and with the file in its place."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Collection
from pathlib import Path

from rich.console import Group
from rich.table import Table

from vistrain.config import compose
from vistrain.errors import ConfigError
from vistrain.metrics import unit_of
from vistrain.network import Network
from vistrain.run.engine import test
from vistrain.run.exported_runtime import Replaced, runtime_of

# One image at a time, as nothing but its own padding reaches a file then; one process on a CPU, for both sides alike.
ALIKE = {
    "data": {"eval_batch_size": 1},
    "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "limit_test_batches": 1.0},
}


def measure(
    checkpoint: Path,
    file: Path,
    limit: int | None = None,
    overrides: Collection[str] = (),
    allow: Collection[str] = (),
) -> Group:
    """The numbers of a checkpoint's network and of its exported file on the test split, side by side.

    Args:
        checkpoint: of a run.
        file: what `export_network` made of it.
        limit: images that are enough; None: all.
        overrides: `dotted.key=value` changes to the checkpoint's config (other data, another batch size).
        allow: packages beyond the default ones whose classes the config may name.

    Returns:
        What a Rich console prints: numbers, differences, and milliseconds for an image.

    Raises:
        ConfigError, DataError, WeightsError: something is the user's to mend.
    """
    if limit is not None and limit < 1:
        raise ConfigError("--limit", f"{limit} images", "1 or more")
    changes = compose([], overrides, start=ALIKE)
    if limit is not None:
        size = (changes.get("data") or {}).get("eval_batch_size", 1)
        changes = compose([], start=changes, changes={"trainer": {"limit_test_batches": -(-limit // size)}})
    run = runtime_of(file, trusted=True)
    places: list[Replaced] = []

    def itself(model: Network) -> None:
        places.append(Replaced(model))

    def by_file(model: Network) -> None:
        places.append(Replaced(model, run))

    with tempfile.TemporaryDirectory() as folder:
        eager, exported = (
            test(changes, checkpoint=checkpoint, allow=allow, folder=Path(folder), prepare=prepare)
            for prepare in (itself, by_file)
        )
    if not eager:
        raise ConfigError("metrics", "the config names none: there is nothing to compare", "name one")
    table = Table("", "network", file.name, "difference")
    for name, value in eager.items():
        unit = unit_of(name.partition("/")[2])
        scale, digits = (100, 2) if unit is not None and unit.percent else (1, 4 if unit is None else unit.digits)
        pair = [scale * value, scale * exported[name]]
        table.add_row(name, *(f"{x:.{digits}f}" for x in pair), f"{pair[1] - pair[0]:+.{digits + 1}f}")
    times = [1000 * statistics.median(place.seconds) for place in places if place.seconds]
    if len(times) == 2:
        table.add_row("ms per image", *(f"{x:.1f}" for x in times), f"{times[1] - times[0]:+.1f}")
    return Group(table, "shares in points; times are of the network alone, on this machine, as loaded as it was")
