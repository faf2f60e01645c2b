#!/usr/bin/env python
"""Kills a small run of two processes again and again, and compares its weights with those of an undisturbed one.

A run of `vistrain fit --resume auto` under torchrun on generated images. At random times a random process gets
SIGKILL, or, one time in four, SIGTERM: one of the two ranks, a data worker, or torchrun itself. Where torchrun ends,
this program starts the same command again, as a cluster's queue would. At the end, every tensor of the last checkpoint
(weights, their average, the optimizer's state) must be that of the undisturbed run, to the bit.

    python tools/soak.py                       twenty kills
    python tools/soak.py --kills 5 --seed 1
    python tools/soak.py --troubled            its output goes into a pipe that nobody reads to the end, and now and
                                               then a write to its folder meets a full disk (an injected error)

Exit code: 0 if the weights are the same, 1 if not, or if the run did not end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

MARK = "VISTRAIN_SOAK"
PATIENCE = 900.0  # seconds without a step after which a run counts as stuck
RESTARTS = 3  # that torchrun makes by itself, before this program has to
STEPS_PER_KILL = 12  # length of the run
READ = 500  # bytes of a piped run's output, as `| head` reads them
# Python imports it first: files on their way to their names, and lines of metrics.csv, find no room one time in eight.
FULL_DISK = """
import errno, io, os, random
replace, opened, dice = os.replace, io.open, random.Random()
def refuse(path):
    if dice.random() < 0.125:
        raise OSError(errno.ENOSPC, "No space left on device (injected)", str(path))
def full_replace(source, target, **more):
    if str(target).startswith(os.environ["VISTRAIN_SOAK_FULL"]):
        refuse(target)
    return replace(source, target, **more)
def full_open(file, mode="r", *more, **named):
    if str(file).endswith("metrics.csv") and mode.startswith("r+"):
        refuse(file)
    return opened(file, mode, *more, **named)
os.replace, io.open = full_replace, full_open
"""


def main() -> int:
    """Run, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="data workers per process (default: %(default)s)")
    parser.add_argument("--troubled", action="store_true", help="a pipe without a reader, and a full disk now and then")
    parser.add_argument("--output", type=Path, help="keep the runs here (default: a temporary folder)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak")))
        folder.mkdir(parents=True, exist_ok=True)
        config = write_config(folder, options.kills, options.workers)
        console = Console()
        started = time.monotonic()
        whole = Run(config, folder / "whole", f"{os.getpid()}a")
        stack.callback(whole.end)
        code = whole.wait()
        if code != 0:
            console.print(f"the undisturbed run ended with {code}:\n{whole.output()}", markup=False)
            return 1
        console.print(f"undisturbed: {steps(whole.folder)} steps in {time.monotonic() - started:.0f} s")
        cut = Run(config, folder / "killed", f"{os.getpid()}b", options.troubled)
        stack.callback(cut.end)
        rows = torment(cut, options.kills, random.Random(options.seed), console)
        console.print(summary(rows))
        different = compare(whole.folder / "last.ckpt", cut.folder / "last.ckpt")
        for name in different[:10]:
            console.print(f"different: {name}", markup=False)
        kills = sum(row["victim"] != "-" for row in rows)
        verdict = "the same weights, to the bit" if not different else f"{len(different)} tensors differ"
        console.print(f"{kills} kills in {time.monotonic() - started:.0f} s: {verdict}")
        return 1 if different or kills < options.kills else 0


