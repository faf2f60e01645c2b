"""What `gpu_check.py` measures with: times, memory, waits for the device, kernels; and how results are kept and shown.

Needs torch alone (and matplotlib for the pictures, where it is there).
"""

from __future__ import annotations

import collections
import errno
import gc
import itertools
import json
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

Row = dict[str, Any]
T = TypeVar("T")


class OutOfTime(Exception):
    """A measurement took longer than what was left."""


class Check:
    """One run of the script: its device, its clock, and its rows, each of which is written as soon as it is there.

    Args:
        folder: of the results; rows are appended to `gpu_check.jsonl`.
        device: where.
        minutes: after which nothing more is begun, and what runs is broken off.
        dry: everything in small, once.
    """

    def __init__(self, folder: Path, device: torch.device, minutes: float, dry: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu_check.jsonl").open("a").close()  # what cannot be written is known before anything is measured
        for path in (folder / "gpu_check.md", folder / "gpu_check.png"):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        _begin_on_a_new_line(folder / "gpu_check.jsonl")
        self.folder, self.device, self.dry = folder, device, dry
        self.end = time.monotonic() + 60 * minutes
        self.rows: list[Row] = []
        self.rates: dict[str, float] = {}  # of the card: `matrix` in FLOP/s, `memory` in bytes/s
        self.machine = machine(device)
        self.run = time.strftime("%Y-%m-%dT%H:%M:%S")  # rows of a file are of many

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device.type == "cuda"

    def record(self, part: str, name: str, **numbers: Any) -> None:
        """Keep, write and print a row."""
        row = {"part": part, "name": name, **numbers}
        self.rows.append(row)
        whence = {key: self.machine[key] for key in ("device", "torch", "triton", "date")}
        line = {**row, "run": self.run, **whence, "dry": self.dry}
        with (self.folder / "gpu_check.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
        print(f"[{part}] {name}: {shown}", flush=True)

    def attempt(self, part: str, name: str, run: Callable[[], None], seconds: float) -> None:
        """Run a measurement if there is time for it; an error becomes a row.

        Args:
            part, name: of the row in that case.
            run: measures and records.
            seconds: that it is expected to take.
        """
        left = self.end - time.monotonic()
        if not self.dry and seconds > left:
            self.record(part, name, left_out=f"{seconds:.0f} s wanted, {left:.0f} s left")
            return
        started = time.monotonic()
        try:
            with _Deadline(max(left, 1.0)):
                run()
        except Exception as error:  # whatever it is, the other parts go on
            problem = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            self.record(part, name, error=problem)
            traceback.print_exc(file=sys.stdout)
        finally:
            if self.cuda:
                torch.compiler.reset()
                gc.collect()
                torch.cuda.empty_cache()
            print(f"    {part}, {name}: {time.monotonic() - started:.1f} s", flush=True)

    def half(self) -> torch.autocast:
        """Autocast to bf16; on a CPU, where much of it is slow, nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda)

    def optional(self, run: Callable[[], T]) -> T | None:
        """The result of something that a row can do without; None, and the error on the screen, where it fails."""
        try:
            return run()
        except OutOfTime:
            raise
        except Exception:
            traceback.print_exc(file=sys.stdout)
            return None

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, run: Callable[[], object], seconds: float = 0.4, most: int = 50) -> float:
        """Median time of a run: on a GPU by its own events, so that launches overlap with what was launched before.

        Args:
            run: what is measured; it has run before.
            seconds: to spend, about; at least three runs, at most `most`.
        """
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        first = time.perf_counter() - start
        if not self.cuda:  # a dry run
            return 1000 * first
        count = max(3, min(most, int(seconds / max(first, 1e-5))))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            run()
            event.record()
        self.wait()
        return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))

    def peak_gib(self, run: Callable[[], object]) -> float | None:
        """GiB on the GPU at most during a run, weights included."""
        if not self.cuda:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def waits(self, run: Callable[[], object]) -> dict[str, int] | None:
        """How often a run makes the host wait for the GPU, by place (`file.py:line`)."""
        if not self.cuda:
            return None
        self.wait()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        here = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
        places = collections.Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in here)
        return dict(places.most_common())

    def kernels(self, run: Callable[[], object], count: int = 3) -> tuple[list[tuple[str, float]], float] | None:
        """The kernels that take the longest together, with their share of the time that the GPU is busy, and that time.

        Returns:
            (name, share) of the first `count`, and milliseconds in which any kernel runs.
        """
        if not self.cuda:
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            run()
            self.wait()
        spent: collections.Counter[str] = collections.Counter()
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
                spent[event.name] += event.self_device_time_total
        total = sum(spent.values()) or 1.0
        return [(_short(name), us / total) for name, us in spent.most_common(count)], total / 1000


def _begin_on_a_new_line(path: Path) -> None:
    """Ends the last line of a file of rows that a kill cut off; says which of its lines are no rows."""
    text = path.read_bytes() if path.is_file() else b""
    if text and not text.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            is_row = isinstance(json.loads(line), dict)
        except ValueError:
            is_row = False
        if not is_row:
            print(f"{path}, line {number}: no row; it stays as it is", flush=True)


def flops(run: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and fused attentions of a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference; NaN if anything is."""
    ours, reference = ours.double(), reference.double()
    return float((ours - reference).norm() / reference.norm().clamp(min=1e-30))


def machine(device: torch.device) -> Row:
    """What the numbers belong to."""
    facts: Row = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    try:
        import triton

        facts["triton"] = triton.__version__
    except ImportError:
        facts["triton"] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return facts


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


class _Deadline:
    """Raises `OutOfTime` in the main thread after some seconds, where the system has alarms."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        def stop(*_: object) -> None:
            raise OutOfTime("the minutes are over")

        self.before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


def _short(name: str) -> str:
    """A kernel's name without template arguments and namespaces."""
    name = re.sub(r"<.*", "", name.removeprefix("void ")).split("(")[0]
    return name.rpartition("::")[2][:60] or name[:60]


# ---------------------------------------------------------------- showing


def markdown(check: Check) -> str:
    """All rows, one table for each part; what a part's rows have in common are its columns."""
    facts = ", ".join(f"{key} {value}" for key, value in check.machine.items())
    lines = [f"Measured on: {facts}.", ""]
    if check.dry:
        lines = [f"A dry run, everything in small: all parts run, and their numbers say nothing. On: {facts}.", ""]
    parts = list(dict.fromkeys(row["part"] for row in check.rows))
    for part in parts:
        rows = [row for row in check.rows if row["part"] == part]
        measured = [row for row in rows if "error" not in row and "left_out" not in row]
        columns = list(dict.fromkeys(key for row in measured for key in row if key not in ("part", "waits_at")))
        lines += [f"## {part}", ""]
        if columns:
            lines += [f"| {' | '.join(column.replace('_', ' ') for column in columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in measured]
            lines.append("")
        for row in rows:
            if row not in measured:
                lines.append(f"- {row['name']}: {row.get('error') or 'not measured: ' + row['left_out']}")
        for row in measured:
            if row.get("waits_at"):
                places = ", ".join(f"{place} ({count})" for place, count in row["waits_at"].items())
                lines.append(f"- {row['name']} waits at {places}")
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list):
        return ", ".join(f"{name} {share:.0%}" for name, share in value)
    return str(value)


def picture(path: Path, bars: Mapping[str, Sequence[tuple[str, float]]]) -> bool:
    """A panel of bars for each title; whether matplotlib is there to draw them."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {title: values for title, values in bars.items() if values}
    if not panels:
        return False
    heights = [1 + 0.3 * len(values) for values in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), figsize=(9, sum(heights) + 0.5), layout="constrained", squeeze=False, height_ratios=heights
    )
    for axis, (title, values) in zip(axes[:, 0], panels.items(), strict=True):
        names, lengths = zip(*values, strict=True)
        axis.bar_label(axis.barh(range(len(names)), lengths, color="#4477aa"), fmt="%.3g", padding=3)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
