"""What a process knows of its machine, and how its threads wait."""

import os
import subprocess
import sys

import pytest

from vistrain import processes


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