def write_config(folder: Path, kills: int, workers: int) -> Path:
    """A run as long as the kills need: a small network, an average, accumulation, an evaluation each epoch."""
    per_epoch = 24
    epochs = max(2, -(-kills * STEPS_PER_KILL // per_epoch))
    config: dict[str, Any] = {
        "base": "vistrain:demo/restoration",
        "data": {
            "root": str(folder / "data"), "train_images": 16, "val_images": 4, "repeat": 12, "batch_size": 8,
            "per_device": 2, "patch": 8, "workers": workers,
        },
        "model": {"network": {"num_feat": 8, "num_block": 1}},
        "schedule": {"warmup_steps": 4},
        "callbacks": {"checkpoints": {"type": "callbacks.Checkpoints", "every_n_steps": 3}},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs, "check_val_every_n_epoch": 1, "log_every_n_steps": 1},
    }  # fmt: skip
    path = folder / "soak.yaml"
    path.write_text(json.dumps(config))
    return path


class Run:
    """One command under torchrun, started as often as it takes.

    Args:
        config: of the run.
        folder: of the run.
        name: marks all its processes.
        troubled: whether its output has no reader for long, and its disk is full now and then.
    """

    def __init__(self, config: Path, folder: Path, name: str, troubled: bool = False) -> None:
        self.config, self.folder, self.name, self.troubled = config, folder, name, troubled
        self.log = folder.with_suffix(".log")
        self.starts = 0
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, or start it again."""
        self.starts += 1
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            f"--max-restarts={RESTARTS}", "--monitor-interval=0.1", "-m", "vistrain", "fit", "--config",
            str(self.config), "--resume", "auto", f"run.folder={self.folder}",
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", MARK: self.name}
        more: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
        if not self.troubled:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, **more)
            return self.process
        inject = self.folder.with_name("inject")
        inject.mkdir(exist_ok=True)
        (inject / "sitecustomize.py").write_text(FULL_DISK)
        paths = os.pathsep.join(filter(None, [str(inject), os.environ.get("PYTHONPATH")]))
        env |= {"PYTHONPATH": paths, "VISTRAIN_SOAK_FULL": str(self.folder)}
        reading, writing = os.pipe()
        self.process = subprocess.Popen(command, env=env, stdout=writing, stderr=writing, **more)
        os.close(writing)
        threading.Thread(target=self.read_some, args=(reading,), daemon=True).start()
        return self.process

    def read_some(self, reading: int) -> None:
        """Read the beginning of the output, and go."""
        with os.fdopen(reading, "rb") as pipe, self.log.open("ab") as log:
            log.write(pipe.read(READ))

    def processes(self) -> dict[str, list[int]]:
        """Live processes by kind: `agent`, `rank 0`, `rank 1`, `worker`."""
        found: dict[str, list[int]] = {}
        ranks: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # processes come and go
                status = (entry / "status").read_text()
                pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                if env.get(MARK) == self.name and "\nState:\tZ" not in status:
                    ranks[int(entry.name)] = env.get("RANK", "")
        for pid, rank in ranks.items():
            kind = "agent" if rank == "" else "worker" if ranks.get(parent(pid)) == rank else f"rank {rank}"
            found.setdefault(kind, []).append(pid)
        return found

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Leave nothing behind."""
        while pids := [pid for kind in self.processes().values() for pid in kind]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            time.sleep(0.05)

    def output(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-4000:]


def torment(run: Run, kills: int, dice: random.Random, console: Console) -> list[dict[str, Any]]:
    """Kill and restart until the run has had its kills and is finished; what happened."""
    rows: list[dict[str, Any]] = []
    while True:
        # Spread over the run, so that it has them all before its end; one that is late comes at once. Some hit in the
        # middle of a step or a checkpoint, some while the processes start.
        target = len(rows) * STEPS_PER_KILL + dice.randrange(STEPS_PER_KILL) if len(rows) < kills else sys.maxsize
        begin = time.monotonic()
        while run.process.poll() is None and steps(run.folder) < target:
            if time.monotonic() - begin > PATIENCE:
                raise SystemExit(f"stuck at step {steps(run.folder)}:\n{run.output()}")
            time.sleep(0.05)
        if run.process.poll() is not None:
            if run.process.returncode == 0:
                return rows
            take_away_orphans(run)
            run.start()
            continue
        time.sleep(dice.random() * (3.0 if dice.random() < 0.3 else 0.3))
        alive = run.processes()
        kind = dice.choice(sorted(alive)) if alive else ""
        if not kind:
            continue
        number = signal.SIGTERM if dice.random() < 0.25 else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(dice.choice(sorted(alive[kind])), number)
            rows.append({"victim": kind, "signal": number.name, "step": steps(run.folder), "start": run.starts})
            console.print(f"kill {len(rows)}: {kind}, {number.name}, step {rows[-1]['step']}", markup=False)


def take_away_orphans(run: Run) -> None:
    """What a killed torchrun left running is ended, as a cluster ends everything of a job before it starts it again."""
    run.end()


def steps(folder: Path) -> int:
    """The last step that the run has logged."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
    return 0


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def compare(one: Path, other: Path) -> list[str]:
    """Names of the tensors that differ between two checkpoints."""
    a, b = (torch.load(path, map_location="cpu", weights_only=True) for path in (one, other))
    different = []
    for part in ("state_dict", "current_model_state", "optimizer_states", "global_step", "epoch"):
        x, y = tensors(a.get(part), part), tensors(b.get(part), part)
        different += [k for k in {**x, **y} if k not in x or k not in y or not torch.equal(x[k], y[k])]
    return different


def tensors(value: Any, name: str) -> dict[str, torch.Tensor]:
    """All tensors and numbers of nested containers, by path."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in tensors(item, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in tensors(item, f"{name}[{i}]").items()}
    if isinstance(value, torch.Tensor):
        return {name: value}
    return {name: torch.tensor(float(value))} if isinstance(value, int | float) else {}


def summary(rows: list[dict[str, Any]]) -> Table:
    """How often what was hit, and with what."""
    table = Table("process", "SIGKILL", "SIGTERM", title="kills")
    for kind in sorted({row["victim"] for row in rows}):
        counts = [sum(r["victim"] == kind and r["signal"] == s for r in rows) for s in ("SIGKILL", "SIGTERM")]
        table.add_row(kind, *map(str, counts))
    return table


if __name__ == "__main__":
    sys.exit(main())
