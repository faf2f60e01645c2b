"""What loading weights costs: processor time, and memory beyond the network that they are loaded into.

    python tools/measure_loading.py --config det/focus_detr                     weights of the network itself, by chance
    python tools/measure_loading.py --config det/focus_detr --keys KEYS.json    under the names and shapes of a list

KEYS.json has `state_dict`: {name: shape}. A file of such weights is written, and loaded in a process of its own: its
peak of memory is the kernel's, set back after the network was built. Memory is physical memory of the process, files
that are mapped included; time is the processor's, of all threads. The least of `--repeats` is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vistrain import config
from vistrain.config.builder import build
from vistrain.data import DataModule
from vistrain.run.networks import build_model, load_named

LIMITS = {"seconds": 2.0, "memory": 0.2}  # processor seconds, and share of the file's size


def network(name: str) -> Any:
    """The network of a shipped config."""
    composed = config.without_pretrained(config.compose([f"vistrain:{name}"]))
    data: DataModule = build(composed["data"], DataModule, where="data")
    return build_model(composed, data.labels, data.channels)


def write(name: str, keys: Path | None, file: Path) -> None:
    """Weights by chance; tensors that stand in files under several names are equal."""
    torch.manual_seed(0)
    model = network(name)
    if keys is None:
        torch.save({"model": model.state_dict()}, file)
        return
    wanted = json.loads(keys.read_text())["state_dict"]
    for naming in model.key_maps:
        theirs = naming.export(model.state_dict()) if naming.matches(wanted) else {}
        if theirs.keys() == wanted.keys():
            torch.save({"model": {key: value.clone() for key, value in theirs.items()}}, file)
            return
    raise SystemExit(f"{keys}: not the names of {name}")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def load(name: str, file: Path, answer: Any) -> None:
    """Build, load, and say what the loading took."""
    model = network(name)
    load_named(network("demo/detection"), _small(file.parent))  # what is imported and remembered at the first time
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS"), time.process_time()
    load_named(model, file)
    answer.put((time.process_time() - started, _status("VmHWM") - before))


def _small(folder: Path) -> Path:
    file = folder / "small.pth"
    if not file.exists():
        torch.save(network("demo/detection").state_dict(), file)
    return file


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="det/focus_detr")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        write(arguments.config, arguments.keys, file)
        found = []
        for _ in range(arguments.repeats):
            answer = context.Queue()
            process = context.Process(target=load, args=(arguments.config, file, answer))
            process.start()
            found.append(answer.get())
            process.join()
        size = file.stat().st_size
    seconds, memory = (min(values) for values in zip(*found, strict=True))
    print(f"{arguments.config}: a file of {size / 2**20:.0f} MiB")
    print(f"  {seconds:.2f} s of processor time (at most {LIMITS['seconds']:g})")
    share = f"{memory / size:.2f} of the file (at most {LIMITS['memory']:g})"
    print(f"  {memory / 2**20:.0f} MiB beyond the network, {share}")
    return int(seconds > LIMITS["seconds"] or memory > LIMITS["memory"] * size)


if __name__ == "__main__":
    raise SystemExit(main())
