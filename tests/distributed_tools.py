"""Running things in several processes: with time limits, with their output kept, and with nothing left behind.

Two ways. `run_ranks` calls a function on every rank in processes forked from a server that has imported torch and
vistrain already: half a second instead of five. `Job` starts a real command (torchrun, Lightning's own launcher) and
owns everything that it starts, grandchildren and orphans included, by a mark in their environment.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

REPOSITORY = Path(__file__).parent.parent
MARK = "VISTRAIN_TEST_JOB"
PRELOADED = ["vistrain.cli", "vistrain.run", "vistrain.detection", "vistrain.restoration", "vistrain.classification"]


def patience() -> float:
    """How much longer than on an idle machine things may take: how many processes now want each core, 1 to 20."""
    return min(max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))), 20.0)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on.

    It is none of those that the system hands out (above 32767): another process's connection could take it meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)  # seeded draws would be another test's, too
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(**more: str) -> dict[str, str]:
    """The environment of a started process: this one's, with a thread each and no other launcher's variables."""
    foreign = ("SLURM_", "TORCHELASTIC_", "PL_", "GROUP_", "ROLE_")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in names}
    path = os.pathsep.join([str(REPOSITORY / "tests"), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


# ---------------------------------------------------------------- functions


def run_ranks(
    function: Callable[..., Any],
    world: int,
    *arguments: Any,
    limit: float = 60.0,
    init: bool = True,
    timeout: float | None = None,
) -> list[Any]:
    """Call `function(*arguments)` in `world` processes at once; what it returned, by rank.

    The function must be importable (top level of a test module), arguments and results picklable. Inside,
    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, so a Lightning `Trainer(devices=world)` joins
    instead of launching. With one process nothing is initialised.

    Args:
        limit: seconds on an idle machine (see `patience`) after which everything is killed and the test fails.
        init: initialise torch.distributed (gloo) before; otherwise the function, or Lightning, does.
        timeout: seconds that a collective of that default group waits; None: 60 on an idle machine.

    Raises:
        AssertionError: with the traceback of every rank that raised, or naming the ranks that hung.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # type: ignore[attr-defined]
    folder = tempfile.mkdtemp(prefix="ranks")
    port, pipes, processes = free_port(), [], []
    try:
        for rank in range(world):
            ours, theirs = context.Pipe(duplex=False)
            setting = (rank, world, port, folder, init, timeout or 60 * patience())
            process = context.Process(target=_rank, args=(theirs, setting, function, arguments), daemon=False)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return _results(pipes, time.monotonic() + limit * patience())
    finally:
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _results(pipes: list[Connection], deadline: float) -> list[Any]:
    found: dict[int, Any] = {}
    failed: list[str] = []
    while len(found) < len(pipes):
        waiting = [p for i, p in enumerate(pipes) if i not in found]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [i for i in range(len(pipes)) if i not in found]
            raise AssertionError("\n".join([f"time is up: no answer from ranks {missing}", *failed]))
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pipes.index(pipe)
            try:
                good, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                good, value = False, "died without a word"
            found[rank] = value
            if not good:
                failed.append(f"--- rank {rank}\n{value}")
                deadline = min(deadline, time.monotonic() + 2)  # its peers will hang or fail; hear them out shortly
    if failed:
        raise AssertionError("\n".join(failed))
    return [found[i] for i in range(len(pipes))]


