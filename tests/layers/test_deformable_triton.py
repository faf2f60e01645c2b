"""The Triton core of deformable sampling: where it runs, and its kernels, see `deformable_triton_cases.py`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vistrain import devices
from vistrain.layers.deformable import MSDeformAttn, choose_core


@pytest.mark.slow
@pytest.mark.skipif(bool(devices.triton_lacks()), reason="Triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    cases = [str(Path(__file__).with_name(f"{name}_triton_cases.py")) for name in ("deformable", "neighborhood")]
    command = [sys.executable, "-m", "pytest", *cases, "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was found out about Triton is found out anew."""
    yield
    devices.triton_lacks.cache_clear()
    devices.say_without_triton.cache_clear()


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(devices, "triton_lacks", lambda: "")
    assert choose_core(cuda, needs_grad=True) == "grid_sample"  # until a card has measured the kernel
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_core(cuda, needs_grad=True) == "embedding_bag"
        assert not devices.triton_serves(cuda)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert devices.triton_serves(cuda)
    assert not devices.triton_serves(torch.device("cpu"))
    monkeypatch.setattr(devices, "triton_lacks", lambda: "x")
    assert not devices.triton_serves(cuda)
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    for reason in ("Triton is not installed (pip install triton)", ""):
        monkeypatch.setattr(devices, "triton_lacks", lambda reason=reason: reason)
        devices.say_without_triton.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                MSDeformAttn(16, 2, 1, 1, core="triton")
        reason = reason or "Triton's kernels want a CUDA device, and there is none"
        assert [record.message for record in caplog.records] == [f"{reason}: deformable attention uses a plain core"]


def test_what_triton_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = devices.triton_lacks
    old = "Triton 3.1.0 is older than 3.2 (pip install -U triton)"
    for version, expected in (("3.9.0", ""), ("3.2.0", ""), ("3.1.0", old)):
        lacks.cache_clear()
        monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(devices.importlib.metadata, "version", lambda name, version=version: version)
        assert lacks() == expected
    lacks.cache_clear()
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda name: "3.9.0")
    monkeypatch.setitem(sys.modules, "triton.language", None)  # which raises ImportError
    assert lacks().startswith("Triton cannot be imported: import of triton.language halted")
    lacks.cache_clear()
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert lacks() == "Triton is not installed (pip install triton)"
