"""The attention benchmark: rows are appended and not measured twice, growth is checked, plain forms are the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import attention_table
import benchmark_attention as benchmark

from vistrain.attention.base import AttentionOperator
from vistrain.attention.choice import ChosenOperator, names
from vistrain.attention.halo import HaloAttention
from vistrain.attention.hip import HiPAttention


@pytest.fixture(autouse=True)
def threads() -> Any:
    """The tool sets how many there are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def row(operator: str, tokens: int, ms: float, growth: str = "N") -> dict[str, Any]:
    times = {"forward_ms": ms, "forward_backward_ms": 3 * ms, "peak_mib": tokens / 100}
    at = {"operator": operator, "tokens": tokens, "device": "cpu", "precision": "32"}
    return {**at, "real_tokens": tokens, "growth": growth, **times}


def test_costs_are_measured_once_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "--output", str(tmp_path), "--operators", "softmax", "window", "--tokens", "49", "196"]
    assert benchmark.main([*command, "--repeats", "1"]) == 0
    first = (tmp_path / "cost.csv").read_text()
    assert len(first.splitlines()) == 5
    assert benchmark.main([*command, "--repeats", "1"]) == 0
    assert (tmp_path / "cost.csv").read_text() == first
    assert benchmark.main(["tables", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "cost_cpu_32.png").stat().st_size > 10_000
    assert "| `softmax` | O(N^2) |" in capsys.readouterr().out


def test_growth_above_what_is_stated_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = benchmark.Rows(tmp_path / "cost.csv", benchmark.COST_KEYS)
    for found in (row("honest", 4096, 10), row("honest", 16384, 43), row("sqrt", 4096, 10), row("sqrt", 16384, 80)):
        rows.append(found)
    assert benchmark.check_growth(rows, "cpu", "32") == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if "states" in line] == ["ok", "TOO"]
    assert "forward 1.50" in said[-1]


@pytest.mark.parametrize("cls", benchmark.PLAIN, ids=benchmark.short_name)
def test_plain_formulations_compute_the_same(cls: type[AttentionOperator]) -> None:
    size = (16, 16) if cls in (HaloAttention, HiPAttention) else (14, 14)
    torch.manual_seed(0)
    operator = ChosenOperator(cls, {}).build(16, 2, size, layer=1, layers=2).eval()
    x = torch.randn(2, size[0] * size[1], 16)
    torch.testing.assert_close(benchmark.PLAIN[cls][0](operator, x, size), operator(x, size), rtol=1e-5, atol=2e-5)


def test_a_training_run_says_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "STEPS", 2)
    data = [x[:70] for x in benchmark.gratings()]
    found = benchmark.train(names()["window"], {"in_chans": 3}, data, 0)
    assert found["steps"] == 2
    assert found["parameters"] > 50_000
    assert found["multiply_adds"] > 1_000_000
    assert 0 <= float(found["accuracy"]) <= 100


def test_the_table_of_the_page_is_what_operators_say() -> None:
    assert attention_table.main(["--check"]) == 0