def _rank(pipe: Connection, setting: tuple[Any, ...], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    rank, world, port, folder, init, timeout = setting
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC_"))]:
        del os.environ[name]
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    torch.set_num_threads(1)
    distributed = torch.distributed
    try:
        if init and world > 1:
            store = f"file://{folder}/store"
            limit = timedelta(seconds=timeout)
            distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
        answer = (True, function(*arguments))
    except BaseException:  # SystemExit too: the parent must hear of everything
        answer = (False, traceback.format_exc())
    # Plain pickle: torch's own reducer would send file descriptors that die with this process.
    pipe.send_bytes(pickle.dumps(answer))
    pipe.close()
    if answer[0] and distributed.is_initialized():
        with contextlib.suppress(Exception):
            distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no exit handlers: a child of the server runs none of its own, and gloo's threads may linger


# ---------------------------------------------------------------- commands


class Job:
    """A command and all that it starts. A context manager: at its end nothing of it is left.

    Args:
        command: the program and its arguments.
        env: added to `environment()`.
        folder: working directory.

    Attributes:
        started: `time.monotonic()` at the start.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self.name = uuid.uuid4().hex
        self._file = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(command),
            env=environment(**(env or {}), **{MARK: self.name}),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        """What all its processes have printed so far."""
        return Path(self._file.name).read_text(errors="replace")

    def wait(self, limit: float = 60.0) -> int:
        """Its exit code.

        Raises:
            AssertionError: it did not end within `limit` seconds (on an idle machine, see `patience`); everything is
                killed, the output is in the message.
        """
        limit *= patience()
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            output = self.output
            self.kill()
            raise AssertionError(f"no end after {limit:.0f} s:\n{output[-8000:]}") from None

    def wait_for(self, condition: Callable[[], Any], limit: float = 60.0) -> Any:
        """Poll until `condition()` is true, and return its value; fails if the command ends or time is up before."""
        limit *= patience()
        end = time.monotonic() + limit
        while not (value := condition()):
            if self.process.poll() is not None and not (value := condition()):
                raise AssertionError(f"ended with {self.process.returncode} before it happened:\n{self.output[-8000:]}")
            if value:
                break
            if time.monotonic() > end:
                raise AssertionError(f"did not happen within {limit:.0f} s:\n{self.output[-8000:]}")
            time.sleep(0.02)
        return value

    def pids(self) -> list[int]:
        """Every live process that it started, orphans included."""
        return [pid for pid, env in _environments() if env.get(MARK) == self.name]

    def leaves_nothing(self, limit: float = 60.0) -> bool:
        """Whether all that it started has ended, or does within `limit` seconds: the system needs a moment for it."""
        end = time.monotonic() + limit
        while self.pids() and time.monotonic() < end:
            time.sleep(0.02)
        return not self.pids()

    def rank_pid(self, rank: int) -> int | None:
        """The process of one rank under torchrun or Lightning's launcher (not its data workers), or None."""
        mine = {pid: env for pid, env in _environments() if env.get(MARK) == self.name}
        ranks = {pid: env.get("RANK", env.get("LOCAL_RANK")) for pid, env in mine.items()}
        if rank == 0 and set(ranks.values()) <= {None, "1", "2", "3"} and any(ranks.values()):
            return self.process.pid  # Lightning's launcher: the command itself is rank 0
        found = [pid for pid, own in ranks.items() if own == str(rank) and ranks.get(_parent(pid)) != own]
        return found[0] if found else None

    def kill(self) -> None:
        """SIGKILL to everything, until nothing is left."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process.pid in pids:
                self.process.wait()
            time.sleep(0.01)

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.process.wait()
        self._file.close()
        os.unlink(self._file.name)


def torchrun(
    arguments: Sequence[str],
    *,
    processes: int = 2,
    nodes: int = 1,
    port: int | None = None,
    restarts: int = 0,
    module: bool = True,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Job:
    """Start one torchrun agent. For several nodes call it once per node with the same `port` (see `free_port`).

    Args:
        arguments: of the program: `["vistrain", "fit", ...]` with `module`, else a script and its arguments.
    """
    rendezvous = ["--standalone"]
    if nodes > 1:
        # The c10d backend binds the first agent that comes; a store shared with the workers can hang after a restart.
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
        env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **(env or {})}
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, f"--nnodes={nodes}"]
    command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    return Job([*command, *(["-m"] if module else []), *arguments], env=env, folder=folder)


def vistrain(*arguments: str, env: Mapping[str, str] | None = None, folder: Path | None = None) -> Job:
    """Start `vistrain ...`; with `trainer.devices=2 trainer.accelerator=cpu` Lightning launches the second process."""
    return Job([sys.executable, "-m", "vistrain", *arguments], env=env, folder=folder)


def run_all(jobs: Sequence[Job], limit: float = 60.0) -> list[str]:
    """Wait for jobs that belong together, for each at most `limit`, and clean up after them; their outputs.

    All must end with exit code 0.
    """
    with contextlib.ExitStack() as stack:
        for job in jobs:
            stack.enter_context(job)
        codes = [job.wait(limit) for job in jobs]
        outputs = [job.output for job in jobs]
    assert not any(codes), f"exit codes {codes}:\n" + "\n".join(output[-6000:] for output in outputs)
    return outputs


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Processes come and go, and some are other people's.
            with contextlib.suppress(OSError):
                if "\nState:\tZ" in (entry / "status").read_text():
                    continue
                pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                yield int(entry.name), dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
