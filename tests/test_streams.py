"""Commands outlive their output."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vistrain.streams import Enduring, enduring

LIST = [sys.executable, "-m", "vistrain", "list", "configs"]


class Failing(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def test_a_stream_goes_quiet_where_it_cannot_be_written() -> None:
    for number, cut_off in ((32, True), (5, True), (28, False)):
        stream = Enduring(Failing(number))
        assert stream.write("abc") == 3
        stream.writelines(["a", "b"])
        stream.flush()
        assert stream.failure is not None
        assert stream.failure.errno == number
        assert stream.was_cut_off is cut_off
    closed = io.StringIO()
    closed.close()
    Enduring(closed).write("x")
    Enduring(closed).flush()


def test_what_cannot_be_encoded_is_written_with_backslashes() -> None:
    raw = io.BytesIO()
    stream = Enduring(io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    stream.write("a\udcffb")
    assert raw.getvalue() == b"a\\udcffb"
    assert stream.encoding == "utf-8"


def test_a_pipe_without_a_reader_leads_nowhere_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with enduring() as output:
            print("x" * 100_000)  # noqa: T201
            print("more")  # noqa: T201
            output.flush()
            assert output.was_cut_off
        assert sys.stdout is pipe
        pipe.write("the descriptor is sound again")


def test_streams_that_are_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with enduring():
        print("x", file=sys.stderr)  # noqa: T201
    assert sys.stdout is None


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("| head -1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (">/dev/full", 2, "vistrain: standard output: cannot be written (No space left on device)"),
        (">/dev/full 2>&1", 2, ""),
    ],
)
def test_a_command_whose_output_ends(redirected: str, code: int, said: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    line = f"{' '.join(LIST)} {redirected}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr
