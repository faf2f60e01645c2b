"""The page of a run: what was done, what came out, how it looked, and how to do it again."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistrain.callbacks.progress import duration
from vistrain.config import compose, index, locate, read_file
from vistrain.errors import ConfigError
from vistrain.metrics.halves import interval
from vistrain.pictures.page import Block, Code, Heading, Page, Picture, Table, Text
from vistrain.run.finished_run import Run, best, flat, printed, unit

NAME = "report"  # of the files, without ending
# Of a run's folder, in this order
PICTURES = {
    "curves.png": "curves",
    "eval/worst.png": "samples that it did worst on",
    "eval/best.png": "samples that it did best on",
    "first_batch.png": "the first training batch, as the network got it",
}
PLACES = ("run.name", "run.folder")  # keys that say nothing about what was computed
MOST_NAMED = 20  # files that were skipped


def write_report(folder: Path) -> list[Path]:
    """Write `report.html`, which holds its pictures and opens offline, and `report.md` into a run's folder.

    Args:
        folder: of a run; of one in stages, the last stage is shown.

    Returns:
        The files.

    Raises:
        ConfigError: no run is there.
        DataError: a file of it is damaged, or the page cannot be written.
    """
    run = Run.read(folder)
    page = Page(run.name)
    for part in (_head, _numbers, _config, _data, _pictures, _cost, _again):
        page.add(*part(run))
    return page.write(folder / f"{NAME}.html")


def _head(run: Run) -> Iterator[Block]:
    model, data = ((run.config.get(key) or {}).get("type") for key in ("model", "data"))
    date, done = run.environment.get("date"), f"{run.steps} steps of {run.length}"
    yield Text(" · ".join(str(fact) for fact in (model, data, done, date) if fact))


def _numbers(run: Run) -> Iterator[Block]:
    """The test's table, and that of the evaluations while training."""
    protocols = ", ".join(map(str, run.config.get("metrics") or ()))
    if run.numbers:
        yield Heading("Test")
        images = run.tested.get("images") or {}
        tested = images.get("tested", images.get("of"))
        count = f"{tested} samples" if tested == images.get("of") else f"{tested} of {images.get('of')} samples"
        yield Text(f"{run.tested.get('checkpoint')} on {count}, protocol {protocols}")
        rows, spread = [], False
        for name, value in run.numbers.items():
            ends = interval(value, run.halves.get(name, ()))
            spread |= ends is not None
            said = "" if ends is None else f"{printed(name, ends[0])} to {printed(name, ends[1])}"
            rows.append([name, printed(name, value), said, _direction(name)])
        yield Table(("number", "value", "95 % interval", "better"), rows, ("value",))
        if spread:
            yield Text("Intervals are over samples: the delete-half jackknife, of the same network.", note=True)
    if run.evaluated:
        yield Heading("While training")
        if not run.numbers:
            yield Text(f"protocol {protocols}; `vistrain test --ckpt {run.folder}/best.ckpt` has not been run")
        rows = []
        for name, points in run.evaluated.items():
            step, value = best(name, points)
            last = printed(name, points[-1][1])
            rows.append([name, printed(name, value), str(step), last, str(points[-1][0]), _direction(name)])
        numbers = ("best", "at step", "last", "at step ")
        yield Table(("number", *numbers, "better"), rows, numbers)
    if not (run.numbers or run.evaluated):
        yield Text("Nothing was evaluated.")


def _direction(name: str) -> str:
    return "low" if unit(name).lower_is_better else "high"


def _config(run: Run) -> Iterator[Block]:
    """What differs from the config that it stands on, where that is still there."""
    yield Heading("Config")
    base, name = _base(run.command, run.config)
    if base is None:
        yield Text("What it stood on is not known any more; config.yaml holds all of it.")
        return
    known, own = flat(base), flat(run.config)
    keys = [key for key in {**known, **own} if known.get(key) != own.get(key) and key not in PLACES]
    if not keys:
        yield Text(f"That of {name}, unchanged.")
        return
    yield Text(f"What differs from {name}:")
    yield Table(("key", "there", "here"), [[key, *(_value(place, key) for place in (known, own))] for key in keys])


def _value(place: dict[str, Any], key: str) -> str:
    return str(place[key]) if key in place else ""


