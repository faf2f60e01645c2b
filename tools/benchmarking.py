"""What the benchmarks share: alternating measurements, the machine in words, results as JSON and as a picture."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import vistrain
from vistrain.processes import available_cores
from vistrain.run.speed import peak_memory
from vistrain.surroundings import processor


def alternate(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each side, run in turns so that what else the machine does hits all of them alike.

    Args:
        sides: what to measure, by name.
        repeats: measurements of each side.
        warm_up: runs of each side before the first measurement.
        clock: in seconds; `time.process_time` where one thread computes and others want the machine too.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(warm_up + repeats):
        for name, run in sides.items():
            start = clock()
            run()
            if step >= warm_up:
                times[name].append(clock() - start)
    return times


class Elsewhere:
    """The same measurement by the code of another checkout, in a process of its own that waits between its turns.

    Args:
        checkout: its folder, such as a `git worktree` of an older commit.
        script: of `tools/`, this checkout's; its option `--serve` calls `serve`.
        words: of its command line.
        serve: value of `--serve`.
    """

    MARK = "seconds "

    def __init__(self, checkout: Path, script: str | Path, *words: object, serve: object) -> None:
        command = [sys.executable, str(script), *map(str, words), "--serve", str(serve)]
        path = os.pathsep.join([str(checkout.resolve()), str(Path(script).resolve().parent)])
        environment = {**os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, *words: object) -> float:
        """The seconds that one turn takes; words say which."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(self.MARK):
                return float(line.removeprefix(self.MARK))
        raise SystemExit(f"the other checkout's process ended with {self.process.wait()}")


def serve(turn: Callable[..., float]) -> None:
    """Take turns for an `Elsewhere` until it lets go."""
    print(f"measured there: {vistrain.__file__}", file=sys.stderr)
    for line in sys.stdin:
        print(f"{Elsewhere.MARK}{turn(*line.split())}", flush=True)


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds of each side."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median ratio of two sides of `alternate`, turn by turn: what slows a turn down slows both."""
    return statistics.median(one / other for one, other in zip(times[of], times[to], strict=True))


def allocated_mib(run: Callable[[], object]) -> float:
    """MiB that torch has allocated at once on a CPU during a run, beyond what it had before it.

    Exact whatever else the machine does, where `peak_mib` reads pages of the whole process; the scratch memory of
    libraries is not in it. After a run before it, so that gradients and tables are there.
    """
    run()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of each start and stop otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = found.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes)) / 2**20


def peak_mib(run: Callable[[], object]) -> float:
    """MiB of memory that this process needs for a run on top of what it has; freed memory is given back before."""
    needed = peak_memory(run, torch.device("cpu"))
    if needed is None:
        raise SystemExit("peak memory is read from /proc, which this system lacks")
    return needed / 2**20


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "cpu": processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(folder: Path, name: str, content: Mapping[str, Any], bars: Mapping[str, float], title: str) -> None:
    """Writes `name.json`, and `name.png` with one bar for each ratio and a line at 1.

    Args:
        folder: made if it is not there.
        name: of the files.
        content: goes into the JSON, beside the machine.
        bars: ratios by what they compare.
        title: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.5 * len(bars)), layout="constrained")
    drawn = axes.barh(list(bars), list(bars.values()), color="#4477aa")
    axes.bar_label(drawn, fmt="%.2f", padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_title(title)
    figure.savefig(folder / f"{name}.png", dpi=150)
    pyplot.close(figure)
    print(f"written: {folder / name}.json, {folder / name}.png")


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for what is asked for next, instead of giving it back to the system.

    By itself it maps blocks above 32 MiB anew each time and gives back the end of its heap, and the kernel then clears
    page after page at each pass: time that grows faster than any computation, and that is counted as the process's.
    Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
