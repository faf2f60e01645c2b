"""What a process knows of its launcher and its machine, and how it leaves: ranks, cores, exit codes and signals.

Clusters send SIGTERM (with SIGKILL to follow) or SIGUSR1 (SLURM's warning ahead of time), people press Ctrl-C or close
the terminal (SIGHUP).
`callbacks.Preemption` deals with them while a run trains; before and after that, a process leaves at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vistrain.errors import ConfigError

log = logging.getLogger(__name__)

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again
INTERRUPTED = 130  # what shells report after Ctrl-C
SPINS = "10000"  # rounds that a thread waits before it sleeps, instead of 300000
PREEMPTIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
STUCK_SECONDS = 5.0  # that a process is given to leave by itself; it may wait in C for others, where Python cannot stop

Handler = Callable[[int, Any], None] | signal.Handlers | int | None


def exit_code(number: int) -> int:
    """The exit code that a signal leads to: 130 for Ctrl-C, 75 for all others."""
    return INTERRUPTED if number == signal.SIGINT else REQUEUE


def install(handlers: Mapping[int, Handler]) -> dict[int, Handler]:
    """Sets handlers by signal; those that were there before, for setting them back.

    Only the main thread may do this; in another one nothing is set, and nothing returned. A SIGHUP that is ignored
    (`nohup`) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: handler for number, handler in handlers.items() if not _outlives_terminal(number)}
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        # None: a handler that is not Python's, which cannot be set back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    return before


def _outlives_terminal(number: int) -> bool:
    return signal.Signals(number).name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Inside, a pre-emption ends the process with code 75 at once: no step was taken, or all is saved already. Ctrl-C
    does with 130, as ever. So does either where Python waits for other processes in C, and does not come to it.

    Raises:
        SystemExit: from the handler, with code 75.
        KeyboardInterrupt: on Ctrl-C.
    """
    before = install({**dict.fromkeys(PREEMPTIONS, _leave), signal.SIGINT: _interrupt})
    try:
        with _ending_if_stuck():
            yield
    finally:
        install(before)


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """As `leaving_at_once`, but however long C takes: what was found until then is yet to be written.

    Raises:
        SystemExit: from the handler, with code 75.
    """
    before = install(dict.fromkeys(PREEMPTIONS, _leave))
    try:
        yield
    finally:
        install(before)


def _leave(number: int, frame: Any) -> None:
    raise SystemExit(exit_code(number))


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _ending_if_stuck() -> Iterator[None]:
    """A thread that hears of signals at once, from C's handler, and ends the process if nothing comes of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before, left = signal.set_wakeup_fd(writing, warn_on_full_buffer=False), threading.Event()
    threading.Thread(target=_watch, args=(reading, left), daemon=True, name="signals").start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writing)


def _watch(reading: int, left: threading.Event) -> None:
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while heard := pipe.read(1):  # empty once the other end is closed
            number = heard[0]
            # While a run trains, its own handlers are set, and it leaves at the end of a step.
            if signal.getsignal(number) in (_leave, _interrupt) and not left.wait(STUCK_SECONDS):
                os._exit(exit_code(number))


def came_of_interrupt(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or came while it was dealt with: imports and Lightning make others of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def started_at(process: int) -> int | None:
    """When a process started, in the system's own count; 0 where it does not tell, None if there is no such process."""
    try:
        # After the name, which may hold anything, in brackets: state, parent ...; the 22nd field of all is the start.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError, ValueError):
        return 0
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return 0
    return 0


def is_stopped(process: int) -> bool:
    """Whether a process was told to stop (SIGSTOP, Ctrl-Z) and waits to be continued, where the system tells."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def restarted() -> bool:
    """Whether torchrun or SLURM says that it started this very command before."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


def is_first() -> bool:
    """Whether this is the process that speaks for all; before anything of torch is imported."""
    environ = os.environ
    if "RANK" in environ:  # torchrun
        return environ["RANK"] == "0"
    # Lightning's launcher (and on which machine it was started), srun, mpirun, jsrun
    names = ("LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JSM_NAMESPACE_RANK")
    rank = next((environ[name] for name in names if name in environ), "0")
    return rank == environ.get("NODE_RANK", "0") == "0"


def launched() -> dict[str, int]:
    """`devices` per machine and `num_nodes` as torchrun or srun started this process; empty without them.

    They know how many processes there are, so a config need not repeat it.
    """
    environ = os.environ
    if "TORCHELASTIC_RUN_ID" in environ:
        local = int(environ["LOCAL_WORLD_SIZE"])
        return {"devices": local, "num_nodes": int(environ["WORLD_SIZE"]) // local}
    by_srun = environ.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in environ
    if by_srun and "SLURM_NTASKS" in environ and environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", "1")))
        return {"devices": int(environ["SLURM_NTASKS"]) // nodes, "num_nodes": nodes}
    return {}


def refuse_waiting_alone(machines: int) -> None:
    """Refuse to wait for other machines where nothing says which; it would be for ever, and in silence.

    Args:
        machines: `trainer.num_nodes`.

    Raises:
        ConfigError: there should be several, and neither a launcher nor `MASTER_ADDR` says who the others are.
    """
    environ = os.environ
    if machines == 1 or launched() or "SLURM_NTASKS" in environ:
        return
    if "MASTER_ADDR" not in environ or "NODE_RANK" not in environ:
        raise ConfigError(
            "trainer.num_nodes",
            f"{machines} machines, but nothing says which the others are",
            "start it on each by torchrun or srun (docs/distributed.md), or set MASTER_ADDR, MASTER_PORT and NODE_RANK",
        )
    log.info("waiting for %d machines at %s:%s", machines, environ["MASTER_ADDR"], environ.get("MASTER_PORT", "?"))


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of memory that the machine has; 0 where it does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def resident_memory() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not tell (no `/proc`)."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def load_average() -> float | None:
    """Threads of all programs that ran or wanted to, on average over the last minute; None where nothing tells."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows; a system that does not say
        return None


def wait_gently() -> None:
    """Let threads that wait for each other sleep after a while; to be called before torch, which reads it, is loaded.

    GNU's OpenMP, which torch's Linux wheels bring, lets them spin thirty times longer by default. Beside other programs
    they then take the very core that the thread they wait for needs. The demo on two cores, images per second: 41.9 by
    default, 42.5 so; beside one busy program 7 to 10, 8 to 13 so; beside four 3.3, 4.0 to 8.7 so. Sleeping
    at once (`OMP_WAIT_POLICY=PASSIVE`) costs a quarter of an idle machine's speed. What the user set stays.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def shares_store() -> bool:
    """Whether torchrun will restart this process, and the restarted ones will meet in the store of the lost ones.

    They then find addresses there that nobody answers at, and fail or hang (torch 2.11 to 2.15, gloo).
    """
    return (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0"
    )