def _base(words: list[str], config: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The shipped config of a command, or what its own file names as base; and how it is called."""
    given = [after for word, after in itertools.pairwise(words) if word in ("-c", "--config")]
    given += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    try:
        bases: list[str] = []
        for address in given:
            path = locate(address)
            if index.config_root() in path.resolve().parents:
                bases.append(address)
                continue
            own = read_file(path).get("base") or []
            named = [own] if isinstance(own, str) else list(own)
            bases += [base if ":" in base else str(path.parent / base) for base in named]
        return (_composed(bases, config), " and ".join(bases)) if bases else (None, "")
    except ConfigError:
        return None, ""


def _composed(bases: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """Bases composed; what they want to be given (`data.root: ???`) is that of the run, so that nothing differs."""
    missing: dict[str, Any] = {}
    while True:
        try:
            return compose(bases, changes=missing)
        except ConfigError as error:
            wanted = error.where.split(".")
            if _at(missing, wanted) is not None or _at(config, wanted) is None:
                raise
            node = missing
            for section in wanted[:-1]:
                node = node.setdefault(section, {})
            node[wanted[-1]] = _at(config, wanted)


def _at(config: dict[str, Any], keys: list[str]) -> Any:
    """The value at a dotted key; None where there is none."""
    node: Any = config
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _data(run: Run) -> Iterator[Block]:
    samples, skipped = run.summary.get("samples") or {}, run.summary.get("unreadable") or []
    if not samples:
        return
    yield Heading("Data")
    place = (run.config.get("data") or {}).get("root")
    counts = ", ".join(f"{count} {split}" for split, count in samples.items())
    yield Text(f"{counts}{f', of {place}' if place else ''}")
    if skipped:
        more = f" and {len(skipped) - MOST_NAMED} more" if len(skipped) > MOST_NAMED else ""
        yield Text(f"{len(skipped)} could not be read and were replaced: {', '.join(skipped[:MOST_NAMED])}{more}")
    else:
        yield Text("All of them could be read.")


def _pictures(run: Run) -> Iterator[Block]:
    yield Heading("Pictures")
    extremes = run.summary.get("extremes") or {}
    by = f", by its own {extremes['number']}, of {extremes.get('of')} looked at" if extremes.get("number") else ""
    evaluations = sorted((run.folder / "eval").glob("epoch_*.png"))
    latest = evaluations[-1:] if not (run.folder / "eval/test.png").is_file() else [run.folder / "eval/test.png"]
    found = {run.folder / name: caption for name, caption in PICTURES.items()}
    found |= {path: f"samples of {path.stem.replace('_', ' ')}" for path in latest}
    there = {path: caption for path, caption in found.items() if path.is_file()}
    for path, caption in there.items():
        yield Picture(path, caption + (by if path.name in ("worst.png", "best.png") else ""))
    if not there:
        yield Text("There are none.")


def _cost(run: Run) -> Iterator[Block]:
    yield Heading("Time and memory")
    hardware = run.environment.get("hardware") or {}
    devices = run.environment.get("devices") or [hardware.get("processor")]
    speeds, shares = run.column("perf/images_per_s"), run.column("perf/data_share")
    seconds, held = run.summary.get("seconds"), run.summary.get("memory_bytes")
    facts = {
        "on": ", ".join(map(str, devices)),
        "processes": run.summary.get("processes"),
        "time": None if seconds is None else duration(seconds),
        "samples per second": f"{statistics.median(speeds):.4g}" if speeds else None,
        "share of the time waiting for data": f"{statistics.median(shares):.0%}" if shares else None,
        "most memory of the first process": None if held is None else f"{held / 2**30:.2f} GiB",
    }
    yield Table(("", " "), [[name, str(value)] for name, value in facts.items() if value is not None])


def _again(run: Run) -> Iterator[Block]:
    yield Heading("How to do it again")
    commit = run.environment.get("commit") or {}
    lines = [shlex.join(run.command)] if run.command else []
    lines.append(f"vistrain fit --config {run.folder / 'config.yaml'} run.folder=again")
    if (run.folder / "best.ckpt").is_file():
        changes = run.tested.get("changes") or [] if run.numbers else []
        lines.append(shlex.join(["vistrain", "test", "--ckpt", str(run.folder / "best.ckpt"), *map(str, changes)]))
    yield Code("\n".join(lines))
    versions = run.environment.get("versions") or {}
    sources = f"commit {commit['id']}{' with changes' if commit.get('changed') else ''}" if commit.get("id") else ""
    known = [f"{name} {versions[name]}" for name in ("vistrain", "torch", "lightning", "timm") if name in versions]
    python = run.environment.get("python")
    yield Text(", ".join(fact for fact in (sources, *known, f"Python {python}" if python else "") if fact), note=True)
