"""How long the command line takes to answer, beside `import torch` in the same interpreter.

    python tools/benchmark_cli.py --output runs/benchmarks
    python tools/benchmark_cli.py --times 10      with an index of names ten times as long

Every command is started afresh, in turns; printed are the medians, what share of torch's import each takes, and what
reading the index takes of it. The exit code is 1 if a command took longer than it may.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import larger_index
from benchmarking import alternate, medians, write

VISTRAIN = [sys.executable, "-m", "vistrain"]
# Command -> its words, and seconds that it may take
COMMANDS = {
    "--help": ([*VISTRAIN, "--help"], 0.15),
    "list configs": ([*VISTRAIN, "list", "configs"], 0.3),
    "list backbones": ([*VISTRAIN, "list", "backbones", "convnext*"], 0.3),
    "list models": ([*VISTRAIN, "list", "models"], 0.3),
    "fit --print-config": (
        [*VISTRAIN, "fit", "--config", "vistrain:det/deformable_detr_r50", "--print-config"],
        0.3,
    ),
}
# Prints the seconds in which each file of the index is read.
READING = """
import sys, time
from vistrain.config import index
for file in sorted(set(index.FILES.values())):
    start = time.perf_counter()
    index.read(file)
    size = (index.NAMES / f"{file}.json").stat().st_size
    sys.stdout.write(f"{file:12} {1000 * (time.perf_counter() - start):6.1f} ms, {size / 1000:.0f} kB\\n")
"""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="starts of each command (default %(default)s)")
    parser.add_argument("--times", type=int, default=1, help="as long an index as the real one (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="default %(default)s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        larger_index.write(Path(folder), arguments.times)
        environment = {**os.environ, "PYTHONPATH": folder}
        start = partial(subprocess.run, check=True, env=environment, cwd=folder)
        sides = {"import torch": partial(start, [sys.executable, "-c", "import torch"])}
        sides |= {name: partial(start, words, stdout=subprocess.DEVNULL) for name, (words, _) in COMMANDS.items()}
        seconds = medians(alternate(sides, arguments.repeats))
        start([sys.executable, "-c", READING])
    shares = {name: seconds[name] / seconds["import torch"] for name in COMMANDS}
    for name, value in seconds.items():
        print(f"{name:20} {value:6.3f} s  {value / seconds['import torch']:5.2f} of torch's import")
    name = "cli" if arguments.times == 1 else f"cli_{arguments.times}"
    write(arguments.output, name, {"seconds": seconds}, shares, "Time to answer, as a share of importing torch")
    return int(any(seconds[name] >= limit for name, (_, limit) in COMMANDS.items()))


if __name__ == "__main__":
    sys.exit(main())
