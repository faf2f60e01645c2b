"""What a process knows of its machine, and how its threads wait."""

import os
import signal
import subprocess
import sys

import pytest

from vistrain import processes
from vistrain.errors import ConfigError


def test_threads_wait_gently_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "x")  # so that all is as before in the end
        monkeypatch.delenv(name)
    processes.wait_gently()
    assert os.environ["GOMP_SPINCOUNT"] == processes.SPINS
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    processes.wait_gently()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    processes.wait_gently()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_torch_reads_how_threads_wait() -> None:
    """The variable counts only if it is there when the library is loaded."""
    code = "from vistrain import processes; processes.wait_gently(); import torch"
    environ = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environ["OMP_DISPLAY_ENV"] = "VERBOSE"
    shown = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{processes.SPINS}'" in shown


def test_the_load_is_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 1.0, 0.5), raising=False)
    assert processes.load_average() == 2.5

    def fails() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", fails)
    assert processes.load_average() is None
    monkeypatch.delattr(os, "getloadavg")
    assert processes.load_average() is None


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with processes.leaving_at_once():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(SystemExit) as left, processes.leaving_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
        assert left.value.code == 75
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


STUCK = """
import contextlib, ctypes, sys
from vistrain import processes
processes.STUCK_SECONDS = 0.2
with processes.leaving_at_once(), contextlib.suppress(KeyboardInterrupt):
    mutex = ctypes.create_string_buffer(128)
    wait = ctypes.CDLL(None).pthread_mutex_lock
    wait(mutex)
    print("waiting", flush=True)
    wait(mutex)  # for ever, in C, deaf to Python's handlers
sys.exit(130)  # the signal came before that
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_a_process_that_is_stuck_in_c_ends_nevertheless(number: int, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        try:
            assert process.wait(60) == code
        finally:
            process.kill()


def test_ctrl_c_is_known_whatever_became_of_it() -> None:
    assert processes.came_of_interrupt(KeyboardInterrupt())
    error = ImportError("half of a module")
    error.__context__ = KeyboardInterrupt()
    outer = SystemExit(1)
    outer.__cause__ = error
    assert processes.came_of_interrupt(outer)
    assert not processes.came_of_interrupt(ValueError())


def test_ctrl_c_before_the_command_line_is_there_ends_without_a_traceback() -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'vistrain.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "from vistrain import __main__\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""


def test_processes_are_known_by_number_and_start() -> None:
    own = processes.started_at(os.getpid())
    assert own == processes.started_at(os.getpid()) is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert processes.started_at(child.pid) is not None
        assert not processes.is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert processes.is_stopped(child.pid)
        child.kill()
    assert processes.started_at(child.pid) is None
    assert not processes.is_stopped(child.pid)


def test_nobody_waits_for_machines_that_nothing_names(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("MASTER_ADDR", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    processes.refuse_waiting_alone(1)
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes: 2 machines, but nothing says which"):
        processes.refuse_waiting_alone(2)
    caplog.set_level("INFO", "vistrain")
    monkeypatch.setenv("MASTER_ADDR", "one")
    monkeypatch.setenv("NODE_RANK", "1")
    processes.refuse_waiting_alone(2)
    assert "waiting for 2 machines at one:" in caplog.text
