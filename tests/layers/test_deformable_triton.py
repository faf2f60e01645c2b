"""The Triton core of deformable sampling: where it runs, and its kernels, see `deformable_triton_cases.py`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vistrain.layers import deformable
from vistrain.layers.deformable import MSDeformAttn, choose_core


@pytest.mark.slow
@pytest.mark.skipif(not deformable.HAS_TRITON, reason="Triton is not installed")
def test_kernels_in_the_interpreter() -> None:
    cases = Path(__file__).with_name("deformable_triton_cases.py")
    command = [sys.executable, "-m", "pytest", str(cases), "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def test_where_it_runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(deformable, "HAS_TRITON", True)
    assert choose_core(cuda, needs_grad=True) == "grid_sample"  # until a card has measured the kernel
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_core(cuda, needs_grad=True) == "embedding_bag"
        assert not deformable._triton_serves(cuda)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert deformable._triton_serves(cuda)
    assert not deformable._triton_serves(torch.device("cpu"))
    monkeypatch.setattr(deformable, "HAS_TRITON", False)
    assert not deformable._triton_serves(cuda)
    deformable._say_that_triton_is_missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            MSDeformAttn(16, 2, 1, 1, core="triton")
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: deformable attention uses a plain core (pip install triton)"
    ]
