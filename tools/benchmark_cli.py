"""How long the command line takes to answer, beside `import torch` in the same interpreter.

    python tools/benchmark_cli.py --output runs/benchmarks

Every command is started afresh, in turns; printed are the medians and what share of torch's import each takes. The exit
code is 1 if a command took 0.3 s or more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarking import alternate, medians, write

LIMIT = 0.3  # seconds
VISTRAIN = [sys.executable, "-m", "vistrain"]
COMMANDS = {
    "--help": [*VISTRAIN, "--help"],
    "list configs": [*VISTRAIN, "list", "configs"],
    "list backbones": [*VISTRAIN, "list", "backbones", "convnext*"],
    "fit --print-config": [*VISTRAIN, "fit", "--config", "vistrain:det/deformable_detr_r50", "--print-config"],
}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="starts of each command (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="default %(default)s")
    arguments = parser.parse_args()
    yardstick = {"import torch": [sys.executable, "-c", "import torch"]}
    sides = {
        name: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        for name, command in {**yardstick, **COMMANDS}.items()
    }
    seconds = medians(alternate(sides, arguments.repeats))
    shares = {name: seconds[name] / seconds["import torch"] for name in COMMANDS}
    for name, value in seconds.items():
        print(f"{name:20} {value:6.3f} s  {value / seconds['import torch']:5.2f} of torch's import")
    write(arguments.output, "cli", {"seconds": seconds}, shares, "Time to answer, as a share of importing torch")
    return int(max(seconds[name] for name in COMMANDS) >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
