"""How much a number depends on which images there were: the numbers of random halves of a test.

The delete-half jackknife (Shao and Wu, "A General Theory for Jackknife Variance Estimation", Annals of Statistics 17,
1989, section 2): with half of the samples left out at random, the variance of a number over such halves estimates the
variance of the number over all samples. Unlike a bootstrap, no half has a sample twice, which average precision and
panoptic quality have no meaning for, so it serves every protocol alike.

Which images a half has follows from their ids alone. The halves of two tests on the same images are the same, then, and
their differences are paired: `interval` of `[N]` differences is that of the difference of two runs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vistrain.errors import DataError
from vistrain.metrics.base import Metric, Record

HALVES = 40
SECONDS = 20.0  # that a test spends on each protocol's halves, at the most
FEWEST_SAMPLES = 8  # fewer say nothing of a spread
FEWEST_HALVES = 8
CONFIDENCE = 1.959964  # standard errors to either side, 95 % of a normal distribution


@dataclass
class Tested:
    """A test: on which samples it was, and how much its numbers depend on them.

    Attributes:
        digest: the same for tests on the same samples.
        samples: how many these are.
        halves: name of a number -> its values on random halves, see `numbers_of_halves`.
    """

    digest: str = ""
    samples: int = 0
    halves: dict[str, list[float | None]] = field(default_factory=dict)

    def add(self, prefix: str, metric: Metric, records: Sequence[Record]) -> None:
        """Take in the records of a metric, whose names get a prefix; see `numbers_of_halves`."""
        self.digest, self.samples = digest(records), len({str(record["id"]) for record in records})
        found = numbers_of_halves(metric, records, SECONDS)
        self.halves |= {f"{prefix}{name}": values for name, values in found.items()}


def half(records: Sequence[Record], number: int) -> list[Record]:
    """Half of the records, rounded down; the same ones of the same ids, in whatever order they come."""

    def drawn(record: Record) -> bytes:  # a checksum would not do: those of two numbers differ alike for all ids
        name = f"{number}:{record['id']}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name, digest_size=16).digest()

    return sorted(records, key=drawn)[: len(records) // 2]


def digest(records: Iterable[Record]) -> str:
    """The same for records of the same samples, in whatever order."""
    ids = sorted({str(record["id"]) for record in records})
    return hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def numbers_of_halves(metric: Metric, records: Sequence[Record], seconds: float) -> dict[str, list[float | None]]:
    """The numbers of up to 40 halves.

    Args:
        metric: its `result` is that of the last half afterwards.
        records: of all samples.
        seconds: no half is begun after that time.

    Returns:
        name -> a value for each half, the same number of them for all names; None where a half has nothing to measure.
        Empty where there are fewer than 8 samples, or where the time is not enough for 8 halves.
    """
    samples = list({record["id"]: record for record in reversed(records)}.values())  # the first one of each id
    end, found = time.perf_counter() + seconds, []
    for number in range(HALVES if len(samples) >= FEWEST_SAMPLES else 0):
        if time.perf_counter() > end:
            break
        try:
            found.append(metric.compute(half(samples, number)))
        except DataError:  # none of these images has anything to measure
            found.append({})
    if len(found) < FEWEST_HALVES:
        return {}
    names = dict.fromkeys(name for numbers in found for name in numbers)
    return {name: [_measured(metric, name, numbers.get(name)) for numbers in found] for name in names}


def _measured(metric: Metric, name: str, value: float | None) -> float | None:
    """A number, if it is one: of shares, -1 says that there was nothing to measure."""
    nothing = value is None or not math.isfinite(value) or (value == -1 and metric.unit(name).percent)
    return None if value is None or nothing else float(value)


def interval(value: float, halves: Sequence[float | None]) -> tuple[float, float] | None:
    """The 95 % interval around a number, or around the difference of two.

    Args:
        value: of all samples.
        halves: of halves of them, as `numbers_of_halves` or `differences` gives them.

    Returns:
        Its ends; None where fewer than 8 halves gave a number.
    """
    measured = [h for h in halves if h is not None]
    if len(measured) < FEWEST_HALVES or not math.isfinite(value):
        return None
    error = math.sqrt(sum((h - value) ** 2 for h in measured) / len(measured))
    return value - CONFIDENCE * error, value + CONFIDENCE * error


def differences(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
    """`ours - theirs`, half by half; as many as both have."""
    pairs = zip(ours, theirs, strict=False)  # one test may have had time for more of them
    return [None if a is None or b is None else a - b for a, b in pairs]
